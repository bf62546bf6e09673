"""The end of an export: the lists of names and of skipped examples, the totals, and the arrays' final length."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from sdecor.export.files import LocalFiles, RemoteFiles
from sdecor.export.group import write_metadata
from sdecor.export.layout import METADATA, Layout
from sdecor.export.records import FOLDER, Record, keys_of, read_records, record_key

IDS, SKIPPED = "ids.jsonl", "skipped.jsonl"

Files = LocalFiles | RemoteFiles


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
