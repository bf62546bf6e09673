"""The command lines of a run."""

import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from sdecor.sweep.plan import ROOT, Run

STAGES = ("train", "evaluate")
_QUIET = {"log.progress": False, "log.tensorboard": False}  # a log file has no use for bars; a sweep may say otherwise


def arguments(run: Run, stage: str) -> list[str]:
    """Return the arguments of train.py or evaluate.py, without the run's folder."""
    return train_arguments(run) if stage == "train" else evaluate_arguments(run)


def command(run: Run, stage: str, folder: pathlib.Path) -> list[str]:
    """Return the whole command line of a stage of a run in the sweep's `folder`."""
    return [sys.executable, str(ROOT / f"{stage}.py"), *arguments(run, stage), f"--workdir={folder / run.key}"]


def together(run: Run, replicas: Sequence[str], folder: pathlib.Path) -> list[str]:
    """Return the command line that trains several runs at once: `run` and the `replicas` that differ from it."""
    chosen = [f"--replica={replica}" for replica in replicas]
    return [sys.executable, str(ROOT / "train.py"), *train_arguments(run), *chosen, f"--workdir={folder}"]


def train_arguments(run: Run) -> list[str]:
    """Return the arguments of train.py: the config with its words, then its fields."""
    words = [_word(name, value) for name, value in run.overrides.items() if "." not in name]
    words = ",".join(word for word in words if word)
    file = pathlib.Path(run.config)
    file = file if file.is_absolute() else ROOT / file
    fields = {"seed": run.seed, **_QUIET} | {name: value for name, value in run.overrides.items() if "." in name}
    return [
        f"--config={file}:{words}" if words else f"--config={file}",
        *(f"--config.{name}={text(value)}" for name, value in fields.items()),
    ]


def evaluate_arguments(run: Run) -> list[str]:
    """Return the arguments of evaluate.py."""
    flags = {"progress": False} | run.evaluate
    return [_flag(name, value) for name, value in flags.items() if value is not None]


def text(value: Any) -> str:
    """Write a value as flags read it."""
    return repr(tuple(value)) if isinstance(value, list | tuple) else str(value)


def shown(arguments: Sequence[str]) -> str:
    """Write a command line as a shell reads it."""
    return shlex.join(arguments)


def _word(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else ""
    return f"{name}={value}"


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return f"--{name}={','.join(map(str, value)) if isinstance(value, list | tuple) else value}"
