"""A split decoded once into arrays, and training batches taken from these arrays."""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
from absl import logging

from sdecor.core import interrupt, watchdog
from sdecor.core.checks import check_range
from sdecor.core.threads import Check, map_ahead
from sdecor.data.batches import batch_indices, check_dtype, steps_per_epoch
from sdecor.data.reading import Unreadable, first_readable, next_readable, read

_CHUNK = 256  # examples that a thread decodes before the progress bar moves
_LARGE = 5000  # from this number of examples on, decoding shows a progress bar


def describe_examples(count: int, shape: Sequence[int]) -> str:
    """Return the number and the shape of examples as text: "12 images of 8×8×3", or "12 series of 50×6"."""
    kind = {2: "series", 3: "images"}.get(len(shape), "inputs")
    return f"{count} {kind} of {'×'.join(map(str, shape))}"


class MemorySource:
    """A Source of decoded examples: rows of arrays.

    Attributes:
      images: uint8 `[N, H, W, C]`, or float32 `[N, *positions, C]`.
      labels: int32 `[N]`.
      objects: uint8 `[N, H, W]` object masks, or None; those of series are `[N, T]` or `[N, T, C]`.
      boxes: int32 `[N, 4]` as `[y0, x0, y1, x1)`, or None.
      origin: the Source from which the examples were decoded; it names them.
      missing: the examples that `origin` leaves out, by index, each with the reason. Their rows hold no image.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        objects: np.ndarray | None = None,
        boxes: np.ndarray | None = None,
        origin: Any = None,
        missing: Mapping[int, str] | None = None,
    ):
        self.images, self.labels, self.objects, self.boxes = images, labels, objects, boxes
        self.origin = origin
        self.missing = dict(missing or {})

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index in self.missing:
            raise Unreadable(index, self.missing[index])
        example = {"image": self.images[index], "label": self.labels[index]}
        if self.objects is not None:
            example["object"] = self.objects[index]
        if self.boxes is not None:
            example["box"] = self.boxes[index]
        return example

    def name(self, index: int) -> str:
        """Return the name of an example, for messages."""
        return f"example {index}" if self.origin is None else self.origin.name(index)

    @property
    def nbytes(self) -> int:
        """Size of all arrays in bytes."""
        arrays = (self.images, self.labels, self.objects, self.boxes)
        return sum(array.nbytes for array in arrays if array is not None)


def load_in_memory(
    source: Any,
    *,
    objects: bool = True,
    threads: int = 2,
    progress: bool | None = None,
    check: Check = interrupt.check,
) -> MemorySource:
    """Decode a whole split once; training and repeated evaluation then only copy rows.

    Args:
      source: a Source with at least one example.
      objects: whether to keep object masks and boxes, which evaluation needs and training does not.
      threads: number of decoding threads (Pillow releases Python's lock while it decodes).
      progress: whether to show a progress bar; None = for 5000 examples and more.
      check: function that is called several times a second meanwhile; an exception of it ends the loading.

    Raises:
      ValueError: when an example cannot be read and is not left out, or differs in shape from the first one; the error
        names it.
    """
    if isinstance(source, MemorySource):
        return source
    if len(source) < 1:
        raise ValueError("the split is empty: there is nothing to load")
    check_range("threads", threads, 1)
    n, first = len(source), first_readable(source)
    kept = ["image"] + [field for field in ("object", "box") if objects and field in first]
    dtypes = {"image": first["image"].dtype, "object": np.uint8, "box": np.int32}
    arrays = {field: np.empty((n, *np.shape(first[field])), dtypes[field]) for field in kept}
    arrays["label"] = np.empty(n, np.int32)
    progress = n >= _LARGE if progress is None else progress
    missing = _decode_into(arrays, source, threads=threads, progress=progress, check=check)
    if missing:
        logging.warning("%d of %d examples cannot be read; they are left out", len(missing), n)
    objects, boxes = arrays.get("object"), arrays.get("box")
    return MemorySource(arrays["image"], arrays["label"], objects=objects, boxes=boxes, origin=source, missing=missing)


def _decode_into(
    arrays: dict[str, np.ndarray], source: Any, *, threads: int, progress: bool, check: Check
) -> dict[int, str]:
    """Decode all examples into rows of the arrays; return those that the source leaves out, each with the reason."""
    from tqdm import tqdm

    n, shape, missing = len(source), arrays["image"].shape[1:], {}

    def decode(start: int) -> int:
        stop = min(start + _CHUNK, n)
        for index in range(start, stop):
            try:
                example = read(source, index, shape)
            except Unreadable as error:
                missing[index] = error.text
                for field, array in arrays.items():
                    array[index] = source.labels[index] if field == "label" else 0
                continue
            check_dtype(source, index, example["image"], arrays["image"].dtype)
            for field, array in arrays.items():
                if np.shape(example.get(field)) != array.shape[1:]:
                    raise ValueError(
                        f"{source.name(index)} (example {index}) has {field!r} of shape "
                        f"{np.shape(example.get(field))}: it should be {array.shape[1:]}, as in the first example"
                    )
                array[index] = example[field]
        return stop - start

    starts = range(0, n, _CHUNK)
    with tqdm(total=n, desc="decoding", unit="img", disable=not progress, leave=False) as bar:
        for done in map_ahead(decode, starts, threads=threads, ahead=len(starts), name="decode", check=check):
            watchdog.beat("the decoding of images")
            bar.update(done)
    return dict(sorted(missing.items()))


class MemoryLoader:
    """Training batches of a split in memory: `batch(step)` depends only on the seed and the step."""

    kind = "memory"

    def __init__(
        self,
        source: Any,
        *,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        threads: int = 2,
        check: Check = interrupt.check,
    ):
        """Decode `source`; see `create_loader` for the arguments."""
        self.steps_per_epoch = steps_per_epoch(len(source), batch_size)
        self._order = {
            "n": len(source),
            "batch_size": batch_size,
            "process_index": process_index,
            "process_count": process_count,
        }
        self._seed = seed
        batch_indices(seed, 0, **self._order)  # invalid arguments fail before the decoding
        self.source = load_in_memory(source, objects=False, threads=threads, check=check)
        missing = np.zeros(len(source), bool)
        missing[list(self.source.missing)] = True
        self._replaced = next_readable(missing) if missing.any() else None

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Return this process's part of the batch at `step`: `image`, `label`, `position`."""
        indices, positions = self._indices(step)
        return {"image": self.source.images[indices], "label": self.source.labels[indices], "position": positions}

    def _indices(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of the source that are this process's part of the batch at `step`, and their positions."""
        indices, positions = batch_indices(self._seed, step, **self._order)
        return indices if self._replaced is None else self._replaced[indices], positions

    def iterate(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yield the batches of `start_step`, `start_step + 1`, … without end."""
        check_range("start_step", start_step, 0)
        return (self.batch(step) for step in itertools.count(start_step))

    @property
    def left_out(self) -> int:
        """Number of examples that could not be read, and were replaced by others."""
        return len(self.source.missing)

    def reordered(self, seed: int) -> Self:
        """Return a loader of the same examples in the order of another seed; they are not decoded again."""
        other = copy.copy(self)
        other._seed = seed
        return other

    def describe(self) -> str:
        """Return a one-line description of the loader."""
        n, *shape = self.source.images.shape
        return (
            f"{self.kind}: {describe_examples(n, shape)}, {self.source.nbytes / 2**20:.1f} MiB, "
            f"{self.steps_per_epoch} steps per epoch"
        )


class IndexLoader(MemoryLoader):
    """Training batches of a split that lies on the devices: where the examples of a `MemoryLoader` are."""

    kind = "device"

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Return this process's part of the batch at `step`: `index`, the row in `source`, and `position`."""
        indices, positions = self._indices(step)
        return {"index": indices.astype(np.int32), "position": positions}
