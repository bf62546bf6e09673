"""The members of a program: a single run, or several replicas that are trained at once.

`replicas` is their number, or None for a single run. The arrays of replicas are joined along a leading axis `[R]`;
those of a single run have no such axis, and its step is compiled without `vmap`.
"""

import dataclasses
import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.core import files, parallel, rng
from sdecor.training import run_folder
from sdecor.training.checkpoint import Checkpoints, restore_together
from sdecor.training.logbook import Logbook, read_rows
from sdecor.training.replicas import FAILED, Replica, failed_at, list_failures
from sdecor.training.state import TrainState


class Member(NamedTuple):
    """One of the runs that a program trains; a single run has no name."""

    name: str
    folder: str
    seed: int


def create(folder: str, chosen: Sequence[Replica], seeds: Sequence[int]) -> list[Member]:
    """Return the members: the chosen replicas, each in its folder below `folder`; without any, the single run there."""
    places = [(replica.name, f"{folder}/{replica.name}") for replica in chosen] or [("", folder)]
    return [Member(name, place, seed) for (name, place), seed in zip(places, seeds, strict=True)]


def former_failures(members: Sequence[Member], configs: Sequence[Any]) -> dict[str, str]:
    """Return why each replica failed in an earlier start of the same config, by name; empty where it did not.

    A single run is tried again.
    """
    return {
        member.name: _former_failure(member, own) if member.name else ""
        for member, own in zip(members, configs, strict=True)
    }


def _former_failure(member: Member, own: Any) -> str:
    step = failed_at(read_rows(member.folder))
    if step is None:
        return ""
    then = run_folder.read(member.folder)["config"]
    if files.differing_fields(then, files.plain(own), ignore=run_folder.FREE):
        return ""
    return f"failed at step {step} of an earlier start; see {member.folder}/metrics.jsonl"


def lift(step: Callable, replicas: int | None) -> Callable:
    """Lift `step(state, batch, hyper, key) -> (state, terms)` over the members; collectives stay among the devices.

    Arguments and results of replicas get the leading axis, apart from the state's step.
    """
    if replicas is None:
        return step

    def lifted(state: TrainState, batch: Any, hyper: Any, key: jax.Array) -> tuple[TrainState, Any]:
        axes = jax.tree.map(lambda _: 0, state).replace(step=None)
        return jax.vmap(step, in_axes=(axes, 0, 0, 0), out_axes=(axes, 0))(state, batch, hyper, key)

    return lifted


def lift_evaluation(evaluate: Callable, replicas: int | None) -> Callable:
    """Lift `evaluate(variables, images, batch)` over the members' variables; all see the same images."""
    return evaluate if replicas is None else jax.vmap(evaluate, in_axes=(0, None, None))


def run_key(seeds: Sequence[int], use: int, replicas: int | None) -> jax.Array:
    """Return the members' keys for a use, as `rng.run_key` does for one seed."""
    keys = [rng.run_key(seed, use) for seed in seeds]
    return keys[0] if replicas is None else jnp.stack(keys)


def join(trees: Sequence[Any], replicas: int | None, axis: int = 0) -> Any:
    """Join the members' trees of NumPy arrays along a new axis; of a single run, return its tree as it is."""
    return trees[0] if replicas is None else jax.tree.map(lambda *arrays: np.stack(arrays, axis), *trees)


def join_states(states: Sequence[TrainState], replicas: int | None) -> TrainState:
    """Join the members' states of the same step, on the devices."""
    if replicas is None:
        return states[0]
    return parallel.replicate(join(states, replicas).replace(step=np.asarray(states[0].step)))


def split(state: TrainState, replicas: int | None) -> Iterator[TrainState]:
    """Yield each member's state, on the devices; the whole state is copied to the host at the first."""
    if replicas is None:
        yield state
        return
    host = jax.tree.map(np.array, state)  # copied: the next step overwrites what a view would show
    arrays, structure = jax.tree.flatten(host.replace(step=None))
    for own in zip(*arrays, strict=True):
        # A scalar of an array would be a NumPy number, which no checkpoint takes.
        yield parallel.replicate(structure.unflatten(map(np.asarray, own)).replace(step=host.step))


