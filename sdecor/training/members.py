"""The members of a training program: a single run, or several replicas that are trained at once.

`replicas` is the number R of replicas, or None for a single run. The arrays of replicas have a leading axis `[R]`.
Those of a single run have no such axis, and its step is compiled without `vmap`.
"""

import dataclasses
import functools
import math
import shlex
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.core import files, parallel, rng
from sdecor.core.commands import TemporaryFailure
from sdecor.training import run_folder
from sdecor.training.checkpoint import BEST_BY, Checkpoints, restore_together
from sdecor.training.logbook import Logbook, read_rows
from sdecor.training.replicas import FAILED, Replica, failed_at, list_failures
from sdecor.training.state import TrainState


class Member(NamedTuple):
    """A run of the training program; the name of a single run is empty."""

    name: str
    folder: str
    seed: int


def create(folder: str, chosen: Sequence[Replica], seeds: Sequence[int]) -> list[Member]:
    """Return the members: each chosen replica, in its folder below `folder`, or the single run in `folder`."""
    places = [(replica.name, f"{folder}/{replica.name}") for replica in chosen] or [("", folder)]
    return [Member(name, place, seed) for (name, place), seed in zip(places, seeds, strict=True)]


def former_failures(members: Sequence[Member], configs: Sequence[Any]) -> dict[str, str]:
    """Return by name why each replica failed in an earlier start of the same config; "" if it did not fail.

    For a single run it is always "", so that the run is tried again.
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
    """Lift `step(state, batch, hyper, key) -> (state, terms)` over the members.

    Collectives combine devices, not members. For replicas, all arguments and results get the leading axis, except the
    state's step.
    """
    if replicas is None:
        return step

    def lifted(state: TrainState, batch: Any, hyper: Any, key: jax.Array) -> tuple[TrainState, Any]:
        axes = jax.tree.map(lambda _: 0, state).replace(step=None)
        return jax.vmap(step, in_axes=(axes, 0, 0, 0), out_axes=(axes, 0))(state, batch, hyper, key)

    return lifted


def lift_evaluation(evaluate: Callable, replicas: int | None) -> Callable:
    """Lift `evaluate(variables, images, batch)` over the members' variables; the images are the same for all."""
    return evaluate if replicas is None else jax.vmap(evaluate, in_axes=(0, None, None))


def run_key(seeds: Sequence[int], use: int, replicas: int | None) -> jax.Array:
    """Return the members' keys for a use: `rng.run_key` for each seed."""
    keys = [rng.run_key(seed, use) for seed in seeds]
    return keys[0] if replicas is None else jnp.stack(keys)


def join(trees: Sequence[Any], replicas: int | None, axis: int = 0) -> Any:
    """Join the members' trees of NumPy arrays along a new axis; return the tree of a single run unchanged."""
    return trees[0] if replicas is None else jax.tree.map(lambda *arrays: np.stack(arrays, axis), *trees)


def join_states(states: Sequence[TrainState], replicas: int | None) -> TrainState:
    """Join the members' states of one step, and put them on the devices."""
    if replicas is None:
        return states[0]
    return parallel.replicate(join(states, replicas).replace(step=np.asarray(states[0].step)))


def split(state: TrainState, replicas: int | None) -> Iterator[TrainState]:
    """Yield each member's state: that of a single run as it is, those of replicas as copies on the host."""
    if replicas is None:
        yield state
        return
    host = parallel.copy_to_host(state)
    arrays, structure = jax.tree.flatten(host.replace(step=None))
    for own in zip(*arrays, strict=True):
        # Iteration yields NumPy numbers, which checkpoints do not accept; they need arrays.
        yield structure.unflatten(map(np.asarray, own)).replace(step=host.step)


def rows(values: dict[str, Any], replicas: int | None) -> list[dict[str, float]]:
    """Fetch named numbers, arrays `[R]` or the scalars of a single run; return one row per member."""
    values = parallel.to_host(values)
    indices = [()] if replicas is None else range(replicas)
    return [{name: float(value[i]) for name, value in values.items()} for i in indices]


