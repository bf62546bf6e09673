"""Reading of examples: errors that name the file, and examples that cannot be read and are left out.

A `Skipping` source raises `Unreadable` for such an example. Training then uses the next readable example of the split;
evaluation gives it the weight 0. Any other source raises `ValueError`, which ends the loop.
"""

import json
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from sdecor.core import threads
from sdecor.core.files import write_file
from sdecor.data.splits import Source

ON_ERROR = ("stop", "skip")
MOST = 0.1  # largest share of a split that may be left out
_HINT = "Repair the file, or leave out what cannot be read with data.on_error = 'skip'"


class Unreadable(ValueError):
    """An example that its source leaves out, because it cannot be read.

    Attributes:
      index: place of the example in the source.
      text: the reason, with the example's name.
    """

    def __init__(self, index: int, text: str):
        super().__init__(index, text)
        self.index, self.text = index, text

    def __str__(self) -> str:
        return self.text


class TooManyUnreadable(ValueError):
    """More examples cannot be read than may be left out."""


class Skipping:
    """A Source that leaves out examples that cannot be read: reading one raises `Unreadable`.

    Each such example is reported once. A pickled copy, as in a worker process, reports and counts nothing.

    Attributes:
      source: the examples.
      split: name of the split, for messages.
      shape: shape that every image must have; None = any.
      found: the examples that could not be read so far, by index, each with the reason.
    """

    def __init__(self, source: Source, *, split: str, shape: tuple[int, ...] | None = None):
        self.source, self.split, self.shape = source, split, shape
        self.found: dict[int, str] = {}
        self._reports = True
        self._keep: Callable[[str, int, str], None] | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "split": self.split, "shape": self.shape}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)
        self._reports = False

    def __len__(self) -> int:
        return len(self.source)

    @property
    def labels(self) -> np.ndarray:
        """All labels, int32 `[N]`; −1 where the label itself cannot be read."""
        return self.source.labels

    def name(self, index: int) -> str:
        """Return the file or record of an example, for messages."""
        return self.source.name(index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = int(index)
        try:
            return _valid(self.source, index, self.shape)
        except Exception as error:
            unreadable = Unreadable(index, _describe(self.source, index, error))
            self.note(index, unreadable.text)
            raise unreadable from error

    def note(self, index: int, text: str) -> None:
        """Count, report and record an example that cannot be read.

        Raises:
          TooManyUnreadable: when more than the share `MOST` of the split cannot be read.
        """
        if not self._reports:
            return
        with self._lock:
            new = index not in self.found
            self.found[index] = text
            if new and self._keep is not None:
                self._keep(self.split, index, text)
        if new:
            logging.warning("%s. It is left out (data.on_error = 'skip')", text)
        if len(self.found) > MOST * len(self):
            raise TooManyUnreadable(
                f"{self.summary()}, of which {MOST:.0%} may: data.on_error = 'skip' is for few. The last: {text}"
            )

    def keep_with(self, keep: Callable[[str, int, str], None]) -> None:
        """Call `keep(split, index, text)` for each example that cannot be read, also for those found before."""
        with self._lock:
            self._keep = keep
            for index, text in self.found.items():
                keep(self.split, index, text)

    def summary(self) -> str:
        """Return the number of examples that could not be read so far, as text."""
        return f"{len(self.found):,} of {len(self):,} examples of {self.split} cannot be read"


class Record:
    """The file of a run that lists the examples left out, one JSON object per line: split, example, error.

    Args:
      path: local or remote file; an existing one is continued, and each example is listed once.
    """

    def __init__(self, path: epath.PathLike):
        self._path = epath.Path(path)
        self._lines = self._path.read_text().splitlines() if self._path.exists() else []
        self._known = set(map(_place, self._lines))
        self._appends = False
        self._lock = threading.Lock()

    def add(self, split: str, index: int, text: str) -> None:
        """Add an example, unless the file lists it; a file that cannot be written is reported and stops nothing."""
        with self._lock:
            if (split, index) in self._known:
                return
            self._known.add((split, index))
            self._lines.append(json.dumps({"split": split, "example": index, "error": text}))
            try:
                self._write()
            except OSError as error:
                logging.warning("%s cannot be written (%s)", self._path, error)

    def _write(self) -> None:
        if self._appends:
            with self._path.open("a") as file:
                file.write(self._lines[-1] + "\n")
        else:  # an object store cannot append; and a kill may have cut the last line of an existing file
            write_file(self._path, "".join(line + "\n" for line in self._lines))
            self._appends = "://" not in os.fspath(self._path)


def _place(line: str) -> tuple[str, int] | None:
    try:
        row = json.loads(line)
        return row["split"], row["example"]
    except (ValueError, TypeError, KeyError):  # a damaged line
        return None


def read(source: Any, index: int, shape: tuple[int, ...] | None = None) -> dict[str, Any]:
    """Return `source[index]`; every error names the file.

    Args:
      source: a Source.
      index: the example's place in the split.
      shape: the expected image shape; None = any.

    Raises:
      Unreadable: when the source leaves the example out.
      ValueError: when the example cannot be read, or its image is neither uint8 `[H, W, C]` nor float32, with channels
        last, or not of that shape.
    """
    try:
        return _valid(source, int(index), shape)
    except (Unreadable, TooManyUnreadable):
        raise
    except Exception as error:
        raise ValueError(f"{_describe(source, int(index), error)}. {_HINT}") from error


def read_or_next(
    source: Any, index: int, shape: tuple[int, ...] | None = None
) -> tuple[dict[str, Any], list[Unreadable]]:
    """Return the example at `index`, or else the next one that can be read, and those that were left out.

    The first example follows the last one. The choice depends on the index and the files alone.

    Raises:
      ValueError: when no example can be read.
    """
    left_out = []
    for place in range(index, index + len(source)):
        try:
            return read(source, place % len(source), shape), left_out
        except Unreadable as error:
            left_out.append(error)
    if not left_out:
        raise ValueError("the split is empty: there is nothing to read")
    raise ValueError(f"none of the {len(source)} examples can be read; the first: {left_out[0]}")


def first_readable(source: Any) -> dict[str, Any]:
    """Return the first example that can be read; a thread reads it, so that a signal can end the wait for it."""
    return threads.call(lambda: read_or_next(source, 0)[0], name="first-example")


def next_readable(missing: np.ndarray) -> np.ndarray:
    """Return the example that `read_or_next` would return for each index, int64 `[N]`.

    Args:
      missing: bool `[N]`, whether an example cannot be read; not all are.
    """
    n = len(missing)
    readable = np.flatnonzero(~missing)
    return readable[np.searchsorted(readable, np.arange(n)) % len(readable)]


def _valid(source: Any, index: int, shape: tuple[int, ...] | None) -> dict[str, Any]:
    example = source[index]
    image = example["image"]
    known = image.ndim == 3 if image.dtype == np.uint8 else image.dtype == np.float32 and image.ndim >= 2
    if not known or (shape is not None and image.shape != tuple(shape)):
        wanted = f"{tuple(shape)}" if known else "[H, W, C], or float32, such as a series [T, C]"
        raise ValueError(
            f"{source.name(index)} (example {index}) has an image of {image.dtype} {image.shape}: "
            f"it should be {image.dtype if known else 'uint8'} {wanted}"
        )
    return example


def _describe(source: Any, index: int, error: Exception) -> str:
    name = str(source.name(index))
    if isinstance(error, ValueError) and name in str(error):
        return str(error) if f"example {index}" in str(error) else f"{error} (example {index})"
    return f"{name} (example {index}) cannot be read: {type(error).__name__}: {error}"
