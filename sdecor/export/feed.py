"""Batches of examples read ahead of the devices, from a Source by index or from an iterable of batches.

A device's batch holds consecutive examples of one range. Rows without an example, in a last batch or for a last device,
repeat an example of the same `Batch`.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from sdecor.core.checks import check_choice
from sdecor.core.classes import check_classes
from sdecor.core.files import digest, readable
from sdecor.core.threads import in_background, map_ahead
from sdecor.data.batches import evaluation_indices

UNKNOWN = -1  # the label of an example without one
_LARGEST_LABEL = int(np.iinfo(np.int32).max)
_KEPT = (np.uint8, np.float16, np.float32)  # image dtypes sent to the device unchanged; others become float32


class Skipped(NamedTuple):
    """An example that could not be read."""

    index: int
    name: str
    error: str


class DeviceBatch(NamedTuple):
    """The batch of one device: examples `start … start + len(names) − 1`, at most `device_batch`."""

    start: int
    names: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()


class Batch(NamedTuple):
    """The batches that all devices of this process take at once.

    Attributes:
      arrays: `image` `[devices · size, H, W, C]`, or other inputs likewise; `label` and `index` int32
        `[devices · size]`.
      by_device: one batch per device; fewer in the last `Batch`, possibly none for an iterable.
      total: the number of all examples, in the last `Batch` of an iterable; else None.
    """

    arrays: dict[str, np.ndarray]
    by_device: tuple[DeviceBatch, ...]
    total: int | None = None


class Reader(NamedTuple):
    """Data to export: shape and dtype of an image, number of examples (None: unknown), and the data's fingerprint."""

    shape: tuple[int, ...]
    dtype: np.dtype
    count: int | None
    fingerprint: dict[str, Any]
    # `(wanted, size, devices) -> batches`; `wanted(start)` says whether to read the device's batch from `start`.
    feed: Callable[[Callable[[int], bool], int, int], Iterator[Batch]]
    # The labels known before any example is read: all, those of the first examples, or none.
    labels: np.ndarray


