"""The group's zarr.json: what an export is of, compared when it is continued."""

import hashlib
import json
from typing import Any

from absl import logging

from sdecor.core.files import differing_fields, list_differences, plain
from sdecor.export.differences import differing_arrays, filled, list_shortly
from sdecor.export.files import LocalFiles, RemoteFiles
from sdecor.export.layout import (
    FORMAT,
    METADATA,
    ArraySpec,
    Layout,
    array_metadata,
    group_metadata,
    metadata_bytes,
)
from sdecor.export.records import PRIVATE

PROVISIONAL_ROWS = 2**24  # length of the arrays until the number of examples is known; it bounds nothing
COPY = f"{PRIVATE}/group.json"
RESULTS = ("complete", "totals")  # attributes that become known at the end

Files = LocalFiles | RemoteFiles


def read_group(files: Files) -> dict[str, Any] | None:
    """Return the content of an export's zarr.json, or of our copy where that is damaged; None where nothing is.

    The copy tells what is exported, not whether it is complete.

    Raises:
      ValueError: when something else is there, or both are damaged.
    """
    content, copy = files.read(METADATA), _read_copy(files)
    group = None if content is None else _parsed(content)
    if copy is not None and (group is None or _identity(group) != _identity(copy)):
        logging.warning("%s is %s", files.name(METADATA), "missing" if content is None else "damaged")
        return copy
    if content is None:
        foreign = next((key for key in files.keys() if not key.startswith(f"{PRIVATE}/")), None)
        if files.is_file():
            raise ValueError(f"{files.name('')} is a file: give another path, of a folder for the export")
        if foreign is not None:
            raise ValueError(f"{files.name('')} holds something else than an export ({foreign}): give another path")
    elif group is None:
        raise ValueError(f"{files.name(METADATA)} is of no export of ours, or damaged: give another path")
    return group


def layout_of(group: dict[str, Any]) -> Layout:
    """Return the layout that an export's zarr.json tells of."""
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
    """Write the metadata of the group and its arrays where it differs from what is there.

    The group's comes first, so that the folder is known as ours; of a complete export it comes last.
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
    """Return our copy of what the group tells from its beginning to its end, under a checksum."""
    group = plain(group_metadata(layout, None, rows=0))
    digest = hashlib.sha256(metadata_bytes(group)).hexdigest()
    return metadata_bytes({"group": group, "sha256": digest})


def check_same(files: Files, group: dict[str, Any], layout: Layout, num_examples: int | None) -> None:
    """Check that the export that is there may be continued with this layout; other versions get a warning.

    Raises:
      ValueError: when it is of something else; the message names each differing field.
    """
    expected = plain(group_metadata(layout, num_examples, rows=0))
    there, here = dict(group["attributes"]), dict(expected["attributes"])
    if "data" in there and "data" in here:
        there["data"] = filled(there["data"], here["data"])
    dropped = {"versions", *RESULTS}
    if there.get("num_examples") is None or num_examples is None:
        dropped.add("num_examples")
    old, new = ({name: value for name, value in side.items() if name not in dropped} for side in (there, here))
    differences = differing_fields(old, new) | differing_arrays(_arrays(group), _arrays(expected))
    if differences:
        raise ValueError(
            f"{files.name('')} holds another export:\n{list_shortly(differences)}\n"
            "Give another path, or the same settings to continue that export."
        )
    changed = differing_fields(there.get("versions", {}), here.get("versions", {}), prefix="versions.")
    if changed:
        logging.warning(
            "other versions than the export began with: what is computed now may differ in its last bits\n%s",
            list_differences(changed),
        )


def _parsed(content: bytes) -> dict[str, Any] | None:
    """Return the content of a group's zarr.json, None unless it is an export's."""
    try:
        group = json.loads(content)
        layout_of(group)
        return group if {name: group["attributes"].get(name) for name in FORMAT} == FORMAT else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _read_copy(files: Files) -> dict[str, Any] | None:
    """Return the content of our copy, None unless it is whole."""
    try:
        group = json.loads(files.read(COPY) or b"{}")["group"]
        return group if files.read(COPY) == copy_bytes(layout_of(group)) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _identity(group: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what stays the same from an export's beginning to its end."""
    changing = {"num_examples", *RESULTS}
    attributes = {name: value for name, value in group["attributes"].items() if name not in changing}
    return attributes, _arrays(group)


def _arrays(group: dict[str, Any]) -> dict[str, Any]:
    """Return the arrays' metadata without the number of examples."""
    arrays = group["consolidated_metadata"]["metadata"]
    return {name: {**stored, "shape": stored["shape"][1:]} for name, stored in arrays.items()}
