"""Choose a coefficient for each training method from validation data, by the rule of docs/evidence/first_studies.md.

    python -m studies.choose docs/evidence/tuning_scenes.csv

The cells of a method are named METHOD_…; the reference is the cell `ce`. A cell's gain in a metric is its mean
difference to the reference over the seeds that both have. A cell's score is its mean gain in the four primary saliency
metrics, each in units of its standard deviation over all cells. The choice is the cell with the highest score among
those whose accuracy is at most 2 percentage points below the reference's. If there are none, it is the cell with the
highest accuracy.
"""

import csv
import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from configs.sweeps.evidence import PRIMARY
from sdecor.evaluation.statistics import paired_test
from sdecor.report.wording import direction

REFERENCE, MARGIN = "ce", 0.02 + 1e-9  # the small number allows for rounding
Values = Mapping[str, Mapping[str, Mapping[int, float]]]


def read(path: pathlib.Path) -> dict[str, dict[str, dict[int, float]]]:
    """Return the values of a sweep's results.csv, as cell → metric → seed → value."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["value"]:
                found.setdefault(row["cell"], {}).setdefault(row["measure"], {})[int(row["seed"])] = float(row["value"])
    return found


def gains(values: Values) -> dict[str, dict[str, float]]:
    """Return mean gains over the reference, as cell → primary metric → gain; positive is better."""
    return {
        cell: {
            key: (1 if direction(key) else -1) * paired_test(found[key], values[REFERENCE][key]).mean for key in PRIMARY
        }
        for cell, found in values.items()
    }


def scores(gained: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return each cell's mean gain in the saliency metrics, in units of their standard deviation over the cells."""
    saliency = [key for key in PRIMARY if key != "accuracy"]
    spread = {key: np.std([each[key] for each in gained.values()], ddof=1) for key in saliency}
    return {cell: float(np.mean([each[key] / spread[key] for key in saliency])) for cell, each in gained.items()}


def choose(gained: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Return the chosen cell of each method."""
    scored, methods = scores(gained), {}
    for cell in gained:
        methods.setdefault(cell.split("_")[0], []).append(cell)
    chosen = {}
    for method, cells in methods.items():
        allowed = [cell for cell in cells if gained[cell]["accuracy"] >= -MARGIN]
        chosen[method] = max(allowed, key=scored.get) if allowed else max(cells, key=lambda c: gained[c]["accuracy"])
    return chosen


def main(arguments: Sequence[str]) -> None:
    for name in arguments:
        gained = gains(read(pathlib.Path(name)))
        scored, chosen = scores(gained), choose(gained)
        print(f"| {name} | score | {' | '.join(PRIMARY)} |")
        for cell in sorted(gained, key=lambda cell: (cell.split("_")[0], -scored[cell])):
            mark = " (chosen)" if cell in chosen.values() else ""
            print(f"| {cell}{mark} | {scored[cell]:+.2f} | {' | '.join(f'{gained[cell][k]:+.4f}' for k in PRIMARY)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