def restore(
    members: Sequence[Member], checkpoints: Sequence[Checkpoints], state: TrainState, replicas: int | None
) -> TrainState:
    """Return the state of the last checkpoint that all members have, or `state` if there is none.

    Raises:
      ValueError: if the stored input position is not that of the step and seed, or `restore_together` raises.
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


def fingerprint(state: TrainState) -> dict[str, Any]:
    """Return the step and a checksum of the parameters, for a comparison between processes."""
    arrays = jax.tree.leaves(parallel.to_host(state.params))
    checksum = functools.reduce(lambda found, array: zlib.crc32(np.ascontiguousarray(array), found), arrays, 0)
    return {"step": int(state.step), "parameters": f"{checksum:08x}"}


@dataclasses.dataclass
class Writer:
    """The log and checkpoints of a member; `failure` says why the member failed, and is "" if it did not."""

    member: Member
    checkpoints: Checkpoints
    logbook: Logbook
    failure: str = ""

    def require_finite(self, step: int, terms: dict[str, float]) -> None:
        """Call `fail` unless the member's loss and gradient are finite."""
        if self.failure or (math.isfinite(terms["loss"]) and math.isfinite(terms["gradient_norm"])):
            return
        self.logbook.write(step, "train", terms)
        listed = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        self.fail(step, f"the loss or its gradient is not finite at step {step} ({listed})")

    def save(self, state: TrainState, step: int, metrics: dict[str, float] | None) -> None:
        """Write a checkpoint, with its validation result if any, unless the member has failed."""
        if self.failure:
            return
        try:
            self.checkpoints.save(state, position={"step": step, "seed": self.member.seed}, metrics=metrics)
        except FloatingPointError as error:
            self.fail(step, str(error))

    def fail(self, step: int, why: str) -> None:
        """Raise an error for a single run; mark a replica as failed, so that the others continue without it.

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
        """Return a text about how the run ended."""
        folder, best = self.member.folder, self.checkpoints.best_step()
        if not finished:
            return f"Interrupted; the state is saved in {folder}. Run the same command to continue."
        rows = [row for row in read_rows(folder) if row["split"] == "val"]
        scores = {row["step"]: row[BEST_BY] for row in rows}
        last = max(scores, default=None)
        named = {"best and last": last} if best == last else {"best": best, "last": last}
        shown = ", ".join(
            f"{scores[step]:.1%} at step {step} ({name})" for name, step in named.items() if step in scores
        )
        following = shlex.join(["python", "evaluate.py", f"--workdir={folder}"])
        return f"Finished. Validation accuracy: {shown}. Next: {following}"


def finish(writers: Sequence[Writer], finished: bool) -> None:
    """Wait until all checkpoints are written, and print how each run without failure ended.

    Raises:
      commands.TemporaryFailure: if a last checkpoint or a log could not be written.
    """
    for writer in writers:
        writer.checkpoints.finish()
        writer.logbook.flush()
        if parallel.any_process(bool(writer.logbook.behind)):
            reason = writer.logbook.behind or "see the main process"
            raise TemporaryFailure(
                f"{writer.member.folder}/metrics.jsonl lacks its last rows ({reason}). Free the storage and run the "
                "same command again"
            )
    for writer in writers:
        if not writer.failure:
            parallel.say(writer.closing(finished))


def require_finite(
    writers: Sequence[Writer], step: int, terms: Sequence[dict[str, float]]
) -> list[tuple[Writer, dict[str, float]]]:
    """Fail the members whose loss or gradient is not finite; return the other members' writers and terms.

    Raises:
      FloatingPointError: if no member is left.
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
    """Log the members' validation results, if any, and write their checkpoints."""
    metrics = metrics or [None] * len(writers)
    for writer, own in zip(writers, metrics, strict=True):
        if own is not None and not writer.failure:
            writer.logbook.write(step, "val", own)
        writer.logbook.flush()
    for writer in writers:  # after a kill, no replica may be more than one checkpoint behind another
        writer.checkpoints.wait()
    for writer, own in zip(writers, metrics, strict=True):
        writer.save(next(states), step, own)
