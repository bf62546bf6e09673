"""The health of a training run: losses that are not finite, spikes of the loss, and checkpoints worth a return.

All numbers here come from the steps' terms, which are equal in all processes, and are saved with each checkpoint.
Processes therefore agree, and a run that is resumed decides as one that was never stopped.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

POLICIES = ("stop", "skip", "rollback")
FAR = 100.0  # times the run's first loss, or 1 if that is less: a loss beyond this is not good
WINDOW = 100  # losses with which a new one is compared
LEAST = 20  # losses before the first comparison
DEVIATIONS = 10.0  # robust standard deviations above the median: a spike
SMALLEST = 0.05  # least standard deviation, so that a loss near 0 has spikes of 0.5 or more only


class NotFinite(FloatingPointError):
    """A single run's loss, gradient or parameter is not finite at a step."""

    def __init__(self, text: str, step: int):
        super().__init__(text)
        self.step = step


@dataclasses.dataclass(frozen=True)
class Policy:
    """Policy for a loss or a gradient that is not finite; the fields are documented in configs/default.py."""

    on_nonfinite: str = "stop"
    max_skips: int = 10
    max_rollbacks: int = 3
    loss_limit: float | None = None


@dataclasses.dataclass
class Health:
    """Losses, skipped steps and rollbacks of a run, up to a step.

    Attributes:
      first: loss of the run's first step, before any update; None before it.
      bad_since: first step of the present streak of losses that are not good; None outside of one.
      skipped: number of steps skipped in a row, up to the last step.
      order: number of rollbacks so far, which is also the number of the data's order.
      spiking: whether the last loss was part of a spike.
      losses: the last finite losses, at most `WINDOW`.
    """

    first: float | None = None
    bad_since: int | None = None
    skipped: int = 0
    order: int = 0
    spiking: bool = False
    losses: list[float] = dataclasses.field(default_factory=list)

    @classmethod
    def restore(cls, position: Mapping[str, Any]) -> Self:
        """Return the health that is stored with a checkpoint's position; that of a new run if there is none."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in position.get("health", {}).items() if name in known})

    def observe(self, step: int, loss: float, *, finite: bool, limit: float | None = None) -> float | None:
        """Add the loss of a step; return the median of the losses before it if a spike begins here, else None.

        Args:
          step: the step.
          loss: its loss.
          finite: whether the loss and its gradient are finite.
          limit: largest good loss; None for `FAR` times the first loss.
        """
        good = finite and loss <= self.limit(limit)
        self.bad_since = None if good else self.bad_since or step
        if not finite:
            return None
        if self.first is None:
            self.first = loss
        median = spike_median(loss, self.losses)
        begins = median is not None and not self.spiking
        self.spiking = median is not None
        self.losses = [*self.losses[-(WINDOW - 1) :], loss]
        return median if begins else None

    def limit(self, chosen: float | None) -> float:
        """Return the largest good loss: the chosen one, or one relative to the first loss."""
        if chosen is not None:
            return chosen
        return math.inf if self.first is None else FAR * max(1.0, self.first)

    def good(self, steps: Iterable[int], failed: int) -> int | None:
        """Return the last good checkpoint before a failure, or None.

        A checkpoint is good if the loss of the step after it is: that loss is the first of the saved parameters.

        Args:
          steps: steps of the checkpoints.
          failed: step of the failure.
        """
        bad = failed if self.bad_since is None else self.bad_since
        return max((step for step in steps if step < bad - 1), default=None)


def spike_median(loss: float, losses: Sequence[float]) -> float | None:
    """Return the median of former losses if `loss` is a spike above them, else None.

    A spike is more than `DEVIATIONS` standard deviations above the median. The deviation is the median absolute
    deviation times 1.4826, which former spikes hardly change, and at least `SMALLEST`.
    """
    if len(losses) < LEAST:
        return None
    median = statistics.median(losses)
    if loss <= median + DEVIATIONS * SMALLEST:  # as nearly always
        return None
    deviation = 1.4826 * statistics.median(abs(each - median) for each in losses)
    return median if loss > median + DEVIATIONS * deviation else None


def describe(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a text about the skipped steps, rollbacks and spikes in a run's log; "" if there are none."""
    counts = {"skip": 0, "rollback": 0, "spike": 0}
    for row in rows:
        if row["split"] in counts:
            counts[row["split"]] += 1
    names = {"skip": "step skipped", "rollback": "rollback", "spike": "loss spike"}
    plural = {"skip": "steps skipped", "rollback": "rollbacks", "spike": "loss spikes"}
    return ", ".join(f"{n} {names[kind] if n == 1 else plural[kind]}" for kind, n in counts.items() if n)
