"""Sweeps for tests: finished trials with known numbers, and programs that stand in for train.py and evaluate.py."""

import json
import pathlib
import sys
from typing import Any

from sdecor.sweep import commands, plan, trial_folder

CELLS = [("ce", {"method": "ce"}), ("sgt", {"method": "sgt"})]

# argv: stage, folder, seconds, whether to fail. Training continues at its last step, and saves on a stop signal.
STAND_IN = """
import json, os, pathlib, signal, sys, time
stage, folder, seconds, fails = sys.argv[1], pathlib.Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "True"
asked = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: asked.append(number))
with (folder / "starts").open("a") as file:
    file.write(f"{stage} {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
if fails:
    sys.exit(f"{stage}: the loss is not finite")
if stage == "evaluate":
    (folder / "evaluation.json").write_text(json.dumps({"metrics": {}, "settings": {}}))
    sys.exit()
(folder / "config.json").write_text(json.dumps({"config": {"train": {"batch_size": 2}}, "dataset": {}, "versions": {}}))
rows = folder / "metrics.jsonl"
first = len(rows.read_text().splitlines()) if rows.exists() else 0
for step in range(first + 1, 11):
    time.sleep(seconds / 10)
    with rows.open("a") as file:
        file.write(json.dumps({"step": step, "split": "train", "images_per_second": 20.0}) + "\\n")
    if asked:
        (folder / "saved").write_text(str(step))
        sys.exit(130)
"""


def content(**changes: Any) -> dict[str, Any]:
    """Return the content of a sweep file."""
    return {"cells": CELLS, "seeds": 2, "evaluate": {"metrics": ["gini"]}} | changes


def stand_in(monkeypatch: Any, *, seconds: float = 0.2, fails: tuple[str, ...] = ()) -> None:
    """Make sweeps start the stand-in; training fails in the trials `fails`, such as "cell/seed0"."""

    def command(trial: plan.Trial, stage: str, folder: pathlib.Path) -> list[str]:
        failing = trial.key in fails and stage == "train"
        return [sys.executable, "-S", "-c", STAND_IN, stage, str(folder / trial.key), str(seconds), str(failing)]

    monkeypatch.setattr(commands, "command", command)


def starts(folder: pathlib.Path) -> list[str]:
    """Return the stages that were started in a trial's folder, in order."""
    return [line.split()[0] for line in (folder / "starts").read_text().splitlines()]


def finished(
    folder: pathlib.Path, sweep: plan.Sweep, numbers: dict[str, dict[int, dict[str, float]]], **config: dict[str, Any]
) -> pathlib.Path:
    """Write finished trials.

    Args:
      folder: the sweep's folder.
      sweep: the sweep.
      numbers: cell → seed → metric → value; other trials are left out.
      **config: cell → fields of the config.
    """
    plan.write(folder, sweep)
    for trial in sweep.trials():
        values = numbers.get(trial.cell, {}).get(trial.seed)
        if values is None:
            continue
        place = folder / trial.key
        place.mkdir(parents=True)
        trial_folder.add_start(place, trial)
        for stage in commands.STAGES:
            trial_folder.add_finished(place, stage, commands.arguments(trial, stage), 60.0)
        fields = {"seed": trial.seed, "method": trial.cell, "train": {"batch_size": 2}, **config.get(trial.cell, {})}
        write_json(place / "config.json", {"config": fields, "dataset": {}, "versions": {}})
        entries = {name: {"mean": value, "low": value, "high": value, "n": 100} for name, value in values.items()}
        write_json(place / "evaluation.json", {"metrics": entries, "settings": {"split": "test", "step": 10}})
        row = {"step": 10, "split": "train", "images_per_second": 0.5}
        (place / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def write_json(path: pathlib.Path, value: Any) -> None:
    path.write_text(json.dumps(value))
