"""Verification of an export on disk: every file, by its checksum or its size."""

import hashlib
from collections.abc import Iterable
from typing import Any

from etils import epath

from sdecor.core import watchdog
from sdecor.core.checks import check_choice
from sdecor.core.threads import map_ahead
from sdecor.export.files import Files, open_files
from sdecor.export.layout import METADATA, Layout, array_metadata, metadata_bytes
from sdecor.export.manifest import (
    COPY,
    IDS,
    SKIPPED,
    Lists,
    Record,
    copy_bytes,
    expected_starts,
    keys_of,
    layout_of,
    read_group,
    read_record,
    starts,
)

CHECKS = ("checksums", "sizes")
READERS = 4  # files read at a time


def problems(path: epath.PathLike, check: str = "checksums") -> list[str]:
    """Return the problems of the export at `path`, one line each; an empty list if every file is whole.

    Args:
      path: path of the export, complete or not; ranges that are not exported yet are no problem.
      check: "checksums" reads every byte; "sizes" compares only the sizes of the ranges' files.

    Raises:
      ValueError: when there is no export.
    """
    check_choice("check", check, CHECKS)
    files = open_files(path)
    group = read_group(files)
    if group is None:
        raise ValueError(f"path = {str(path)!r} holds no export")
    there = starts(files)
    by_range = damaged_ranges(files, layout_of(group), there, content=check == "checksums")
    found = [problem for listed in by_range.values() for problem in listed]
    found += _other(files, METADATA, [metadata_bytes(group)])
    return found + (damaged_end(files, group) if group["attributes"].get("complete") and not found else [])


def damaged_ranges(
    files: Files, layout: Layout, begins: Iterable[int], *, content: bool = True
) -> dict[int, list[str]]:
    """Return the problems of the committed ranges that start at `begins`, by start; whole ranges are left out."""

    def look(start: int) -> list[str]:
        try:
            record = read_record(files, start)
        except ValueError as error:
            return [str(error)]
        return [] if record is None else _damage(files, keys_of(layout, start), record, content=content)

    begins = list(begins)
    looked = map_ahead(look, begins, threads=READERS, ahead=4 * READERS, name="verify")
    damaged = {}
    for start, found in zip(begins, looked, strict=True):
        watchdog.beat("the verification of the export")
        damaged |= {start: found} if found else {}
    return damaged


def damaged_end(files: Files, group: dict[str, Any]) -> list[str]:
    """Return the problems of all other files of a complete export whose committed ranges are whole."""
    layout, num_examples = layout_of(group), group["attributes"]["num_examples"]
    there = set(starts(files))
    found = [
        f"the record of the range from {start} is missing"
        for start in expected_starts(layout, num_examples)
        if start not in there
    ]
    if found:
        return found
    told = Lists(files)
    found += _other(files, IDS, told.id_lines())
    found += _other(files, SKIPPED, told.skipped_lines()) if told.skipped else []
    for spec in layout.arrays:
        content = metadata_bytes(array_metadata(spec, layout, num_examples))
        found += _other(files, f"{spec.name}/{METADATA}", [content])
    found += _other(files, METADATA, [metadata_bytes(group)]) + _other(files, COPY, [copy_bytes(layout)])
    if told.totals != group["attributes"].get("totals"):
        found.append(f"{files.name(METADATA)} has other totals than the records")
    return found


def _damage(files: Files, layout_keys: dict[str, str], record: Record, *, content: bool = True) -> list[str]:
    """Return the problems of a committed range's files; an empty list if they are whole.

    Args:
      files: the export's files.
      layout_keys: keys of the range's files, by array.
      record: the range's commit record.
      content: whether to compare checksums too, not only sizes.
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


def _other(files: Files, key: str, lines: Iterable[bytes]) -> list[str]:
    """Return one problem unless the file `key` holds `lines`; else an empty list."""
    expected = hashlib.sha256()
    for line in lines:
        expected.update(line)
    actual = files.digest(key)
    if actual is not None and actual.sha256 == expected.hexdigest():
        return []
    return [f"{files.name(key)} is {'missing' if actual is None else 'damaged'}"]
