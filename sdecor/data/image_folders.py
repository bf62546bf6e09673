"""Images in folders: `root/<split>/<class>/**/*.{jpg,jpeg,png}`, and Tiny ImageNet in its own layout.

A class's folder may have subfolders, as in other readers of image folders. File names need not be UTF-8; other bytes
are shown escaped. Class names are compared in composed Unicode, because archives from other systems may hold decomposed
names.

A Tiny ImageNet directory:

    wnids.txt                        one WordNet id per line: the classes, in the order of the labels
    words.txt                        <wnid> TAB <names>
    train/<wnid>/images/*.JPEG
    train/<wnid>/<wnid>_boxes.txt    <file> TAB x0 TAB y0 TAB x1 TAB y1, inclusive pixels
    val/images/*.JPEG
    val/val_annotations.txt          <file> TAB <wnid> TAB x0 TAB y0 TAB x1 TAB y1

The labels of its `test` were never published, so its `val` is used as test here.
"""

import dataclasses
import os
import pathlib
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from sdecor.core.files import readable
from sdecor.data.decode import Decoder

EXTENSIONS = (".jpg", ".jpeg", ".png")
UNREAD = (".avif", ".bmp", ".gif", ".heic", ".jp2", ".jfif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")  # other images
VAL_NAMES = ("val", "validation", "valid")
_SHOWN = 3  # names listed in a message


@dataclasses.dataclass(frozen=True, eq=False)
class FileSource:
    """Labelled image files, decoded when they are read.

    Attributes:
      paths: one file per example.
      labels: int32 `[N]`.
      decoder: decoder of the images.
      boxes: int32 `[N, 4]` as `[y0, x0, y1, x1)` in the stored images' pixels, or None.
    """

    paths: tuple[str, ...]
    labels: np.ndarray
    decoder: Decoder
    boxes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Return the file name of an example, as text that can be printed and stored."""
        return readable(self.paths[index])

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self.name(index)
        try:
            with open(self.paths[index], "rb") as stream:
                data = stream.read()
        except OSError as error:
            raise ValueError(f"{name}: cannot be read ({error.strerror})") from error
        box = None if self.boxes is None else self.boxes[index]
        return {**self.decoder(data, name=name, box=box), "label": np.int32(self.labels[index])}


def class_folders(root: str | os.PathLike) -> tuple[str, ...]:
    """Return the class names: the subfolders of `root/train`, sorted, as text that can be printed and stored.

    Raises:
      ValueError: when there is no `train`, or it has no subfolders, or two subfolders whose names look alike.
    """
    train = find_split(root, "train")
    if train is None:
        held = ", ".join(repr(readable(name)) for name in _subfolders(pathlib.Path(root))) or "no folders"
        raise ValueError(
            f"data.path = {os.fspath(root)!r} has no folder 'train' (it holds {held}): expected train/<class>/*.jpg"
        )
    classes = _subfolders(train)
    if not classes:
        raise ValueError(f"{train} has no class folders: expected train/<class>/*.jpg")
    _by_key(classes, train)
    return tuple(map(readable, classes))


def find_split(root: str | os.PathLike, split: str) -> pathlib.Path | None:
    """Return the folder of a split, or None; the folder of val may also be called 'validation' or 'valid'."""
    root = pathlib.Path(root)
    if not root.is_dir():
        raise ValueError(f"data.path = {os.fspath(root)!r} is not a folder")
    names = VAL_NAMES if split == "val" else (split,)
    for name in names:
        if os.path.islink(root / name) and not os.path.exists(root / name):
            raise ValueError(f"{root / name} is a link that leads nowhere: put back what it leads to, or remove it")
    found = [root / name for name in names if (root / name).is_dir()]
    if len(found) > 1:
        raise ValueError(f"{root} has both {found[0].name!r} and {found[1].name!r}: keep one as the validation split")
    return found[0] if found else None


def open_split(root: str | os.PathLike, split: str, *, classes: tuple[str, ...], decoder: Decoder) -> FileSource:
    """List the files of a split, sorted by class and name, without reading the images.

    Images of another type or outside the class folders are left out; a warning counts them.

    Raises:
      ValueError: when a class has no images, a class is missing in train, or a link leads nowhere; the error names the
        folder.
    """
    folder = find_split(root, split)
    if folder is None:
        raise ValueError(f"{root} has no folder {split!r}")
    present = _by_key(_subfolders(folder), folder)
    label_of = {_key(name): label for label, name in enumerate(classes)}
    for key, name in present.items():
        if key not in label_of:
            shown = readable(name)
            raise ValueError(f"{folder / shown}: there is no class {shown!r} in {pathlib.Path(root) / 'train'}")
    if not present:
        raise ValueError(f"{folder} has no class folders: expected {folder.name}/<class>/*.jpg")
    paths: list[str] = []
    labels: list[int] = []
    files = (entry.path for entry in _entries(folder) if entry.is_file())
    unread = [path for path in files if _has_ending(path, EXTENSIONS + UNREAD)]
    for key, name in present.items():
        files, others = _images(folder / name)
        paths += files
        unread += others
        labels += [label_of[key]] * len(files)
    if unread:
        logging.warning(
            "%s holds images that are left out: %s; an image is read as %s in the folder of its class",
            folder, _examples(unread), ", ".join(EXTENSIONS),
        )  # fmt: skip
    return FileSource(tuple(paths), np.array(labels, np.int32), decoder)


def _key(name: str) -> str:
    """Return a form of a name that is equal for names that look alike."""
    return unicodedata.normalize("NFC", readable(name))


def _by_key(names: Sequence[str], folder: pathlib.Path) -> dict[str, str]:
    """Return class folders by their keys.

    Raises:
      ValueError: when two names look alike.
    """
    found: dict[str, str] = {}
    for name in names:
        former = found.setdefault(_key(name), name)
        if former != name:
            raise ValueError(
                f"{folder} has two class folders that look alike, {ascii(former)} and {ascii(name)}, one name in "
                "composed and decomposed Unicode: merge or rename them"
            )
    return found


def _entries(folder: pathlib.Path | str) -> list[os.DirEntry]:
    """Return the entries of a folder, sorted by name, without hidden files.

    Raises:
      ValueError: when the folder cannot be read, or holds links that lead nowhere.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"{readable(os.fspath(folder))}: cannot be read ({error.strerror})") from error
    dangling = [entry.path for entry in found if entry.is_symlink() and not os.path.exists(entry.path)]
    if dangling:
        raise ValueError(
            f"{readable(os.fspath(folder))} holds links that lead nowhere: {_examples(dangling)}; put back what they "
            "lead to, or remove them"
        )
    return found


