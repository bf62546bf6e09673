"""The arrays of an export, read by TensorStore."""

import os
from typing import Any

import numpy as np
import tensorstore as ts

_CACHE_BYTES = 1 << 26  # of decoded chunks: what is read at random from one chunk is decoded once


class Arrays:
    """The arrays in the folder or under the URL `path`, opened when they are first read."""

    def __init__(self, path: str):
        self._path = path
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
        self._opened: dict[str, ts.TensorStore] = {}

    def read(self, name: str, places: np.ndarray) -> np.ndarray:
        """Return the entries of an array at `places`, a number or `[n]`, as they are stored."""
        if name not in self._opened:
            self._opened[name] = self._open(name)
        if places.ndim == 0:
            return self._opened[name][int(places)].read().result()
        run = places.size and np.array_equal(places, np.arange(places[0], places[0] + places.size))
        chosen = slice(int(places[0]), int(places[0]) + places.size) if run else places
        return self._opened[name][chosen].read().result()

    def _open(self, name: str) -> ts.TensorStore:
        folder: Any = f"{self._path.rstrip('/')}/{name}/"
        if "://" not in folder:
            folder = {"driver": "file", "path": os.path.abspath(os.path.expanduser(folder)) + "/"}
        spec = {"driver": "zarr3", "kvstore": folder, "recheck_cached_data": "open"}
        return ts.open(spec, read=True, open=True, context=self._context).result()
