"""Files: validation of paths, whole-file writes, JSON, digests, and differences of trees.

Paths are checked before any long work. Names are written as text that every file and terminal accepts.
"""

import contextlib
import csv
import errno
import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

GLOB = "*?["  # orbax finds its files by a glob pattern that begins with the folder's path
REMOTE = {"gs": "gcsfs", "s3": "s3fs"}  # beginning of a path → the package that `epath` needs
UNSTORABLE = GLOB + "\\"  # TensorStore reads a backslash as a slash


def readable(name: str) -> str:
    """Return a file's name as plain text; bytes that are not UTF-8 are escaped, such as `\\xe9`."""
    if name.isascii():
        return name
    try:
        data = os.fsencode(name)
    except UnicodeEncodeError:  # the name is not from the file system
        data = name.encode("utf-8", "backslashreplace")
    return data.decode("utf-8", "backslashreplace")


def check_text(field: str, path: epath.PathLike) -> None:
    """Raise `ValueError` unless a path is UTF-8, because the files that store it are UTF-8."""
    text = os.fspath(path)
    if readable(text) != text:
        raise ValueError(
            f"{field} = {readable(text)!r} is not UTF-8: rename that folder, or give a symbolic link to it with a "
            "name that is"
        )


def check_output(field: str, path: epath.PathLike) -> None:
    """Raise `ValueError` unless `path` can be a folder: it is UTF-8, and neither it nor a parent is a file."""
    text = os.fspath(path)
    if not text:
        raise ValueError(f"{field} is empty: name a folder")
    check_text(field, text)
    if "://" in text:  # an object store has no folders
        return
    above = os.path.abspath(os.path.expanduser(text))
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above):
        raise ValueError(f"{field} = {text!r}: {above} is {_kind(above)}, where a folder is needed: give another path")


def check_location(field: str, path: epath.PathLike) -> None:
    """Raise `ValueError` if a package is missing that reads and writes the files of an object store, such as gs://."""
    text = os.fspath(path)
    package = REMOTE.get(text.partition("://")[0]) if "://" in text else None
    if package and not any(map(importlib.util.find_spec, (package, "tensorflow"))):
        raise ValueError(f"{field} = {text!r} needs the package {package}: pip install {package}")


def check_checkpoints(field: str, path: epath.PathLike) -> None:
    """Raise `ValueError` unless checkpoints can be written below `path`, local or remote, and read back.

    The whole absolute path is checked, with the parents of the folder.
    """
    check_output(field, path)
    whole = os.fspath(absolute(path))
    found = [character for character in UNSTORABLE if character in whole]
    if found:
        raise ValueError(
            f"{field} = {os.fspath(path)!r}: checkpoints cannot be stored below {whole!r}, because of the "
            f"{' and '.join(found)} in it. Use a path without {' '.join(UNSTORABLE)}"
        )
    check_location(field, path)


def absolute(path: epath.PathLike) -> epath.Path:
    """Return the absolute path; a URL is unchanged (`epath` would put the working folder before it)."""
    return epath.Path(path) if "://" in os.fspath(path) else epath.Path(path).absolute()


def make_folder(field: str, path: epath.PathLike) -> epath.Path:
    """Create the folder `path` and its parents if they are missing, and return it.

    Raises:
      ValueError: when the folder cannot be created.
    """
    folder = epath.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{field} = {os.fspath(path)!r} cannot be made: {error.strerror or error}") from error
    return folder


_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN}


def may_pass(error: OSError) -> bool:
    """Return whether an error of the file system may pass without a change of the command, such as a full disk."""
    return error.errno in _PASSING


def check_writable(field: str, path: epath.PathLike) -> None:
    """Raise `ValueError` unless files can be written below `path`, or below its nearest parent that exists.

    An empty file is written there and deleted. Nothing else is created.
    """
    folder = absolute(path) if "://" in os.fspath(path) else absolute(os.path.expanduser(path))
    while "://" not in os.fspath(folder) and not folder.exists():
        folder = folder.parent
    probe = folder / f".writable.{uuid.uuid4().hex[:8]}.tmp"
    try:
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"{field} = {os.fspath(path)!r}: no file can be written in {os.fspath(folder)} "
            f"({error.strerror or error}): give a folder that you may write to"
        ) from error


def _kind(path: str) -> str:
    return "a link that leads nowhere" if os.path.islink(path) and not os.path.exists(path) else "a file"


