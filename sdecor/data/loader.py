"""Choosing how training batches are made: from memory when the split fits, else streamed by Grain."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from sdecor.core.checks import check_choice, check_range
from sdecor.data.batches import read
from sdecor.data.memory import MemoryLoader, MemorySource
from sdecor.data.streaming import GrainLoader

KINDS = ("auto", "memory", "grain")


class Loader(Protocol):
    """What both kinds offer. Their whole state is the step: nothing of them goes into a checkpoint."""

    kind: str
    steps_per_epoch: int

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Return this process's part of a step's batch."""

    def iterate(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yield the batches from `start_step` on, without end; `close()` ends threads and workers."""

    def describe(self) -> str:
        """Say in one line what is loaded."""


def create_loader(
    source: Any,
    *,
    batch_size: int,
    seed: int,
    kind: str = "auto",
    memory_limit_mb: float = 4096,
    num_workers: int = 0,
    threads: int = 4,
    prefetch: int = 4,
    process_index: int = 0,
    process_count: int = 1,
) -> Loader:
    """Create the loader of a training split. Both kinds serve equal batches for the same seed and step.

    Args:
      source: a Source.
      batch_size: size of the global batch, over all processes.
      seed: seed of the order of examples, at least 0.
      kind: "memory" decodes everything once, "grain" streams, "auto" takes memory if the images fit.
      memory_limit_mb: with "auto", the most that the decoded images may take, in MiB for each process.
      num_workers: worker processes that decode for Grain; 0 = threads of this process alone. Each takes seconds
        to start, receives a pickled copy of the source, and hands its batches over in shared memory (/dev/shm).
      threads: reading threads (with workers: in each of them).
      prefetch: batches that Grain reads ahead (with workers: each of them).
      process_index: this process, `0 … process_count−1`.
      process_count: the number of processes, a divisor of `batch_size`.

    Returns:
      A `Loader`, whose batches hold `image` uint8 `[n, H, W, C]`, `label` int32 `[n]` and `position` int32 `[n]`
      (the place in the global batch), with `n = batch_size / process_count`.

    Raises:
      ValueError: for impossible fields, and for an example that cannot be read, naming it.
    """
    check_choice("kind", kind, KINDS)
    check_range("memory_limit_mb", memory_limit_mb, 0)
    fields = {
        "batch_size": batch_size,
        "seed": seed,
        "process_index": process_index,
        "process_count": process_count,
        "threads": threads,
    }
    if kind == "auto":
        kind = "memory" if fits_in_memory(source, memory_limit_mb) else "grain"
    if kind == "memory":
        return MemoryLoader(source, **fields)
    return GrainLoader(source, num_workers=num_workers, prefetch=prefetch, **fields)


def fits_in_memory(source: Any, memory_limit_mb: float) -> bool:
    """Return whether a split's decoded images take at most that many MiB (or lie in memory already)."""
    if isinstance(source, MemorySource):
        return True
    return len(source) > 0 and len(source) * read(source, 0)["image"].nbytes <= memory_limit_mb * 2**20
