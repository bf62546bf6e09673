"""Run a program that lingers for a second at a chosen moment, so that a signal meets it there.

PYTHONPATH=.:tests/helpers python tests/helpers/at_moment.py MOMENT MARK PROGRAM [FLAG …]

MOMENT is a name of `MOMENTS`, and :3 after it for the third time. The file MARK is written when the moment begins.
"""

import functools
import importlib
import itertools
import pathlib
import runpy
import sys
import time
from collections.abc import Callable
from typing import Any

LINGER_SECONDS = 1.0
LARGE = 50_000  # characters of a program; only those of the training step and of methods are as large

MOMENTS = {  # name → the function whose call is the moment
    "building": "sdecor.training.build:create_state",
    "compiling": "jax._src.compiler:compile_or_get_cached",
    "reading a batch": "sdecor.data.memory:MemoryLoader.batch",
    "fetching the terms of a step": "sdecor.training.members:step_rows",
    "validating": "sdecor.training.batches:evaluation_batches",
    "saving": "sdecor.training.checkpoint:Checkpoints.save",
    "finishing": "sdecor.training.members:finish",
    "leaving the job": "sdecor.core.processes:finish",
    "restoring": "sdecor.training.checkpoint:Checkpoints.restore",
    "predicting": "sdecor.evaluation.programs:predict",
    "measuring": "sdecor.evaluation.explained:measure",
    "reporting": "sdecor.report.run:write_report",
    "reading an image": "sdecor.data.batches:read",
}


def wrap(moment: str, mark: pathlib.Path) -> None:
    """Let a call of the moment's function linger, the first one or that of the number after the colon."""
    name, _, number = moment.partition(":")
    path, _, attribute = MOMENTS[name].partition(":")
    owner: Any = importlib.import_module(path)
    *parents, last = attribute.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, last, lingering(getattr(owner, last), int(number or 1), mark, large=name == "compiling"))


def lingering(function: Callable, number: int, mark: pathlib.Path, *, large: bool) -> Callable:
    calls = itertools.count(1)

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        counts = not large or len(str(arguments[1])) > LARGE
        if counts and next(calls) == number:
            mark.touch()
            end = time.monotonic() + LINGER_SECONDS
            while time.monotonic() < end:
                time.sleep(0.01)
        return function(*arguments, **options)

    return call


if __name__ == "__main__":
    moment, mark, program, *flags = sys.argv[1:]
    wrap(moment, pathlib.Path(mark))
    sys.argv = [program, *flags]
    runpy.run_path(program, run_name="__main__")
