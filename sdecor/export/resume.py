"""Resuming an export: all reasons to refuse what is at its path, and the ranges that are kept.

A path is refused if it holds something else, an export of other data, settings or methods, or another number of
examples. Damaged ranges are dropped and computed again; other versions give a warning. (`lock` refuses a path that
another job is writing, and `plan` refuses wrong arguments.)
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from absl import logging
from etils import epath

from sdecor.core.files import differing_fields, list_differences, plain
from sdecor.export.files import Files, open_files
from sdecor.export.layout import METADATA, Layout, group_metadata
from sdecor.export.manifest import (
    PRIVATE,
    RESULTS,
    STOP,
    arrays_of,
    read_group,
    read_record,
    record_key,
    starts,
    write_metadata,
)
from sdecor.export.verify import damaged_end, damaged_ranges

# Fields with many parts: only their first difference is listed, with the number of others.
MANY = ("provenance.checkpoint.parameters", "data.images")


class Resumed(NamedTuple):
    """The state of an export that is resumed.

    Attributes:
      layout: the layout, with the versions of the first start.
      num_examples: number of examples, as given or as found by an earlier start.
      complete: whether the export is finished and every file is whole.
      done: starts of this process's ranges that are committed and whole.
    """

    layout: Layout
    num_examples: int | None
    complete: bool
    done: set[int]


def recorded(path: epath.PathLike) -> dict[str, Any] | None:
    """Return the attributes of the export at `path`, complete or not; None if nothing is there.

    Raises:
      ValueError: when the path holds something else.
    """
    group = _existing(open_files(path))
    return None if group is None else group["attributes"]


def resume(
    files: Files,
    layout: Layout,
    num_examples: int | None,
    *,
    main: bool,
    is_own: Callable[[int], bool],
    content: bool,
) -> Resumed:
    """Resume an export: verify what an earlier start wrote, drop damaged ranges, return what is done.

    Args:
      files: the export's files.
      layout: the layout to store.
      num_examples: number of examples, if known.
      main: whether this is the main process, which begins the export before the others.
      is_own: function that says whether the range from a start is this process's.
      content: whether committed ranges are verified by the checksums of all bytes, or only by sizes.

    Raises:
      ValueError: when the path holds something else, or another export.
    """
    group = _existing(files)
    if group is not None:
        _refuse_another(files, group, layout, num_examples)
        layout = layout._replace(attributes=_with_old_versions(layout, group))
        num_examples = num_examples or group["attributes"]["num_examples"]
    complete = group is not None and bool(group["attributes"].get("complete"))
    if main:
        files.remove_partial()
        files.delete(STOP)
        complete = (
            complete and not _drop_damaged(files, layout, starts(files), content) and not _end_is_damaged(files, group)
        )
        if not complete:
            write_metadata(files, layout, num_examples, complete=False)
    elif group is None:
        raise ValueError(f"{files.name('')} holds no export yet: the main process comes first")
    own = [start for start in starts(files) if is_own(start)]
    damaged = set() if complete else _drop_damaged(files, layout, own, content)
    return Resumed(layout, num_examples, complete, {*own} - damaged)


def refuse_another_number(files: Files, num_examples: int) -> None:
    """Raise `ValueError` unless the last committed range stops at `num_examples`."""
    stop = read_record(files, starts(files)[-1])["stop"]
    if stop != num_examples:
        raise ValueError(
            f"num_examples = {num_examples}, but {files.name('')} holds {stop}: give the same data, or another path"
        )


def _existing(files: Files) -> dict[str, Any] | None:
    """Return the export's zarr.json, or None if nothing is there; raise `ValueError` for anything else."""
    group = read_group(files)
    if group is not None:
        return group
    if files.is_file():
        raise ValueError(f"{files.name('')} is a file: give another path, of a folder for the export")
    if files.read(METADATA) is not None:
        raise ValueError(f"{files.name(METADATA)} is not of an sdecor export, or is damaged: give another path")
    foreign = next((key for key in files.keys() if not key.startswith(f"{PRIVATE}/")), None)
    if foreign is not None:
        raise ValueError(f"{files.name('')} holds something else than an export ({foreign}): give another path")
    return None


def _refuse_another(files: Files, group: dict[str, Any], layout: Layout, num_examples: int | None) -> None:
    """Raise `ValueError` for another export, naming each differing field; warn about other versions."""
    expected = plain(group_metadata(layout, num_examples, rows=0))
    there, here = dict(group["attributes"]), dict(expected["attributes"])
    if "data" in there and "data" in here:
        there["data"] = fill_unread(there["data"], here["data"])
    dropped = {"versions", *RESULTS}
    if there.get("num_examples") is None or num_examples is None:
        dropped.add("num_examples")
    old, new = ({name: value for name, value in side.items() if name not in dropped} for side in (there, here))
    differences = differing_fields(old, new) | _differing_arrays(arrays_of(group), arrays_of(expected))
    if differences:
        raise ValueError(
            f"{files.name('')} holds another export:\n{list_shortly(differences)}\n"
            "Give another path, or the same data, checkpoint and settings to continue that export."
        )
    changed = differing_fields(there.get("versions", {}), here.get("versions", {}), prefix="versions.")
    if changed:
        logging.warning(
            "other versions than the export began with: what is computed now may differ in its last bits\n%s",
            list_differences(changed),
        )


def _drop_damaged(files: Files, layout: Layout, begins: Iterable[int], content: bool) -> set[int]:
    """Delete the commit records of damaged ranges, with a warning, and return the starts of these ranges."""
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
    """Return the layout's attributes with the versions of the first start."""
    old = group["attributes"].get("versions")
    return layout.attributes if old is None else {**layout.attributes, "versions": old}


def list_shortly(differences: Mapping[str, tuple[Any, Any]]) -> str:
    """Return one line per differing field, and only one for all parts of a field in `MANY`."""
    told = dict(differences)
    for field in MANY:
        inside = [name for name in told if name.startswith(f"{field}.")]
        if len(inside) > 1:
            first = f"{inside[0]} and {len(inside) - 1} {field.rpartition('.')[2]} more"
            told[first] = told[inside[0]]
            told = {name: pair for name, pair in told.items() if name not in inside}
    return list_differences(told)


def fill_unread(data: Mapping[str, Any], other: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a fingerprint of data, with images that could not be read taken from the `other` fingerprint.

    An export that a broken image stopped can therefore be resumed when the image is repaired, or broken again.
    """
    own, others = data.get("images") or {}, (other or {}).get("images") or {}
    images = {place: others.get(place) if value is None else value for place, value in own.items()}
    return {**data, "images": images} if "images" in data else dict(data)


def _differing_arrays(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the differences of arrays' metadata; for an array that one side lacks, only its type and shape."""
    both = there.keys() & here.keys()
    common = ({name: side[name] for name in both} for side in (there, here))
    found = differing_fields(*common, prefix="arrays.")
    for name in sorted(there.keys() ^ here.keys()):
        found[f"arrays.{name}"] = _described(there.get(name)), _described(here.get(name))
    return found


def _described(stored: Mapping[str, Any] | None) -> str | None:
    return None if stored is None else f"{stored['data_type']} {tuple(stored['shape'])}"
