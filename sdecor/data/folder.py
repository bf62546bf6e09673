"""An image folder `root/<split>/<class>/*.{jpg,jpeg,png}` as a source of examples."""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from sdecor.data.decode import Decoder

EXTENSIONS = (".jpg", ".jpeg", ".png")
VAL_NAMES = ("val", "validation", "valid")


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
        """The file of an example."""
        return self.paths[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        try:
            with open(path, "rb") as stream:
                data = stream.read()
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
        box = None if self.boxes is None else self.boxes[index]
        return {**self.decoder(data, name=path, box=box), "label": np.int32(self.labels[index])}


def class_folders(root: str | os.PathLike) -> tuple[str, ...]:
    """The class names: the sorted subfolders of `root/train`.

    Raises:
      ValueError: when there is no `train` or it has no subfolders.
    """
    train = find_split(root, "train")
    if train is None:
        held = ", ".join(repr(name) for name in _subfolders(pathlib.Path(root))) or "no folders"
        raise ValueError(
            f"data.path = {os.fspath(root)!r} has no folder 'train' (it holds {held}): expected train/<class>/*.jpg"
        )
    classes = _subfolders(train)
    if not classes:
        raise ValueError(f"{train} has no class folders: expected train/<class>/*.jpg")
    return classes


def find_split(root: str | os.PathLike, split: str) -> pathlib.Path | None:
    """The folder that holds a split, or None; validation may also be called 'validation' or 'valid'."""
    root = pathlib.Path(root)
    if not root.is_dir():
        raise ValueError(f"data.path = {os.fspath(root)!r} is not a folder")
    names = VAL_NAMES if split == "val" else (split,)
    found = [root / name for name in names if (root / name).is_dir()]
    if len(found) > 1:
        raise ValueError(f"{root} has both {found[0].name!r} and {found[1].name!r}: keep one as the validation split")
    return found[0] if found else None


def open_split(root: str | os.PathLike, split: str, *, classes: tuple[str, ...], decoder: Decoder) -> FileSource:
    """List the files of a split, sorted by class and name; the images themselves are not read.

    Raises:
      ValueError: naming the folder, when a class has no images, or one outside train is unknown to train.
    """
    folder = find_split(root, split)
    if folder is None:
        raise ValueError(f"{root} has no folder {split!r}")
    present = _subfolders(folder)
    unknown = sorted(set(present) - set(classes))
    if unknown:
        raise ValueError(f"{folder / unknown[0]}: there is no class {unknown[0]!r} in {pathlib.Path(root) / 'train'}")
    if not present:
        raise ValueError(f"{folder} has no class folders: expected {folder.name}/<class>/*.jpg")
    paths: list[str] = []
    labels: list[int] = []
    for name in present:
        files = _images(folder / name)
        paths += files
        labels += [classes.index(name)] * len(files)
    return FileSource(tuple(paths), np.array(labels, np.int32), decoder)


def _subfolders(folder: pathlib.Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise ValueError(f"data.path = {os.fspath(folder)!r} is not a folder")
    with os.scandir(folder) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")))


def _images(folder: pathlib.Path) -> list[str]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file())
    files = [os.path.join(folder, name) for name in names if name.lower().endswith(EXTENSIONS)]
    if not files:
        held = f"; it holds {names[0]!r}" if names else ""
        raise ValueError(f"{folder}: the class folder has no images ({', '.join(EXTENSIONS)}){held}")
    return files
