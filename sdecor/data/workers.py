"""Worker processes of a stream of batches: they end with the stream, and leave no shared memory behind.

A stream holds a locked file while it is open. The operating system frees the lock when the main process ends, also when
that is killed. Each worker has a thread that waits for the lock and then ends the worker, whatever it does meanwhile.
The names of shared-memory segments begin with the name of that file. So the next stream on this machine knows which
segments nobody will use again.
"""

import contextlib
import fcntl
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory
from typing import Any

import numpy as np

from sdecor.core import locks

_SHARED = "/dev/shm"  # the folder of shared memory on Linux; other systems do not list theirs
_PREFIX = "sdecor-"
_LOCK = ".lock"
_BYTES = 4  # random ones in the name of a stream


@contextlib.contextmanager
def stream() -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the name of a new stream, and a function that ends the stream's workers at once.

    Segments whose stream has ended are unlinked at the start and at the end.
    """
    _remove_old()
    while True:
        name = _PREFIX + secrets.token_hex(_BYTES)
        try:
            lock = locks.acquire(_lock_file(name))
            break
        except locks.Taken:  # for a moment, by a stream that tests which ones have ended
            continue
    try:
        with contextlib.ExitStack() as held:
            held.callback(lock.release, remove=True)
            yield name, held.close  # closing twice does nothing
    finally:
        _unlink(name)


def start_worker(name: str) -> None:
    """Prepare this worker process: ignore signals to the whole group, and end it when its stream `name` ends.

    A terminal and a scheduler send signals to the workers too, but the main process still has to save.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(_lock_file(name),), name="stream-lock", daemon=True).start()


def _leave_with(lock_file: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # the stream has ended already
        opened = os.open(lock_file, os.O_RDONLY)
        fcntl.flock(opened, fcntl.LOCK_SH)
    os._exit(1)


def to_shared_memory(batch: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the batch with its arrays in shared memory, in segments of the stream `name`."""
    from grain.multiprocessing import SharedMemoryArray

    def move(value: Any) -> Any:
        if not isinstance(value, np.ndarray) or value.nbytes == 0:
            return value
        segment = shared_memory.SharedMemory(f"{name}-{secrets.token_hex(6)}", create=True, size=value.nbytes)
        array = SharedMemoryArray.from_shared_memory(segment, value.shape, value.dtype)
        np.copyto(array, value)
        return array

    return {field: move(value) for field, value in batch.items()}


def from_shared_memory(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of the batch outside of shared memory, which is scarce and must be free when the stream ends."""
    return {field: np.array(value) if isinstance(value, np.ndarray) else value for field, value in batch.items()}


def _folder() -> str:
    return _SHARED if os.access(_SHARED, os.W_OK) else tempfile.gettempdir()


def _lock_file(name: str) -> str:
    return os.path.join(_folder(), name + _LOCK)


def _remove_old() -> None:
    """Unlink the segments and lock files of streams whose process has ended without doing so."""
    for name in {file[: len(_PREFIX) + 2 * _BYTES] for file in _files()}:
        with contextlib.suppress(locks.Taken, OSError):  # the stream is open, or belongs to another user
            lock = locks.acquire(_lock_file(name))
            try:
                _unlink(name)
            finally:
                lock.release(remove=True)


def _unlink(name: str) -> None:
    for file in _files():
        if file.startswith(f"{name}-"):
            with contextlib.suppress(FileNotFoundError):  # unlinked by whoever used the segment last
                try:
                    segment = shared_memory.SharedMemory(file)
                except ValueError:  # it is empty: its worker ended before it gave it a size, and told nobody of it
                    os.unlink(os.path.join(_folder(), file))
                    continue
                segment.close()
                segment.unlink()


def _files() -> list[str]:
    with contextlib.suppress(OSError):
        return [file for file in os.listdir(_folder()) if file.startswith(_PREFIX)]
    return []
