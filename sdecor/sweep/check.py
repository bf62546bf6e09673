"""Whether a sweep can run at all: every cell is checked before the first run starts."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from sdecor.core import files
from sdecor.sweep import commands, trial_folder
from sdecor.sweep.plan import ROOT, Run, Sweep
from sdecor.training import run_folder


def check(sweep: Sweep, runs: Sequence[Run], folder: pathlib.Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Start every cell dry and compare what it would train with what is in its folders.

    Args:
      sweep: all of it.
      runs: those that will be started.
      folder: the sweep's.
      environment: of the processes.

    Returns:
      The config of each of their cells.

    Raises:
      ValueError: naming all that is wrong: of a cell's config, of the flags of evaluate.py, of a folder that holds
        another run, or of two cells that are the same.
    """
    answer = dry_start(sweep, runs, environment)
    errors = answer["errors"] or [
        *same_cells(answer["configs"]),
        *conflicts(runs, folder, answer["configs"]),
    ]
    if errors:
        raise ValueError("nothing was started:\n" + "\n".join(f"  {error}" for error in errors))
    return answer["configs"]


def dry_start(sweep: Sweep, runs: Sequence[Run], environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the config of every cell that is to run, and what is wrong; see `sdecor.sweep.dry`."""
    cells: dict[str, Any] = {}
    for run in runs:  # one seed of each
        about = {"arguments": commands.train_arguments(run), "overrides": files.plain(run.overrides)}
        cells.setdefault(run.cell, about)
    request = {
        "cells": cells,
        "evaluate": commands.evaluate_arguments(runs[0]),
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
    """Name cells with the same config: the same numbers would be there twice."""
    found: dict[str, list[str]] = {}
    for name, config in configs.items():
        kept = flat(run_folder.lasting(config))
        found.setdefault(json.dumps(kept | {"seed": None}, sort_keys=True), []).append(name)
    return [
        f"the cells {', '.join(names)} have the same config: leave all but one out"
        for names in found.values()
        if len(names) > 1
    ]


def conflicts(runs: Sequence[Run], folder: pathlib.Path, configs: Mapping[str, Any]) -> list[str]:
    """Name folders that hold a run of another config than the sweep would train there.

    A field that the config of a finished run did not have yet is none: it was added to the program since.
    """
    errors = []
    for run in runs:
        place = folder / run.key
        if not (place / "config.json").is_file() or trial_folder.last_step(place) == 0:
            continue
        there, here = flat(run_folder.read(place)["config"]), flat(configs[run.cell] | {"seed": run.seed})
        done = trial_folder.is_done(place, run, "train")
        differing = [
            f"{name} = {old!r} there, {new!r} here"
            for name, (old, new) in files.differing_fields(there, here, ignore=run_folder.FREE).items()
            if not (done and (name not in there or name not in here))
        ]
        if differing:
            errors.append(f"{place} holds a run of another config: {'; '.join(differing)}. Name the cell otherwise")
    return errors


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a config's fields by dotted names."""
    fields = {}
    for name, value in config.items():
        fields |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return fields
