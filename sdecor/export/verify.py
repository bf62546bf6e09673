"""Verifying an export on disk, and resuming one: damaged ranges are dropped, what is done is kept."""

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from absl import logging
from etils import epath

from sdecor.core.checks import check_choice
from sdecor.export.files import Files, open_files
from sdecor.export.layout import METADATA, Layout, array_metadata, metadata_bytes
from sdecor.export.manifest import (
    COPY,
    IDS,
    SKIPPED,
    STOP,
    Found,
    check_same,
    copy_bytes,
    damage,
    expected_starts,
    keys_of,
    layout_of,
    read_group,
    read_record,
    record_key,
    starts,
    write_metadata,
)

CHECKS = ("checksums", "sizes")
READERS = 4  # files read at a time


def problems(path: epath.PathLike, check: str = "checksums") -> list[str]:
    """Return what is wrong with the export at `path`, empty where every file is whole.

    Args:
      path: of the export, complete or not; what is not exported yet is no problem.
      check: "checksums" reads every byte, "sizes" only looks at the sizes.

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
    """Return what is wrong with the recorded ranges from `begins`, by range; whole ones are left out."""

    def look(start: int) -> list[str]:
        try:
            record = read_record(files, start)
        except ValueError as error:
            return [str(error)]
        return [] if record is None else damage(files, keys_of(layout, start), record, content=content)

    begins = list(begins)
    with ThreadPoolExecutor(READERS) as readers:
        return {start: found for start, found in zip(begins, readers.map(look, begins), strict=True) if found}


def damaged_end(files: Files, group: dict[str, Any]) -> list[str]:
    """Return what is wrong with the rest of a complete export whose recorded ranges are whole."""
    layout, num_examples = layout_of(group), group["attributes"]["num_examples"]
    there = set(starts(files))
    found = [
        f"the record of the range from {start} is missing"
        for start in expected_starts(layout, num_examples)
        if start not in there
    ]
    if found:
        return found
    told = Found(files)
    found += _other(files, IDS, told.id_lines())
    found += _other(files, SKIPPED, told.skipped_lines()) if told.skipped else []
    for spec in layout.arrays:
        content = metadata_bytes(array_metadata(spec, layout, num_examples))
        found += _other(files, f"{spec.name}/{METADATA}", [content])
    found += _other(files, METADATA, [metadata_bytes(group)]) + _other(files, COPY, [copy_bytes(layout)])
    if told.totals != group["attributes"].get("totals"):
        found.append(f"{files.name(METADATA)} has other totals than the records")
    return found


def _other(files: Files, key: str, lines: Iterable[bytes]) -> list[str]:
    """Return a line of text unless a file holds `lines`."""
    expected = hashlib.sha256()
    for line in lines:
        expected.update(line)
    actual = files.digest(key)
    if actual is not None and actual.sha256 == expected.hexdigest():
        return []
    return [f"{files.name(key)} is {'missing' if actual is None else 'damaged'}"]


class Former(NamedTuple):
    """What is there.

    Attributes:
      layout: with the versions that the export began with.
      num_examples: as given, or as a former start found.
      complete: whether it is finished, and every file whole.
      done: where the ranges begin that are whole, of those asked for.
    """

    layout: Layout
    num_examples: int | None
    complete: bool
    done: set[int]


def take_up(
    files: Files,
    layout: Layout,
    num_examples: int | None,
    *,
    main: bool,
    is_own: Callable[[int], bool],
    content: bool,
) -> Former:
    """Begin an export, or find out where it goes on.

    Args:
      files: the export's.
      layout: what is to be stored.
      num_examples: how many there are, where that is known.
      main: whether this process begins what the others then find.
      is_own: whether the range from an example is this process's.
      content: whether all bytes of finished ranges are compared with their checksums, or only sizes.

    Raises:
      ValueError: when something else is there, or an export of something else.
    """
    group = read_group(files)
    if group is not None:
        check_same(files, group, layout, num_examples)
        layout = layout._replace(attributes=_with_old_versions(layout, group))
        num_examples = num_examples or group["attributes"]["num_examples"]
    complete = group is not None and bool(group["attributes"].get("complete"))
    if main:
        files.remove_partial()
        files.delete(STOP)
        complete = (
            complete and not _damaged(files, layout, starts(files), content) and not _end_is_damaged(files, group)
        )
        if not complete:
            write_metadata(files, layout, num_examples, complete=False)
    elif group is None:
        raise ValueError(f"{files.name('')} holds no export: the main process comes first")
    own = [start for start in starts(files) if is_own(start)]
    damaged = set() if complete else _damaged(files, layout, own, content)
    return Former(layout, num_examples, complete, {*own} - damaged)


def _damaged(files: Files, layout: Layout, begins: Iterable[int], content: bool) -> set[int]:
    """Find which recorded ranges are damaged, say so, and forget that they were recorded."""
    damaged = damaged_ranges(files, layout, begins, content=content)
    for start, problems in damaged.items():
        stop = start + layout.range_rows
        logging.warning("examples from %d to %d are computed anew: %s", start, stop - 1, "; ".join(problems))
        files.delete(record_key(start))
    return {*damaged}


def _end_is_damaged(files: Files, group: dict[str, Any]) -> bool:
    found = damaged_end(files, group)
    if found:
        logging.warning("written anew: %s", "; ".join(found))
    return bool(found)


def _with_old_versions(layout: Layout, group: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes with the versions that the export began with."""
    old = group["attributes"].get("versions")
    return layout.attributes if old is None else {**layout.attributes, "versions": old}
