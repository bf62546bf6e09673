"""Batches of examples as NumPy arrays: order of training, batches of training and of evaluation.

The order of training examples is a pure function of (seed, step), so that a resumed run needs only its step.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from absl import logging

from sdecor.core import interrupt
from sdecor.core.checks import check_range
from sdecor.core.files import digest
from sdecor.core.threads import Check, map_ahead
from sdecor.data.reading import Skipping, Unreadable, first_readable, read, read_or_next
from sdecor.data.splits import Source


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Return the number of whole batches in an epoch of `n` examples; the rest is dropped.

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

    It sorts the raw output of a Philox generator with the key (seed, epoch). NumPy guarantees that raw streams never
    change, but not `Generator.permutation`. A run can therefore be resumed with another version of NumPy.

    Returns:
      Read-only int64 `[n]`. The last orders of each seed are cached, because every step of an epoch uses the same
      order, and replicas with different seeds take turns.
    """
    check_range("seed", seed, 0, 2**64 - 1)
    check_range("epoch", epoch, 0)
    return _orders(int(seed), int(n))(int(epoch))


def order_seed(seed: int, order: int) -> int:
    """Return the seed of a run's order of data after `order` rollbacks: its own before the first."""
    return seed if order == 0 else int(digest([f"{seed} {order}".encode()])[:16], 16)


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
    """Return the positions of the global batch that a process holds: contiguous, equally many for each process.

    Raises:
      ValueError: when `process_index` is out of range, or `process_count` does not divide `batch_size`.
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
    """Return the examples that a process reads at a step, and their positions in the global batch.

    Each epoch has `n // batch_size` steps and its own permutation. The last `n % batch_size` examples of the
    permutation are left out in that epoch. The global batch does not depend on the number of processes.

    Args:
      seed: seed of the order, at least 0.
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


def training_batch(
    source: Any, indices: np.ndarray, positions: np.ndarray, shape: tuple[int, ...]
) -> tuple[dict[str, np.ndarray], list[Unreadable]]:
    """Read the examples at `indices`; the next readable example replaces one that is left out.

    Returns:
      The batch, a dict of `image` `[n, *shape]` in the dtype of the source, `label` int32 `[n]` and `position` int32
      `[n]`, and the examples that were left out.
    """
    images: np.ndarray | None = None
    labels = np.empty(len(indices), np.int32)
    left_out = []
    for row, index in enumerate(indices):
        example, passed = read_or_next(source, int(index), shape)
        if images is None:
            images = np.empty((len(indices), *shape), example["image"].dtype)
        check_dtype(source, int(index), example["image"], images.dtype)
        images[row], labels[row] = example["image"], example["label"]
        left_out += passed
    return {"image": images, "label": labels, "position": positions}, left_out


def check_dtype(source: Any, index: int, image: np.ndarray, dtype: Any) -> None:
    """Raise `ValueError` unless an image has the dtype of the others; an assignment would convert it silently."""
    if image.dtype != dtype:
        raise ValueError(
            f"{source.name(index)} (example {index}) has an image of {image.dtype}: it should be {dtype} as the others"
        )