def make_batch(arrays: dict[str, np.ndarray], by_device: list[DeviceBatch], size: int) -> Batch:
    """Return the batch of `arrays`, after setting `index` and filling the rows that have no example."""
    for device in range(len(arrays["label"]) // size):
        own = by_device[device] if device < len(by_device) else DeviceBatch(0, ())
        row, filled = device * size, len(own.names)
        for array in (arrays["image"], arrays["label"]):
            array[row + filled : row + size] = array[row if filled else 0]
        arrays["index"][row : row + size] = own.start + np.minimum(np.arange(size), max(filled - 1, 0))
    return Batch(arrays, tuple(by_device))


def empty_arrays(shape: tuple[int, ...], dtype: np.dtype, rows: int) -> dict[str, np.ndarray]:
    # Each batch needs new arrays, because a CPU device may use their memory directly.
    return {
        "image": np.empty((rows, *shape), dtype),
        "label": np.empty(rows, np.int32),
        "index": np.empty(rows, np.int32),
    }


def valid_labels(labels: Any, what: str) -> np.ndarray:
    """Return labels as int32; raise `ValueError` for labels that are no integers from −1 to the largest int32."""
    values = np.asarray(labels)
    if values.size and values.dtype.kind not in "iu":
        raise ValueError(
            f"{what} has a label of {values.dtype}, {values.flat[0]!s}: labels are integers from 0, and "
            f"{UNKNOWN} where the class is unknown"
        )
    wrong = values[(values < UNKNOWN) | (values > _LARGEST_LABEL)]
    if wrong.size:
        raise ValueError(
            f"{what} has the label {wrong[0]}: labels are integers from 0, and {UNKNOWN} where the class is unknown"
        )
    return values.astype(np.int32)


def validate_labels(labels: np.ndarray, classes: int, *, start: int = 0, needed: bool = False) -> None:
    """Raise `ValueError` unless labels are classes of the network; unknown labels are allowed unless `needed`.

    Args:
      labels: int32 labels of consecutive examples.
      classes: number of classes.
      start: place of the first example.
      needed: whether the labels are the classes to explain.
    """
    unknown = np.flatnonzero(labels == UNKNOWN)
    if needed and unknown.size:
        raise ValueError(f"target = 'label': example {start + unknown[0]} has no label")
    wrong = np.flatnonzero(labels >= classes)
    if wrong.size:
        known = labels[labels != UNKNOWN]
        check_classes(f"example {start + wrong[0]}: labels", known, classes)


def valid_images(images: np.ndarray, what: str) -> np.ndarray:
    if images.ndim < 3 or len(images) == 0:
        raise ValueError(
            f"{what} has images of shape {images.shape}: they should be [H, W, C], or batches [n, H, W, C]; "
            "other inputs, such as series [T, C], likewise"
        )
    return images if images.dtype in _KEPT else images.astype(np.float32)


_MOST_THREADS = 16
_NAMES = 256  # names in a fingerprint; more would be slow, because a name may need the example to be read
_IMAGES = 16  # images in a fingerprint


class _Source(NamedTuple):
    """A Source and the settings for reading it.

    Attributes:
      source: the examples.
      names: names of the examples, instead of the Source's names; or None.
      root: the folder of all examples. Names are relative to it, so that they stay equal when the data move.
      shape: shape of every image.
      dtype: dtype of the images in a batch.
      skips: whether an example that cannot be read is skipped.
    """

    source: Any
    names: Any
    root: str
    shape: tuple[int, ...]
    dtype: np.dtype
    skips: bool

    def name(self, index: int) -> str:
        return _example_name(self.source, self.names, index).removeprefix(self.root)


def reader_of_source(source: Any, on_error: str, names: Any) -> Reader:
    """Return the Reader of a Source or a sequence of examples; see `export`."""
    n = len(source)
    if n < 1:
        raise ValueError("data is empty: there is nothing to export")
    if names is not None and len(names) != n:
        raise ValueError(f"names has {len(names)} entries: data has {n} examples")
    first = _first_image(source, names, n if on_error == "skip" else 1)
    some = [_example_name(source, names, int(i)) for i in np.unique(np.linspace(0, n - 1, _NAMES).astype(int))]
    root = _root(some)
    own = _Source(source, names, root, first.shape, first.dtype, on_error == "skip")
    known = {"names": digest(name.removeprefix(root).encode() for name in some)}
    labels = _known_labels(source)
    if hasattr(source, "labels"):
        known["labels"] = digest([labels])
    known |= {"size": n, "images": _images(source, n)}

    def feed(wanted: Callable[[int], bool], size: int, devices: int) -> Iterator[Batch]:
        starts = (start for start in range(0, n, size) if wanted(start))
        return _read_ahead(own, ((start, min(start + size, n)) for start in starts), size, devices)

    return Reader(first.shape, first.dtype, n, known, feed, labels)


def _known_labels(source: Any) -> np.ndarray:
    """Return the labels known without decoding an image, int32: all of them, or none."""
    if hasattr(source, "labels"):
        return valid_labels(source.labels, "data")
    if isinstance(source, list | tuple):
        labels = [valid_labels(each.get("label", UNKNOWN), f"example {i}") for i, each in enumerate(source)]
        return np.array(labels, np.int32).reshape(-1)
    return np.empty(0, np.int32)


def _first_image(source: Any, names: Any, tries: int) -> np.ndarray:
    """Return the first image that can be read among the first `tries` examples."""
    for index in range(tries):
        try:
            image = np.asarray(source[index]["image"])
            break
        except Exception as error:
            problem = _unreadable(_example_name(source, names, index), index, error)
    else:
        raise problem
    return valid_images(image[None], "data")[0]


def _images(source: Any, n: int) -> dict[str, str | None]:
    """Return digests of some images by place; None for an image that cannot be read."""
    found: dict[str, str | None] = {}
    for index in map(int, evaluation_indices(n, _IMAGES)):
        try:
            found[f"{index}"] = digest([source[index]["image"]])
        except Exception:  # the error is reported when the example itself is read
            found[f"{index}"] = None
    return found


def _read_ahead(own: _Source, bounds: Iterator[tuple[int, int]], size: int, devices: int) -> Iterator[Batch]:
    """Yield batches in order; threads read the next batch ahead, and more to keep every thread busy."""
    threads = min(_MOST_THREADS, os.cpu_count() or 1)

    def to_read() -> Iterator[tuple[int, int, int, dict[str, np.ndarray]]]:
        while group := list(itertools.islice(bounds, devices)):
            arrays = empty_arrays(own.shape, own.dtype, size * devices)
            yield from ((*each, device, arrays) for device, each in enumerate(group))

    def read(each: tuple[int, int, int, dict[str, np.ndarray]]) -> tuple[dict[str, np.ndarray], DeviceBatch]:
        start, stop, device, arrays = each
        rows = {name: array[device * size : (device + 1) * size] for name, array in arrays.items()}
        return arrays, _read_examples(own, start, stop, rows)

    read_ahead = map_ahead(read, to_read(), threads=threads, ahead=threads + devices, name="export-read")
    with contextlib.closing(read_ahead) as done:
        while batch := list(itertools.islice(done, devices)):
            yield make_batch(batch[0][0], [each for _, each in batch], size)


def _read_examples(own: _Source, start: int, stop: int, rows: dict[str, np.ndarray]) -> DeviceBatch:
    names, skipped, good = [], [], None
    for row, index in enumerate(range(start, stop)):
        name = own.name(index)
        names.append(name)
        try:
            example = own.source[index]
            image = np.asarray(example["image"])
            same = image.shape == own.shape and (
                image.dtype == own.dtype or np.can_cast(image.dtype, own.dtype, "same_kind")
            )
            if not same:
                found, first = (f"{x.dtype} {x.shape}" for x in (image, own))
                raise ValueError(f"its image is {found}: it should be {first} as the first one")
            rows["label"][row] = _valid_label(example.get("label", UNKNOWN))
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
    return DeviceBatch(start, tuple(names), tuple(skipped))


def _valid_label(label: Any) -> int | np.ndarray:
    """Return the label of one example, checked as `valid_labels` does."""
    # A plain integer is by far the most frequent, and `valid_labels` takes longer than the rest of the reading.
    if (type(label) is int or isinstance(label, np.integer)) and UNKNOWN <= label <= _LARGEST_LABEL:
        return label
    return valid_labels(label, "it")


def _example_name(source: Any, names: Any, index: int) -> str:
    try:
        if names is not None:
            return readable(str(names[index]))
        return readable(str(source.name(index))) if hasattr(source, "name") else f"example {index}"
    except Exception:  # the name may stand in an example that cannot be read
        return f"example {index}"


def _root(names: list[str]) -> str:
    """Return the folder of all names, with its last slash; "" unless all are absolute paths or URLs."""
    if not all(name.startswith("/") or "://" in name for name in names):
        return ""
    common = os.path.commonprefix([name.rpartition("/")[0] + "/" for name in names])
    return common[: common.rfind("/") + 1]


def _unreadable(name: str, index: int, error: Exception) -> ValueError:
    said = str(error) if isinstance(error, ValueError) and name in str(error) else f"{type(error).__name__}: {error}"
    return ValueError(f"{name} (example {index}) cannot be read: {said}")


ON_ERROR = ("stop", "skip")
_AHEAD = 2  # batches of an iterable read ahead


def reader_of(data: Any, *, on_error: str = "stop", names: Any = None, count: int | None = None) -> Reader:
    """Return the Reader of a Source, a sequence of examples, or an iterable of batches; see `export`."""
    check_choice("on_error", on_error, ON_ERROR)
    by_index = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if by_index and not hasattr(data, "name"):
        if len(data) == 0:
            raise ValueError("data is empty: there is nothing to export")
        by_index = np.ndim(data[0]["image"]) <= 3  # else a list of batches
    return reader_of_source(data, on_error, names) if by_index else _batches(data, names, count)


def _batches(batches: Iterable[Any], names: Any, count: int | None) -> Reader:
    iterator = iter(batches)
    try:
        first = next(iterator)
    except StopIteration:
        raise ValueError("data is empty: there is nothing to export") from None
    image = valid_images(np.asarray(first["image"]), "data")
    # A list of batches is in memory already, so all its labels are validated before anything is computed.
    there = batches if isinstance(batches, list | tuple) else [first]
    labels = np.concatenate([_labels(batch, number) for number, batch in enumerate(there)])
    known = {"size": count, "first_image": digest([image[0]])}

    def feed(wanted: Callable[[int], bool], size: int, devices: int) -> Iterator[Batch]:
        cut = _cut(itertools.chain([first], iterator), image.shape[1:], image.dtype, names, wanted, size, devices)
        return in_background(cut, ahead=_AHEAD, name="export-read")

    return Reader(image.shape[1:], image.dtype, count, known, feed, labels)


def _cut(
    batches: Iterable[Any],
    shape: tuple[int, ...],
    dtype: np.dtype,
    names: Any,
    wanted: Callable[[int], bool],
    size: int,
    devices: int,
) -> Iterator[Batch]:
    """Regroup batches of any size into batches for the devices."""
    place, arrays, by_device, found = 0, empty_arrays(shape, dtype, size * devices), [], []
    for number, batch in enumerate(batches):
        image, label, own_names = _fields(batch, number, place, shape, dtype, names)
        at = 0
        while at < len(image):
            take = min(size - place % size, len(image) - at)
            if wanted(place - place % size):
                row = len(by_device) * size + len(found)
                arrays["image"][row : row + take] = image[at : at + take]
                arrays["label"][row : row + take] = label[at : at + take]
                found += own_names[at : at + take]
            place, at = place + take, at + take
            if found and place % size == 0:
                by_device, found = [*by_device, DeviceBatch(place - size, tuple(found))], []
            if len(by_device) == devices:
                yield make_batch(arrays, by_device, size)
                arrays, by_device = empty_arrays(shape, dtype, size * devices), []
    if found:
        by_device.append(DeviceBatch(place - len(found), tuple(found)))
    yield make_batch(arrays, by_device, size)._replace(total=place)


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
    """Return a batch's labels, int32; −1 if it has none."""
    if "label" not in batch:
        return np.full(len(batch["image"]), UNKNOWN, np.int32)
    return valid_labels(batch["label"], f"batch {number} of data").reshape(-1)
