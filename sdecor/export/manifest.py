"""What an export is of and what of it is committed: zarr.json, a commit record a range, and the lists at its end."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging
from etils import epath

from sdecor.core.files import differing_fields, list_differences, plain
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
)

MANY = ("provenance.checkpoint.parameters", "data.images")  # of these the first difference is told, and how many


def list_shortly(differences: Mapping[str, tuple[Any, Any]]) -> str:
    """Return a line for each differing field, and one for all of `MANY`."""
    told = dict(differences)
    for field in MANY:
        inside = [name for name in told if name.startswith(f"{field}.")]
        if len(inside) > 1:
            first = f"{inside[0]} and {len(inside) - 1} {field.rpartition('.')[2]} more"
            told[first] = told[inside[0]]
            told = {name: pair for name, pair in told.items() if name not in inside}
    return list_differences(told)


def filled(data: Mapping[str, Any], other: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a fingerprint of data, its images that could not be read taken from another one.

    An export that a broken image stopped goes on when that is repaired, and when it is broken again.
    """
    own, others = data.get("images") or {}, (other or {}).get("images") or {}
    images = {place: others.get(place) if value is None else value for place, value in own.items()}
    return {**data, "images": images} if "images" in data else dict(data)


def differing_arrays(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the differences of arrays' metadata; of an array that one side lacks, only what it is."""
    both = there.keys() & here.keys()
    common = ({name: side[name] for name in both} for side in (there, here))
    found = differing_fields(*common, prefix="arrays.")
    for name in sorted(there.keys() ^ here.keys()):
        found[f"arrays.{name}"] = _described(there.get(name)), _described(here.get(name))
    return found


def _described(stored: Mapping[str, Any] | None) -> str | None:
    return None if stored is None else f"{stored['data_type']} {tuple(stored['shape'])}"


PRIVATE = ".sdecor"  # our folder in the group, which Zarr readers pass over
FOLDER = f"{PRIVATE}/ranges"
STOP = f"{PRIVATE}/stop"  # its presence tells the processes of a job to stop

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


PROVISIONAL_ROWS = 2**24  # length of the arrays until the number of examples is known; it bounds nothing
COPY = f"{PRIVATE}/group.json"
RESULTS = ("complete", "totals")  # attributes that become known at the end


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


IDS, SKIPPED = "ids.jsonl", "skipped.jsonl"


class Found:
    """What the records tell, gathered while they pass by one at a time."""

    def __init__(self, files: Files):
        self._files = files
        self.skipped: list[dict[str, Any]] = []
        self.totals: dict[str, Any] = {}

    def id_lines(self) -> Iterator[bytes]:
        """Yield ids.jsonl range by range; afterwards `skipped` and `totals` are whole."""
        counts: dict[str, Counter] = {}
        for record in read_records(self._files):
            self.skipped += record.get("skipped", [])
            for method, numbers in record.get("counts", {}).items():
                counts.setdefault(method, Counter()).update(numbers)
            yield b"".join(map(_line, _names(record)))
        by_method = {method: dict(numbers) for method, numbers in counts.items()}
        self.totals = {"skipped": len(self.skipped), "counts": by_method}

    def skipped_lines(self) -> Iterator[bytes]:
        """Yield skipped.jsonl."""
        return map(_line, self.skipped)


def finish(files: Files, layout: Layout, num_examples: int) -> None:
    """Write what is known only at the end; the export is complete when this returns.

    Nothing is left that an undisturbed export does not have.

    Args:
      files: the export's; all ranges are recorded.
      layout: what is stored.
      num_examples: how many there are.
    """
    found = Found(files)
    files.write(IDS, found.id_lines())
    if found.skipped:
        files.write(SKIPPED, found.skipped_lines())
    else:
        files.delete(SKIPPED)
    _remove_strays(files, layout, num_examples)
    write_metadata(files, layout, num_examples, complete=True, totals=found.totals)


def expected_starts(layout: Layout, num_examples: int) -> range:
    """Return where the ranges of `num_examples` examples begin."""
    return range(0, num_examples, layout.range_rows)


def _remove_strays(files: Files, layout: Layout, num_examples: int) -> None:
    """Remove from our folders what an interrupted start left: only those are touched, a user's files stay."""
    wanted = {f"{spec.name}/{METADATA}" for spec in layout.arrays}
    for start in expected_starts(layout, num_examples):
        wanted |= {record_key(start), *keys_of(layout, start).values()}
    for folder in (FOLDER, *(spec.name for spec in layout.arrays)):
        files.remove_partial(folder)
        for key in [key for key in files.keys(folder) if key not in wanted]:
            files.delete(key)


def _names(record: Record) -> Iterator[dict[str, Any]]:
    names = record.get("names") or []
    ids = record.get("ids") or range(record["start"], record["stop"])
    return ({"example_id": number, "name": name} for number, name in zip(ids, names, strict=bool(names)))


def _line(entry: dict[str, Any]) -> bytes:
    return (json.dumps(entry, ensure_ascii=False) + "\n").encode()
