"""Atomic and durable writes of an export's files, on a local disk or an object store.

TensorStore does not write local files here: its file driver does not truncate a file that a killed writer left, so a
shorter new file would keep the end of the longer old one. Remote files go through `tensorstore.KvStore`. Unlike
`core.files.write_file`, a write returns when the file is on the disk, because a commit record must not outlive the
files that it lists.
"""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import tensorstore as ts
from etils import epath

PARTIAL = ".partial"  # suffix of files that are being written


class Digest(NamedTuple):
    """Size and SHA-256 of a file; the checksum is None if only the size was requested."""

    size: int
    sha256: str | None


def open_files(path: epath.PathLike) -> "LocalFiles | RemoteFiles":
    """Return the files under `path`, a local folder or the URL of a folder."""
    text = os.fspath(path)
    if "://" not in text:
        return LocalFiles(text)
    return RemoteFiles(ts.KvStore.open(text.rstrip("/") + "/").result())


class LocalFiles:
    """Files under a local folder. A key is a file's path relative to the folder, with `/` between folders."""

    def __init__(self, folder: str):
        self.folder = os.path.abspath(os.path.expanduser(folder))

    def name(self, key: str) -> str:
        """Return the full path of a file, for messages; for an empty key, the folder's path."""
        return os.path.join(self.folder, key) if key else self.folder

    def is_file(self) -> bool:
        """Return whether the folder's path is a file."""
        return os.path.isfile(self.folder)

    def read(self, key: str) -> bytes | None:
        """Return a file's content, or None if there is no file."""
        try:
            with open(self.name(key), "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def digest(self, key: str, *, content: bool = True) -> Digest | None:
        """Return a file's size and, with `content`, its checksum; None if there is no file."""
        try:
            with open(self.name(key), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                return Digest(size, hashlib.file_digest(file, "sha256").hexdigest() if content else None)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, key: str, content: bytes | Iterable[bytes]) -> None:
        """Write or replace a file. It is durable on return, and readers never see half of it."""
        name = self.name(key)
        partial = f"{name}.{uuid.uuid4().hex[:8]}{PARTIAL}"
        make_folder(os.path.dirname(name))
        try:
            with open(partial, "wb") as file:
                file.writelines([content] if isinstance(content, bytes) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, name)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            if isinstance(error, OSError):
                error.filename = name
            raise
        _sync_folder(os.path.dirname(name))

    def delete(self, key: str) -> None:
        """Delete a file if it exists."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self.name(key))
            _sync_folder(os.path.dirname(self.name(key)))

    def keys(self, under: str = "") -> Iterator[str]:
        """Yield the keys of all files below the folder `under`, in no order, without files being written."""
        return (key for key in self._walk(under) if not key.endswith(PARTIAL))

    def remove_partial(self, under: str = "") -> None:
        """Delete the partial files that killed writers left."""
        for key in self._walk(under):
            if key.endswith(PARTIAL):
                self.delete(key)

    def _walk(self, under: str) -> Iterator[str]:
        for folder, _, names in os.walk(self.name(under)):
            inside = os.path.relpath(folder, self.folder)
            yield from (name if inside == os.curdir else f"{inside}/{name}".replace(os.sep, "/") for name in names)


class RemoteFiles:
    """The same interface for the objects of a key-value store, whose writes are atomic and durable."""

    def __init__(self, store: ts.KvStore):
        self.store = store

    def name(self, key: str) -> str:
        """Return the full URL of a file, for messages."""
        return self.store.url + key

    def is_file(self) -> bool:
        """Return False, because a key-value store has no folders."""
        return False

    def read(self, key: str) -> bytes | None:
        """Return a file's content, or None if there is no file."""
        with _as_os_error():
            found = self.store.read(key).result()
        return found.value if found.state == "value" else None

    def digest(self, key: str, *, content: bool = True) -> Digest | None:
        """Return a file's size and, with `content`, its checksum; None if there is no file."""
        found = self.read(key)  # key-value stores do not report sizes
        return found if found is None else Digest(len(found), hashlib.sha256(found).hexdigest() if content else None)

    def write(self, key: str, content: bytes | Iterable[bytes]) -> None:
        """Write or replace a file. It is durable on return, and readers never see half of it."""
        content = content if isinstance(content, bytes) else b"".join(content)
        with _as_os_error():
            self.store.write(key, content).result()

    def delete(self, key: str) -> None:
        """Delete a file if it exists."""
        with _as_os_error():
            self.store.write(key, None).result()

    def keys(self, under: str = "") -> Iterator[str]:
        """Yield the keys of all files below the folder `under`, in no order."""
        folder = f"{under}/" if under else ""
        inside = ts.KvStore.KeyRange(folder, folder[:-1] + "0" if folder else "")  # "0" is the character after "/"
        with _as_os_error():
            return (key.decode() for key in self.store.list(inside).result())

    def remove_partial(self, under: str = "") -> None:
        """Do nothing, because a killed writer leaves no partial object."""


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """Convert TensorStore's errors (ValueError and others) to `OSError`."""
    try:
        yield
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise OSError(str(error)) from error


def make_folder(folder: str) -> None:
    """Create a local folder and its parents; they are durable on return."""
    if os.path.isdir(folder):
        return
    make_folder(os.path.dirname(folder))
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder)
    _sync_folder(os.path.dirname(folder))


def _sync_folder(folder: str) -> None:
    """Make renamed and created entries of a folder durable."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


Files = LocalFiles | RemoteFiles
