"""The members of a training run: their states as one, lifted by `vmap`, and what each writes."""

import dataclasses
import math
import shlex
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sdecor.core import parallel
from sdecor.training import replicas
from sdecor.training.checkpoint import Checkpoints
from sdecor.training.logbook import Logbook, read_rows
from sdecor.training.state import TrainState


def lift(step: Callable) -> Callable:
    """Lift `step(state, batch, hyper, key) -> (state, terms)` over replicas; collectives stay among the devices.

    All arguments and results get the leading axis `[R]`, apart from the state's step.
    """

    def lifted(state: TrainState, batch: Any, hyper: Any, key: jax.Array) -> tuple[TrainState, Any]:
        axes = _axes(state)
        return jax.vmap(step, in_axes=(axes, 0, 0, 0), out_axes=(axes, 0))(state, batch, hyper, key)

    return lifted


def _axes(state: TrainState) -> TrainState:
    return jax.tree.map(lambda _: 0, state).replace(step=None)


def stack(trees: Sequence[Any], axis: int = 0) -> Any:
    """Stack trees of NumPy arrays along a new axis."""
    return jax.tree.map(lambda *arrays: np.stack(arrays, axis), *trees)


def stack_states(states: Sequence[TrainState]) -> TrainState:
    """Stack states of the same step."""
    return stack(states).replace(step=np.asarray(states[0].step))


def unstack_state(state: TrainState) -> list[TrainState]:
    """Return the replicas' states of a stacked one, as copies on the host."""
    host = jax.tree.map(np.array, state)  # copied: the next step overwrites what a view would show
    arrays, structure = jax.tree.flatten(host.replace(step=None))
    # A scalar of an array would be a NumPy number, which no checkpoint takes.
    return [structure.unflatten(map(np.asarray, own)).replace(step=host.step) for own in zip(*arrays, strict=True)]


def rows(values: dict[str, np.ndarray], replicas: int | None) -> list[dict[str, float]]:
    """Return a row of named numbers for each replica, of arrays `[R]`; of scalars, for `replicas` None, one row."""
    chosen = [()] if replicas is None else range(replicas)
    return [{name: float(value[i]) for name, value in values.items()} for i in chosen]


class Member(NamedTuple):
    """One of the runs that a program trains: a run of its own, which has no name, or a replica."""

    name: str
    folder: str
    seed: int


@dataclasses.dataclass
class Record:
    """The open files of a member; `failure` says why it failed, if it did."""

    member: Member
    checkpoints: Checkpoints
    book: Logbook
    failure: str = ""

    def check(self, step: int, terms: dict[str, float]) -> None:
        """Fail unless the member's loss and gradient are finite; see `fail`."""
        if self.failure or (math.isfinite(terms["loss"]) and math.isfinite(terms["gradient_norm"])):
            return
        self.book.write(step, "train", terms)
        listed = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        self.fail(step, f"the loss or its gradient is not finite at step {step} ({listed})")

    def save(self, state: TrainState, step: int, metrics: dict[str, float] | None) -> None:
        """Write a checkpoint, with the validation result if there is one, unless the member failed."""
        if self.failure:
            return
        try:
            self.checkpoints.save(state, position={"step": step, "seed": self.member.seed}, metrics=metrics)
        except FloatingPointError as error:
            self.fail(step, str(error))

    def fail(self, step: int, why: str) -> None:
        """Stop a run of its own; mark a replica, so that the others continue without it.

        Raises:
          FloatingPointError: for a run of its own.
        """
        good = max((saved for saved in self.checkpoints.steps() if saved < step), default=None)
        where = "there is no earlier checkpoint" if good is None else f"the last good checkpoint is of step {good}"
        self.failure = f"{why}; {where} in {self.member.folder}"
        if not self.member.name:
            raise FloatingPointError(self.failure)
        self.book.write(step, replicas.FAILED, {})
        self.book.flush()
        parallel.say(f"{self.member.name} failed, the others continue: {self.failure}")

    def closing(self, finished: bool) -> str:
        """Say how the run ended."""
        folder, best = self.member.folder, self.checkpoints.best_step()
        if not finished:
            return f"Interrupted; the state is saved in {folder}. Run the same command to continue."
        rows = [row for row in read_rows(folder) if row["split"] == "val"]
        scores = {row["step"]: row["accuracy"] for row in rows}
        last = max(scores, default=None)
        named = {"best and last": last} if best == last else {"best": best, "last": last}
        shown = ", ".join(
            f"{scores[step]:.1%} at step {step} ({name})" for name, step in named.items() if step in scores
        )
        following = shlex.join(["python", "evaluate.py", f"--workdir={folder}"])
        return f"Finished. Validation accuracy: {shown}. Next: {following}"
