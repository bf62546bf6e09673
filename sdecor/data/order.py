"""The order of training examples: a pure function of (seed, step), so that a resumed run needs only its step."""

import functools
from collections.abc import Callable

import numpy as np

from sdecor.core.checks import check_range


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Return how many whole batches an epoch of `n` examples holds; the rest is dropped.

    Raises:
      ValueError: when `batch_size` is below 1 or above `n`.
    """
    check_range("batch_size", batch_size, 1)
    if batch_size > n:
        raise ValueError(
            f"batch_size = {batch_size} is larger than the training split, which has {n} examples: "
            f"an epoch would hold no batch. Choose a batch_size of at most {n}"
        )
    return n // batch_size


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """Return the permutation of `0 … n−1` in which an epoch visits the examples.

    It sorts the raw output of a Philox generator keyed by (seed, epoch). NumPy promises that raw streams never
    change, and does not promise it of `Generator.permutation`: a run can be resumed under another NumPy.

    Returns:
      Read-only int64 `[n]`. The last orders of each seed are kept, because every step of an epoch asks for the same
      one, and replicas with seeds of their own ask in turn.
    """
    check_range("seed", seed, 0, 2**64 - 1)
    check_range("epoch", epoch, 0)
    return _orders(int(seed), int(n))(int(epoch))


@functools.lru_cache(maxsize=128)
def _orders(seed: int, n: int) -> Callable[[int], np.ndarray]:
    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        draws = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(n)
        found = np.argsort(draws, kind="stable")
        found.flags.writeable = False  # the cache hands out the same array again
        return found

    return order


def process_share(batch_size: int, process_index: int, process_count: int) -> slice:
    """Return the places of the global batch that a process holds: contiguous, equally many for each process.

    Raises:
      ValueError: when `process_index` is not one of the processes or `process_count` does not divide `batch_size`.
    """
    check_range("process_count", process_count, 1)
    check_range("process_index", process_index, 0, process_count - 1)
    if batch_size % process_count:
        raise ValueError(
            f"batch_size = {batch_size} cannot be split over {process_count} processes: "
            f"choose a multiple of {process_count}"
        )
    local = batch_size // process_count
    return slice(process_index * local, (process_index + 1) * local)


def batch_indices(
    seed: int, step: int, *, n: int, batch_size: int, process_index: int = 0, process_count: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return which examples a process reads at a step, and where they stand in the global batch.

    Epochs stay whole: each has `n // batch_size` steps and its own permutation, whose last `n % batch_size`
    examples are left out that time. The global batch does not depend on the number of processes.

    Args:
      seed: the order's seed, at least 0.
      step: the training step, counted from 0 over all epochs.
      n: the number of training examples.
      batch_size: the size of the global batch, over all processes.
      process_index: this process, `0 … process_count−1`.
      process_count: the number of processes, a divisor of `batch_size`.

    Returns:
      `(indices, positions)`, int64 and int32 `[batch_size / process_count]`.
    """
    check_range("step", step, 0)
    epoch, within = divmod(int(step), steps_per_epoch(n, batch_size))
    share = process_share(batch_size, process_index, process_count)
    first = within * batch_size
    indices = epoch_order(seed, epoch, n)[first + share.start : first + share.stop]
    return indices, np.arange(share.start, share.stop, dtype=np.int32)
