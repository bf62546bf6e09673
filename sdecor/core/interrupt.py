"""Signals as a flag, so that a loop stops between two steps instead of within one."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class Stopped(Exception):
    """The program was asked to stop, and has nothing to save."""


def check() -> None:
    """Raise `Stopped` if the program was asked to stop and may stop at once; waits call it a few times a second."""


class Interrupt:
    """A flag for loops to poll, set by Ctrl-C or SIGTERM; a second signal stops the process at once.

    In a job of several processes JAX's preemption service handles SIGTERM, so only Ctrl-C sets the flag.
    """

    def __init__(self, *, processes: int = 1):
        self.signal: signal.Signals | None = None
        self._signals = (signal.SIGINT, signal.SIGTERM) if processes == 1 else (signal.SIGINT,)
        self._previous = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in self._signals}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = signal.Signals(number)
