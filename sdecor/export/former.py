"""What a former start left of an export: looked at, repaired where that is a matter of deleting, and gone on from."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from absl import logging

from sdecor.export.check import damaged_end, damaged_ranges
from sdecor.export.files import LocalFiles, RemoteFiles
from sdecor.export.group import check_same, read_group, write_metadata
from sdecor.export.layout import Layout
from sdecor.export.records import STOP, record_key, starts

Files = LocalFiles | RemoteFiles


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
