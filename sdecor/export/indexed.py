"""Reading a Source, or any sequence of examples, ahead of the devices: blocks are read by threads."""

import collections
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from sdecor.core.files import digest, readable
from sdecor.data.batches import evaluation_indices
from sdecor.export.blocks import (
    UNKNOWN,
    Block,
    FeedBatch,
    Reader,
    Skipped,
    checked_images,
    checked_labels,
    empty_arrays,
    feed_batch,
)

_MOST_THREADS = 16
_NAMES = 256  # names that a fingerprint looks at: a name may cost as much as reading the example
_IMAGES = 16  # images that it looks at


class _Source(NamedTuple):
    """A Source with what reading it needs.

    Attributes:
      source: the examples.
      names: of the examples, instead of the Source's.
      root: the folder of all examples: told relative to it, names stay when the data move.
      shape: of every image.
      dtype: that images are kept in.
      skips: whether an example that cannot be read is skipped.
    """

    source: Any
    names: Any
    root: str
    shape: tuple[int, ...]
    dtype: np.dtype
    skips: bool

    def name(self, index: int) -> str:
        return _name(self.source, self.names, index).removeprefix(self.root)


def reader_of_source(source: Any, on_error: str, names: Any) -> Reader:
    """Return the Reader of a Source or a sequence of examples; see `export`."""
    n = len(source)
    if n < 1:
        raise ValueError("data is empty: there is nothing to export")
    if names is not None and len(names) != n:
        raise ValueError(f"names has {len(names)} entries: data has {n} examples")
    first = _first_image(source, names, n if on_error == "skip" else 1)
    some = [_name(source, names, int(i)) for i in np.unique(np.linspace(0, n - 1, _NAMES).astype(int))]
    root = _root(some)
    own = _Source(source, names, root, first.shape, first.dtype, on_error == "skip")
    known = {"names": digest(name.removeprefix(root).encode() for name in some)}
    labels = _known_labels(source)
    if hasattr(source, "labels"):
        known["labels"] = digest([labels])
    known |= {"size": n, "images": _images(source, n)}

    def feed(wanted: Callable[[int], bool], size: int, devices: int) -> Iterator[FeedBatch]:
        starts = (start for start in range(0, n, size) if wanted(start))
        return _read_ahead(own, ((start, min(start + size, n)) for start in starts), size, devices)

    return Reader(first.shape, first.dtype, n, known, feed, labels)


def _known_labels(source: Any) -> np.ndarray:
    """Return the labels that are known without decoding an image, int32: all of them, or none."""
    if hasattr(source, "labels"):
        return checked_labels(source.labels, "data")
    if isinstance(source, list | tuple):
        labels = [checked_labels(each.get("label", UNKNOWN), f"example {i}") for i, each in enumerate(source)]
        return np.array(labels, np.int32).reshape(-1)
    return np.empty(0, np.int32)


def _first_image(source: Any, names: Any, tries: int) -> np.ndarray:
    """Return the first image that can be read, of the first `tries`."""
    for index in range(tries):
        try:
            image = np.asarray(source[index]["image"])
            break
        except Exception as error:
            problem = _unreadable(_name(source, names, index), index, error)
    else:
        raise problem
    return checked_images(image[None], "data")[0]


def _images(source: Any, n: int) -> dict[str, str | None]:
    """Return digests of some images by their places, None of those that cannot be read."""
    found: dict[str, str | None] = {}
    for index in map(int, evaluation_indices(n, _IMAGES)):
        try:
            found[f"{index}"] = digest([source[index]["image"]])
        except Exception:  # what is wrong with it is told when its turn comes
            found[f"{index}"] = None
    return found


def _read_ahead(own: _Source, bounds: Iterator[tuple[int, int]], size: int, devices: int) -> Iterator[FeedBatch]:
    """Yield feed batches in order, their blocks read by threads ahead of the batch in use."""
    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="export-read")

    def start(group: list[tuple[int, int]]) -> tuple[dict[str, np.ndarray], list[Future]]:
        arrays = empty_arrays(own.shape, own.dtype, size * devices)
        rows = [{name: array[i * size : (i + 1) * size] for name, array in arrays.items()} for i in range(len(group))]
        return arrays, [pool.submit(_read_block, own, *each, part) for each, part in zip(group, rows, strict=True)]

    groups = iter(lambda: list(itertools.islice(bounds, devices)), [])
    try:
        ahead = 1 + -(-threads // devices)
        reading = collections.deque(start(group) for group in itertools.islice(groups, ahead))
        while reading:
            arrays, blocks = reading.popleft()
            reading.extend(start(group) for group in itertools.islice(groups, 1))
            yield feed_batch(arrays, [block.result() for block in blocks], size)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _read_block(own: _Source, start: int, stop: int, rows: dict[str, np.ndarray]) -> Block:
    names, skipped, good = [], [], None
    for row, index in enumerate(range(start, stop)):
        name = own.name(index)
        names.append(name)
        try:
            example = own.source[index]
            image = np.asarray(example["image"])
            if image.shape != own.shape or not np.can_cast(image.dtype, own.dtype, "same_kind"):
                found, first = (f"{x.dtype} {x.shape}" for x in (image, own))
                raise ValueError(f"its image is {found}: it should be {first} as the first one")
            rows["label"][row] = checked_labels(example.get("label", UNKNOWN), "it")
            rows["image"][row] = image
            good = row if good is None else good
        except Exception as error:
            problem = _unreadable(own.root + name, index, error)
            if not own.skips:
                raise problem from error
            skipped.append(Skipped(index, name, str(problem)))
    for each in skipped:
        rows["image"][each.index - start] = 0 if good is None else rows["image"][good]
        rows["label"][each.index - start] = 0 if good is None else rows["label"][good]
    return Block(start, tuple(names), tuple(skipped))


def _name(source: Any, names: Any, index: int) -> str:
    try:
        if names is not None:
            return readable(str(names[index]))
        return readable(str(source.name(index))) if hasattr(source, "name") else f"example {index}"
    except Exception:  # of a record that cannot be read, in which the name stands
        return f"example {index}"


def _root(names: list[str]) -> str:
    """Return the folder, with its last slash, that all names that are absolute paths or URLs lie in."""
    if not all(name.startswith("/") or "://" in name for name in names):
        return ""
    common = os.path.commonprefix([name.rpartition("/")[0] + "/" for name in names])
    return common[: common.rfind("/") + 1]


def _unreadable(name: str, index: int, error: Exception) -> ValueError:
    said = str(error) if isinstance(error, ValueError) and name in str(error) else f"{type(error).__name__}: {error}"
    return ValueError(f"{name} (example {index}) cannot be read: {said}")
