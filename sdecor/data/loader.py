"""Loaders of training batches: from memory if the split fits, else streamed by Grain."""

import os
from collections.abc import Iterator
from typing import Any, Protocol, Self

import numpy as np

from sdecor.core import interrupt
from sdecor.core.checks import check_choice, check_range
from sdecor.core.threads import Check
from sdecor.data.memory import IndexLoader, MemoryLoader, MemorySource
from sdecor.data.reading import first_readable
from sdecor.data.streaming import GrainLoader

KINDS = ("auto", "memory", "device", "grain")
_FEWEST_THREADS, _MOST_THREADS = 4, 16  # each thread holds a batch in memory


class Loader(Protocol):
    """The interface of all kinds of loader. Their only state is the step, so checkpoints hold nothing of them."""

    kind: str
    steps_per_epoch: int

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Return this process's part of the batch at `step`."""

    def iterate(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yield the batches from `start_step` on, without end; `close()` on the iterator ends threads and workers."""

    @property
    def left_out(self) -> int:
        """Number of examples that could not be read so far, and were replaced by others."""

    def reordered(self, seed: int) -> Self:
        """Return a loader of the same examples in the order of another seed."""

    def describe(self) -> str:
        """Return a one-line description of the loader."""


def create_loader(
    source: Any,
    *,
    batch_size: int,
    seed: int,
    kind: str = "auto",
    memory_limit_mb: float = 4096,
    num_workers: int = 0,
    threads: int | None = None,
    prefetch: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    check: Check = interrupt.check,
) -> Loader:
    """Create the loader of a training split. All kinds serve equal batches for the same seed and step.

    In place of an example that a `Skipping` source leaves out, they serve the next one that can be read.

    Args:
      source: a Source.
      batch_size: size of the global batch, over all processes.
      seed: seed of the order of examples, at least 0.
      kind: "memory" decodes everything once, "grain" streams, "auto" chooses memory if the images fit. "device" decodes
        everything once and serves the examples' `index` int32 `[n]` in place of `image` and `label`, for a split that
        lies on the devices.
      memory_limit_mb: largest size of the decoded images for "auto", in MiB for each process.
      num_workers: number of worker processes that decode for Grain; 0 = only threads of this process. A worker takes
        seconds to start, receives a pickled copy of the source, and returns batches in shared memory (/dev/shm).
      threads: number of reading threads, for each worker if there are workers. None = one for each core that this
        process may use, from 4 to 16; and 4 for each worker.
      prefetch: number of batches that Grain reads ahead, for each worker if there are workers. None = one for each
        thread, because a thread reads whole batches; at least 4.
      process_index: this process, `0 … process_count−1`.
      process_count: the number of processes, a divisor of `batch_size`.
      check: function that is called several times a second while a batch is awaited; an exception of it ends the wait.

    Returns:
      A `Loader`. Its batches hold `image` uint8 `[n, H, W, C]` (or float32 `[n, *positions, C]`), `label` int32 `[n]`
      and `position` int32 `[n]` (the position in the global batch), with `n = batch_size / process_count`.

    Raises:
      ValueError: for invalid arguments, and for an example that cannot be read and is not left out; the error names it.
    """
    check_choice("kind", kind, KINDS)
    if threads is None:
        threads = _FEWEST_THREADS if num_workers else min(max(usable_cores(), _FEWEST_THREADS), _MOST_THREADS)
    prefetch = max(threads, 4) if prefetch is None else prefetch
    check_range("memory_limit_mb", memory_limit_mb, 0)
    fields = {
        "batch_size": batch_size,
        "seed": seed,
        "process_index": process_index,
        "process_count": process_count,
        "threads": threads,
        "check": check,
    }
    if kind == "auto":
        kind = "memory" if fits_in_memory(source, memory_limit_mb) else "grain"
    if kind in ("memory", "device"):
        return (MemoryLoader if kind == "memory" else IndexLoader)(source, **fields)
    return GrainLoader(source, num_workers=num_workers, prefetch=prefetch, **fields)


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # a container or a scheduler may grant fewer than the machine has
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def fits_in_memory(source: Any, memory_limit_mb: float) -> bool:
    """Return whether a split's decoded images take at most `memory_limit_mb` MiB, or are in memory already."""
    if isinstance(source, MemorySource):
        return True
    return len(source) > 0 and len(source) * first_readable(source)["image"].nbytes <= memory_limit_mb * 2**20
