"""Putting the rows that devices return together to ranges, and handing these over to be written."""

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np

from sdecor.export.blocks import Block
from sdecor.export.encode import COUNTS
from sdecor.export.layout import Layout
from sdecor.export.store import Pending, Store


class Ranges:
    """The ranges under way in this process.

    Attributes:
      bytes: what is written so far.

    Args:
      store: where they are written.
      layout: what a range comprises.
      count: the number of examples, None where it is unknown.
    """

    def __init__(self, store: Store, layout: Layout, count: int | None):
        self.bytes = 0
        self._store, self._layout, self._count = store, layout, count
        self._open: dict[int, dict[str, np.ndarray]] = {}
        self._records: dict[int, dict[str, Any]] = {}
        self._pending: collections.deque[Pending] = collections.deque()

    def add(self, block: Block, arrays: Mapping[str, np.ndarray], counts: Mapping[str, np.ndarray]) -> None:
        """Take the rows of a block: `arrays` `[size, …]` of which the first are its examples, and counts `[size, 3]`.

        A range whose last block this is starts to be written.
        """
        n, first = len(block.names), block.start - block.start % self._layout.range_rows
        if first not in self._open:
            self._open[first] = {
                spec.name: np.empty((self._layout.range_rows, *spec.tail), spec.dtype) for spec in self._layout.arrays
            }
            nothing = {name: dict.fromkeys(COUNTS, 0) for name in counts}
            self._records[first] = {"names": [], "skipped": [], "counts": nothing}
        rows, record = slice(block.start - first, block.start - first + n), self._records[first]
        skipped = [each.index - first for each in block.skipped]
        real = np.ones(n, bool)
        real[[place - rows.start for place in skipped]] = False
        for spec in self._layout.arrays:
            target = self._open[first][spec.name]
            if spec.name == "example_id":
                target[rows] = np.arange(block.start, block.start + n)
                continue
            target[rows] = arrays[spec.name][:n]
            if skipped:
                target[skipped] = _missing(spec.fill, target.dtype)
        for name, values in counts.items():
            for column, total in zip(COUNTS, values[:n][real].sum(0), strict=True):
                record["counts"][name][column] += int(total)
        record["names"] += block.names
        record["skipped"] += [each._asdict() for each in block.skipped]
        stop = block.start + n
        if stop == first + self._layout.range_rows or stop == self._count:
            self._write(first, stop)

    def write_rest(self) -> None:
        """Write the last range of data whose number was unknown."""
        for first in list(self._open):
            self._write(first, first + len(self._records[first]["names"]))

    def wait(self) -> None:
        """Wait until all that was handed over is durable."""
        while self._pending:
            self.bytes += self._pending.popleft().result()

    def _write(self, start: int, stop: int) -> None:
        arrays = {name: values[: stop - start] for name, values in self._open.pop(start).items()}
        self._pending.append(self._store.write(start, stop, arrays, self._records.pop(start)))
        while len(self._pending) > 2:
            self.bytes += self._pending.popleft().result()


def _missing(fill: float | int | None, dtype: np.dtype) -> float | int:
    if fill is not None:
        return fill
    return np.nan if np.issubdtype(dtype, np.floating) else 0
