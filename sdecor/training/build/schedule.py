"""Build the lengths of a run in steps, its learning rate, and what it does when a value is not finite."""

import dataclasses

import optax
from ml_collections import ConfigDict

from sdecor.training.health import Policy
from sdecor.training.state import learning_rate_schedule


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The lengths of a run, in optimizer steps."""

    steps_per_epoch: int
    total: int
    warmup: int
    eval_every: int
    checkpoint_every: int | None
    steps_per_call: int = 1

    def is_due(self, step: int, every: int | None) -> bool:
        """Return whether an action that is due every `every` steps, and at the last step, is due after `step`."""
        return every is not None and step > 0 and (step % every == 0 or step == self.total)

    def until_due(self, step: int) -> int:
        """Return the number of steps from `step` to the next validation, checkpoint by steps, or end of the run."""
        lengths = [every for every in (self.eval_every, self.checkpoint_every) if every is not None]
        return min([self.total - step, *(every - step % every for every in lengths)])

    def left(self, start: int) -> str:
        """Return a text about the steps left from `start` on."""
        if start >= self.total:
            return f"all {self.total} steps are done"
        begin = f"continuing at step {start} of {self.total}" if start else f"starting: {self.total} steps"
        return f"{begin} ({self.steps_per_epoch} per epoch)"


def create_schedule(config: ConfigDict, micro_batches_per_epoch: int) -> Schedule:
    """Convert the config's epochs to steps.

    Raises:
      ValueError: if the run would have no step, or no call of `train.steps_per_call` steps.
    """
    train = config.train
    steps_per_epoch = micro_batches_per_epoch // train.accumulate
    total = round(train.epochs * steps_per_epoch)
    if total < 1:
        raise ValueError(
            f"config.train.epochs = {train.epochs} of {steps_per_epoch} steps is less than one step: "
            "train longer, or lower train.batch_size or train.accumulate"
        )
    schedule = Schedule(
        steps_per_epoch=steps_per_epoch,
        total=total,
        warmup=round(config.optim.warmup_epochs * steps_per_epoch),
        eval_every=max(round(train.eval_every_epochs * steps_per_epoch), 1),
        checkpoint_every=train.checkpoint_every_steps,
        steps_per_call=train.steps_per_call,
    )
    if schedule.until_due(0) < schedule.steps_per_call:
        raise ValueError(
            f"config.train.steps_per_call = {train.steps_per_call}: a call ends at each validation, checkpoint by "
            f"steps and end of the run, and these are {schedule.until_due(0)} steps apart. Use at most so many, or "
            "change config.train.eval_every_epochs or config.train.checkpoint_every_steps"
        )
    return schedule


def create_learning_rate(config: ConfigDict, schedule: Schedule) -> optax.Schedule:
    """Build the learning rate's shape over the run."""
    return learning_rate_schedule(config.optim.schedule, total_steps=schedule.total, warmup_steps=schedule.warmup)


def create_policy(config: ConfigDict) -> Policy:
    """Return what the config chooses for a loss or gradient that is not finite."""
    fields = ("on_nonfinite", "max_skips", "max_rollbacks", "loss_limit")
    return Policy(**{field: config.train[field] for field in fields})
