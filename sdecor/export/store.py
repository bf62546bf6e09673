"""Store of an export: ranges are written durably, then committed; at the end the export is finished.

Each process writes its own ranges, every `process_count`-th one, and no two processes share a file. A range's data are
durable before its commit record is written, so that at any moment all committed ranges are whole.
"""

import contextlib
import errno
import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

import numpy as np
from etils import epath

from sdecor.core.checks import check_choice, check_range
from sdecor.core.files import plain
from sdecor.export.files import LocalFiles, RemoteFiles, open_files
from sdecor.export.layout import ArraySpec, Layout, encode_range, validate_layout
from sdecor.export.manifest import STOP, expected_starts, finish, keys_of, starts, write_record
from sdecor.export.resume import refuse_another_number, resume
from sdecor.export.verify import CHECKS

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StorageError(OSError):
    """A file could not be read or written; committed ranges are whole."""


def how_many(finished: int, num_examples: int | None) -> str:
    """Return the beginning of a sentence: how many examples are finished, and of how many, if known."""
    return f"{finished} examples are" if num_examples is None else f"{finished} of {num_examples} examples are"


@contextlib.contextmanager
def explained(files: LocalFiles | RemoteFiles, finished: Callable[[], int], num_examples: int | None) -> Iterator[None]:
    """Convert an `OSError` to `StorageError`, which says how many examples are finished and what to do.

    Args:
      files: the export's files.
      finished: function that returns the number of finished examples.
      num_examples: number of all examples, if known.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        what = "free space" if error.errno in FULL else "repair that"
        raise StorageError(
            f"could not read or write {error.filename or files.name('')}: {error.strerror or error}. "
            f"{how_many(finished(), num_examples)} finished and kept: {what} and run the same command to continue"
        ) from error


PENDING = 2  # ranges being written at a time; more would take more memory
WRITERS = 4  # files of a range being written at a time

Pending = Future[int]  # a range being written: `result()` returns its bytes, or raises `StorageError`


class Writer:
    """A writer of ranges, with its own threads.

    Args:
      files: the export's files.
      layout: the export's layout.
      explained: function that returns the context that converts `OSError` to `StorageError`.
      recorded: function called with the start of each committed range.
    """

    def __init__(
        self,
        files: LocalFiles | RemoteFiles,
        layout: Layout,
        explained: Callable[[], AbstractContextManager],
        recorded: Callable[[int], Any],
    ):
        self._files, self._layout, self._explained, self._recorded = files, layout, explained, recorded
        self._failure: Exception | None = None
        self._slots = threading.Semaphore(PENDING)
        self._commits = ThreadPoolExecutor(PENDING, "commit")
        self._writers = ThreadPoolExecutor(PENDING * WRITERS, "write")

    def close(self) -> None:
        """Wait for the ranges being written."""
        self._commits.shutdown()
        self._writers.shutdown()

    def write(self, start: int, stop: int, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> Pending:
        """Start to write a range, see `Store.write`; wait while `PENDING` others are being written."""
        self._slots.acquire()
        if self._failure is not None:
            self._slots.release()
            raise self._failure
        pending = self._commits.submit(self._commit, start, stop, arrays, record)
        pending.add_done_callback(lambda _: self._slots.release())
        return pending

    def _commit(self, start: int, stop: int, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> int:
        keys = keys_of(self._layout, start)

        def store(spec: ArraySpec) -> dict[str, Any]:
            content = encode_range(spec, self._layout, arrays[spec.name])
            self._files.write(keys[spec.name], content)
            return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}

        try:
            with self._explained():
                written = {spec.name: self._writers.submit(store, spec) for spec in self._layout.arrays}
                wait(written.values())
                files = {name: future.result() for name, future in written.items()}
                write_record(self._files, {**plain(dict(record)), "start": start, "stop": stop, "files": files})
        except Exception as error:
            self._failure = self._failure or error
            raise
        self._recorded(start)
        return sum(file["size"] for file in files.values())


LISTING_SECONDS = 0.5  # between two listings of the committed ranges


class Store:
    """An export on disk, created or resumed.

    The main process (index 0) opens it first and creates the files that the others find. Every process compares the
    stored layout with `layout` and verifies its own ranges that an earlier start committed. A damaged range gives a
    warning and counts as not done.

    Attributes:
      path: path as given, for messages.
      complete: whether an earlier start finished the export, and every file of it is whole.

    Args:
      path: local folder or URL.
      layout: the export's layout.
      num_examples: number of examples; None = only known at the end.
      process_index: index of this process in the job.
      process_count: number of the job's processes.
      check: verification of committed ranges: "checksums" of all bytes, or only "sizes" of files.

    Raises:
      ValueError: when the path holds something else, or another export.
      StorageError: when the path cannot be written.
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
        validate_layout(layout)
        if num_examples is not None:
            check_range("num_examples", num_examples, 1)
        self.path, self.complete = path, False
        self._files, self._layout, self._num_examples = open_files(path), layout, num_examples
        self._index, self._count = process_index, process_count
        self._done: set[int] = set()
        self._stop, self._listed = False, (-np.inf, [])
        with self._explained():
            resumed = resume(
                self._files,
                layout,
                num_examples,
                main=process_index == 0,
                is_own=self._is_own,
                content=check == "checksums",
            )
        self._layout, self._num_examples, self.complete, self._done = resumed
        self._writer = Writer(self._files, self._layout, self._explained, self._done.add)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the ranges being written."""
        self._writer.close()

    def done(self, start: int) -> bool:
        """Return whether this process's range from `start` is committed and whole."""
        return start in self._done

    @property
    def finished(self) -> int:
        """Number of committed examples, by all processes."""
        rows, end = self._layout.range_rows, self._num_examples or np.inf
        return sum(int(min(rows, end - start)) for start in self._recorded())

    def write(self, start: int, stop: int, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> Pending:
        """Start to write a range, and commit it once it is durable; wait while two others are being written.

        Args:
          start: the first example, a multiple of the layout's `range_rows`.
          stop: one past the last example.
          arrays: each array's rows `[stop - start, …]`; do not change them before the result is available.
          record: plain JSON for the commit record: `names` of the examples, `ids` if they are not the places,
            `skipped` examples, `counts` by method.

        Returns:
          A future of the range; `result()` waits and returns the bytes written.

        Raises:
          ValueError: when this is no range of the layout, or not this process's.
          StorageError: when an earlier range could not be written.
        """
        self._validate_range(start, stop, arrays)
        return self._writer.write(start, stop, arrays, record)

    def ask_to_stop(self) -> None:
        """Ask every process of the job to finish its batch and stop."""
        self._stop = True
        if self._count > 1:
            with self._explained():
                self._files.write(STOP, b"\n")

    def asked_to_stop(self) -> bool:
        """Return whether a process asked to stop."""
        self._stop = self._stop or (self._count > 1 and self._files.read(STOP) is not None)
        return self._stop

    def wait_and_finish(self, num_examples: int) -> bool:
        """Wait until all processes' ranges are committed, then finish the export; only the main process does this.

        Args:
          num_examples: the final number of examples.

        Returns:
          Whether this process finished the export: False in other processes, and when a process asked to stop.

        Raises:
          ValueError: when the committed ranges hold another number of examples.
          StorageError: when a file could not be read or written.
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
                time.sleep(LISTING_SECONDS)
            refuse_another_number(self._files, num_examples)
            self._files.delete(STOP)
            finish(self._files, self._layout, num_examples)
        self._num_examples = num_examples
        return True

    def _validate_range(self, start: int, stop: int, arrays: Mapping[str, np.ndarray]) -> None:
        rows = self._layout.range_rows
        if start % rows or not start < stop <= start + rows or not self._is_own(start):
            raise ValueError(
                f"start, stop = {start}, {stop} is no range of process {self._index} of {self._count}: "
                f"they begin at multiples of {rows}"
            )
        wrong = {spec.name for spec in self._layout.arrays} ^ {*arrays}
        wrong |= {name for name, values in arrays.items() if len(values) != stop - start}
        if wrong:
            raise ValueError(f"arrays = {sorted(wrong)}: give each array of the layout, with {stop - start} rows")

    def _is_own(self, start: int) -> bool:
        return start // self._layout.range_rows % self._count == self._index

    def _recorded(self) -> list[int]:
        """Return the starts of the committed ranges; the disk is listed at most once in `LISTING_SECONDS`."""
        when, found = self._listed
        if time.monotonic() - when >= LISTING_SECONDS:
            found = starts(self._files)
            self._listed = (time.monotonic(), found)
        return sorted({*found, *self._done})

    def _explained(self) -> AbstractContextManager[None]:
        return explained(self._files, self._count_safely, self._num_examples)

    def _count_safely(self) -> int:
        with contextlib.suppress(OSError):
            return self.finished
        return len(self._done) * self._layout.range_rows
