"""Training batches that Grain reads and decodes when they are needed, for splits that do not fit in memory.

One element of the Grain pipeline is one whole batch, a function of its step. The order is that of
`sdecor.data.batches`, so the batches equal those of `MemoryLoader` for any number of threads and workers. A start at a
later step decodes nothing of the steps before it.
"""

import copy
import dataclasses
import signal
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from sdecor.core.checks import check_range
from sdecor.data.batches import batch_indices, read, steps_per_epoch, training_batch

_LAST_STEP = 2**31 - 1  # Grain's pipelines need a length


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Assemble:
    """The function `step -> batch`, as an object, because worker processes cannot receive a closure."""

    source: Any
    seed: int
    batch_size: int
    process_index: int
    process_count: int
    shape: tuple[int, ...]

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        indices, positions = batch_indices(
            self.seed,
            step,
            n=len(self.source),
            batch_size=self.batch_size,
            process_index=self.process_index,
            process_count=self.process_count,
        )
        return training_batch(self.source, indices, positions, self.shape)


def _let_grain_start_workers() -> None:
    """Let Grain read the defaults of its flags if the program has parsed none (a notebook, plain argparse)."""
    from absl import flags

    if flags.FLAGS.is_parsed():
        return
    for name in flags.FLAGS:
        if name.startswith("grain_"):
            flags.FLAGS[name].present = 1  # absl refuses to read a flag that was neither parsed nor set


def _ignore_interrupt(worker_index: int, worker_count: int) -> None:
    """Ignore Ctrl-C in a worker: the terminal sends it to workers too, but the main process still has to save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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
    ):
        """Validate the arguments and read one example; see `create_loader` for the arguments."""
        check_range("num_workers", num_workers, 0)
        check_range("threads", threads, 1)
        check_range("prefetch", prefetch, 1)
        self.steps_per_epoch = steps_per_epoch(len(source), batch_size)
        self._num_workers, self._threads, self._prefetch = num_workers, threads, prefetch
        self._assemble = _Assemble(
            source=source,
            seed=seed,
            batch_size=batch_size,
            process_index=process_index,
            process_count=process_count,
            shape=read(source, 0)["image"].shape,
        )
        batch_indices(
            seed, 0, n=len(source), batch_size=batch_size, process_index=process_index, process_count=process_count
        )

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Read this process's part of the batch at `step`, without Grain: `image`, `label`, `position`."""
        return self._assemble(step)

    def iterate(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yield the batches of `start_step`, `start_step + 1`, … without end.

        Threads and workers start with the first batch, and end when the iterator is closed or deleted.
        """
        check_range("start_step", start_step, 0, _LAST_STEP - 1)
        return self._stream(start_step)

    def _stream(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        import grain

        if self._num_workers:
            _let_grain_start_workers()
        # One thread reads a batch, so more threads than batches in the buffer would have nothing to do.
        options = grain.ReadOptions(num_threads=min(self._threads, self._prefetch), prefetch_buffer_size=self._prefetch)
        steps = grain.MapDataset.range(start_step, _LAST_STEP).map(self._assemble).to_iter_dataset(options)
        if self._num_workers:
            workers = grain.MultiprocessingOptions(num_workers=self._num_workers, per_worker_buffer_size=1)
            steps = steps.mp_prefetch(workers, _ignore_interrupt)
        batches = iter(steps)
        try:
            yield from batches
        finally:
            batches.close()

    def reordered(self, seed: int) -> Self:
        """Return a loader of the same examples in the order of another seed."""
        other = copy.copy(self)
        other._assemble = dataclasses.replace(self._assemble, seed=seed)
        return other

    def describe(self) -> str:
        """Return a one-line description of the loader."""
        height, width, channels = self._assemble.shape
        workers = f"{self._num_workers} worker processes, " if self._num_workers else ""
        return (
            f"grain: {len(self._assemble.source)} images of {height}×{width}×{channels}, "
            f"{workers}{min(self._threads, self._prefetch)} threads, {self.steps_per_epoch} steps per epoch"
        )
