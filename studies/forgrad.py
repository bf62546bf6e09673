"""FORGrad on trained runs: what a low pass gives to the gradient's maps for nothing (docs/evidence/scarce.md).

    python -m studies.forgrad --cell=runs/retest_photographs20/ce --out=forgrad.csv

For each run `seed…` of the cell, the cut-off of `low_passed` is chosen on validation images, by insertion minus
deletion. The gradient, and the gradient under this cut-off, are then measured on the test split. The file has a row for
each seed and value, as a sweep's results.csv.
"""

import argparse
import csv
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from configs.sweeps import scarce
from sdecor import evaluation
from sdecor.attribution import gradient, low_passed
from sdecor.evaluation import runs, summary

CUTOFFS = (2, 4, 8, 12, 16, 24, 32)  # of 32 pixels; the last keeps everything
CHOOSING = 500  # validation images
NAME = "forgrad"


def methods(cutoffs: tuple[int, ...]) -> dict[str, tuple[evaluation.Method, bool]]:
    """Return the gradient under each cut-off, as `evaluation.choose_methods` gives methods."""
    chosen = {}
    for cutoff in cutoffs:
        key = f"{NAME}:cutoff={cutoff}"
        chosen[key] = (evaluation.Method(key, low_passed(gradient, float(cutoff))), True)
    return chosen


def measure(folder: pathlib.Path, split: str, methods: Mapping[str, Any], metrics: list[str], **images: int) -> dict:
    """Return the summary of a run's latest checkpoint on a split: measure → numbers with their interval."""
    run = runs.restore(str(folder), checkpoint="latest", split=split, evaluation=images)
    plan, _ = runs.plan_of(run, methods, evaluation.choose_metrics(metrics))
    with tempfile.TemporaryDirectory() as scratch:
        store = evaluation.Store(scratch, runs.depends_of(run))
        store.complete(plan, runs.subject_of(run, plan), _silent)
        return summary.summarise(plan.select(store.results), n_resamples=1)


@contextmanager
def _silent(what: str, count: int) -> Iterator[Any]:
    yield lambda done: None


def choose(found: Mapping[str, Mapping[str, Any]], cutoffs: tuple[int, ...]) -> int:
    """Return the cut-off whose maps have the largest insertion minus deletion; the larger of two equally good ones."""

    def score(cutoff: int) -> float:
        insertion, deletion = (found[f"{NAME}:cutoff={cutoff}/{name}"]["mean"] for name in ("insertion", "deletion"))
        return insertion - deletion

    return max(cutoffs, key=lambda cutoff: (score(cutoff), cutoff))


def rows(folder: pathlib.Path) -> Iterator[tuple[str, str, Any]]:
    """Yield (cell, measure, value) of a run: its gradient, and its gradient under the chosen cut-off."""
    found = measure(folder, "val", methods(CUTOFFS), ["insertion", "deletion"], curve_images=CHOOSING)
    cutoff = choose(found, CUTOFFS)
    both = methods((cutoff,)) | evaluation.choose_methods(["gradient"])
    counts = {name: count for name, count in scarce.TEST.items() if name in ("curve_images", "robustness_images")}
    tested = measure(folder, "test", both, scarce.TEST["metrics"], **counts)
    yield NAME, "cutoff", cutoff
    for key, each in tested.items():
        method, _, name = key.rpartition("/")
        if method == "gradient" or method.startswith(NAME):
            yield method.partition(":")[0], f"gradient/{name}", each["mean"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", type=pathlib.Path, required=True, help="folder of a cell, with a run for each seed")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="CSV file to write")
    args = parser.parse_args()
    folders = sorted(args.cell.glob("seed*"))
    if not folders:
        parser.error(f"--cell={args.cell} has no seed…: name a folder such as runs/retest_photographs20/ce")
    with args.out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("cell", "seed", "measure", "value"))
        for folder in folders:
            for cell, name, value in rows(folder):
                writer.writerow((cell, folder.name.removeprefix("seed"), name, value))
            file.flush()
            print(folder, flush=True)


if __name__ == "__main__":
    main()
