"""A trace of chosen training steps for TensorBoard or Perfetto."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from etils import epath

from sdecor.core import files, parallel

WARM = 2  # steps of a start that are not traced: they compile and fill queues


class Steps(NamedTuple):
    """The steps to trace: `count` steps soon after the start, or from `first` on."""

    first: int | None
    count: int


def parse(text: str | None) -> Steps | None:
    """Return the steps of `--profile`: `10`, or `100:110`, both ends included; None for no trace.

    Raises:
      ValueError: for another text, or no step.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(?:([0-9]+):)?([0-9]+)", text)
    first, last = (found[1] and int(found[1]), int(found[2])) if found else (None, 0)
    if not found or last < 1 or (first is not None and not 1 <= first <= last):
        raise ValueError(
            f"--profile = {text!r} names no steps: give a number of steps, such as 10, or the first and the last, "
            "such as 100:110"
        )
    return Steps(first, last) if first is None else Steps(first, last - first + 1)


class Profiler:
    """Traces the chosen steps in the main process, whose trace holds its own devices.

    Args:
      steps: steps to trace; None for no trace.
      folder: folder of the run; the trace is in `profile/` below it.
      start: step at which the program starts.
      total: number of steps of the run.

    Raises:
      ValueError: if the chosen steps begin after the run's last.
    """

    def __init__(self, steps: Steps | None, folder: str, *, start: int, total: int):
        self.folder = files.absolute(folder) / "profile"
        self._running = False
        self._range = range(0)
        if steps is None or start >= total:
            return
        first = min(start + WARM, total - 1) + 1 if steps.first is None else steps.first
        if first > total:
            raise ValueError(f"--profile begins at step {first}, and the run has {total} steps: choose earlier ones")
        self._range = range(max(first, start + 1), min(first + steps.count, total + 1))
        if not self._range:
            parallel.say(f"Nothing is traced: the steps of --profile are before step {start}, where this start begins.")

    def take(self, steps: range, function: Callable[..., tuple[Any, Any]], *arguments: Any) -> tuple[Any, Any]:
        """Return the result of a call of some steps; trace the whole call if one of its steps is chosen."""
        first, last = max(steps[0], self._range.start), min(steps[-1], self._range.stop - 1)
        if first > last or not parallel.is_main_process():
            return function(*arguments)
        if not self._running:
            jax.profiler.start_trace(self.folder, create_perfetto_trace=True)
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=steps[0]):
            state, terms = function(*arguments)
        if last == self._range[-1]:
            jax.block_until_ready(terms)
            self.close()
        return state, terms

    def close(self) -> None:
        """End the trace, if one is being taken, and print where it is."""
        if not self._running:
            return
        self._running = False
        self._range = range(0)
        jax.profiler.stop_trace()
        parallel.say(
            f"Trace in {self.folder}: open it with `tensorboard --logdir {epath.Path(self.folder).parent}` (plugin "
            "xprof), or its perfetto_trace.json.gz at https://ui.perfetto.dev"
        )
