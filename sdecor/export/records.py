"""Commit records of ranges: a file each, written after the range's data is durable. What has none is not there."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from sdecor.export.files import LocalFiles, RemoteFiles, open_files
from sdecor.export.layout import Layout, chunk_key

PRIVATE = ".sdecor"  # our folder in the group, which Zarr readers pass over
FOLDER = f"{PRIVATE}/ranges"
STOP = f"{PRIVATE}/stop"  # its presence tells the processes of a job to stop

Files = LocalFiles | RemoteFiles
Record = dict[str, Any]


def record_key(start: int) -> str:
    """Return the record's file of the range from `start`."""
    return f"{FOLDER}/{start:012d}.json"


def starts(files: Files) -> list[int]:
    """Return where the recorded ranges begin, ascending."""
    names = (key.rpartition("/")[2].removesuffix(".json") for key in files.keys(FOLDER))
    return sorted(int(name) for name in names if name.isdigit())


def write_record(files: Files, record: Record) -> None:
    """Record a range, with the checksum of the record itself."""
    files.write(record_key(record["start"]), _content(record))


def read_record(files: Files, start: int) -> Record | None:
    """Return the record of the range from `start`, None where there is none.

    Raises:
      ValueError: when it is damaged.
    """
    content = files.read(record_key(start))
    if content is None:
        return None
    try:
        record = json.loads(content)["record"]
        whole = content == _content(record) and record["start"] == start
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError(f"{files.name(record_key(start))} is damaged")
    return record


def read_records(files: Files) -> Iterator[Record]:
    """Yield the records, ascending, one at a time: they hold the names of all examples."""
    for start in starts(files):
        record = read_record(files, start)
        if record is not None:
            yield record


def read_all(path: epath.PathLike) -> dict[int, Record]:
    """Return all records of the export at `path` by where their ranges begin, ascending.

    Raises:
      ValueError: when one is damaged.
    """
    return {record["start"]: record for record in read_records(open_files(path))}


def damage(files: Files, layout_keys: dict[str, str], record: Record, *, content: bool = True) -> list[str]:
    """Return what is wrong with the files of a recorded range, empty where they are whole.

    Args:
      files: the export's.
      layout_keys: each array's file of the range.
      record: the range's.
      content: compare checksums also, not just sizes.
    """
    found = []
    for name, key in layout_keys.items():
        expected, actual = record["files"].get(name), files.digest(key, content=content)
        if expected is None:
            found.append(f"{files.name(key)} is not recorded")
        elif actual is None:
            found.append(f"{files.name(key)} is missing")
        elif actual.size != expected["size"]:
            found.append(f"{files.name(key)} has {actual.size} bytes instead of {expected['size']}")
        elif content and actual.sha256 != expected["sha256"]:
            found.append(f"{files.name(key)} has another checksum than when it was written")
    return found


def keys_of(layout: Layout, start: int) -> dict[str, str]:
    """Return each array's file of the range from `start`."""
    return {spec.name: chunk_key(spec.name, start, layout) for spec in layout.arrays}


def _content(record: Record) -> bytes:
    """Return the record's file."""
    text = json.dumps(record, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return f'{{"sha256":"{hashlib.sha256(text.encode()).hexdigest()}","record":{text}}}\n'.encode()
