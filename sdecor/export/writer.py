"""Writing ranges, a few at a time: the file of each array, durably, and only then the record."""

import hashlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from sdecor.core.files import plain
from sdecor.export.files import LocalFiles, RemoteFiles
from sdecor.export.layout import ArraySpec, Layout, encode_range
from sdecor.export.records import keys_of, write_record

PENDING = 2  # ranges that are being written; more would grow the memory
WRITERS = 4  # files being written of each

Pending = Future[int]  # of a range on its way to the disk: `result()` gives its bytes, or raises `StorageError`


class Writer:
    """Writes ranges in threads of its own.

    Args:
      files: the export's.
      layout: what is stored.
      explained: gives the context in which errors of the disk are explained.
      recorded: is told where each range begins that has been recorded.
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
        """Wait for what is being written."""
        self._commits.shutdown()
        self._writers.shutdown()

    def write(self, start: int, stop: int, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> Pending:
        """Begin to write a range, see `Store.write`; waits while `PENDING` others are being written."""
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