def rows(values: dict[str, Any], replicas: int | None) -> list[dict[str, float]]:
    """Fetch named numbers: a row for each member, of arrays `[R]` or, for a single run, of scalars."""
    values = parallel.to_host(values)
    indices = [()] if replicas is None else range(replicas)
    return [{name: float(value[i]) for name, value in values.items()} for i in indices]


def restore(
    members: Sequence[Member], checkpoints: Sequence[Checkpoints], state: TrainState, replicas: int | None
) -> TrainState:
    """Return the state of the last checkpoint that all members have; where there is none, `state`.

    Raises:
      ValueError: when the input's position, a function of step and seed, is not this run's; beside what
        `restore_together` raises.
    """
    saved = {member.name: each for member, each in zip(members, checkpoints, strict=True)}
    begun = [member.name for member in members if read_rows(member.folder)]
    found = restore_together(saved, next(split(state, replicas)), begun=begun)
    if None in found:
        return state
    for (own, position), member in zip(found, members, strict=True):
        expected = {"step": int(own.step), "seed": member.seed}
        if position != expected:
            raise ValueError(
                f"{member.folder}: the checkpoint's input position is {position}, this run's is {expected}"
            )
    return join_states([own for own, _ in found], replicas)


@dataclasses.dataclass
class Writer:
    """Writes a member's log and checkpoints; `failure` says why the member failed, if it did."""

    member: Member
    checkpoints: Checkpoints
    logbook: Logbook
    failure: str = ""

    def require_finite(self, step: int, terms: dict[str, float]) -> None:
        """Fail unless the member's loss and gradient are finite; see `fail`."""
        if self.failure or (math.isfinite(terms["loss"]) and math.isfinite(terms["gradient_norm"])):
            return
        self.logbook.write(step, "train", terms)
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
        """Stop a single run; mark a replica as failed, so that the others continue without it.

        Raises:
          FloatingPointError: for a single run.
        """
        good = max((saved for saved in self.checkpoints.steps() if saved < step), default=None)
        where = "there is no earlier checkpoint" if good is None else f"the last good checkpoint is of step {good}"
        self.failure = f"{why}; {where} in {self.member.folder}"
        if not self.member.name:
            raise FloatingPointError(self.failure)
        self.logbook.write(step, FAILED, {})
        self.logbook.flush()
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


def finish(writers: Sequence[Writer], finished: bool) -> None:
    """Wait until all checkpoints are written, and say how the runs ended that did not fail."""
    for writer in writers:
        writer.checkpoints.manager.wait_until_finished()
    for writer in writers:
        if not writer.failure:
            parallel.say(writer.closing(finished))


def require_finite(
    writers: Sequence[Writer], step: int, terms: Sequence[dict[str, float]]
) -> list[tuple[Writer, dict[str, float]]]:
    """Fail the members whose loss or gradient is not finite; return the others' writers with their terms.

    Raises:
      FloatingPointError: when no member is left.
    """
    for writer, own in zip(writers, terms, strict=True):
        writer.require_finite(step, own)
    going = [(writer, own) for writer, own in zip(writers, terms, strict=True) if not writer.failure]
    if not going:
        raise FloatingPointError(list_failures({writer.member.name: writer.failure for writer in writers}))
    return going


def save(
    writers: Sequence[Writer], states: Iterator[TrainState], step: int, metrics: Sequence[dict[str, float]] | None
) -> None:
    """Log the members' validation results, if there are any, and write their checkpoints."""
    metrics = metrics or [None] * len(writers)
    for writer, own in zip(writers, metrics, strict=True):
        if own is not None and not writer.failure:
            writer.logbook.write(step, "val", own)
        writer.logbook.flush()
    for writer in writers:  # so that a kill leaves no replica more than one checkpoint behind another
        writer.checkpoints.manager.wait_until_finished()
    for writer, own in zip(writers, metrics, strict=True):
        writer.save(next(states), step, own)  # bound to no name: one state at a time lies on the devices
        if jax.process_count() > 1:  # orbax's barriers do not tell one replica's checkpoint from another's
            writer.checkpoints.manager.wait_until_finished()
