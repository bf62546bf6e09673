"""Validate a sweep before its first trial starts: every cell, and the folders that exist already."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from sdecor.core import files
from sdecor.sweep import commands, trial_folder
from sdecor.sweep.plan import ROOT, Sweep, Trial
from sdecor.training import run_folder


def check(
    sweep: Sweep, trials: Sequence[Trial], folder: pathlib.Path, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Start every cell dry, and compare its config with the configs in the sweep's folder.

    Args:
      sweep: the whole sweep.
      trials: the trials to start.
      folder: the sweep's folder.
      environment: environment variables of the dry start.

    Returns:
      The config of each cell of `trials`.

    Raises:
      ValueError: listing every error: in a cell's config, in the flags of evaluate.py, a folder that holds another run,
        or two cells with the same config.
    """
    answer = dry_start(sweep, trials, environment)
    errors = answer["errors"] or [
        *same_cells(answer["configs"]),
        *conflicts(trials, folder, answer["configs"]),
    ]
    if errors:
        raise ValueError("nothing was started:\n" + "\n".join(f"  {error}" for error in errors))
    return answer["configs"]


def dry_start(sweep: Sweep, trials: Sequence[Trial], environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the configs and the errors of the cells of `trials`, from `sdecor.sweep.dry` in a process of its own."""
    cells: dict[str, Any] = {}
    for trial in trials:  # one seed of each cell is enough
        about = {"arguments": commands.train_arguments(trial), "overrides": files.plain(trial.overrides)}
        cells.setdefault(trial.cell, about)
    request = {
        "cells": cells,
        "evaluate": commands.evaluate_arguments(trials[0]),
        "tests": sweep.tests,
        "measures": sweep.tags["measures"],
    }
    process = subprocess.run(
        [sys.executable, "-m", "sdecor.sweep.dry"],
        cwd=ROOT,
        env=dict(environment),
        input=json.dumps(request),
        capture_output=True,
        text=True,
    )
    if process.returncode:
        last = "\n".join(process.stderr.strip().splitlines()[-15:])
        raise ValueError(f"the dry start of the sweep ended with status {process.returncode}:\n{last}")
    return json.loads(process.stdout)


def same_cells(configs: Mapping[str, Any]) -> list[str]:
    """Return an error for each group of cells with the same config, which would train the same runs twice."""
    found: dict[str, list[str]] = {}
    for name, config in configs.items():
        kept = files.flat(run_folder.lasting(config))
        found.setdefault(json.dumps(kept | {"seed": None}, sort_keys=True), []).append(name)
    return [
        f"the cells {', '.join(names)} have the same config: leave all but one out"
        for names in found.values()
        if len(names) > 1
    ]


def conflicts(trials: Sequence[Trial], folder: pathlib.Path, configs: Mapping[str, Any]) -> list[str]:
    """Return an error for each trial whose folder holds a run of another config.

    A finished run may lack a field, or have one more: fields come and go between versions of the program.
    """
    errors = []
    for trial in trials:
        place = folder / trial.key
        if not (place / "config.json").is_file() or trial_folder.last_step(place) == 0:
            continue
        configurations = run_folder.read(place)["config"], configs[trial.cell]
        there, here = (files.flat(run_folder.lasting(each)) for each in configurations)
        here |= {"seed": trial.seed}
        done = trial_folder.is_done(place, trial, "train")
        differing = [
            f"{name} = {old!r} there, {new!r} here"
            for name, (old, new) in files.differing_fields(there, here).items()
            if not (done and (name not in there or name not in here))
        ]
        if differing:
            errors.append(f"{place} holds a run of another config: {'; '.join(differing)}. Name the cell otherwise")
    return errors
