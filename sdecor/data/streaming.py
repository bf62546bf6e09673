"""Training batches that Grain reads and decodes when they are needed, for splits that do not fit in memory.

One element of the Grain pipeline is one whole batch, a function of its step. The order is that of
`sdecor.data.batches`, so the batches equal those of `MemoryLoader` for any number of threads and workers. A start at a
later step decodes nothing of the steps before it. So workers that were killed start again at the next step.
"""

import contextlib
import copy
import dataclasses
import itertools
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, Self

import numpy as np
from absl import logging

from sdecor.core import interrupt
from sdecor.core.checks import check_range
from sdecor.core.commands import TemporaryFailure
from sdecor.core.threads import Check, in_background, map_ahead
from sdecor.data import workers
from sdecor.data.batches import batch_indices, steps_per_epoch, training_batch
from sdecor.data.memory import describe_examples
from sdecor.data.reading import Skipping, Unreadable, first_readable

_LAST_STEP = 2**31 - 1  # Grain's pipelines need a length
_RESTARTS = 3  # of the workers of a loader, before a dead worker is an error
_GRACE = 3.0  # seconds in which workers may end a batch before they are stopped; and again to notice that


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Assemble:
    """The function `step -> (batch, examples left out)`, as an object: worker processes cannot receive a closure."""

    source: Any
    seed: int
    batch_size: int
    process_index: int
    process_count: int
    shape: tuple[int, ...]

    def __call__(self, step: int) -> tuple[dict[str, np.ndarray], list[Unreadable]]:
        indices, positions = batch_indices(
            self.seed,
            step,
            n=len(self.source),
            batch_size=self.batch_size,
            process_index=self.process_index,
            process_count=self.process_count,
        )
        return training_batch(self.source, indices, positions, self.shape)


@dataclasses.dataclass(frozen=True)
class _Report:
    """A worker's report beside a batch: the examples left out, and the error of a batch that cannot be read.

    An error is sent as a value, so that any other error means that the worker itself has ended.
    """

    left_out: list[Unreadable]
    error: Exception | None = None


def _reported(assemble: _Assemble, step: int) -> dict[str, Any]:
    """Return a worker's batch, if it can be read, with its `report`."""
    try:
        batch, left_out = assemble(step)
    except Exception as error:
        return {"report": _Report([], error)}
    return batch | {"report": _Report(left_out)}


def _let_grain_start_workers() -> None:
    """Let Grain read the defaults of its flags if the program has parsed none (a notebook, plain argparse)."""
    from absl import flags

    if flags.FLAGS.is_parsed():
        return
    for name in flags.FLAGS:
        if name.startswith("grain_"):
            flags.FLAGS[name].present = 1  # absl refuses to read a flag that was neither parsed nor set


def _start_worker(name: str, worker_index: int, worker_count: int) -> None:
    workers.start_worker(name)


