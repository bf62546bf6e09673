"""The members of a training program: a single run, or several replicas that are trained at once.

`replicas` is the number R of replicas, or None for a single run. The arrays of replicas have a leading axis `[R]`.
Those of a single run have no such axis, and its step is compiled without `vmap`.
"""

import dataclasses
import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.core import files, leases, parallel, rng
from sdecor.core.commands import TemporaryFailure
from sdecor.training import clock, health, record, run_folder
from sdecor.training.checkpoint import BEST_BY, Checkpoints, restore_together
from sdecor.training.health import Health, NotFinite, Policy
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
    then = run_folder.lasting(run_folder.read(member.folder)["config"])
    if files.differing_fields(then, run_folder.lasting(files.plain(own))):
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


def step_rows(terms: dict[str, Any], replicas: int | None, count: int) -> Iterator[list[dict[str, float]]]:
    """Fetch the terms of a call of `count` steps, one array each; yield one row per member for each step."""
    numbers = {name: value.tolist() for name, value in parallel.to_host(terms).items()}  # faster than single floats
    for i in range(count):
        own = numbers if count == 1 else {name: each[i] for name, each in numbers.items()}
        yield [own] if replicas is None else [{name: each[r] for name, each in own.items()} for r in range(replicas)]


def restore(
    members: Sequence[Member], checkpoints: Sequence[Checkpoints], state: TrainState, replicas: int | None
) -> tuple[TrainState, list[Health]]:
    """Return the state of the last checkpoint that all members have, or `state` if there is none, and their health.

    Raises:
      ValueError: if the stored input position is not that of the step and seed, or `restore_together` raises.
    """
    saved = {member.name: each for member, each in zip(members, checkpoints, strict=True)}
    begun = [member.name for member in members if read_rows(member.folder)]
    found = restore_together(saved, next(split(state, replicas)), begun=begun)
    if None in found:
        return state, [Health() for _ in members]
    for (own, position), member in zip(found, members, strict=True):
        stored = {name: value for name, value in position.items() if name != "health"}
        expected = {"step": int(own.step), "seed": member.seed}
        if stored != expected:
            raise ValueError(f"{member.folder}: the checkpoint's input position is {stored}, this run's is {expected}")
    return join_states([own for own, _ in found], replicas), [Health.restore(position) for _, position in found]


def fingerprint(state: TrainState) -> dict[str, Any]:
    """Return the step and the checksums of the parameters, for a comparison between processes."""
    return {"step": int(state.step), "parameters": record.crc32(parallel.to_host(state.params))}


@dataclasses.dataclass
class Writer:
    """The log, checkpoints and health of a member; `failure` says why it failed, and is "" if it did not.

    `lock` is that of the member's folder, in the main process.
    """

    member: Member
    checkpoints: Checkpoints
    logbook: Logbook
    health: Health = dataclasses.field(default_factory=Health)
    lock: leases.Local | leases.Lease | None = None
    failure: str = ""

    def observe(self, step: int, terms: dict[str, float], policy: Policy) -> None:
        """Record a spike or a skipped step, and call `fail` if the loss or its gradient is not finite."""
        if self.failure:
            return
        finite = math.isfinite(terms["loss"]) and math.isfinite(terms["gradient_norm"])
        median = self.health.observe(step, terms["loss"], finite=finite, limit=policy.loss_limit)
        if median is not None:
            self.logbook.record(step, "spike", {"loss": terms["loss"], "median": median})
            self._say(f"loss spike at step {step}: {terms['loss']:.4g}, where the median was {median:.4g}")
        self.health.skipped = 0 if finite else self.health.skipped + 1
        if finite:
            return
        listed = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        why = f"the loss or its gradient is not finite at step {step} ({listed})"
        if policy.on_nonfinite == "skip" and self.health.skipped <= policy.max_skips:
            self.logbook.record(step, "skip", {"in_a_row": self.health.skipped})
            self._say(f"step {step} is skipped: {why}")
            return
        self.logbook.write(step, "train", terms)
        self.fail(step, why if policy.on_nonfinite != "skip" else f"{why}, after {policy.max_skips} skipped in a row")

    def _say(self, text: str) -> None:
        parallel.say(f"{self.member.name}: {text}" if self.member.name else text[0].upper() + text[1:])

    def save(self, state: TrainState, step: int, metrics: dict[str, float] | None) -> None:
        """Write a checkpoint, with its validation result if any, unless the member has failed.

        Raises:
          TemporaryFailure: if the lock of a remote folder was lost, because another job may write there.
        """
        if self.failure:
            return
        if self.lock is not None:
            try:
                self.lock.raise_if_lost()
            except OSError as error:
                raise TemporaryFailure(str(error)) from error
        try:
            # Only the good checkpoint before a bad loss is worth a return, even if later ones would replace it. While
            # the losses are good, it is the latest: no process needs to list the folder, which may be remote.
            bad = self.health.bad_since is not None
            self.checkpoints.keep_good(self.health.good(self.checkpoints.steps(), failed=step + 1) if bad else None)
            position = {"step": step, "seed": self.member.seed, "health": dataclasses.asdict(self.health)}
            self.checkpoints.save(state, position=position, metrics=metrics)
        except FloatingPointError as error:
            self.fail(step, str(error))

    def fail(self, step: int, why: str) -> None:
        """Raise an error for a single run; mark a replica as failed, so that the others continue without it.

        Raises:
          NotFinite: for a single run.
        """
        self.checkpoints.wait()
        good = self.health.good(self.checkpoints.steps(), failed=step + 1)
        where = "there is no good checkpoint" if good is None else f"the last good checkpoint is of step {good}"
        failure = f"{why}; {where} in {self.member.folder}"
        if not self.member.name:
            raise NotFinite(failure, step)
        self.failure = failure
        self.logbook.write(step, FAILED, {})
        self.logbook.flush()
        parallel.say(f"{self.member.name} failed, the others continue: {self.failure}")

    def closing(self, finished: bool) -> str:
        """Return a text about how the run ended."""
        folder, best = self.member.folder, self.checkpoints.best_step()
        if not finished:
            return f"Interrupted; the state is saved in {folder}. Run the same command to continue."
        rows = read_rows(folder)
        scores = {row["step"]: row[BEST_BY] for row in rows if row["split"] == "val"}
        last = max(scores, default=None)
        named = {"best and last": last} if best == last else {"best": best, "last": last}
        shown = ", ".join(
            f"{scores[step]:.1%} at step {step} ({name})" for name, step in named.items() if step in scores
        )
        following = shlex.join(["python", "evaluate.py", f"--workdir={folder}"])
        parts = (f"Validation accuracy: {shown}", health.describe(rows), clock.describe(rows))
        return " ".join(["Finished.", *(f"{part}." for part in parts if part), f"Next: {following}"])


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


