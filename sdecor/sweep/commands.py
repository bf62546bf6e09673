"""The command lines of a trial."""

import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from sdecor.sweep.plan import ROOT, Trial

STAGES = ("train", "evaluate")
_QUIET = {"log.progress": False, "log.tensorboard": False}  # bars are useless in a log file; a sweep may turn them on


def arguments(trial: Trial, stage: str) -> list[str]:
    """Return the arguments of train.py or evaluate.py, without the folder."""
    return train_arguments(trial) if stage == "train" else evaluate_arguments(trial)


def command(trial: Trial, stage: str, folder: pathlib.Path) -> list[str]:
    """Return the command line of one stage of a trial in the sweep's `folder`."""
    return [sys.executable, str(ROOT / f"{stage}.py"), *arguments(trial, stage), f"--workdir={folder / trial.key}"]


def replica_command(trial: Trial, replicas: Sequence[str], folder: pathlib.Path) -> list[str]:
    """Return the command line that trains several trials at once: `trial` gives the config, `replicas` the changes."""
    flags = [f"--replica={replica}" for replica in replicas]
    return [sys.executable, str(ROOT / "train.py"), *train_arguments(trial), *flags, f"--workdir={folder}"]


def train_arguments(trial: Trial) -> list[str]:
    """Return the arguments of train.py: the config with its words, then its fields."""
    words = [_word(name, value) for name, value in trial.overrides.items() if "." not in name]
    words = ",".join(word for word in words if word)
    file = ROOT / trial.config  # an absolute path stays as it is
    fields = {"seed": trial.seed, **_QUIET} | {name: value for name, value in trial.overrides.items() if "." in name}
    return [
        f"--config={file}:{words}" if words else f"--config={file}",
        *(f"--config.{name}={text(value)}" for name, value in fields.items()),
    ]


def evaluate_arguments(trial: Trial) -> list[str]:
    """Return the arguments of evaluate.py."""
    flags = {"progress": False} | trial.evaluate
    return [_flag(name, value) for name, value in flags.items() if value is not None]


def text(value: Any) -> str:
    """Format a value as a config flag reads it."""
    return repr(tuple(value)) if isinstance(value, list | tuple) else str(value)


def shown(arguments: Sequence[str]) -> str:
    """Format a command line for a shell."""
    return shlex.join(arguments)


def _word(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else ""
    return f"{name}={value}"


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return f"--{name}={','.join(map(str, value)) if isinstance(value, list | tuple) else value}"
