"""The embedded data set's examples as arrays, kept beside its records: a start maps them and decodes no image."""

import functools
import os
from typing import Any

import numpy as np

from sdecor.data import scenes
from sdecor.data.tfds_source import TfdsSource

EXAMPLE = np.dtype(
    [
        ("image", np.uint8, (scenes.SIZE, scenes.SIZE, 3)),
        ("object", np.uint8, (scenes.SIZE, scenes.SIZE)),
        ("box", np.int32, 4),
        ("label", np.int32),
    ]
)
STORED = {"train": "train", "validation": "val", "test": "test"}  # split of the records → split of the drawing


class DecodedSource(TfdsSource):
    """A split of `digit_scenes`, from the arrays where these are kept and fit the decoder, else from the records."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        decoder, rows = self.decoder, read(os.fspath(self.prepared.directory), self.split, len(self))
        if rows is None or decoder.channels != 3 or decoder.canvas not in (None, (scenes.SIZE, scenes.SIZE)):
            return super().__getitem__(index)
        row = rows[int(index)]
        return {field: row[field] for field in ("image", "object", "box", "label")}

    def _scan_labels(self) -> np.ndarray:
        rows = read(os.fspath(self.prepared.directory), self.split, len(self))
        if rows is None:
            return super()._scan_labels()
        self._left_out = 0
        return np.array(rows["label"])


@functools.cache
def read(directory: str, split: str, size: int) -> np.ndarray | None:
    """Return the kept examples of a split, `EXAMPLE` `[size]` on disk; None if there are none, or not all."""
    try:
        rows = np.load(path_of(directory, split), mmap_mode="r")
    except (OSError, ValueError):
        return None
    return rows if rows.dtype == EXAMPLE and rows.shape == (size,) else None


def draw(split: str) -> np.ndarray:
    """Draw the examples of a split of the records, `EXAMPLE` `[N]`."""
    drawn = STORED[split]
    rows = np.empty(scenes.SPLIT_SIZES[drawn], EXAMPLE)
    for start in range(0, len(rows), scenes.CHUNK):
        fill(rows, start, scenes.draw_chunk(drawn, start))
    return rows


def fill(rows: np.ndarray, start: int, chunk: tuple[np.ndarray, ...]) -> None:
    """Put the result of `scenes.draw_chunk` into the rows from `start` on."""
    part = rows[start : start + len(chunk[0])]
    part["image"], part["label"], part["object"], part["box"] = chunk


def write(directory: str | os.PathLike, split: str, rows: np.ndarray) -> None:
    """Keep the examples of a split of the records in `directory`."""
    place = path_of(directory, split)
    temporary = f"{place}.{os.getpid()}.tmp"
    with open(temporary, "wb") as stream:
        np.save(stream, rows)
    os.replace(temporary, place)


def path_of(directory: str | os.PathLike, split: str) -> str:
    """Return the file of a split's arrays."""
    return os.path.join(directory, f"decoded-{split}.npy")
