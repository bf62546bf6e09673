"""Checkpoints of a run, verified when they are read: the latest ones and the best by validation accuracy.

Orbax writes and deletes them. The checksums are ours, because Orbax restores damaged bytes without an error. The first
checkpoint of a folder is read back at once, so that training does not start on storage that loses data.
"""

import asyncio
import contextlib
import hashlib
import logging as python_logging
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from sdecor.core import files, parallel
from sdecor.training import replicas
from sdecor.training.state import TrainState

BEST_BY = "accuracy"  # the checkpoint with its largest value on the validation split is the best
KEEP_LATEST = 2  # the last one, and the one before it in case the last is damaged
SAVED = ("step", "params", "batch_stats", "opt_state", "ema_params", "ema_batch_stats")


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints`, local or remote.

    Args:
      workdir: folder of the run.
      create: whether checkpoints may be written; False only reads.

    Raises:
      ValueError: if checkpoints cannot be stored at this path.
    """

    def __init__(self, workdir: epath.PathLike, *, create: bool = True):
        if create:
            files.check_checkpoints("workdir", workdir)
        self.directory = files.absolute(workdir) / "checkpoints"
        self._good = _Chosen()
        policies = [
            preservation_policy.LatestN(KEEP_LATEST),
            preservation_policy.BestN(get_metric_fn=_accuracy, n=1, keep_checkpoints_without_metrics=False),
            self._good,
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            best_fn=_accuracy,
            create=create,
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        self.manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)
        self._damaged: set[int] = set()  # steps that `restore` could not read
        self._proven = False  # whether a checkpoint of this folder was read back

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.manager.close()

    def steps(self) -> list[int]:
        """Return the steps that have a finished checkpoint, ascending."""
        return sorted(self.manager.all_steps())

    def has_metrics(self, step: int) -> bool:
        """Return whether the checkpoint of `step` holds a validation result."""
        return self.manager.metrics(step) is not None

    def best_step(self) -> int | None:
        """Return the step with the best validation accuracy, the last of equal ones; None without validation."""
        return self.manager.best_step()

    def save(self, state: TrainState, *, position: dict[str, Any], metrics: dict[str, float] | None = None) -> None:
        """Write `state` in the background, with its checksums and the input's `position`.

        A checkpoint of the same step is replaced if it is damaged, or if only the new one has a validation result. The
        first checkpoint is written and read back before this method returns.

        Raises:
          FloatingPointError: if a parameter is not finite: no run can continue from such a state.
          ValueError: if the first checkpoint cannot be read back.
        """
        step, tree = int(state.step), _saved(state)
        on_host = parallel.to_host(tree)  # fetched once, for the two uses below
        _check_finite(on_host["params"], step)
        if step in self.manager.all_steps():
            if step not in self._damaged and (metrics is None or self.has_metrics(step)):
                return
            self.manager.delete(step)
            self._damaged.discard(step)
        meta = {"step": step, "position": position, "checksums": checksums(on_host)}
        args = ocp.args.Composite(state=ocp.args.StandardSave(parallel.to_global(tree)), meta=ocp.args.JsonSave(meta))
        with _without(_NO_METRICS):
            self.manager.save(step, args=args, metrics=metrics, force=True)
        if not self._proven:
            self._prove(step, on_host)

    def _prove(self, step: int, saved: Any) -> None:
        """Read the new checkpoint back into host memory; if one process fails, all processes raise."""
        self.manager.wait_until_finished()
        failure = None
        try:
            found = self._restore(step, saved)
            self._verify(found.state, found.meta["checksums"])
        except Exception as error:  # orbax raises many kinds
            failure = error
        if parallel.any_process(failure is not None):
            reason = "by another process" if failure is None else _reason(failure)
            raise ValueError(
                f"the first checkpoint, of step {step}, cannot be read back from {self.directory} ({reason}): "
                "train in another --workdir, on a file system that keeps what is written"
            ) from failure

    def keep_good(self, step: int | None) -> None:
        """Keep the checkpoint of `step` beside the latest and the best, until another one is named."""
        self._good.step = step

    def drop_after(self, step: int) -> None:
        """Delete the checkpoints after `step`, which will be written again."""
        for later in [each for each in self.steps() if each > step]:
            self.manager.delete(later)

    def restore(self, state: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]] | None:
        """Read and verify a checkpoint; return its state and the input's position.

        Args:
          state: a state of the same structure, replicated on the local devices.
          step: step of the checkpoint; None for the latest undamaged one, with a warning for each damaged one.

        Returns:
          The state and the position, or None if there is no checkpoint.

        Raises:
          ValueError: if the checkpoint of `step` is damaged or missing, or if all checkpoints are damaged.
        """
        steps = self.steps()
        if step is not None and step not in steps:
            raise ValueError(f"no checkpoint of step {step} in {self.directory}; there are: {steps}")
        if not steps:
            return None
        failures = {}
        for candidate in [step] if step is not None else steps[::-1]:
            try:
                return self._read(state, candidate)
            except Exception as error:  # orbax raises many kinds for damaged files
                failures[candidate] = error
                self._damaged.add(candidate)
                logging.warning("checkpoint of step %d is damaged: %s", candidate, _reason(error))
        listed = "; ".join(f"step {step}: {_reason(error)}" for step, error in failures.items())
        raise ValueError(
            f"no whole checkpoint in {self.directory} ({listed}): put back the files from a copy, or start again in "
            "another --workdir"
        )

    def _read(self, state: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, parallel.to_global(_saved(state)))
        found = self._restore(step, like)
        tree = parallel.to_local(found.state)
        self._verify(tree, found.meta["checksums"])
        return state.replace(**tree), found.meta["position"]

    def _restore(self, step: int, like: Any) -> Any:
        """Read the content of a checkpoint, its `state` with shapes and dtypes as in `like`."""
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like), meta=ocp.args.JsonRestore())
        with _patient_loops():
            return self.manager.restore(step, args=args)

    def _verify(self, tree: Any, expected: Mapping[str, str]) -> None:
        actual = checksums(tree)
        wrong = sorted(name for name in actual if actual[name] != expected.get(name))
        if wrong:
            raise ValueError(f"checksums differ for {len(wrong)} of {len(actual)} arrays, first {wrong[0]}")
        self._proven = True


class _Chosen:
    """A preservation policy of orbax that keeps one chosen step."""

    step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        return [each.step == self.step for each in checkpoints]


def restore_together(
    saved: Mapping[str, Checkpoints], state: TrainState, *, begun: Container[str]
) -> list[tuple[TrainState, dict[str, Any]] | None]:
    """Read all members' checkpoints of the last step for which every member has an undamaged one.

    Replicas' checkpoints of later steps are deleted.

    Args:
      saved: checkpoints of the members, by name.
      state: a state of the same structure, as for `Checkpoints.restore`.
      begun: names of the members that were trained before, as for `replicas.common_steps`.

    Returns:
      The result of `Checkpoints.restore` for each member; None for each if training starts from the beginning.

    Raises:
      ValueError: if all common checkpoints are damaged, or the replicas were not trained together.
    """
    if len(saved) == 1:
        return [each.restore(state) for each in saved.values()]
    common = replicas.common_steps({name: each.steps() for name, each in saved.items()}, begun)
    found, start = [None] * len(saved), 0
    for step in common:
        try:
            found, start = [each.restore(state, step) for each in saved.values()], step
            break
        except ValueError as error:
            logging.warning("%s", error)
    if common and not start:
        raise ValueError(f"every checkpoint that the replicas have in common is damaged: steps {common}")
    for each in saved.values():
        each.drop_after(start)
    return found


def _check_finite(params: Any, step: int) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not np.isfinite(leaf).all():
            name = jax.tree_util.keystr(path)
            raise FloatingPointError(f"parameter {name} is not finite after step {step}: no checkpoint was saved")


def checksums(tree: Any) -> dict[str, str]:
    """Return the SHA-256 of each array's dtype, shape and bytes, by the array's path in the tree."""

    def digest(array: Any) -> str:
        array = np.ascontiguousarray(array)
        header = f"{array.dtype} {array.shape} ".encode()
        return hashlib.sha256(header + array.tobytes()).hexdigest()

    leaves = jax.tree_util.tree_leaves_with_path(parallel.to_host(tree))
    return {jax.tree_util.keystr(path): digest(leaf) for path, leaf in leaves}


def _reason(error: Exception) -> str:
    """Return an error's first line, without the storage library's settings after it."""
    text = (str(error) or type(error).__name__).splitlines()[0]
    for details in (" [tensorstore_spec", " See full TensorStore details"):
        text = text.partition(details)[0]
    return text


_NO_METRICS = "Requested `tracked_metric`; did not provide metrics."  # orbax's warning at each save without validation


@contextlib.contextmanager
def _without(message: str) -> Iterator[None]:
    """Keep one message out of absl's log."""
    log = python_logging.getLogger("absl")

    def keep(record: python_logging.LogRecord) -> bool:
        return record.msg != message

    log.addFilter(keep)
    try:
        yield
    finally:
        log.removeFilter(keep)


class _PatientLoop(asyncio.SelectorEventLoop):
    """An event loop that finishes its tasks before it closes."""

    def close(self) -> None:
        while not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        super().close()


@contextlib.contextmanager
def _patient_loops() -> Iterator[None]:
    """Make orbax read in event loops that finish all reads; orbax closes a loop at the first error.

    Otherwise every unfinished read prints its own traceback, "Event loop is closed" or "exception was never retrieved",
    after the error that matters.
    """
    former = asyncio.new_event_loop
    asyncio.new_event_loop = _PatientLoop
    try:
        yield
    finally:
        asyncio.new_event_loop = former


def _accuracy(metrics: dict[str, float]) -> float:
    return metrics[BEST_BY]


def _saved(state: TrainState) -> dict[str, Any]:
    values = {name: getattr(state, name) for name in SAVED}
    return {name: value for name, value in values.items() if jax.tree.leaves(value)}
