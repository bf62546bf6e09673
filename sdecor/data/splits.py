"""Parts of a source: validation examples carved from train, and a small share of a split for a quick run."""

import dataclasses
from typing import Any, Protocol

import numpy as np


class Source(Protocol):
    """Examples by index. A Source is picklable, and safe to read from several threads.

    An example is a dict with `image` uint8 `[H, W, C]`, `label` int32 and, if the data set has them, `object` uint8
    `[H, W]` (0 background, 1 object, 2 ignore) and `box` int32 `[4]`, `[y0, x0, y1, x1)` in pixels. Inputs that are no
    images are an `image` float32 with channels last, such as a series `[T, C]`; the `object` of a series is `[T]`, or
    `[T, C]` where single channels count.
    """

    @property
    def labels(self) -> np.ndarray:
        """All labels, int32 `[N]`, read without decoding an image."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def name(self, index: int) -> str:
        """Return the file or record of an example, for messages."""


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """The examples of `source` at `indices`, in that order."""

    source: Source
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> np.ndarray:
        return self.source.labels[self.indices]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self.indices[index])]

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))


def carve(labels: np.ndarray, *, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide a split in two, with the same share of every class; return indices `(kept, carved)`, both ascending.

    A class of two examples or more gives at least one and keeps at least one. The choice depends only on the seed and
    the labels, and is the same on every machine and with every version of NumPy.

    Args:
      labels: int `[N]`.
      fraction: share to carve off, in (0, 1).
      seed: any integer.

    Raises:
      ValueError: when nothing would be carved.
    """
    rank, count = _rank_in_class(labels, seed)
    carved_of_class = np.clip(np.floor(count * fraction + 0.5), 1, count - 1)
    carved = rank < carved_of_class
    if not carved.any():
        raise ValueError("no class has two examples: there is nothing to carve a validation split from")
    return np.flatnonzero(~carved), np.flatnonzero(carved)


def pick(labels: np.ndarray, size: int, *, seed: int) -> np.ndarray:
    """Choose `size` examples, as evenly over the classes as possible; return ascending indices (all if fewer exist)."""
    rank, _ = _rank_in_class(labels, seed)
    return np.sort(np.lexsort((_hash(len(labels), seed), rank))[:size])


def _rank_in_class(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each example's place in the shuffled order of its class, and the class's size: int64 `[N]` each."""
    order = np.lexsort((_hash(len(labels), seed), labels))
    ordered = labels[order]
    _, starts, counts = np.unique(ordered, return_index=True, return_counts=True)
    rank, count = np.empty(len(labels), np.int64), np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(starts, counts)
    count[order] = np.repeat(counts, counts)
    return rank, count


def _hash(n: int, seed: int) -> np.ndarray:
    """Return a pseudo-random uint64 for each of `0 … n−1`, by SplitMix64 (Steele, Lea & Flood, 2014)."""
    start = np.uint64(seed * 0xD1342543DE82EF95 % 2**64)
    x = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + start  # arrays wrap around at 2⁶⁴
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