class GrainLoader:
    """Training batches streamed by Grain, equal to those of `MemoryLoader` for the same seed and step."""

    kind = "grain"

    def __init__(
        self,
        source: Any,
        *,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        num_workers: int = 0,
        threads: int = 4,
        prefetch: int = 4,
        check: Check = interrupt.check,
    ):
        """Validate the arguments and read one example; see `create_loader` for the arguments."""
        check_range("num_workers", num_workers, 0)
        check_range("threads", threads, 1)
        check_range("prefetch", prefetch, 1)
        self.steps_per_epoch = steps_per_epoch(len(source), batch_size)
        self._num_workers, self._threads, self._prefetch = num_workers, threads, prefetch
        self._check, self._restarts = check, 0
        self._assemble = _Assemble(
            source=source,
            seed=seed,
            batch_size=batch_size,
            process_index=process_index,
            process_count=process_count,
            shape=first_readable(source)["image"].shape,
        )
        batch_indices(
            seed, 0, n=len(source), batch_size=batch_size, process_index=process_index, process_count=process_count
        )

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Read this process's part of the batch at `step`, without Grain: `image`, `label`, `position`."""
        return self._assemble(step)[0]

    def iterate(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yield the batches of `start_step`, `start_step + 1`, … without end.

        Threads and workers start with the first batch, and end when the iterator is closed or deleted.

        Raises:
          ValueError: when an example cannot be read.
          TemporaryFailure: when a worker process has ended unexpectedly, for the fourth time.
        """
        check_range("start_step", start_step, 0, _LAST_STEP - 1)
        return self._from_workers(start_step) if self._num_workers else self._from_threads(start_step)

    def _from_threads(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        import grain

        steps = grain.MapDataset.range(start_step, _LAST_STEP).map(self._assemble)
        # Grain's own threads would keep the process from ending while one is stuck in a read.
        batches = map_ahead(
            steps.__getitem__,
            itertools.count(),
            threads=min(self._threads, self._prefetch),  # one thread reads a batch: more would have nothing to do
            ahead=self._prefetch,
            name="grain",
            check=self._check,
        )
        with contextlib.closing(batches):
            for batch, _ in batches:
                yield batch

    def _from_workers(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        step = start_step
        while True:
            try:
                with contextlib.closing(self._stream(step)) as batches:
                    for batch in batches:
                        yield batch
                        step += 1
            except RuntimeError as error:  # Grain's, because `_reported` sends all errors of reading
                self._restarts += 1
                why = str(error).partition(". ")[0]
                if self._restarts > _RESTARTS:
                    raise TemporaryFailure(
                        f"a worker process of the input ended unexpectedly before step {step}, after {_RESTARTS} "
                        f"restarts ({why}). Free memory, or lower data.workers"
                    ) from error
                logging.warning(
                    "a worker process of the input ended unexpectedly before step %d (%s): the workers start again "
                    "(%d of %d times)",
                    step, why, self._restarts, _RESTARTS,
                )  # fmt: skip

    def _stream(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield batches of workers until one of them ends."""
        with workers.stream() as (name, end_workers):
            closed = threading.Event()
            elements = in_background(
                self._elements(start_step, name, closed), ahead=1, name="grain-workers", check=self._check
            )
            try:
                for element in elements:
                    yield self._received(element)
            finally:
                elements.close()
                if not closed.wait(_GRACE):  # a worker is stuck
                    end_workers()
                    closed.wait(_GRACE)

    def _elements(self, start_step: int, name: str, closed: threading.Event) -> Iterator[dict[str, Any]]:
        import grain

        _let_grain_start_workers()
        options = grain.ReadOptions(num_threads=min(self._threads, self._prefetch), prefetch_buffer_size=self._prefetch)
        steps = grain.MapDataset.range(start_step, _LAST_STEP).map(partial(_reported, self._assemble))
        shared = steps.to_iter_dataset(options).map(partial(workers.to_shared_memory, name=name))
        counted = grain.MultiprocessingOptions(num_workers=self._num_workers, per_worker_buffer_size=1)
        elements = iter(shared.mp_prefetch(counted, partial(_start_worker, name)))
        try:
            for element in elements:
                yield workers.from_shared_memory(element)
        finally:
            elements.close()
            closed.set()

    def _received(self, element: dict[str, Any]) -> dict[str, np.ndarray]:
        report = element.pop("report")
        if report.error is not None:
            raise report.error
        for unreadable in report.left_out:
            self._assemble.source.note(unreadable.index, unreadable.text)
        return element

    @property
    def left_out(self) -> int:
        """Number of examples that could not be read so far, and were replaced by others."""
        source = self._assemble.source
        return len(source.found) if isinstance(source, Skipping) else 0

    def reordered(self, seed: int) -> Self:
        """Return a loader of the same examples in the order of another seed."""
        other = copy.copy(self)
        other._assemble = dataclasses.replace(self._assemble, seed=seed)
        return other

    def describe(self) -> str:
        """Return a one-line description of the loader."""
        workers = f"{self._num_workers} worker processes, " if self._num_workers else ""
        return (
            f"grain: {describe_examples(len(self._assemble.source), self._assemble.shape)}, "
            f"{workers}{min(self._threads, self._prefetch)} threads, {self.steps_per_epoch} steps per epoch"
        )
