"""Lock files: held by one process at a time, and freed by the operating system when that process ends or is killed."""

import contextlib
import fcntl
import json
import os
import platform
import time
from typing import Any

from absl import logging
from etils import epath

NOBODY = {"process": "?", "host": "?", "since": "?"}  # a holder that has not written its description yet

_not_inherited: set[int] = set()  # descriptors of locked files that a forked child closes


class Taken(Exception):
    """Another process holds the lock.

    Attributes:
      holder: description of that process, from its `this_process`.
    """

    def __init__(self, holder: dict[str, Any]):
        super().__init__(json.dumps(holder))
        self.holder = holder


class Lock:
    """A held lock file.

    Attributes:
      descriptor: descriptor of the open file. A process that receives it holds the lock too.
    """

    def __init__(self, path: epath.PathLike, descriptor: int):
        self.descriptor, self._path = descriptor, path

    def release(self, *, remove: bool = False) -> None:
        """Release the lock, unless a child still holds it; `remove` deletes the file first."""
        if remove:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
        _not_inherited.discard(self.descriptor)
        os.close(self.descriptor)


def acquire(path: epath.PathLike, *, inherited: bool = False) -> Lock:
    """Lock the local file `path` without waiting; create the file if it is missing.

    On a file system without locks there is a warning, and the lock counts as held.

    Args:
      path: path of the lock file; its folder must exist.
      inherited: whether forked children hold the lock too, so that it may outlive this process.

    Raises:
      Taken: when another process holds it.
    """
    while True:
        opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found = _read(opened)
            os.close(opened)
            raise Taken(found) from None
        except OSError as error:  # some network file systems have no locks
            folder = os.path.dirname(os.path.abspath(path))
            logging.warning("%s cannot be locked (%s): start nothing else that writes there", folder, error)
            break
        if _is_there(opened, path):
            break
        os.close(opened)  # its holder deleted the file before we locked it
    if not inherited:
        _not_inherited.add(opened)
    lock = Lock(path, opened)
    try:
        os.ftruncate(opened, 0)
        os.pwrite(opened, json.dumps(this_process()).encode(), 0)
    except BaseException:
        lock.release()
        raise
    return lock


def holder(path: epath.PathLike) -> dict[str, Any] | None:
    """Return the process that holds the lock file `path`, or None if none does.

    The test itself takes a shared lock for a moment. `acquire` raises `Taken` in other processes meanwhile.
    """
    try:
        opened = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(opened)
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(opened)
    return None


def this_process() -> dict[str, Any]:
    """Return the description of this process for lock files: process id, host and time."""
    return {"process": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _read(opened: int) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        found = json.loads(os.pread(opened, 1000, 0))
        if isinstance(found, dict) and NOBODY.keys() <= found.keys():
            return found
    return NOBODY


def _is_there(opened: int, path: epath.PathLike) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(opened), os.stat(path))
    return False


def _close_in_child() -> None:
    """Close the locked files in a forked child, which would otherwise hold the lock of a dead parent."""
    for opened in _not_inherited:
        os.close(opened)
    _not_inherited.clear()


os.register_at_fork(after_in_child=_close_in_child)
