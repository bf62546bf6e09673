"""Weights of PyTorch networks, drawn from their names, so that none are stored; and safetensors files of them."""

import json
import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np


def draw(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Return float32 tensors by name, each drawn with its name as the seed."""
    return {name: _draw(name, tuple(shape)) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.array(7)
    if name.endswith(("token", "pos_embed", "pos_embedding")):
        return rng.normal(size=shape).astype(np.float32)
    if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
        return rng.uniform(0.5, 1.5, size=shape).astype(np.float32)
    if len(shape) == 1:
        return (0.2 * rng.normal(size=shape)).astype(np.float32)
    scale = np.float32(1.5 / math.sqrt(math.prod(shape[1:])))
    return rng.standard_normal(shape, np.float32) * scale


def draw_images(count: int, height: int, width: int | None = None) -> np.ndarray:
    """Return float32 images `[N, H, W, 3]`."""
    return np.random.default_rng(5).normal(size=(count, height, width or height, 3)).astype(np.float32)


def write_safetensors(path, tensors: Mapping[str, np.ndarray]) -> str:
    """Write float32 and int64 tensors to a safetensors file and return its path as text."""
    header, parts, offset = {}, [], 0
    for name, tensor in tensors.items():
        part = np.ascontiguousarray(tensor).tobytes()
        dtype = {"float32": "F32", "int64": "I64"}[str(tensor.dtype)]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [offset, offset + len(part)]}
        parts.append(part)
        offset += len(part)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
    return str(path)
