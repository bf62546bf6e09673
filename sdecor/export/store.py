"""An export on disk: ranges of examples are written durably, then recorded, and at the end the whole is finished.

Each process writes its own ranges, every `process_count`-th; none shares a file with another. What a range's data are
stands on disk before its record does, so that at any moment what is recorded is whole.
"""

import contextlib
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

import numpy as np
from etils import epath

from sdecor.core.checks import check_choice, check_range
from sdecor.export.check import CHECKS
from sdecor.export.errors import StorageError, explained
from sdecor.export.files import open_files
from sdecor.export.finish import expected_starts, finish
from sdecor.export.former import take_up
from sdecor.export.group import read_group
from sdecor.export.layout import Layout, check_layout
from sdecor.export.records import STOP, read_record, starts
from sdecor.export.writer import Pending, Writer

__all__ = ["Pending", "StorageError", "Store", "recorded"]

POLL_SECONDS = 0.5


def recorded(path: epath.PathLike) -> dict[str, Any] | None:
    """Return the attributes of the export at `path`, complete or not, or None where nothing is.

    Raises:
      ValueError: when something else is there.
    """
    group = read_group(open_files(path))
    return None if group is None else group["attributes"]


class Store:
    """The export at `path`, created or continued.

    The main process (index 0) comes first: it creates what the others then find. Every process compares what is there
    with `layout`, and looks at the ranges of its own that a former start recorded: a damaged one is named in a warning
    and counts as not done.

    Attributes:
      path: as given, for messages.
      complete: whether a former start finished the export, and every file of it is whole.

    Args:
      path: local folder or URL.
      layout: what is stored.
      num_examples: how many there are; None = only known at the end.
      process_index: which of the job's processes this is.
      process_count: how many there are.
      check: how recorded ranges are looked at: their "checksums", or only their "sizes".

    Raises:
      ValueError: when something else is there, or an export of something else.
      StorageError: when nothing can be written there.
    """

    def __init__(
        self,
        path: epath.PathLike,
        layout: Layout,
        *,
        num_examples: int | None = None,
        process_index: int = 0,
        process_count: int = 1,
        check: str = "checksums",
    ):
        check_choice("check", check, CHECKS)
        check_layout(layout)
        if num_examples is not None:
            check_range("num_examples", num_examples, 1)
        self.path, self.complete = path, False
        self._files, self._layout, self._num_examples = open_files(path), layout, num_examples
        self._index, self._count = process_index, process_count
        self._done: set[int] = set()
        self._stop, self._listed = False, (-np.inf, [])
        with self._explained():
            former = take_up(
                self._files,
                layout,
                num_examples,
                main=process_index == 0,
                is_own=self._is_own,
                content=check == "checksums",
            )
        self._layout, self._num_examples, self.complete, self._done = former
        self._writer = Writer(self._files, self._layout, self._explained, self._done.add)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for what is being written."""
        self._writer.close()

    def done(self, start: int) -> bool:
        """Tell whether the range from `start`, one of this process's, is recorded and whole."""
        return start in self._done

    @property
    def finished(self) -> int:
        """How many examples are recorded, by all processes."""
        rows, end = self._layout.range_rows, self._num_examples or np.inf
        return sum(int(min(rows, end - start)) for start in self._recorded())

    def write(self, start: int, stop: int, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> Pending:
        """Begin to write a range, and to record it once it is durable; waits while two others are being written.

        Args:
          start: its first example, a multiple of the layout's `range_rows`.
          stop: one past its last.
          arrays: each array's rows `[stop - start, …]`, not to be changed until the result is there.
          record: what is kept with it, plain JSON: `names` of the examples, `ids` where they are not their places,
            `skipped` examples, `counts` by method.

        Returns:
          The range on its way; `result()` waits and gives the bytes it takes.

        Raises:
          ValueError: when this is no range of the layout.
          StorageError: when an earlier range could not be written.
        """
        self._check_range(start, stop, arrays)
        return self._writer.write(start, stop, arrays, record)

    def ask_to_stop(self) -> None:
        """Let every process of the job know that it shall finish its batch and end."""
        self._stop = True
        if self._count > 1:
            with self._explained():
                self._files.write(STOP, b"\n")

    def asked_to_stop(self) -> bool:
        """Tell whether a process asked to stop."""
        self._stop = self._stop or (self._count > 1 and self._files.read(STOP) is not None)
        return self._stop

    def wait_and_finish(self, num_examples: int) -> bool:
        """Wait until all processes' ranges are recorded, and finish the export, in the main process.

        Args:
          num_examples: how many there turned out to be.

        Returns:
          Whether it was finished here: False in the other processes, and when a process asked to stop.

        Raises:
          ValueError: when what is recorded is of another number of examples.
          StorageError: when something could not be written.
        """
        if self._index != 0:
            return False
        expected = expected_starts(self._layout, num_examples)
        own = [start for start in expected if self._is_own(start) and start not in self._done]
        if own and not self.asked_to_stop():
            raise ValueError(f"num_examples = {num_examples}: the range from {own[0]} was not written")
        with self._explained():
            while not set(expected) <= set(self._recorded()):
                if self.asked_to_stop():
                    return False
                time.sleep(POLL_SECONDS)
            self._check_end(num_examples)
            self._files.delete(STOP)
            finish(self._files, self._layout, num_examples)
        self._num_examples = num_examples
        return True

    def _check_range(self, start: int, stop: int, arrays: Mapping[str, np.ndarray]) -> None:
        rows = self._layout.range_rows
        if start % rows or not start < stop <= start + rows or not self._is_own(start):
            raise ValueError(
                f"start, stop = {start}, {stop} is no range of process {self._index} of {self._count}: "
                f"they begin at multiples of {rows}"
            )
        wrong = {spec.name for spec in self._layout.arrays} ^ {*arrays}
        wrong |= {name for name, values in arrays.items() if len(values) != stop - start}
        if wrong:
            raise ValueError(f"arrays = {sorted(wrong)}: each of the layout, of {stop - start} rows, is needed")

    def _is_own(self, start: int) -> bool:
        return start // self._layout.range_rows % self._count == self._index

    def _recorded(self) -> list[int]:
        """Return where the recorded ranges begin, seldom looking at the disk anew."""
        when, found = self._listed
        if time.monotonic() - when >= POLL_SECONDS:
            found = starts(self._files)
            self._listed = (time.monotonic(), found)
        return sorted({*found, *self._done})

    def _check_end(self, num_examples: int) -> None:
        last = starts(self._files)[-1]
        stop = read_record(self._files, last)["stop"]
        if stop != num_examples:
            raise ValueError(
                f"num_examples = {num_examples}, but {self._files.name('')} holds {stop}: "
                "give the same data, or another path"
            )

    def _explained(self) -> AbstractContextManager[None]:
        return explained(self._files, self._count_safely, self._num_examples)

    def _count_safely(self) -> int:
        with contextlib.suppress(OSError):
            return self.finished
        return len(self._done) * self._layout.range_rows
