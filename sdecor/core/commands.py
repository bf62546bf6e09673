"""Command lines: exit statuses, values from text, errors without traceback, the progress bar. It needs no JAX."""

import ast
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

INTERRUPTED = 130  # exit status of a program that a signal stopped; the same command continues it


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
    """End the program with exit status 1 and the `text` of the error when an expected error is raised.

    The environment variable SDECOR_TRACEBACK=1 shows the traceback instead.
    """
    try:
        yield
    except expected as error:
        if os.environ.get("SDECOR_TRACEBACK"):
            raise
        sys.exit(f"{program}: {text(error)}")


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