def roll_back(writers: Sequence[Writer], like: TrainState, failure: NotFinite, policy: Policy) -> TrainState:
    """Return the last good state of a single run, whose data continue in another order.

    The checkpoints and rows of the log after it are deleted. A run that is killed meanwhile meets the same failure
    again, and decides in the same way.

    Args:
      writers: the single run's.
      like: a state of the same structure; shapes suffice.
      failure: the loss that is not finite.
      policy: what the config chooses.

    Raises:
      NotFinite: `failure`, if the policy is another, no checkpoint is good, or all rollbacks are used.
    """
    (writer, *_), order = writers, writers[0].health.order + 1
    if policy.on_nonfinite == "stop":
        raise NotFinite(f"{failure}. {ADVICE}", failure.step) from None
    if policy.on_nonfinite != "rollback":
        raise failure
    writer.checkpoints.wait()
    found = writer.health.good(writer.checkpoints.steps(), failed=failure.step + 1)
    good = int(parallel.gather(np.array([found or 0]))[0])  # as the main process, which has written them, says
    if not good or order > policy.max_rollbacks:
        done = f"{order - 1} rollback{'s' if order > 2 else ''}" if order > 1 else "no rollback was possible"
        raise NotFinite(f"{failure}; {done}. Lower config.optim.lr, in a new folder", failure.step) from None
    state, position = writer.checkpoints.restore(like, good)
    writer.checkpoints.drop_after(good)
    writer.health = dataclasses.replace(Health.restore(position), order=order)
    writer.logbook.rewind(good)
    writer.logbook.record(good, "rollback", {"failed_step": failure.step, "order": order})
    writer.logbook.flush()
    parallel.say(f"Rollback {order} of at most {policy.max_rollbacks}, to step {good}, with another order: {failure}")
    return state


ADVICE = "Lower config.optim.lr, in a new folder, or continue with --config.train.on_nonfinite=rollback or =skip"


def begin_times(writers: Sequence[Writer], times: clock.Clock) -> None:
    """Start the clock from the first member's log, and log the time of the run's first start."""
    started = times.begin(read_rows(writers[0].member.folder))
    for writer in writers:
        if started and not writer.failure:
            writer.logbook.record(0, clock.SPLIT, started)


def write_times(writers: Sequence[Writer], step: int, times: dict[str, float]) -> None:
    """Log the program's times for all members that have not failed."""
    for writer in writers:
        if not writer.failure:
            writer.logbook.write(step, clock.SPLIT, times)


def observe(
    writers: Sequence[Writer], step: int, terms: Sequence[dict[str, float]], policy: Policy
) -> list[tuple[Writer, dict[str, float]]]:
    """Observe the members' losses, fail those that are not finite; return the other members' writers and terms.

    Raises:
      FloatingPointError: if no member is left.
    """
    for writer, own in zip(writers, terms, strict=True):
        writer.observe(step, own, policy)
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