def rasterise_box(box: Iterable[int], height: int, width: int) -> np.ndarray:
    """Return a box `[y0, x0, y1, x1)` in pixels as a mask uint8 `[H, W]`, 1 inside, cut at the image's border."""
    y0, x0, y1, x1 = (int(value) for value in box)
    mask = np.zeros((height, width), np.uint8)
    mask[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = 1
    return mask


def object_mask(example: dict[str, Any]) -> np.ndarray | None:
    """Return an example's object codes, uint8 `[H, W]`: its mask (0, 1, 2 = ignore), else its drawn box, else None.

    The mask of other inputs than images has a value for each position, or for each position and channel.
    """
    if "object" in example:
        return np.asarray(example["object"], np.uint8)
    if "box" in example:
        return rasterise_box(example["box"], *example["image"].shape[:2])
    return None


def evaluation_indices(n: int, limit: int | None = None) -> np.ndarray:
    """Return the examples that evaluation visits: all `n`, or `limit` of them chosen at random.

    The choice depends only on `n` and `limit`, so that runs are compared on the same images. It is not every k-th
    example: classes often repeat in a cycle, and such a stride would miss some of them.

    Returns:
      Int64 `[min(n, limit)]`, ascending; a larger limit keeps the examples of a smaller one.
    """
    if n < 1:
        raise ValueError("the split is empty: there is nothing to evaluate")
    if limit is None:
        return np.arange(n)
    check_range("limit", limit, 1)
    return np.sort(epoch_order(0, 0, n)[: int(limit)])


def evaluation_batches(
    source: Any,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    limit: int | None = None,
    threads: int = 2,
    prefetch: int = 2,
    check: Check = interrupt.check,
) -> Iterator[dict[str, np.ndarray]]:
    """Iterate over every example once, in order, in batches of one size, read ahead by background threads.

    The last batch is padded with copies of the split's first example, which have `weight` 0 and `index` −1; padding is
    therefore never an unusual input. Such a copy also replaces an example that its source leaves out (`Skipping`). All
    processes get equally many batches, even if there are fewer examples than
    processes, so that their collectives match.

    Args:
      source: a Source with at least one example.
      batch_size: size of the global batch; each process gets `batch_size / process_count` rows of it.
      process_index: this process, `0 … process_count−1`.
      process_count: the number of processes, a divisor of `batch_size`.
      limit: number of examples to evaluate, see `evaluation_indices`; None = all.
      threads: number of reading threads; one thread reads a batch.
      prefetch: batches read ahead of the one in use.
      check: function that is called several times a second while a batch is awaited; an exception of it ends the loop.

    Yields:
      Dicts of `image` uint8 `[n, H, W, C]`, or float32 `[n, *positions, C]`, `label` int32 `[n]`, `index` int32 `[n]`
      (place in the split), `weight` float32 `[n]` and, if the data set has masks or boxes, `object` uint8 `[n, H, W]`
      (0 background, 1 object, 2 ignore); a mask is preferred to a box. Masks of series may have channels, `[n, T, C]`.

    Raises:
      ValueError: for impossible sizes, at the call; for an example that cannot be read, when its batch is due.
    """
    check_range("batch_size", batch_size, 1)
    check_range("threads", threads, 1)
    check_range("prefetch", prefetch, 0)
    share = process_share(batch_size, process_index, process_count)
    visited = evaluation_indices(len(source), limit)
    first = first_readable(source)
    total = -(-len(visited) // batch_size) * batch_size
    padded = np.concatenate([visited, np.full(total - len(visited), -1)])
    rows = padded.reshape(-1, batch_size)[:, share]
    batches = map_ahead(
        lambda indices: _evaluation_batch(source, indices, first),
        rows,
        threads=threads,
        ahead=prefetch + 1,
        name="evaluation-batches",
        check=check,
    )
    return _with_summary(batches, source) if isinstance(source, Skipping) else batches


def _with_summary(batches: Iterator[Any], source: Skipping) -> Iterator[Any]:
    before = len(source.found)
    with contextlib.closing(batches):
        yield from batches
    if len(source.found) > before:
        logging.warning("%s; they are left out", source.summary())


def _evaluation_batch(source: Any, indices: np.ndarray, first: dict[str, Any]) -> dict[str, np.ndarray]:
    shape, indices, examples = first["image"].shape, indices.copy(), []
    for row, index in enumerate(indices):
        try:
            examples.append(first if index < 0 else read(source, index, shape))
        except Unreadable:
            examples.append(first)
            indices[row] = -1
    batch = {
        "image": np.stack([example["image"] for example in examples]),
        "label": np.array([example["label"] for example in examples], np.int32),
        "index": indices.astype(np.int32),
        "weight": (indices >= 0).astype(np.float32),
    }
    if object_mask(first) is None:
        return batch
    masks = [object_mask(example) for example in examples]
    allowed = (shape[:-1],) if masks[0].ndim < len(shape) else (shape,)
    for index, mask in zip(indices, masks, strict=True):
        if mask is None or mask.shape not in allowed:
            found = "no object mask or box" if mask is None else f"an object mask of shape {mask.shape}"
            raise ValueError(
                f"{source.name(int(index))} (example {index}) has {found}: other examples of its split have one, "
                f"and it should be of shape {tuple(shape[:-1])}"
            )
    return batch | {"object": np.stack(masks)}


_READ = 16  # examples whose pixels are in the identity
_DIGITS = 16  # hexadecimal digits of a checksum


def identity(source: Source) -> dict[str, Any]:
    """Return an identity of a split, which changes when the split holds other examples.

    Returns:
      A dict of plain values, ready for JSON: `examples`, their number; `labels` and `pixels`, checksums of all labels
      and of some images with their object masks; and `masks`, whether there are masks or boxes.
    """
    images, masks = [], []
    for index in evaluation_indices(len(source), _READ):
        try:
            example = read(source, index)
        except ValueError:  # the loop that reads all examples reports or skips this one
            continue
        images.append(example["image"])
        masks.append(object_mask(example))
    masks = [mask for mask in masks if mask is not None]
    return {
        "examples": len(source),
        "labels": digest([np.asarray(source.labels, np.int32)])[:_DIGITS],
        "pixels": digest([*images, *masks])[:_DIGITS],
        "masks": bool(masks),
    }