def _subfolders(folder: pathlib.Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise ValueError(f"data.path = {os.fspath(folder)!r} is not a folder")
    return tuple(entry.name for entry in _entries(folder) if entry.is_dir())


def _images(folder: pathlib.Path) -> tuple[list[str], list[str]]:
    """Return the images of a class, and its images of types that are not read, both sorted."""
    found = list(_walk(os.fspath(folder), ()))
    files = sorted(path for path in found if _has_ending(path, EXTENSIONS))
    if not files:
        held = f"; it holds {readable(os.path.relpath(min(found), folder))!r}" if found else ""
        shown = readable(os.fspath(folder))
        raise ValueError(f"{shown}: the class folder has no images ({', '.join(EXTENSIONS)}){held}")
    return files, sorted(path for path in found if _has_ending(path, UNREAD))


def _walk(folder: str, above: tuple[str, ...]) -> Iterator[str]:
    """Yield the files in a folder and its subfolders; links are followed."""
    real = os.path.realpath(folder)
    if real in above:
        raise ValueError(f"{readable(folder)} is a link to a folder that it lies in: remove it")
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _walk(entry.path, (*above, real))
        elif entry.is_file():
            yield entry.path


def _has_ending(name: str, endings: tuple[str, ...]) -> bool:
    return name.lower().endswith(endings)


def _examples(paths: Sequence[str]) -> str:
    """Return the first paths as text, with the number of paths if there are more."""
    shown = ", ".join(readable(path) for path in paths[:_SHOWN])
    return shown if len(paths) <= _SHOWN else f"{shown} … ({len(paths)} in all)"


def read_classes(root: str | os.PathLike) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the WordNet ids in label order, and a name for each.

    Raises:
      ValueError: when a file is missing or empty, or lists a class twice; the error names the file.
    """
    root = pathlib.Path(root)
    if not root.is_dir():
        raise ValueError(f"data.path = {os.fspath(root)!r} is not a folder")
    wnids = tuple(line.strip() for line in _lines(root / "wnids.txt"))
    if len(set(wnids)) != len(wnids):
        raise ValueError(f"{root / 'wnids.txt'}: a class is listed twice")
    words = dict(line.split("\t", 1) for line in _lines(root / "words.txt") if "\t" in line)
    names = [readable(words.get(wnid, wnid).split(",")[0].strip()) for wnid in wnids]
    # Some names are ambiguous: "crane" is a bird and a machine.
    names = [f"{name} ({wnid})" if names.count(name) > 1 else name for name, wnid in zip(names, wnids, strict=True)]
    return wnids, tuple(names)


def open_tiny_imagenet(root: str | os.PathLike, split: str, *, wnids: tuple[str, ...], decoder: Decoder) -> FileSource:
    """List the examples of the stored split "train" or "val", without reading the images.

    Raises:
      ValueError: when a file is missing or malformed, or a class is unknown; the error names the file (and line).
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
    """Convert inclusive `x0 y0 x1 y1` to half-open `[y0, x0, y1, x1)`."""
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
    text = path.read_text(encoding="utf-8", errors="surrogateescape")  # as file names are decoded
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path}: the file is empty")
    return lines
