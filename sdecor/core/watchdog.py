"""A watchdog that ends a program which makes no progress, after printing where every thread stands. It needs no JAX.

A read that never answers, or a collective whose peer is gone, would otherwise hold the machines of a job for ever.
Loops call `beat` with what they do next; a program without a watchdog loses nothing by that.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn, Self

from sdecor.core.commands import RETRY

GRACE = 60.0  # seconds after which a program ends whose threads cannot run at all


class _Beat:
    """The last sign of progress: its time and what began then; `timed` says whether the limit holds for it."""

    def __init__(self, what: str, timed: bool):
        self.time, self.what, self.timed = time.monotonic(), what, timed


class Watchdog:
    """A context that ends the process with status `RETRY` when no `beat` came for some time.

    A thread of its own checks the time, so that it works while the main thread waits in C or Python. If a C library
    holds the interpreter itself, the process ends `GRACE` seconds later, with status 1.

    Args:
      seconds: longest time between two beats; 0 for no watchdog.
      program: name of the program, for its last line.
      leave: function that ends the process.

    Raises:
      ValueError: if `seconds` is negative.
    """

    _active: Self | None = None
    _left = ""  # what the program did when an error ended it

    def __init__(self, seconds: float, program: str, leave: Callable[[int], NoReturn] = os._exit):
        if not seconds >= 0:
            raise ValueError(f"--watchdog = {seconds} is out of range: it is a number of seconds, 0 for none")
        self._seconds, self._program, self._leave = seconds, program, leave
        self._beat = _Beat("the start", timed=True)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.beat("the start")
        if self._seconds:
            self._arm()
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        Watchdog._active = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Watchdog._active, Watchdog._left = None, "" if error is None else self._beat.what
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def beat(self, what: str, *, timed: bool = True) -> None:
        """Note a sign of progress.

        Args:
          what: what the program does next, for the message, such as "step 12".
          timed: whether the limit holds for that; not for a compilation, whose time is unknown.
        """
        self._beat = _Beat(what, timed)

    def _watch(self) -> None:
        pause = min(self._seconds / 4, 5.0)
        while not self._ended.wait(pause):
            last = self._beat
            waited = time.monotonic() - last.time
            if last.timed and waited > self._seconds:
                return self._end(last.what, waited)
            if last.timed:
                self._arm()
            else:
                faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> None:
        """Let a C thread end the process, unless this is called again: for a thread that holds the interpreter."""
        faulthandler.dump_traceback_later(self._seconds + GRACE, exit=True, file=_file())

    def _end(self, what: str, waited: float) -> None:
        faulthandler.dump_traceback_later(GRACE, exit=True, file=_file())  # an output may block, too
        with contextlib.suppress(Exception):  # a closed or full output must not keep the process alive
            print(f"{self._program}: no progress for {waited:.0f} s; the threads:", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(file=_file(), all_threads=True)
        with contextlib.suppress(Exception):
            text = f"no progress for {waited:.0f} s (--watchdog={self._seconds:g}), during {what}"
            print(f"{self._program}: {text}: the same command continues", file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        self._leave(RETRY)


def beat(what: str, *, timed: bool = True) -> None:
    """Note a sign of progress for the program's watchdog, if it has one; see `Watchdog.beat`."""
    if Watchdog._active is not None:
        Watchdog._active.beat(what, timed=timed)


def last() -> str:
    """Return what the program did at its last sign of progress, also after an error; "" without a watchdog."""
    return Watchdog._left if Watchdog._active is None else Watchdog._active._beat.what


def _file() -> int:
    """Return the descriptor of standard error, which may have been replaced by an object without one."""
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return 2
