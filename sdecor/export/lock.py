"""One export at a time into a path: `flock` on a local disk, a lease with heartbeat and expiry on an object store."""

import contextlib
import fcntl
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import tensorstore as ts
from absl import logging
from etils import epath

from sdecor.export.files import LocalFiles, make_folder, open_files
from sdecor.export.manifest import PRIVATE

HEARTBEAT_SECONDS, EXPIRY_SECONDS = 10.0, 60.0


class Lease:
    """A lease as a context: taken at its begin, renewed by a thread, given back at its end.

    Args:
      store: where the lease lies; its writes can be made to depend on what is there.
      key: the lease's file.
      holder: what others are told of this job, plain JSON.
      heartbeat: seconds between two renewals.
      expiry: seconds without a renewal after which the lease is free.
    """

    def __init__(
        self,
        store: ts.KvStore,
        key: str,
        holder: dict[str, Any],
        *,
        heartbeat: float = HEARTBEAT_SECONDS,
        expiry: float = EXPIRY_SECONDS,
    ):
        self._store, self._key = store, key
        self._content = {**holder, "token": uuid.uuid4().hex}
        self._heartbeat, self._expiry = heartbeat, expiry
        self._generation, self._beats, self._renewed = b"", 0, time.monotonic()
        self._ended = threading.Event()
        self._lost: str | None = None
        self._thread = threading.Thread(target=self._renew_until_ended, name="lease", daemon=True)

    def __enter__(self) -> Self:
        """Take the lease.

        Raises:
          ValueError: when a living job holds it.
        """
        if not self._write(self._free_generation()):
            raise ValueError(f"{self._name} was taken by another export just now: wait for it, or give another path")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._lost is None:
            with contextlib.suppress(ValueError, RuntimeError):  # it expires by itself
                self._store.write(self._key, None, if_equal=self._generation).result()

    def check(self) -> None:
        """Raise `OSError` when the lease was lost, so that another job may have begun."""
        if self._lost is not None:
            raise OSError(f"the lease {self._name} was lost ({self._lost}): run the same command to continue")

    @property
    def _name(self) -> str:
        return self._store.url + self._key

    def _free_generation(self) -> bytes:
        """Return the generation of a lease that is free: not there, or not renewed while it was watched."""
        found = self._store.read(self._key).result()
        if found.state == "missing":
            return found.stamp.generation
        logging.warning("%s is there: watching for %g s whether its holder lives", self._name, self._expiry)
        end = time.monotonic() + self._expiry
        while time.monotonic() < end:
            time.sleep(min(self._heartbeat / 2, max(end - time.monotonic(), 0)))
            now = self._store.read(self._key, staleness_bound=float("inf")).result()
            if now.state == "missing":
                return now.stamp.generation
            if now.stamp.generation != found.stamp.generation:
                raise ValueError(
                    f"{self._name}: an export is being written by {now.value.decode(errors='replace')}: "
                    "wait for it, or give another path"
                )
        return found.stamp.generation

    def _write(self, expected: bytes) -> bool:
        """Write the lease if it is of the generation expected; return whether it was."""
        self._beats += 1
        content = json.dumps({**self._content, "beat": self._beats}).encode()
        stamp = self._store.write(self._key, content, if_equal=expected).result()
        if not stamp.generation:  # of a conditional write that found another generation
            return False
        self._generation, self._renewed = stamp.generation, time.monotonic()
        return True

    def _renew_until_ended(self) -> None:
        while not self._ended.wait(self._heartbeat):
            try:
                if not self._write(self._generation) and not self._adopt():
                    self._lost = "another export took it"
            except (ValueError, RuntimeError, OSError) as error:
                if time.monotonic() - self._renewed > self._expiry:
                    self._lost = f"it could not be renewed for {self._expiry:g} s: {error}"
            if self._lost is not None:
                logging.error("the lease %s was lost: %s", self._name, self._lost)
                return

    def _adopt(self) -> bool:
        """Take the generation that is there if this job wrote it, though it never learned so; return whether."""
        found = self._store.read(self._key, staleness_bound=float("inf")).result()
        with contextlib.suppress(ValueError, AttributeError):
            if found.state == "value" and json.loads(found.value).get("token") == self._content["token"]:
                self._generation = found.stamp.generation
                return True
        return False


LOCK, LEASE = f"{PRIVATE}/lock", f"{PRIVATE}/lease.json"

_opened: set[int] = set()  # lock files that this process holds


class Local:
    """A lock that the operating system keeps: it is held until the process ends, however it ends."""

    def check(self) -> None:
        """Do nothing: it cannot be lost."""


@contextlib.contextmanager
def hold(path: epath.PathLike) -> Iterator[Local | Lease]:
    """Hold the export at `path` for this job, until the end of the `with` block; a dead job holds nothing.

    Yields:
      What is held: its `check()` raises when it was lost, which only a remote one can be.

    Raises:
      ValueError: when another job holds it; the message names it.
    """
    files = open_files(path)
    if isinstance(files, LocalFiles):
        with _flock(files.name(LOCK), files.folder):
            yield Local()
    else:
        with Lease(files.store, LEASE, _holder()) as lease:
            yield lease


@contextlib.contextmanager
def _flock(name: str, path: str) -> Iterator[None]:
    make_folder(os.path.dirname(name))
    opened = _locked(name, path)
    _opened.add(opened)
    try:
        os.ftruncate(opened, 0)
        os.pwrite(opened, json.dumps(_holder()).encode(), 0)
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        _opened.discard(opened)
        os.close(opened)


def _locked(name: str, path: str) -> int:
    """Return the open lock file, locked."""
    while True:
        opened = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(opened, 1000, 0).decode(errors="replace")
            os.close(opened)
            raise ValueError(
                f"{path} is being exported to by {holder or 'another process'}: wait for it, or give another path"
            ) from None
        except OSError as error:  # some network file systems know no locks
            logging.warning("%s cannot be locked (%s): start no second export into it", path, error)
            return opened
        if _is_there(opened, name):
            return opened
        os.close(opened)  # its holder removed it between our two steps


def _is_there(opened: int, name: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(opened), os.stat(name))
    return False


def _holder() -> dict[str, str | int]:
    return {"process": os.getpid(), "host": platform.node()}


def _close_in_child() -> None:
    """Keep a forked child from holding the lock of a parent that died."""
    for opened in _opened:
        os.close(opened)
    _opened.clear()


os.register_at_fork(after_in_child=_close_in_child)
