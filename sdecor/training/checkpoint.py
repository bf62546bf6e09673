"""Checkpoints of a run, verified when they are read: the latest ones and the best by validation accuracy.

The main process alone writes: every process has the same state. It copies the state to the host. Orbax writes it in the
background, beside our checksums, because Orbax restores damaged bytes without an error. The first checkpoint of a
folder is read back at once by all processes, so that training does not start on storage that loses data.
"""

import asyncio
import contextlib
import dataclasses
import errno
import hashlib
import logging as python_logging
import os
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from sdecor.core import files, parallel
from sdecor.core.commands import TemporaryFailure
from sdecor.training import record, replicas, run_folder
from sdecor.training.state import TrainState

BEST_BY = "accuracy"  # the checkpoint with its largest value on the validation split is the best
KEEP_LATEST = 2  # the last one, and the one before it in case the last is damaged
TRIES = 3  # the run ends when so many checkpoints in a row could not be saved
SAVED = ("step", "params", "batch_stats", "opt_state", "ema_params", "ema_batch_stats")

# How a save went; the processes agree on the largest of their values.
_WELL, _NOT_WRITTEN, _TOO_OFTEN, _NOT_FINITE = range(4)


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints`, local or remote.

    All processes call its methods alike, since some of these are collectives.

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
        self._writes = create and parallel.is_main_process()
        self._manager: ocp.CheckpointManager | None = None  # of the process that writes, from its first save on
        self._writing: int | None = None  # step whose checkpoint is being written
        self._missed = 0  # checkpoints in a row that could not be saved
        self._reason = "see the main process"  # why the last one could not
        self._damaged: dict[int, str] = {}  # step → why its checkpoint cannot be read
        self._proven = False  # whether a checkpoint of this folder was read back
        self._facts: dict[str, Any] = {}  # config and data set of the run, from the opening on

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.wait()
        if self._manager is not None:
            self._manager.close()

    def steps(self) -> list[int]:
        """Return the steps that have a finished checkpoint, ascending."""
        return record.steps(self.directory)

    def has_metrics(self, step: int) -> bool:
        """Return whether the checkpoint of `step` holds a validation result that can be read."""
        return self._metrics(step) is not None

    def best_step(self) -> int | None:
        """Return the step with the best validation accuracy, the last of equal ones; None without validation."""
        found = {step: self._metrics(step) for step in self.steps()}
        return max((step for step in found if found[step]), key=lambda step: (found[step][BEST_BY], step), default=None)

    def _metrics(self, step: int) -> dict[str, float] | None:
        try:
            return record.read_metrics(self.directory, step)
        except ValueError as error:
            if step not in self._damaged:
                logging.warning("the validation result of step %d is left out: %s", step, error)
            self._damaged.setdefault(step, str(error))
            return None

    def save(self, state: TrainState, *, position: dict[str, Any], metrics: dict[str, float] | None = None) -> None:
        """Copy `state` to the host and write it in the background, with its checksums and the input's `position`.

        A checkpoint of the same step is replaced if it is damaged, or if only the new one has a validation result. The
        first checkpoint is written and read back before this method returns. A checkpoint that cannot be written is
        reported in one line, and the next save tries again.

        Raises:
          FloatingPointError: if a parameter is not finite: no run can continue from such a state.
          TemporaryFailure: if `TRIES` checkpoints in a row could not be written.
          ValueError: if the first checkpoint cannot be read back.
        """
        step, found, problem = int(state.step), _WELL, None
        if self._writes:
            try:
                found = self._save(state, step, position, metrics)
            except FloatingPointError as error:
                found, problem = _NOT_FINITE, error
        found = int(parallel.gather(np.array([found])).max())
        if found == _NOT_FINITE:
            raise problem or FloatingPointError(f"a parameter is not finite after step {step}: no checkpoint was saved")
        if found == _TOO_OFTEN:
            raise self._failure(f"{TRIES} checkpoints in a row")
        if found == _WELL and not self._proven:
            self._prove(step, state)

    def _save(self, state: TrainState, step: int, position: dict[str, Any], metrics: dict[str, float] | None) -> int:
        """Start to write a checkpoint; return how this and the former one went."""
        self.wait()
        arrays = parallel.copy_to_host(_saved(state))
        _check_finite(arrays["params"], step)
        self._writing = step
        try:
            self._open()
            if step in self.steps():
                if step not in self._damaged and (metrics is None or self.has_metrics(step)):
                    self._writing = None
                    return _WELL
                self._manager.delete(step)
                self._damaged.pop(step, None)
            about = {"step": step, "position": position, "metrics": metrics, **self._facts}
            args = ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), meta=_RecordSave(about, arrays))
            self._manager.save(step, args=args, metrics=metrics, force=True)
        except Exception as error:  # orbax raises many kinds
            self._miss(error)
        if not self._proven:
            self.wait()
        return _TOO_OFTEN if self._missed >= TRIES else _NOT_WRITTEN if self._missed else _WELL

    def wait(self) -> None:
        """Wait until the last checkpoint is written; report in one line if it could not be."""
        if self._writing is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # orbax raises many kinds
            self._miss(error)
        else:
            self._writing, self._missed = None, 0

    def finish(self) -> None:
        """Wait until all is written.

        Raises:
          TemporaryFailure: if the last checkpoint could not be written, in all processes.
        """
        self.wait()
        if parallel.any_process(self._missed > 0):
            raise self._failure("the last checkpoint")

    def _failure(self, missed: str) -> TemporaryFailure:
        steps = self.steps()
        kept = f"that of step {steps[-1]} is kept" if steps else "there is no earlier one"
        return TemporaryFailure(
            f"{missed} could not be saved in {self.directory} ({self._reason}); {kept}. Free the storage and run the "
            "same command to continue"
        )

    def _miss(self, error: Exception) -> None:
        """Note that a checkpoint could not be written; raise an error that is not the storage's."""
        if not _is_of_storage(error):
            raise error
        step, self._writing, self._manager = self._writing, None, None  # orbax's manager is of no use after an error
        self._missed, self._reason = self._missed + 1, _reason(error)
        self._remove_unfinished()
        logging.warning(
            "the checkpoint of step %d could not be saved: %s. The next one is tried (%d in a row; the run ends at %d)",
            step,
            self._reason,
            self._missed,
            TRIES,
        )

    def _remove_unfinished(self) -> None:
        """Remove what killed or failed saves left: unfinished checkpoints, which take space and are never read."""
        with contextlib.suppress(OSError):  # a thread of a failed save may still write there; the next save tries again
            for path in self.directory.glob("*.orbax-checkpoint-tmp*"):
                path.rmtree()

    def _open(self) -> None:
        """Create orbax's manager, of this process alone."""
        if self._manager is not None:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        self._facts = run_folder.facts(self.directory.parent)
        self._remove_unfinished()
        python_logging.getLogger("absl").addFilter(_raised_only)  # for good: threads of a failed save live on
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        policies = [
            preservation_policy.LatestN(KEEP_LATEST),
            preservation_policy.BestN(get_metric_fn=_accuracy, n=1, keep_checkpoints_without_metrics=False),
            self._good,
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            create=False,
            multiprocessing_options=alone,
        )
        # Orbax would copy NumPy arrays once more; these are copies already.
        kinds = ocp.type_handlers.create_type_handler_registry(
            (np.ndarray, _ArrayHandler(deepcopy_host_arrays=False)),
            (jax.Array, ocp.type_handlers.ArrayHandler()),  # unused; orbax warns without it
        )
        state = ocp.PyTreeCheckpointHandler(type_handler_registry=kinds, multiprocessing_options=alone)
        self._manager = _Manager(
            self.directory,
            options=options,
            item_handlers={"state": state, "meta": _RecordHandler()},
            metrics_of=self._metrics,
        )

    def _prove(self, step: int, state: TrainState) -> None:
        """Read the first checkpoint back in every process; if one process fails, all processes raise."""
        failure = None
        try:
            self._read(state, step)
        except Exception as error:  # orbax raises many kinds
            failure = error
        if parallel.any_process(failure is not None):
            reason = "by another process" if failure is None else _reason(failure)
            raise ValueError(
                f"the first checkpoint, of step {step}, cannot be read back from {self.directory} ({reason}): "
                "train in another --workdir, on a file system that keeps what is written"
            ) from failure
        self._proven = True

    def keep_good(self, step: int | None) -> None:
        """Keep the checkpoint of `step` beside the latest and the best, until another one is named."""
        self._good.step = step

    def drop_after(self, step: int) -> None:
        """Delete the checkpoints after `step`, which will be written again; damaged ones are set aside instead."""
        self.wait()
        self._set_aside(after=step)
        later = [each for each in self.steps() if each > step]
        if later and self._writes:
            self._open()
            for each in later:
                self._manager.delete(each)

    def _set_aside(self, after: int) -> None:
        """Rename the damaged checkpoints after the step `after`, so that they are kept and never read again."""
        if not self._writes or "://" in str(self.directory):
            return
        for step in [each for each in self._damaged if each > after]:
            aside = self.directory / f"damaged-{step}"
            while aside.exists():
                aside = aside.parent / f"{aside.name}+"
            with contextlib.suppress(OSError):
                (self.directory / str(step)).rename(aside)
                del self._damaged[step]
                logging.warning("the damaged checkpoint of step %d is kept as %s", step, aside)
        if self._manager is not None:
            self._manager.reload()

    def restore(self, state: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]] | None:
        """Read and verify a checkpoint; return its state and the input's position.

        A checkpoint is damaged for all processes if it is damaged for one. Where checkpoints may be written, the latest
        ones that are damaged are kept as `damaged-STEP`.

        Args:
          state: a state of the same structure, replicated on the local devices.
          step: step of the checkpoint; None for the latest undamaged one, with a warning for each damaged one.

        Returns:
          The state and the position, or None if there is no checkpoint.

        Raises:
          ValueError: if the checkpoint of `step` is damaged or missing, or if all checkpoints are damaged.
        """
        self.wait()
        steps = self.steps()
        if step is not None and step not in steps:
            raise ValueError(f"no checkpoint of step {step} in {self.directory}; there are: {steps}")
        if not steps:
            return None
        failures = {}
        for candidate in [step] if step is not None else steps[::-1]:
            found, failure = None, "damaged for another process"
            try:
                found = self._read(state, candidate)
            except Exception as error:  # orbax raises many kinds for damaged files
                failure = _reason(error)
            if not parallel.any_process(found is None):
                self._proven = True
                if step is None:
                    self._set_aside(after=candidate)
                arrays, position = found
                return state.replace(**parallel.replicate(arrays)), position
            failures[candidate] = self._damaged[candidate] = failure
            logging.warning("checkpoint of step %d is damaged: %s", candidate, failure)
        listed = "; ".join(f"step {step}: {failure}" for step, failure in failures.items())
        raise ValueError(
            f"no whole checkpoint in {self.directory} ({listed}): put back the files from a copy, or start again in "
            "another --workdir"
        )

    def _read(self, state: TrainState, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the arrays of a checkpoint into the host's memory, and the input's position; no collective."""
        about = record.read(self.directory, step)
        like = _saved(state)
        arrays = self._restore(step, jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), like))
        _verify(arrays, about)
        jax.tree_util.tree_map_with_path(_check_same_shape, arrays, like)
        return arrays, about["position"]

    def _restore(self, step: int, like: Any) -> Any:
        """Read the arrays of a checkpoint, with the structure of `like`."""
        with _patient_loops():
            handler = ocp.StandardCheckpointHandler()
            return handler.restore(self.directory / str(step) / "state", args=ocp.args.StandardRestore(like))


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, with the validation results of our records instead of files of its own.

    It does not look for preemption itself: `core.processes` counts the looks for all.
    """

    def __init__(self, *arguments: Any, metrics_of: Any, **options: Any):
        self._metrics_of = metrics_of
        super().__init__(*arguments, **options)

    def metrics(self, step: int) -> dict[str, float] | None:
        return self._metrics_of(step)

    def reached_preemption(self, step: int) -> bool:
        return False


class _ArrayHandler(ocp.type_handlers.NumpyHandler):
    """Write NumPy arrays, all of them to the end even if one fails.

    Otherwise each unfinished write prints its own traceback, "Event loop is closed", after the error that matters.
    """

    async def _background_serialize(self, *arguments: Any, **options: Any) -> None:
        try:
            await super()._background_serialize(*arguments, **options)
        finally:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.gather(*others, return_exceptions=True)


class _RecordHandler(ocp.AsyncCheckpointHandler):
    """Write the record of a checkpoint in the background; its checksums are computed there."""

    async def async_save(self, directory: epath.Path, args: "_RecordSave") -> list[ocp.future.Future]:
        async def write() -> None:
            content = args.content | {"crc32": record.crc32(args.arrays)}
            (directory / "metadata").write_text(record.sealed(content))

        return [ocp.future.CommitFutureAwaitingContractedSignals(write(), name="record")]

    def save(self, directory: epath.Path, args: "_RecordSave") -> None:
        raise NotImplementedError("the record is written by async_save")

    def restore(self, directory: epath.Path, args: Any = None) -> Any:
        raise NotImplementedError("the record is read by sdecor.training.record")


@ocp.args.register_with_handler(_RecordHandler, for_save=True)
@dataclasses.dataclass
class _RecordSave(ocp.args.CheckpointArgs):
    content: dict[str, Any]
    arrays: Any


@ocp.args.register_with_handler(_RecordHandler, for_restore=True)
@dataclasses.dataclass
class _RecordRestore(ocp.args.CheckpointArgs):
    """Unused; orbax wants both kinds of arguments."""


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
        # Both bounds of an array with a NaN are NaN. To find them is several times as fast as `isfinite` everywhere.
        if leaf.size and not (np.isfinite(leaf.min()) and np.isfinite(leaf.max())):
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


def _verify(arrays: Any, about: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless the arrays of a checkpoint have the checksums of its record."""
    new = "crc32" in about  # earlier versions stored SHA-256
    actual, expected = (record.crc32(arrays), about["crc32"]) if new else (checksums(arrays), about["checksums"])
    wrong = sorted(name for name in actual if actual[name] != expected.get(name))
    if wrong:
        raise ValueError(f"checksums differ for {len(wrong)} of {len(actual)} arrays, first {wrong[0]}")


def _check_same_shape(path: Any, array: np.ndarray, like: Any) -> None:
    there, here = (f"{each.dtype}{list(each.shape)}" for each in (array, like))
    if there != here:
        raise ValueError(f"{jax.tree_util.keystr(path)} is {there} there, {here} here")


_STATUS = re.compile(r"\b(RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|INTERNAL|UNKNOWN|DATA_LOSS)\b")


def _is_of_storage(error: BaseException | None) -> bool:
    """Return whether the file system or TensorStore, which names a status, raised an error or its cause."""
    while error is not None:
        if isinstance(error, OSError) or _STATUS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


_SYSTEM = re.compile("|".join(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)))


def _reason(error: Exception) -> str:
    """Return what the system says of an error of the storage; else the first line, without TensorStore's settings."""
    if found := _SYSTEM.search(str(error)):
        return found[0]
    text = (str(error) or type(error).__name__).splitlines()[0]
    for details in (" [tensorstore_spec", " See full TensorStore details"):
        text = text.partition(details)[0]
    return text


def _raised_only(entry: python_logging.LogRecord) -> bool:
    """Keep orbax's tracebacks out of the log: it raises the same errors, which are reported in one line."""
    return entry.levelno < python_logging.ERROR or f"{os.sep}orbax{os.sep}" not in entry.pathname


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
