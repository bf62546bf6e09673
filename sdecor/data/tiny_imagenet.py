"""A Tiny ImageNet directory in the data set's own layout, with its object boxes.

    wnids.txt                        one WordNet id a line: the classes, in the order of the labels
    words.txt                        <wnid> TAB <names>
    train/<wnid>/images/*.JPEG
    train/<wnid>/<wnid>_boxes.txt    <file> TAB x0 TAB y0 TAB x1 TAB y1, inclusive pixels
    val/images/*.JPEG
    val/val_annotations.txt          <file> TAB <wnid> TAB x0 TAB y0 TAB x1 TAB y1

Its labels for `test` were never published, so its `val` is what serves as test here.
"""

import os
import pathlib

import numpy as np

from sdecor.core.files import readable
from sdecor.data.decode import Decoder
from sdecor.data.folder import EXTENSIONS, FileSource


def read_classes(root: str | os.PathLike) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the WordNet ids in label order and a name for each.

    Raises:
      ValueError: naming the file, when it is missing or lists nothing.
    """
    root = pathlib.Path(root)
    if not root.is_dir():
        raise ValueError(f"data.path = {os.fspath(root)!r} is not a folder")
    wnids = tuple(line.strip() for line in _lines(root / "wnids.txt"))
    if len(set(wnids)) != len(wnids):
        raise ValueError(f"{root / 'wnids.txt'}: a class is listed twice")
    words = dict(line.split("\t", 1) for line in _lines(root / "words.txt") if "\t" in line)
    names = [readable(words.get(wnid, wnid).split(",")[0].strip()) for wnid in wnids]
    # "crane", for instance, is a bird and a machine.
    names = [f"{name} ({wnid})" if names.count(name) > 1 else name for name, wnid in zip(names, wnids, strict=True)]
    return wnids, tuple(names)


def open_split(root: str | os.PathLike, split: str, *, wnids: tuple[str, ...], decoder: Decoder) -> FileSource:
    """List the examples of the stored split "train" or "val"; the images themselves are not read.

    Raises:
      ValueError: naming the file (and line), when one is missing, malformed or labelled with an unknown class.
    """
    root = pathlib.Path(root)
    rows = _train_rows(root, wnids) if split == "train" else _val_rows(root, wnids)
    paths, labels, boxes = zip(*rows, strict=True)
    return FileSource(tuple(paths), np.array(labels, np.int32), decoder, np.array(boxes, np.int32))


def _train_rows(root: pathlib.Path, wnids: tuple[str, ...]) -> list[tuple[str, int, list[int]]]:
    rows = []
    for label, wnid in enumerate(wnids):
        folder, table = root / "train" / wnid / "images", root / "train" / wnid / f"{wnid}_boxes.txt"
        boxes = {}
        for number, line in enumerate(_lines(table), start=1):
            fields = line.split("\t")
            boxes[fields[0]] = _box(fields[1:], f"{table}:{number}")
        files = _files(folder)
        missing = sorted(files.symmetric_difference(boxes))
        if missing:
            name = readable(missing[0])
            raise ValueError(f"{folder / name}: listed in {table.name} or in the folder, but not in both")
        rows += [(os.path.join(folder, name), label, boxes[name]) for name in sorted(files)]
    return rows


def _val_rows(root: pathlib.Path, wnids: tuple[str, ...]) -> list[tuple[str, int, list[int]]]:
    folder, table = root / "val" / "images", root / "val" / "val_annotations.txt"
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    rows = {}
    for number, line in enumerate(_lines(table), start=1):
        name, *fields = line.split("\t")
        if not fields or fields[0] not in label_of:
            raise ValueError(f"{table}:{number}: {line!r} has no class that {root / 'wnids.txt'} lists")
        rows[name] = (os.path.join(folder, name), label_of[fields[0]], _box(fields[1:], f"{table}:{number}"))
    missing = sorted(_files(folder).symmetric_difference(rows))
    if missing:
        raise ValueError(f"{folder / readable(missing[0])}: listed in {table.name} or in the folder, but not in both")
    return [rows[name] for name in sorted(rows)]


def _files(folder: pathlib.Path) -> set[str]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: the folder is missing")
    with os.scandir(folder) as entries:
        files = {entry.name for entry in entries if entry.name.lower().endswith(EXTENSIONS)}
    if not files:
        raise ValueError(f"{folder}: the class folder has no images")
    return files


def _box(fields: list[str], where: str) -> list[int]:
    """Inclusive `x0 y0 x1 y1` to half-open `[y0, x0, y1, x1)`."""
    try:
        x0, y0, x1, y1 = map(int, fields)
    except ValueError as error:
        raise ValueError(f"{where}: expected a box x0 y0 x1 y1 after tabs, got {fields}") from error
    if x1 < x0 or y1 < y0 or x0 < 0 or y0 < 0:
        raise ValueError(f"{where}: the box x0 y0 x1 y1 = {fields} is empty or outside the image")
    return [y0, x0, y1 + 1, x1 + 1]


def _lines(path: pathlib.Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"{path}: the file is missing; it belongs to the layout of Tiny ImageNet")
    text = path.read_text(encoding="utf-8", errors="surrogateescape")  # as the system gives the names of files
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path}: the file is empty")
    return lines
