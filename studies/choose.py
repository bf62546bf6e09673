"""Choose a coefficient for each method from runs on validation data, by the rule of docs/evidence.md.

    python -m studies.choose docs/evidence/tuning_scenes.csv

A method's cells are named METHOD_…; the reference is the cell `ce`. A cell's gain over it in a measure is the mean
over the seeds that both have; its score is the mean gain in the four primary saliency measures, each in units of its
standard deviation over all cells. The choice is the highest score among the cells whose accuracy is at most 2 points
of a per cent below the reference's; where none is, the cell of the highest accuracy.
"""

import csv
import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from configs.sweeps.evidence import PRIMARY
from sdecor.evaluation.statistics import paired_test
from sdecor.report.wording import direction

REFERENCE, MARGIN = "ce", 0.02 + 1e-9  # of rounding
Values = Mapping[str, Mapping[str, Mapping[int, float]]]


def read(path: pathlib.Path) -> dict[str, dict[str, dict[int, float]]]:
    """Return cell → measure → seed → value of a sweep's results.csv."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["value"]:
                found.setdefault(row["cell"], {}).setdefault(row["measure"], {})[int(row["seed"])] = float(row["value"])
    return found


def gains(values: Values) -> dict[str, dict[str, float]]:
    """Return cell → primary measure → mean gain over the reference, positive where it is better."""
    return {
        cell: {
            key: (1 if direction(key) else -1) * paired_test(found[key], values[REFERENCE][key]).mean for key in PRIMARY
        }
        for cell, found in values.items()
    }


def scores(gained: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return cell → mean gain in the saliency measures, each in units of its standard deviation over the cells."""
    saliency = [key for key in PRIMARY if key != "accuracy"]
    spread = {key: np.std([each[key] for each in gained.values()], ddof=1) for key in saliency}
    return {cell: float(np.mean([each[key] / spread[key] for key in saliency])) for cell, each in gained.items()}


def choose(gained: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Return method → chosen cell."""
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
