"""Arrays for other programs' files: read from an export, and written, a few examples at a time."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from sdecor.export.reader import Export

ROWS_AT_ONCE = 64  # examples in memory


class Rows(NamedTuple):
    """An array that is made row by row: shape of a row, type, and `(places [n]) -> rows [n, …]`."""

    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[np.ndarray], np.ndarray]

    def parts(self, places: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, places.size, ROWS_AT_ONCE):
            yield np.ascontiguousarray(self.read(places[start : start + ROWS_AT_ONCE]), self.dtype)


def column(export: Export, name: str, dtype: Any) -> Rows:
    """Return one of the stored arrays as another type."""
    return Rows(export.arrays[name].tail, dtype, lambda part: export.read(name, part))


def maps_of(export: Export, method: str) -> Rows:
    """Return the maps with channels first, one where there is none."""
    height, width, *channels = export.arrays[export.name_of(method)].tail
    shape = (*(channels or [1]), height, width)
    return Rows(shape, np.float32, lambda part: channels_first(export.attribution(method, part)))


def channels_first(values: np.ndarray) -> np.ndarray:
    """Return `[n, C, H, W]` of `[n, H, W, C]`, or of `[n, H, W]` with one channel."""
    return values[:, None] if values.ndim == 3 else np.moveaxis(values, -1, 1)


def finite_places(export: Export, method: str, places: np.ndarray) -> np.ndarray:
    """Return the places whose map is finite."""
    whole = np.empty(places.size, bool)
    for start in range(0, places.size, ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        values = export.attribution(method, places[part])
        whole[part] = np.isfinite(values).all(tuple(range(1, values.ndim)))
    if not whole.any():
        raise ValueError(f"{export.path} has no finite map of {method} among the {places.size} examples chosen")
    return places[whole]


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[epath.Path]:
    """Give a path to write to; what is there afterwards takes its place under `path`."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.tmp"
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
