"""The record of a checkpoint: a sealed JSON file with all of it but the arrays.

It lies beside the arrays, in `checkpoints/STEP/meta/metadata`. The seal is a checksum of the record itself, so that a
damaged metric, position or config is as visible as a damaged array. Records of earlier versions have no seal.
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from sdecor.core import files

_SEAL = "seal"


def steps(directory: epath.PathLike) -> list[int]:
    """Return the steps that have a finished checkpoint in the folder `directory`, ascending."""
    directory = epath.Path(directory)
    if not directory.exists():
        return []
    found = [path for path in directory.iterdir() if path.name.isdigit()]
    if "://" in str(directory):  # object stores cannot rename: there, a file marks what is finished
        found = [path for path in found if (path / "commit_success.txt").exists()]
    return sorted(int(path.name) for path in found)


def sealed(content: Mapping[str, Any]) -> str:
    """Return the text of a record, with its seal."""
    content = files.plain(dict(content))
    return json.dumps(content | {_SEAL: _seal(content)})


def read(directory: epath.PathLike, step: int) -> dict[str, Any]:
    """Read the record of the checkpoint of `step`, and verify its seal.

    Raises:
      ValueError: if the record is missing or damaged; the text names the file.
    """
    path = epath.Path(directory) / str(step) / "meta" / "metadata"
    content = _read(path)
    seal = content.pop(_SEAL, None)
    former = seal is None and "checksums" in content and "crc32" not in content
    if not former and seal != _seal(content):
        raise ValueError(f"{path} is damaged: its content does not match its seal")
    return content


def read_metrics(directory: epath.PathLike, step: int) -> dict[str, float] | None:
    """Read the validation result of the checkpoint of `step`; None without validation or checkpoint.

    Raises:
      ValueError: if the file with the result is damaged; the text names the file.
    """
    if not (epath.Path(directory) / str(step)).exists():
        return None
    content = read(directory, step)
    if "metrics" in content:
        return content["metrics"]
    path = epath.Path(directory) / str(step) / "metrics" / "metrics"  # as earlier versions stored it
    if not path.exists():
        return None
    metrics = _read(path)
    if not all(isinstance(value, int | float) for value in metrics.values()):
        raise ValueError(f"{path} is damaged: not all values are numbers")
    return metrics


def _read(path: epath.Path) -> dict[str, Any]:
    try:
        return files.read_json(path, remedy="it belongs to a checkpoint")
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error


def _seal(content: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def crc32(tree: Any) -> dict[str, str]:
    """Return the CRC-32 of each NumPy array's dtype, shape and bytes, by the array's path in the tree.

    Random damage of an array is missed with a probability of 2⁻³².
    """
    import jax  # a sweep, which reads run folders, starts without it

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): f"{_crc32(leaf):08x}" for path, leaf in leaves}


def _crc32(array: Any) -> int:
    header = zlib.crc32(f"{array.dtype} {array.shape} ".encode())
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8), header)
