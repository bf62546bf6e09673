"""One export at a time into a path: `flock` on a local disk, a lease with heartbeat and expiry on an object store."""

import contextlib
import fcntl
import json
import os
import platform
from collections.abc import Iterator

from absl import logging
from etils import epath

from sdecor.export.files import LocalFiles, make_folder, open_files
from sdecor.export.lease import Lease
from sdecor.export.records import PRIVATE

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
