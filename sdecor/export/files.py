"""Files of an export, on a local disk or an object store: written whole, durable and atomically, or not at all.

Local files are written here and not by TensorStore, whose file driver does not truncate what a killed writer left of a
file: the rest of a longer one stays behind a shorter one. Remote files go through `tensorstore.KvStore`.
`core.files.write_file` writes whole files too, but only here are they on the disk when a write returns: a record that
says so may not outlive them.
"""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import tensorstore as ts
from etils import epath

PARTIAL = ".partial"  # the end of the name of what is being written


class Digest(NamedTuple):
    """Size and SHA-256 of a file; the latter None where it was not asked for."""

    size: int
    sha256: str | None


def open_files(path: epath.PathLike) -> "LocalFiles | RemoteFiles":
    """Return the files under `path`, a local folder or the URL of one."""
    text = os.fspath(path)
    if "://" not in text:
        return LocalFiles(text)
    return RemoteFiles(ts.KvStore.open(text.rstrip("/") + "/").result())


class LocalFiles:
    """Files under a local folder, by their path from there, `/` between folders."""

    def __init__(self, folder: str):
        self.folder = os.path.abspath(os.path.expanduser(folder))

    def name(self, key: str) -> str:
        """Return the full name of a file, for messages; of no file that of the folder."""
        return os.path.join(self.folder, key) if key else self.folder

    def is_file(self) -> bool:
        """Tell whether the folder is a file."""
        return os.path.isfile(self.folder)

    def read(self, key: str) -> bytes | None:
        """Return a file's content, None where there is no file."""
        try:
            with open(self.name(key), "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def digest(self, key: str, *, content: bool = True) -> Digest | None:
        """Return a file's size and, where its `content` matters, checksum; None where there is no file."""
        try:
            with open(self.name(key), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                return Digest(size, hashlib.file_digest(file, "sha256").hexdigest() if content else None)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, key: str, content: bytes | Iterable[bytes]) -> None:
        """Write or replace a file; durable when this returns, and never seen half written."""
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
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self.name(key))
            _sync_folder(os.path.dirname(self.name(key)))

    def keys(self, under: str = "") -> Iterator[str]:
        """Yield the files in the folder `under` and its folders, in no order, without what is being written."""
        return (key for key in self._walk(under) if not key.endswith(PARTIAL))

    def remove_partial(self, under: str = "") -> None:
        """Remove what killed writers left."""
        for key in self._walk(under):
            if key.endswith(PARTIAL):
                self.delete(key)

    def _walk(self, under: str) -> Iterator[str]:
        for folder, _, names in os.walk(self.name(under)):
            inside = os.path.relpath(folder, self.folder)
            yield from (name if inside == os.curdir else f"{inside}/{name}".replace(os.sep, "/") for name in names)


class RemoteFiles:
    """The same for the objects of a key-value store, whose writes are atomic and durable by themselves."""

    def __init__(self, store: ts.KvStore):
        self.store = store

    def name(self, key: str) -> str:
        """Return the full name of a file, for messages."""
        return self.store.url + key

    def is_file(self) -> bool:
        """Tell whether the folder is a file: in a key-value store there are no folders."""
        return False

    def read(self, key: str) -> bytes | None:
        """Return a file's content, None where there is no file."""
        with _as_os_error():
            found = self.store.read(key).result()
        return found.value if found.state == "value" else None

    def digest(self, key: str, *, content: bool = True) -> Digest | None:
        """Return a file's size and, where its `content` matters, checksum; None where there is no file."""
        found = self.read(key)  # key-value stores tell no size
        return found if found is None else Digest(len(found), hashlib.sha256(found).hexdigest() if content else None)

    def write(self, key: str, content: bytes | Iterable[bytes]) -> None:
        """Write or replace a file; durable when this returns, and never seen half written."""
        content = content if isinstance(content, bytes) else b"".join(content)
        with _as_os_error():
            self.store.write(key, content).result()

    def delete(self, key: str) -> None:
        """Remove a file, if it is there."""
        with _as_os_error():
            self.store.write(key, None).result()

    def keys(self, under: str = "") -> Iterator[str]:
        """Yield the files in the folder `under` and its folders, in no order."""
        folder = f"{under}/" if under else ""
        inside = ts.KvStore.KeyRange(folder, folder[:-1] + "0" if folder else "")  # "0" follows "/"
        with _as_os_error():
            return (key.decode() for key in self.store.list(inside).result())

    def remove_partial(self, under: str = "") -> None:
        """Do nothing: a writer that is killed leaves nothing."""


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """Raise as `OSError` what TensorStore raises as ValueError and others."""
    try:
        yield
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise OSError(str(error)) from error


def make_folder(folder: str) -> None:
    """Make a local folder and those above it, durable when this returns."""
    if os.path.isdir(folder):
        return
    make_folder(os.path.dirname(folder))
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder)
    _sync_folder(os.path.dirname(folder))


def _sync_folder(folder: str) -> None:
    """Make what was renamed or made in a folder durable."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


Files = LocalFiles | RemoteFiles
