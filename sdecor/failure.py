"""Errors in what was asked for, as one clear line; what the command lines share and what needs no JAX."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator


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
