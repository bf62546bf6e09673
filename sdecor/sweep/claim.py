"""One process at a time in a run's folder: a lock of the operating system, which ends with those that hold it."""

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import platform
import time
from typing import Any

LOCK = "sweep.lock"
_PAUSE = 0.1  # seconds between two tries


class Claim:
    """A held lock. A process that `descriptor` is passed to holds it as well: nobody joins an orphan."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def release(self) -> None:
        """Give the folder up, unless a child still holds it."""
        os.close(self.descriptor)


def take(folder: pathlib.Path, *, tries: int = 1) -> Claim | None:
    """Claim a run's folder, created where missing; None when another process holds it.

    Args:
      folder: the run's.
      tries: more than one where it is not tried again later: whoever asks for the state holds the lock for an instant.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for attempt in range(tries):
        opened = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        if _locked(opened, folder):
            about = {"process": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            os.ftruncate(opened, 0)
            os.pwrite(opened, json.dumps(about).encode(), 0)
            return Claim(opened)
        os.close(opened)
        if attempt + 1 < tries:
            time.sleep(_PAUSE)
    return None


def holder(folder: pathlib.Path) -> dict[str, Any] | None:
    """Return who holds a run's folder: process, host and since when; None when nobody does."""
    try:
        opened = os.open(folder / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(ValueError):
            return json.loads(os.pread(opened, 1000, 0))
        return {"process": "?", "host": "?", "since": "?"}
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(opened)
    return None


def _locked(opened: int, folder: pathlib.Path) -> bool:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some network file systems know no locks
        logging.warning("%s cannot be locked (%s): start no second sweep there", folder, error)
    return True
