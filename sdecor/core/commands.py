"""Command lines: exit statuses, an expected error as one line, and the progress bar. Needs no JAX."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from tqdm import tqdm

INTERRUPTED = 130  # exit status of a program that a signal stopped and the same command continues


@contextlib.contextmanager
def as_one_line(
    program: str, expected: tuple[type[Exception], ...], message: Callable[[Exception], str] = str
) -> Iterator[None]:
    """End the program with the message of an expected error and exit status 1.

    SDECOR_TRACEBACK=1 in the environment shows where it was raised.
    """
    try:
        yield
    except expected as error:
        if os.environ.get("SDECOR_TRACEBACK"):
            raise
        sys.exit(f"{program}: {message(error)}")


def progress_bar(*, total: int, initial: int, description: str, unit: str = "img", enabled: bool = True) -> tqdm:
    """Return a bar that counts images, with images/s and the remaining time."""
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
