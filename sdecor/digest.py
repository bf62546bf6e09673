"""The SHA-256 of arrays and bytes: what tells data and parameters from others."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np


def digest(parts: Iterable[Any]) -> str:
    """Return the SHA-256 of bytes, and of arrays with their dtypes and shapes, as hexadecimal digits."""
    found = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else _bytes(np.asarray(part))
        found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()


def _bytes(array: np.ndarray) -> bytes:
    return f"{array.dtype} {array.shape} ".encode() + array.tobytes()
