"""Locks of folders that one job writes: `flock` on a local disk, a lease with heartbeat and expiry on an object store.

A lease is held as long as its file keeps changing, and free when the file no longer changes. Clocks of two machines are
never compared: a job that finds a lease watches whether its file changes.
"""

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

from absl import logging
from etils import epath

from sdecor.core import locks

HEARTBEAT_SECONDS, EXPIRY_SECONDS = 10.0, 60.0


class Lease:
    """A lease as a context manager: taken on entry, renewed by a thread, released on exit.

    Args:
      store: `tensorstore.KvStore` with conditional writes that holds the lease.
      key: key of the lease's file.
      holder: description of this job for other jobs, plain JSON.
      busy: words for what the holder does, for errors.
      heartbeat: seconds between two renewals.
      expiry: seconds without a renewal after which the lease is free.
    """

    def __init__(
        self,
        store: Any,
        key: str,
        holder: dict[str, Any],
        *,
        busy: str = "is being written",
        heartbeat: float = HEARTBEAT_SECONDS,
        expiry: float = EXPIRY_SECONDS,
    ):
        self._store, self._key, self._busy = store, key, busy
        self._content = {**holder, "token": uuid.uuid4().hex}
        self._heartbeat, self._expiry = heartbeat, expiry
        self._generation, self._beats, self._renewed = b"", 0, time.monotonic()
        self._ended = threading.Event()
        self._lost: str | None = None
        self._thread = threading.Thread(target=self._renew_until_ended, name="lease", daemon=True)

    def __enter__(self) -> Self:
        """Take the lease.

        Raises:
          ValueError: when another job that is alive holds it.
        """
        if not self._write(self._free_generation()):
            raise ValueError(f"{self._url} was taken by another job just now: wait for it, or give another path")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._lost is None:
            with contextlib.suppress(ValueError, RuntimeError):  # a lease that is not deleted expires
                self._store.write(self._key, None, if_equal=self._generation).result()

    def raise_if_lost(self) -> None:
        """Raise `OSError` if the lease was lost, because another job may have begun."""
        if self._lost is not None:
            raise OSError(f"the lease {self._url} was lost ({self._lost}): run the same command to continue")

    @property
    def _url(self) -> str:
        return self._store.url + self._key

    def _free_generation(self) -> bytes:
        """Return the generation of the free lease: it is missing, or was not renewed for the time of its expiry."""
        found = self._store.read(self._key).result()
        if found.state == "missing":
            return found.stamp.generation
        logging.warning("%s is there: watching for %g s whether its holder lives", self._url, self._expiry)
        end = time.monotonic() + self._expiry
        while time.monotonic() < end:
            time.sleep(min(self._heartbeat / 2, max(end - time.monotonic(), 0)))
            now = self._store.read(self._key, staleness_bound=float("inf")).result()
            if now.state == "missing":
                return now.stamp.generation
            if now.stamp.generation != found.stamp.generation:
                raise ValueError(
                    f"{self._store.url} {self._busy} by {now.value.decode(errors='replace')}: "
                    "wait for it, or give another path"
                )
        return found.stamp.generation

    def _write(self, expected: bytes) -> bool:
        """Write the lease if its generation is `expected`; return whether it was written."""
        self._beats += 1
        content = json.dumps({**self._content, "beat": self._beats}).encode()
        stamp = self._store.write(self._key, content, if_equal=expected).result()
        if not stamp.generation:  # the write found another generation
            return False
        self._generation, self._renewed = stamp.generation, time.monotonic()
        return True

    def _renew_until_ended(self) -> None:
        while not self._ended.wait(self._heartbeat):
            try:
                if not self._write(self._generation) and not self._adopt():
                    self._lost = "another job took it"
            except (ValueError, RuntimeError, OSError) as error:
                if time.monotonic() - self._renewed > self._expiry:
                    self._lost = f"it could not be renewed for {self._expiry:g} s: {error}"
            if self._lost is not None:
                logging.error("the lease %s was lost: %s", self._url, self._lost)
                return

    def _adopt(self) -> bool:
        """Adopt the present generation if this job wrote it; return whether it did.

        A write can succeed although its answer is lost. The next renewal then finds another generation than it expects.
        """
        found = self._store.read(self._key, staleness_bound=float("inf")).result()
        with contextlib.suppress(ValueError, AttributeError):
            if found.state == "value" and json.loads(found.value).get("token") == self._content["token"]:
                self._generation = found.stamp.generation
                return True
        return False


class Local:
    """A lock that the operating system holds until the process ends, even if it is killed."""

    def raise_if_lost(self) -> None:
        """Do nothing, because a local lock cannot be lost."""


@contextlib.contextmanager
def hold(folder: epath.PathLike, *, lock: str, lease: str, busy: str, wait: float = 0.0) -> Iterator[Local | Lease]:
    """Lock a folder for this job until the end of the `with` block; a dead job's lock becomes free.

    Args:
      folder: the folder; a URL is locked by a lease.
      lock: path of the lock file in a local folder. Its own folder must exist.
      lease: key of the lease in a remote folder.
      busy: words for what the holder does, such as "is being trained".
      wait: seconds to wait for the holder, which may be about to end.

    Yields:
      The lock. Its `raise_if_lost()` raises `OSError` if a remote lock was lost.

    Raises:
      ValueError: when another job holds the lock; the error names that job.
    """
    text, end = os.fspath(folder), time.monotonic() + wait
    if "://" in text:
        import tensorstore as ts  # only the library's remote parts need it

        store = ts.KvStore.open(text.rstrip("/") + "/").result()
        with _leased(lambda: Lease(store, lease, locks.this_process(), busy=busy), end) as held:
            yield held
        return
    text = os.path.abspath(os.path.expanduser(text))
    while True:
        try:
            held = locks.acquire(os.path.join(text, lock))
            break
        except locks.Taken as taken:
            if time.monotonic() >= end:
                raise ValueError(f"{text} {busy} by {taken}: wait for it, or give another path") from None
        time.sleep(0.2)
    try:
        yield Local()
    finally:
        held.release(remove=True)


@contextlib.contextmanager
def _leased(create: Callable[[], Lease], end: float) -> Iterator[Lease]:
    """Take a lease; until the time `end`, try again when another job holds it."""
    with contextlib.ExitStack() as stack:
        while True:
            try:
                held = stack.enter_context(create())
                break
            except ValueError:
                if time.monotonic() >= end:
                    raise
            time.sleep(0.2)
        yield held