def digest(parts: Iterable[Any]) -> str:
    """Return the SHA-256 of bytes and arrays, with the arrays' dtypes and shapes, as hexadecimal digits."""
    found = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else _bytes(np.asarray(part))
        found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()


def _bytes(array: np.ndarray) -> bytes:
    return f"{array.dtype} {array.shape} ".encode() + array.tobytes()


PACKAGES = (  # packages that may change a result, or the pixels
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy",
    "tensorflow-datasets", "grain", "pillow", "pillow-simd", "scikit-learn",
)  # fmt: skip


def list_differences(differences: dict[str, tuple[Any, Any]]) -> str:
    """Return the differences of `differing_fields` as lines of text."""
    return "\n".join(f"  {name}: {old!r} there, {new!r} here" for name, (old, new) in differences.items())


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[epath.Path]:
    """Yield a temporary path to write to, whose file replaces `path` when the `with` block ends without an error.

    Readers never see half a file, also when several processes write the same one. A killed writer leaves its temporary
    file, `.NAME.XXXXXXXX.tmp`. The file may still be lost when the machine loses power; files that may not be lost are
    written by `export.files`.
    """
    path = epath.Path(path)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(Exception):
            temporary.unlink()
        raise


def write_file(path: epath.PathLike, content: str | bytes) -> None:
    """Write a whole file, local or remote, as `replacing` does; its folder must exist."""
    with replacing(path) as temporary:
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            temporary.write_text(content)


def write_json(path: epath.PathLike, content: Any) -> None:
    """Write `content` as a JSON file; see `write_file`."""
    write_file(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: epath.PathLike, *, remedy: str = "restore it from a copy, or delete it") -> dict[str, Any]:
    """Read a JSON object from a file, local or remote.

    Args:
      path: path of the file.
      remedy: what to do about a damaged file, the end of the message.

    Raises:
      ValueError: when the file holds no JSON object, because it is empty, cut or overwritten.
      FileNotFoundError: when there is no file.
    """
    content = epath.Path(path).read_bytes()
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):  # also bytes that are no text
        found = None
    if not isinstance(found, dict):
        fault = "it holds no whole JSON object" if content.strip() else "it is empty"
        raise ValueError(f"{os.fspath(path)} is damaged: {fault}; {remedy}")
    return found


FORMULA = tuple("=+-@\t\r\n")  # first characters of a cell that a spreadsheet may run as a formula


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as CSV: None is empty, floats are exact, and no cell is a formula for a spreadsheet.

    A text that begins with one of `FORMULA` gets an apostrophe before it, unless it is a number. A carriage return
    becomes a space, because spreadsheets take it for the end of a row.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([[_cell(value) for value in row] for row in (header, *rows)])
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    text = value.replace("\r", " ")
    if not value.startswith(FORMULA):
        return text
    try:
        float(text)
        return text
    except ValueError:
        return f"'{text}"


def plain(tree: Any) -> Any:
    """Return `tree` in plain JSON types: tuples become lists, ConfigDicts dicts, NumPy values numbers or lists."""
    tree = tree.to_dict() if hasattr(tree, "to_dict") else tree
    return json.loads(json.dumps(tree, default=lambda value: value.tolist()))


def plain_settings(settings: Any) -> Any:
    """Return settings in plain JSON types.

    A function or class becomes its name, and a `partial` that name with its arguments, so that the text is the same in
    every process. Other objects become their text.
    """
    return json.loads(json.dumps(settings, default=_described))


def _described(value: Any) -> Any:
    if isinstance(value, functools.partial):
        return {"function": value.func, "arguments": [*value.args], **value.keywords}
    return getattr(value, "__name__", str(value))


def flat(tree: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts by dotted name: `{"a": {"b": 1}}` gives `{"a.b": 1}`."""
    leaves = {}
    for name, value in tree.items():
        leaves |= flat(value, prefix=f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return leaves


def differing_fields(old: dict[str, Any], new: dict[str, Any], *, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return `{dotted name: (old value, new value)}` of differing fields."""
    differences = {}
    for name in sorted({*old, *new}):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            differences |= differing_fields(a, b, prefix=f"{prefix}{name}.")
        elif a != b:
            differences[prefix + name] = (a, b)
    return differences


def versions() -> dict[str, str]:
    """Return the versions of Python and packages that a result may depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
