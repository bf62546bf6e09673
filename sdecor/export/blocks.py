"""What is fed to the devices: blocks of examples that follow one another, put together to batches for all devices.

A *block* is what one device gets at a time: at most `size` examples, never of two ranges. A *feed batch* has a block
for each device. What is missing, in a last block or for a last device, repeats an example that is there.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from sdecor.core.classes import check_classes

UNKNOWN = -1  # the label of an example without one
_KEPT = (np.uint8, np.float16, np.float32)  # dtypes that images keep on the way to the device


class Skipped(NamedTuple):
    """An example that could not be read."""

    index: int
    name: str
    error: str


class Block(NamedTuple):
    """Examples `start … start + len(names) − 1`."""

    start: int
    names: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()


class FeedBatch(NamedTuple):
    """A batch for all devices.

    Attributes:
      arrays: `image` `[devices · size, H, W, C]`, `label` and `index` int32 `[devices · size]`.
      blocks: one for each device, fewer in a last batch, of which an iterable's may have none.
      total: how many examples there were, told with the last batch of an iterable.
    """

    arrays: dict[str, np.ndarray]
    blocks: tuple[Block, ...]
    total: int | None = None


class Reader(NamedTuple):
    """What is fed: how the images look, how many there are (None: unknown), and what tells these data from others."""

    shape: tuple[int, ...]
    dtype: np.dtype
    count: int | None
    fingerprint: dict[str, Any]
    # `(wanted, size, devices) -> feed batches`; `wanted(start)` tells whether the block that starts there is wanted.
    feed: Callable[[Callable[[int], bool], int, int], Iterator[FeedBatch]]
    # Of the first examples, or of all: those known before anything is read.
    labels: np.ndarray


def feed_batch(arrays: dict[str, np.ndarray], blocks: list[Block], size: int) -> FeedBatch:
    """Fill what no example fills, and say which examples these are."""
    for device in range(len(arrays["label"]) // size):
        block = blocks[device] if device < len(blocks) else Block(0, ())
        row, filled = device * size, len(block.names)
        for array in (arrays["image"], arrays["label"]):
            array[row + filled : row + size] = array[row if filled else 0]
        arrays["index"][row : row + size] = block.start + np.minimum(np.arange(size), max(filled - 1, 0))
    return FeedBatch(arrays, tuple(blocks))


def empty_arrays(shape: tuple[int, ...], dtype: np.dtype, rows: int) -> dict[str, np.ndarray]:
    # New for each batch: on a CPU the device computes on this memory itself.
    return {
        "image": np.empty((rows, *shape), dtype),
        "label": np.empty(rows, np.int32),
        "index": np.empty(rows, np.int32),
    }


def checked_labels(labels: Any, what: str) -> np.ndarray:
    """Return labels as int32, refusing what would be stored as another number."""
    values = np.asarray(labels)
    if values.size and values.dtype.kind not in "iu":
        raise ValueError(
            f"{what} has a label of {values.dtype}, {values.flat[0]!s}: labels are integers from 0, and "
            f"{UNKNOWN} where the class is unknown"
        )
    wrong = values[(values < UNKNOWN) | (values > np.iinfo(np.int32).max)]
    if wrong.size:
        raise ValueError(
            f"{what} has the label {wrong[0]}: labels are integers from 0, and {UNKNOWN} where the class is unknown"
        )
    return values.astype(np.int32)


def check_labels(labels: np.ndarray, classes: int, *, start: int = 0, needed: bool = False) -> None:
    """Raise `ValueError` unless labels are classes of the network, or unknown where they are not `needed`.

    Args:
      labels: of examples that follow one another, int32.
      classes: of the network.
      start: place of the first of them.
      needed: whether they are what is explained.
    """
    unknown = np.flatnonzero(labels == UNKNOWN)
    if needed and unknown.size:
        raise ValueError(f"target = 'label': example {start + unknown[0]} has no label")
    wrong = np.flatnonzero(labels >= classes)
    if wrong.size:
        known = labels[labels != UNKNOWN]
        check_classes(f"example {start + wrong[0]}: labels", known, classes)


def checked_images(images: np.ndarray, what: str) -> np.ndarray:
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(
            f"{what} has images of shape {images.shape}: they should be [H, W, C], or batches [n, H, W, C]"
        )
    return images if images.dtype in _KEPT else images.astype(np.float32)
