"""Temperature scaling of trained runs: how they differ at equal calibration (docs/evidence/scarce.md).

    python -m studies.temperature --cell=runs/retest_photographs20/ce --out=temperature.csv

For each run `seed…` of the cell, a temperature is fitted on the validation split. The run is then measured at it on
--split, by the metrics that depend on probabilities. `evaluate.py --temperature=fitted` does the same for single runs.
"""

import pathlib
from collections.abc import Iterator

from configs.sweeps import scarce
from sdecor import evaluation
from sdecor.evaluation import temperature
from studies import trained

METRICS = ["insertion"]  # the measure that sums probabilities; accuracy, cross-entropy and calibration come with it


def rows(folder: pathlib.Path, split: str) -> Iterator[trained.Row]:
    """Yield (cell, measure, value) of a run; those after scaling are named scaled/…."""
    cell = folder.parent.name
    run = temperature.with_fitted_temperature(trained.restore(folder, split, **scarce.COUNTS))
    yield cell, "temperature", run.settings["temperature"]
    for key, each in trained.measure(run, evaluation.choose_methods(["gradient"]), METRICS).items():
        yield cell, f"scaled/{key}", each["mean"]


if __name__ == "__main__":
    trained.write_rows(__doc__, rows)
