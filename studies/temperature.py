"""Temperature scaling of trained runs: how they differ at equal calibration (docs/evidence/scarce.md).

    python -m studies.temperature --cell=runs/retest_photographs20/ce --out=temperature.csv

For each run `seed…` of the cell, one temperature is fitted on the validation split: it minimises the cross-entropy of
logits / temperature (Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599). The network with its
last layer divided by it is then measured on --split, by the metrics that depend on probabilities. The predicted
class, and a gradient map up to its scale, stay the same.
"""

import pathlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from configs.sweeps import scarce
from sdecor import evaluation
from sdecor.data import evaluation_batches
from sdecor.evaluation import programs, runs
from studies import trained

BATCH = 250
BOUNDS = (0.05, 20.0)
METRICS = ["insertion"]  # the measure that sums probabilities; accuracy, cross-entropy and calibration come with it


def fit(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature in `BOUNDS` with the smallest cross-entropy of logits `[N, K]` / temperature."""
    logits, rows = np.asarray(logits, np.float64), np.arange(len(labels))
    loss = lambda log_t: -log_softmax(logits / np.exp(log_t), axis=1)[rows, labels].mean()  # noqa: E731
    return float(np.exp(minimize_scalar(loss, bounds=np.log(BOUNDS), method="bounded").x))


def predict(run: runs.Run) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits `[N, K]` and labels `[N]` of a run's split."""
    apply, setup = jax.jit(run.apply), runs.setup_of(run)
    logits, labels = [], []
    for batch in evaluation_batches(runs.source_of(run), batch_size=BATCH):
        found, _ = apply(run.variables, programs.images_of(setup, batch))
        real = batch["weight"] > 0
        logits.append(np.asarray(found)[real])
        labels.append(batch["label"][real])
    return np.concatenate(logits), np.concatenate(labels)


def scaled(variables: Mapping[str, Any], temperature: float) -> dict[str, Any]:
    """Return the variables of a network whose logits are those of `variables` / temperature."""
    params = dict(variables["params"])
    params["head"] = jax.tree.map(lambda weight: weight / temperature, params["head"])
    return {**variables, "params": params}


def rows(folder: pathlib.Path, split: str) -> Iterator[trained.Row]:
    """Yield (cell, measure, value) of a run; those after scaling are named scaled/…."""
    cell = folder.parent.name
    temperature = fit(*predict(trained.restore(folder, "val")))
    run = trained.restore(folder, split, **scarce.COUNTS)
    run = replace(run, variables=scaled(run.variables, temperature))
    yield cell, "temperature", temperature
    for key, each in trained.measure(run, evaluation.choose_methods(["gradient"]), METRICS).items():
        yield cell, f"scaled/{key}", each["mean"]


if __name__ == "__main__":
    trained.write_rows(__doc__, rows)
