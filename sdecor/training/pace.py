"""When a checkpoint is due by time: decided by the main process, equally in all processes."""

import time
from collections.abc import Callable

import numpy as np

from sdecor.core import parallel


class Pace:
    """The steps after which a checkpoint is due, because the last one is `minutes` old.

    Clocks differ between processes, so the main process counts the time. The others ask it at few steps only, since a
    question is a collective: first after 1, 3, 7, … steps, then about four times in an interval.

    Args:
      minutes: longest time without a checkpoint, about; 0 for no bound.
      step: step at which the training starts or continues.
      clock: returns seconds.
    """

    def __init__(self, minutes: float, step: int, clock: Callable[[], float] = time.monotonic):
        self._interval = 60 * minutes  # seconds
        self._clock = clock
        self._gap = 1  # steps until the next question
        self._saved = clock()
        self._ask_after(step)

    def due(self, step: int, *, otherwise: bool = False) -> bool:
        """Return whether to save after `step`; `otherwise` says that another reason is enough.

        All processes call this at each step, with the same arguments.
        """
        if otherwise:
            self._saved = self._clock()
            self._ask_after(step)
            return True
        if not self._interval or step < self._last + self._gap:
            return False
        steps = int(parallel.gather(np.array([self._steps_left(step)]))[0])  # as the main process says
        if steps == 0:
            self._saved = self._clock()
        self._gap = max(steps, 1)
        self._ask_after(step)
        return steps == 0

    def _ask_after(self, step: int) -> None:
        self._last, self._asked = step, self._clock()

    def _steps_left(self, step: int) -> int:
        """Return the number of steps until the next question, 0 if a checkpoint is due now."""
        now, steps = self._clock(), step - self._last
        seconds = max((now - self._asked) / steps, 1e-9)
        left = round((self._interval - (now - self._saved)) / seconds)
        if left <= 0:
            return 0
        # A run may slow down, so no question is far away.
        return max(min(left, 2 * steps, round(self._interval / 4 / seconds)), 1)
