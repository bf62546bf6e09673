"""An image folder `root/<split>/<class>/**/*.{jpg,jpeg,png}` as a source of examples.

A class's images may lie in folders within its own, as other readers of image folders take it. Names need not be UTF-8:
they are shown with such bytes escaped. Classes are compared as Unicode in its composed form, since archives made on
another system may hold a name decomposed.
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
UNREAD = (".avif", ".bmp", ".gif", ".heic", ".jp2", ".jfif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")  # images, too
VAL_NAMES = ("val", "validation", "valid")
_SHOWN = 3  # names in a message


@dataclasses.dataclass(frozen=True, eq=False)
class FileSource:
    """Labelled image files, decoded when asked for.

    Attributes:
      paths: one file an example.
      labels: int32 `[N]`.
      decoder: what each image is turned into.
      boxes: int32 `[N, 4]` as `[y0, x0, y1, x1)` in the stored images' pixels, or None.
    """

    paths: tuple[str, ...]
    labels: np.ndarray
    decoder: Decoder
    boxes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The file of an example, as text that can be printed and stored."""
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
    """The class names: the subfolders of `root/train`, sorted, as text that can be printed and stored.

    Raises:
      ValueError: when there is no `train`, it has no subfolders, or two whose names look alike.
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
    """The folder that holds a split, or None; validation may also be called 'validation' or 'valid'."""
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
    """List the files of a split, sorted by class and name; the images themselves are not read.

    Images that are left out, of another type or outside the class folders, are counted in a warning.

    Raises:
      ValueError: naming the folder, when a class has no images, one outside train is unknown to train, or a link leads
        nowhere.
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
    """Return what names that look alike have in common."""
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
    """Return what a folder holds, sorted by name, without hidden files.

    Raises:
      ValueError: when it cannot be read, or holds links that lead nowhere.
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
    """Return the images of a class, sorted, and what is an image of another type."""
    found = list(_walk(os.fspath(folder), ()))
    files = sorted(path for path in found if _has_ending(path, EXTENSIONS))
    if not files:
        held = f"; it holds {readable(os.path.relpath(min(found), folder))!r}" if found else ""
        shown = readable(os.fspath(folder))
        raise ValueError(f"{shown}: the class folder has no images ({', '.join(EXTENSIONS)}){held}")
    return files, sorted(path for path in found if _has_ending(path, UNREAD))


def _walk(folder: str, above: tuple[str, ...]) -> Iterator[str]:
    """Yield the files in a folder and the folders within it, links followed."""
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
    """Return how many paths there are, and the first of them."""
    shown = ", ".join(readable(path) for path in paths[:_SHOWN])
    return shown if len(paths) <= _SHOWN else f"{shown} … ({len(paths)} in all)"
