"""Manifest of an export: zarr.json, one commit record per range, and the lists written at the end.

A commit record is one file, written after the range's data are durable. A range without a record counts as not written.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from absl import logging
from etils import epath

from sdecor.core.files import plain
from sdecor.export.files import Files, open_files
from sdecor.export.layout import (
    FORMAT,
    METADATA,
    ArraySpec,
    Layout,
    array_metadata,
    chunk_key,
    group_metadata,
    metadata_bytes,
    validate_layout,
)

PRIVATE = ".sdecor"  # our folder in the group, which Zarr readers ignore
FOLDER = f"{PRIVATE}/ranges"
STOP = f"{PRIVATE}/stop"  # if this file exists, the processes of a job stop

Record = dict[str, Any]


def record_key(start: int) -> str:
    """Return the key of the commit record of the range from `start`."""
    return f"{FOLDER}/{start:012d}.json"


def starts(files: Files) -> list[int]:
    """Return the starts of the committed ranges, ascending."""
    names = (key.rpartition("/")[2].removesuffix(".json") for key in files.keys(FOLDER))
    return sorted(int(name) for name in names if name.isdigit())


def write_record(files: Files, record: Record) -> None:
    """Commit a range: write its commit record, with a checksum of the record."""
    files.write(record_key(record["start"]), _content(record))


def read_record(files: Files, start: int) -> Record | None:
    """Return the commit record of the range from `start`, or None if there is none.

    Raises:
      ValueError: when the commit record is damaged.
    """
    content = files.read(record_key(start))
    if content is None:
        return None
    try:
        record = json.loads(content)["record"]
        whole = content == _content(record) and record["start"] == start and _is_record(record)
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise ValueError(f"{files.name(record_key(start))} is damaged")
    return record


def _is_record(record: Record) -> bool:
    """Tell whether a commit record has the types of one; another program may have written it."""
    lists = all(isinstance(record.get(name) or [], list) for name in ("names", "ids", "skipped"))
    return isinstance(record["stop"], int) and isinstance(record.get("files", {}), dict) and lists


def read_records(files: Files) -> Iterator[Record]:
    """Yield the commit records, ascending. One is read at a time, because they hold the names of all examples."""
    for start in starts(files):
        record = read_record(files, start)
        if record is not None:
            yield record


def names_of(record: Record) -> Iterator[tuple[int, str]]:
    """Yield the place and the name of each example of a range; nothing if its record has no names."""
    names = record.get("names") or []
    places = record.get("ids") or range(record["start"], record["stop"])
    return zip(places, names, strict=bool(names))


def read_all(path: epath.PathLike) -> dict[int, Record]:
    """Return all commit records of the export at `path`, by the start of their range, ascending.

    Raises:
      ValueError: when a commit record is damaged.
    """
    return {record["start"]: record for record in read_records(open_files(path))}


def keys_of(layout: Layout, start: int) -> dict[str, str]:
    """Return the keys of the files of the range from `start`, by array."""
    return {spec.name: chunk_key(spec.name, start, layout) for spec in layout.arrays}


def _content(record: Record) -> bytes:
    """Return the content of a commit record's file."""
    text = json.dumps(record, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return f'{{"sha256":"{hashlib.sha256(text.encode()).hexdigest()}","record":{text}}}\n'.encode()


PROVISIONAL_ROWS = 2**24  # length of the arrays until the number of examples is known; it is no limit
COPY = f"{PRIVATE}/group.json"
RESULTS = ("complete", "totals")  # attributes that are known only at the end


def read_group(files: Files) -> dict[str, Any] | None:
    """Return an export's zarr.json, or our copy if zarr.json is missing or damaged; None if there is neither.

    The copy says what is exported, not whether the export is complete.

    Raises:
      ValueError: when the arrays' names cannot be names of folders, or their types cannot be stored.
    """
    content, copy = files.read(METADATA), _read_copy(files)
    group = None if content is None else _parsed(content)
    if copy is not None and (group is None or _identity(group) != _identity(copy)):
        logging.warning("%s is %s", files.name(METADATA), "missing" if content is None else "damaged")
        group = copy
    if group is not None:
        try:
            validate_layout(layout_of(group))
        except ValueError as error:
            raise ValueError(f"{files.name(METADATA)} is of no export that can be read: {error}") from error
    return group


def layout_of(group: dict[str, Any]) -> Layout:
    """Return the layout that an export's zarr.json describes."""
    attributes = group["attributes"]
    arrays = [
        ArraySpec(
            name,
            tuple(stored["shape"][1:]),
            stored["data_type"],
            tuple(stored["dimension_names"][1:]),
            float("nan") if stored["fill_value"] == "NaN" else stored["fill_value"],
            stored["attributes"],
        )
        for name, stored in group["consolidated_metadata"]["metadata"].items()
    ]
    own = {"chunk_rows", "shard_rows", "num_examples", *FORMAT, *RESULTS}
    kept = {name: value for name, value in attributes.items() if name not in own}
    return Layout(tuple(arrays), attributes["chunk_rows"], attributes["shard_rows"], kept)


def write_metadata(
    files: Files, layout: Layout, num_examples: int | None, *, complete: bool, totals: dict[str, Any] | None = None
) -> None:
    """Write the metadata of the group and its arrays; files that are equal already are not written.

    The group's file is written first, so that the folder is known to be an export; if complete, it is written last.
    """
    rows = PROVISIONAL_ROWS if num_examples is None else num_examples
    found = {"complete": complete} | ({} if totals is None else {"totals": totals})
    group = (METADATA, metadata_bytes(group_metadata(layout, num_examples, rows=rows, **found)))
    others = [(COPY, copy_bytes(layout))]
    for spec in layout.arrays:
        others.append((f"{spec.name}/{METADATA}", metadata_bytes(array_metadata(spec, layout, rows))))
    for key, content in [*others, group] if complete else [group, *others]:
        if files.read(key) != content:
            files.write(key, content)


def copy_bytes(layout: Layout) -> bytes:
    """Return our copy of the group's metadata that never changes, with a checksum."""
    group = plain(group_metadata(layout, None, rows=0))
    digest = hashlib.sha256(metadata_bytes(group)).hexdigest()
    return metadata_bytes({"group": group, "sha256": digest})


def _parsed(content: bytes) -> dict[str, Any] | None:
    """Return a group's zarr.json as a dict, or None unless it is an export's."""
    try:
        group = json.loads(content)
        layout_of(group)
        return group if {name: group["attributes"].get(name) for name in FORMAT} == FORMAT else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _read_copy(files: Files) -> dict[str, Any] | None:
    """Return the group in our copy, or None if the copy is missing or damaged."""
    try:
        group = json.loads(files.read(COPY) or b"{}")["group"]
        return group if files.read(COPY) == copy_bytes(layout_of(group)) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _identity(group: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the attributes and arrays that never change during an export."""
    changing = {"num_examples", *RESULTS}
    attributes = {name: value for name, value in group["attributes"].items() if name not in changing}
    return attributes, arrays_of(group)


def arrays_of(group: dict[str, Any]) -> dict[str, Any]:
    """Return the arrays' metadata without the number of examples."""
    arrays = group["consolidated_metadata"]["metadata"]
    return {name: {**stored, "shape": stored["shape"][1:]} for name, stored in arrays.items()}


IDS, SKIPPED = "ids.jsonl", "skipped.jsonl"


class Lists:
    """The lists at an export's end, made from one commit record at a time.

    Attributes:
      skipped: the skipped examples.
      totals: the number of skipped examples, and the sums of the counts by method.
    """

    def __init__(self, files: Files):
        self._files = files
        self.skipped: list[dict[str, Any]] = []
        self.totals: dict[str, Any] = {}

    def id_lines(self) -> Iterator[bytes]:
        """Yield ids.jsonl range by range; afterwards `skipped` and `totals` are complete."""
        counts: dict[str, Counter] = {}
        for record in read_records(self._files):
            self.skipped += record.get("skipped", [])
            for method, numbers in record.get("counts", {}).items():
                counts.setdefault(method, Counter()).update(numbers)
            yield b"".join(_line({"example_id": place, "name": name}) for place, name in names_of(record))
        by_method = {method: dict(numbers) for method, numbers in counts.items()}
        self.totals = {"skipped": len(self.skipped), "counts": by_method}

    def skipped_lines(self) -> Iterator[bytes]:
        """Yield the lines of skipped.jsonl."""
        return map(_line, self.skipped)


def finish(files: Files, layout: Layout, num_examples: int) -> None:
    """Write the lists and the final metadata; the export is complete on return.

    The files are then those of an export that was never interrupted.

    Args:
      files: the export's files, with all ranges committed.
      layout: the export's layout.
      num_examples: number of examples.
    """
    lists = Lists(files)
    files.write(IDS, lists.id_lines())
    if lists.skipped:
        files.write(SKIPPED, lists.skipped_lines())
    else:
        files.delete(SKIPPED)
    _remove_strays(files, layout, num_examples)
    write_metadata(files, layout, num_examples, complete=True, totals=lists.totals)


def expected_starts(layout: Layout, num_examples: int) -> range:
    """Return the starts of the ranges of `num_examples` examples."""
    return range(0, num_examples, layout.range_rows)


def _remove_strays(files: Files, layout: Layout, num_examples: int) -> None:
    """Delete the files that an interrupted start left in our folders; a user's files elsewhere stay."""
    wanted = {f"{spec.name}/{METADATA}" for spec in layout.arrays}
    for start in expected_starts(layout, num_examples):
        wanted |= {record_key(start), *keys_of(layout, start).values()}
    for folder in (FOLDER, *(spec.name for spec in layout.arrays)):
        files.remove_partial(folder)
        for key in [key for key in files.keys(folder) if key not in wanted]:
            files.delete(key)


def _line(entry: dict[str, Any]) -> bytes:
    return (json.dumps(entry, ensure_ascii=False) + "\n").encode()
