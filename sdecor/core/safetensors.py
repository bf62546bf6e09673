"""Files of named arrays in the safetensors format. Its own package refuses bfloat16 where it reads to NumPy.

A file is a little-endian uint64, the length of a JSON header; the header, `{name: {"dtype", "shape", "data_offsets"}}`;
and the arrays' bytes, little-endian in C order (https://github.com/huggingface/safetensors#format).
"""

import json
import math

import ml_dtypes
import numpy as np
from etils import epath

DTYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64,
    "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32, "F64": np.float64,
}  # fmt: skip
_LENGTH = 8  # bytes of the header's length


def read(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Read all arrays of a safetensors file, local or remote, by name. The arrays are read-only.

    Raises:
      ValueError: if there is no such file, or it is damaged or of another format.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    content = path.read_bytes()
    try:
        end = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
        header = json.loads(content[_LENGTH:end])
        header.pop("__metadata__", None)
        return {name: _array(name, about, content, end) for name, about in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no safetensors file, or is damaged: {error}") from error


def _array(name: str, about: dict, content: bytes, data: int) -> np.ndarray:
    """Return one array of a file's `content`, whose arrays begin at byte `data`."""
    if about["dtype"] not in DTYPES:
        raise ValueError(f"tensor {name!r} has the dtype {about['dtype']!r}; known are {', '.join(DTYPES)}")
    dtype, (begin, end) = np.dtype(DTYPES[about["dtype"]]), about["data_offsets"]
    count = math.prod(about["shape"])
    if not 0 <= begin <= end <= len(content) - data or end - begin != count * dtype.itemsize:
        raise ValueError(f"the bytes {begin} to {end} of tensor {name!r} do not fit its shape {about['shape']}")
    return np.frombuffer(content, dtype, count, data + begin).reshape(about["shape"])
