"""The times of a training run: those of its steps, the share that waits for input, and goodput.

Goodput is the time in steps whose result is kept, over the time since the run's first start. Rows of the log with the
split "time" hold both over all starts: a step that a kill or a rollback took back loses its row with its checkpoint.
"""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

SPLIT = "time"  # of the rows in metrics.jsonl; at step 0 it has the time of the first start, in Unix seconds
KEPT = 10_000  # step times of which the quantiles are taken


class Clock:
    """The clock of the training loop. The first call after `begin` is left out: it compiles.

    Args:
      seconds: clock of steps.
      now: clock of the calendar, in Unix seconds, which goes on while the run is stopped.
    """

    def __init__(self, *, seconds: Callable[[], float] = time.perf_counter, now: Callable[[], float] = time.time):
        self._seconds, self._now = seconds, now
        self._steps: collections.deque[float] = collections.deque(maxlen=KEPT)
        self._total = self._waited = self._waiting = 0.0
        self._count = 0
        self._productive, self._started = 0.0, now()
        self._since: float | None = None
        self._first = True

    def begin(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
        """Start, or start again after a rollback, from the rows of the log; return the first start's row if new."""
        times = [row for row in rows if row["split"] == SPLIT]
        started = [row["started"] for row in times if "started" in row]
        self._productive = max((row["productive_seconds"] for row in times if "productive_seconds" in row), default=0.0)
        self._first, self._since, self._waiting = True, None, 0.0
        if started:
            self._started = min(started)
            return None
        return {"started": self._started}

    @contextlib.contextmanager
    def input(self) -> Iterator[None]:
        """Begin a call of steps by waiting for its batch."""
        before = self._seconds()
        if self._since is None:
            self._since = before
        yield
        self._waiting = self._seconds() - before

    def stepped(self, count: int = 1) -> None:
        """End a call of `count` steps, which take equal times; the next one begins now, unless `rest` is called."""
        now = self._seconds()
        if self._first:
            self._first = False
        else:
            took = now - self._since
            self._steps.extend([took / count] * count)
            self._count += count
            self._total += took
            self._waited += self._waiting
            self._productive += took
        self._since = now

    def rest(self) -> None:
        """Let the next call begin at its input: a validation or a checkpoint is no part of it."""
        self._since = None

    def row(self, images: int) -> dict[str, float]:
        """Return the values of a row of the log; `images` is the number of images a step."""
        row = {"productive_seconds": self._productive}
        wall = self._now() - self._started
        if wall > 0:
            row["goodput"] = min(self._productive / wall, 1.0)
        if self._count:
            median, p99 = np.quantile(self._steps, [0.5, 0.99])
            row["step_seconds_median"], row["step_seconds_p99"] = float(median), float(p99)
            row["input_share"] = self._waited / self._total if self._total else 0.0
            row["images_per_step_second"] = images * self._count / self._total if self._total else 0.0
        return row


def describe(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a text about the times of a run from its log, or "" if they are not in it."""
    times = [row for row in rows if row["split"] == SPLIT and row.get("step_seconds_median") is not None]
    if not times:
        return ""
    last = times[-1]
    return (
        f"{last.get('goodput', 0):.0%} goodput, median step {_duration(last['step_seconds_median'])}, p99 "
        f"{_duration(last['step_seconds_p99'])}, {last['input_share']:.0%} waiting for input"
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
