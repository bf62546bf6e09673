"""Reading examples ahead of the devices: from a Source by index, or from any iterable of batches."""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from sdecor.core.checks import check_choice
from sdecor.core.files import digest, readable
from sdecor.export.blocks import (
    UNKNOWN,
    Block,
    FeedBatch,
    Reader,
    checked_images,
    checked_labels,
    empty_arrays,
    feed_batch,
)
from sdecor.export.indexed import reader_of_source

ON_ERROR = ("stop", "skip")
_AHEAD = 2  # batches of an iterable read ahead


def reader_of(data: Any, *, on_error: str = "stop", names: Any = None, count: int | None = None) -> Reader:
    """Return the Reader of a Source, a sequence of examples, or an iterable of batches; see `export`."""
    check_choice("on_error", on_error, ON_ERROR)
    by_index = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if by_index and not hasattr(data, "name"):
        if len(data) == 0:
            raise ValueError("data is empty: there is nothing to export")
        by_index = np.ndim(data[0]["image"]) == 3  # else batches in a list
    return reader_of_source(data, on_error, names) if by_index else _batches(data, names, count)


def _batches(batches: Iterable[Any], names: Any, count: int | None) -> Reader:
    iterator = iter(batches)
    try:
        first = next(iterator)
    except StopIteration:
        raise ValueError("data is empty: there is nothing to export") from None
    image = checked_images(np.asarray(first["image"]), "data")
    # A list of batches is there already: all its labels are looked at before anything is computed.
    there = batches if isinstance(batches, list | tuple) else [first]
    labels = np.concatenate([_labels(batch, number) for number, batch in enumerate(there)])
    known = {"size": count, "first_image": digest([image[0]])}

    def feed(wanted: Callable[[int], bool], size: int, devices: int) -> Iterator[FeedBatch]:
        cut = _cut(itertools.chain([first], iterator), image.shape[1:], image.dtype, names, wanted, size, devices)
        return _in_background(cut)

    return Reader(image.shape[1:], image.dtype, count, known, feed, labels)


def _cut(
    batches: Iterable[Any],
    shape: tuple[int, ...],
    dtype: np.dtype,
    names: Any,
    wanted: Callable[[int], bool],
    size: int,
    devices: int,
) -> Iterator[FeedBatch]:
    """Cut batches of any sizes into blocks and put these together to feed batches."""
    place, arrays, blocks, found = 0, empty_arrays(shape, dtype, size * devices), [], []
    for number, batch in enumerate(batches):
        image, label, own_names = _fields(batch, number, place, shape, dtype, names)
        at = 0
        while at < len(image):
            take = min(size - place % size, len(image) - at)
            if wanted(place - place % size):
                row = len(blocks) * size + len(found)
                arrays["image"][row : row + take] = image[at : at + take]
                arrays["label"][row : row + take] = label[at : at + take]
                found += own_names[at : at + take]
            place, at = place + take, at + take
            if found and place % size == 0:
                blocks, found = [*blocks, Block(place - size, tuple(found))], []
            if len(blocks) == devices:
                yield feed_batch(arrays, blocks, size)
                arrays, blocks = empty_arrays(shape, dtype, size * devices), []
    if found:
        blocks.append(Block(place - len(found), tuple(found)))
    yield feed_batch(arrays, blocks, size)._replace(total=place)


def _fields(
    batch: Any, number: int, place: int, shape: tuple[int, ...], dtype: np.dtype, names: Any
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return a batch's images, labels and names."""
    image = np.asarray(batch["image"])
    if image.shape[1:] != shape or not np.can_cast(image.dtype, dtype, "same_kind"):
        found, first = f"{image.dtype} {image.shape[1:]}", f"{dtype} {shape}"
        raise ValueError(f"batch {number} of data has images of {found}: they should be {first} as the first one's")
    n = len(image)
    label = _labels(batch, number)
    if names is not None:
        own = names[place : place + n]
    else:
        own = np.asarray(batch["id"]).tolist() if "id" in batch else range(place, place + n)
    own = [readable(str(name)) for name in own]
    for field, values in (("label", label), ("id" if names is None else "names", own)):
        if len(values) != n:
            raise ValueError(f"batch {number} of data has {n} images and {len(values)} entries of {field!r}")
    return image, label, own


def _labels(batch: Any, number: int) -> np.ndarray:
    """Return a batch's labels, int32."""
    if "label" not in batch:
        return np.full(len(batch["image"]), UNKNOWN, np.int32)
    return checked_labels(batch["label"], f"batch {number} of data").reshape(-1)


def _in_background(items: Iterator[FeedBatch]) -> Iterator[FeedBatch]:
    """Yield the items, made ahead by one thread."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="export-read")
    try:
        ahead = collections.deque(pool.submit(next, items, None) for _ in range(_AHEAD))
        while (item := ahead.popleft().result()) is not None:
            ahead.append(pool.submit(next, items, None))
            yield item
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
