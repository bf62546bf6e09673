"""Trained runs of a cell, measured again in a way that `evaluate.py` does not offer, as rows of a CSV file."""

import argparse
import csv
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sdecor import evaluation
from sdecor.evaluation import runs, summary

Row = tuple[str, str, Any]  # cell, measure, value


def restore(folder: pathlib.Path, split: str, **images: int) -> runs.Run:
    """Return a run's latest checkpoint with a split; `images` are fields of `config.evaluation`."""
    return runs.restore(str(folder), checkpoint="latest", split=split, evaluation=images)


def measure(run: runs.Run, methods: Mapping[str, Any], metrics: list[str]) -> Mapping[str, Mapping[str, Any]]:
    """Return the summary of a run: measure → numbers with their interval. Nothing is stored in the run's folder."""
    plan, _ = runs.plan_of(run, methods, evaluation.choose_metrics(metrics))
    with tempfile.TemporaryDirectory() as scratch:
        store = evaluation.Store(scratch, runs.depends_of(run))
        store.complete(plan, runs.subject_of(run, plan.setup), _silent)
        return summary.summarise(plan.select(store.results), n_resamples=1)


@contextmanager
def _silent(what: str, count: int) -> Iterator[Any]:
    yield lambda done: None


def write_rows(description: str, rows: Callable[[pathlib.Path, str], Iterable[Row]]) -> None:
    """Write `rows(folder, split)` of each run `seed…` of --cell to --out, as a sweep's results.csv has them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", type=pathlib.Path, required=True, help="folder of a cell, with a run for each seed")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="split to measure on")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="CSV file to write")
    args = parser.parse_args()
    folders = sorted(args.cell.glob("seed*"))
    if not folders:
        parser.error(f"--cell={args.cell} has no seed…: name a folder such as runs/retest_photographs20/ce")
    with args.out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("cell", "seed", "measure", "value"))
        for folder in folders:
            for cell, name, value in rows(folder, args.split):
                writer.writerow((cell, folder.name.removeprefix("seed"), name, value))
            file.flush()
            print(folder, flush=True)
