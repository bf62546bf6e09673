"""Command lines: exit statuses, values from text, errors without traceback, the progress bar. It needs no JAX."""

import ast
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

# Exit statuses of all programs; docs/cluster.md has the table.
FAILED = 1  # an error in the request or in the program: the same command fails again
PARTLY = 3  # some replicas of train.py failed, the others are finished
RETRY = 75  # a fault of the surroundings, such as a full disk or a dead process: the same command continues
INTERRUPTED = 130  # stopped by a signal, with everything saved: the same command continues


def program_name() -> str:
    """Return the name of the program for its messages, such as "train.py"."""
    return os.path.basename(sys.argv[0])


def leave(status: int) -> NoReturn:
    """End the process at once, without Python's shutdown, which may wait for threads or crash beside them."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


class TemporaryFailure(Exception):
    """A fault of the surroundings, not of the request; `as_one_line` ends the program with status `RETRY`."""


def parse_value(text: str) -> Any:
    """Return the Python literal in a text (a number, True, None, a tuple, …), or the text if it is no literal."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


@contextlib.contextmanager
def as_one_line(
    program: str, expected: tuple[type[Exception], ...], text: Callable[[Exception], str] = str
) -> Iterator[None]:
    """End the program with the `text` of an expected error, on one line, instead of a traceback.

    The exit status is `RETRY` for a `TemporaryFailure`, which is always expected, and `FAILED` for the others. The
    environment variable SDECOR_TRACEBACK=1 shows the traceback instead.
    """
    try:
        yield
    except (TemporaryFailure, *expected) as error:
        if os.environ.get("SDECOR_TRACEBACK"):
            raise
        if not isinstance(error, TemporaryFailure):
            sys.exit(f"{program}: {text(error)}")  # Python prints the text and ends with status 1
        print(f"{program}: {text(error)}", file=sys.stderr, flush=True)
        sys.exit(RETRY)


def config_error(error: Exception) -> str:
    """Return the text of an error in a config, without the traceback and the quotes that the config library adds."""
    text = str(error).strip()
    if "Traceback (most recent call last)" in text:
        text = text.splitlines()[-1].partition(": ")[2]
    if isinstance(error, AttributeError | KeyError):  # their text is quoted twice
        text = "no such field: " + text.replace("\\n", "; ").replace("\\'", "").strip("'\"")
    return text or type(error).__name__


def progress_bar(*, total: int, initial: int, description: str, unit: str = "img", enabled: bool = True) -> Any:
    """Return a progress bar of images, with images/s and the remaining time."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        unit_scale=True,
        disable=not enabled,
        dynamic_ncols=True,
        smoothing=0.1,
        mininterval=0.2,
    )
