"""Ctrl-C and SIGTERM, from the first line of a program to its end.

A program calls `end_while_importing` before imports that take seconds, then `install`. While it has something to save,
it holds an `Interrupt`: a signal then sets a flag, which the loop polls between two steps. At any other moment a signal
ends the program at once, also while the main thread compiles or waits in native code. This file needs no JAX.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

from sdecor.core.commands import INTERRUPTED, leave, program_name

SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEAT_SECONDS = 1.0  # a terminal or a scheduler may send one signal twice
LEAVE_SECONDS = 5.0  # time for the main thread to leave by itself


class Stopped(KeyboardInterrupt):
    """Raised by `check`, where a wait for input ends because of a signal."""


class _Program:
    """The signals of this process."""

    def __init__(self) -> None:
        self.installed = False
        self.received: signal.Signals | None = None
        self.at = 0.0  # time of the last signal
        self.holders = 0  # number of `Interrupt`s that are held
        self.forward: Callable[[], None] | None = None  # tells the other processes of a job
        self.end: Callable[[int, str], None] = lambda status, text: None  # ends the other processes of a job


_program = _Program()


class Interrupt:
    """A flag for loops to poll, set by Ctrl-C or SIGTERM while it is held (a `with` block).

    A second Ctrl-C ends the process at once. A repeated SIGTERM is the same request.
    """

    def __init__(self) -> None:
        self._previous: dict[int, object] = {}

    def __bool__(self) -> bool:
        return _program.received is not None

    @property
    def signal(self) -> signal.Signals | None:
        """The signal that set the flag."""
        return _program.received

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            previous = {number: signal.signal(number, _handle) for number in SIGNALS}
            if not _program.installed:
                self._previous = previous
        if not _program.installed and not _program.holders:
            _program.received = None  # a program of the user may go on after an earlier signal
        _program.holders += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _program.holders -= 1
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def end_while_importing() -> None:
    """End the program with one line at a signal, until `install` takes over; nothing is begun yet."""
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: _leave(number))


def install() -> None:
    """Handle Ctrl-C and SIGTERM from now on; a program calls this first, in its main thread."""
    if not _program.installed:
        _program.installed = True
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # written by the native handler, without delay
        threading.Thread(target=_follow, args=(reader,), name="signals", daemon=True).start()
    for number in SIGNALS:
        signal.signal(number, _handle)


def ignore() -> None:
    """Ignore Ctrl-C and SIGTERM from now on, because nothing is left to stop."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def check() -> None:
    """Raise `Stopped` after a signal; waits for input call this.

    In a job of several processes it does nothing, because only all processes together can save. In a program of the
    user, an earlier signal ends no later wait.
    """
    ours = _program.installed or _program.holders
    if ours and _program.received is not None and _program.forward is None:
        raise Stopped


def join_job(announce: Callable[[], None], end: Callable[[int, str], None]) -> None:
    """Let every signal call `announce`, which tells the other processes of the job.

    Args:
      announce: function without arguments.
      end: function of an exit status and a text, which ends the other processes when this one ends without them.
    """
    _program.forward, _program.end = announce, end


def _handle(number: int, frame: FrameType | None) -> None:
    now, again = time.monotonic(), _program.received is not None
    repeated = again and (number == signal.SIGTERM or now - _program.at < REPEAT_SECONDS)
    _program.at = now
    if repeated:
        return
    if again:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    _program.received = signal.Signals(number)
    if not _program.holders:
        raise KeyboardInterrupt


def _follow(reader: int) -> None:
    """Announce each signal to the job; end the process if nothing is to be saved and the main thread does not leave."""
    while received := os.read(reader, 1):
        if received[0] not in SIGNALS:
            continue
        if _program.forward is not None:
            _program.forward()
        if _program.holders:
            continue
        time.sleep(LEAVE_SECONDS)
        if not _program.holders:
            _leave(received[0])


def _leave(number: int) -> None:
    """End the process at once, with one line."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    text = f"{program_name()}: stopped by {signal.Signals(number).name}"
    print(text, file=sys.stderr, flush=True)
    _program.end(INTERRUPTED, text)
    leave(INTERRUPTED)


def _forget_in_child() -> None:
    """Leave the signals of a forked child to the child; its pipe is that of its parent."""
    if _program.installed:
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        _program.installed = False


os.register_at_fork(after_in_child=_forget_in_child)
