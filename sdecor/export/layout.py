"""Layout of an export: its arrays, their division into chunks and files, and their Zarr v3 metadata."""

import json
import math
import re
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from sdecor.core.checks import check_choice, check_count

FORMAT = {"format": "sdecor export", "format_version": 1}
METADATA = "zarr.json"
DTYPES = (
    "bool",
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    "float16",
    "float32",
    "float64",
)
EXAMPLE = "example"  # name of every array's first axis
LARGEST_CHUNK = 2**31 - 2**10  # bytes, the compression's limit
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")


class ArraySpec(NamedTuple):
    """An array of an export; its first axis is the example.

    Attributes:
      name: name of the array and of its folder.
      tail: shape without the first axis.
      dtype: NumPy's name of the type.
      dims: names of the axes without the first one, "example".
      fill: value of entries that were never written; None = NaN for floats, 0 for integers.
      attributes: the array's Zarr attributes, plain JSON.
    """

    name: str
    tail: tuple[int, ...] = ()
    dtype: str = "float32"
    dims: tuple[str, ...] = ()
    fill: float | int | None = None
    attributes: dict[str, Any] = {}


class Layout(NamedTuple):
    """The arrays of an export and how they are stored.

    Attributes:
      arrays: the stored arrays.
      chunk_rows: examples in a chunk, which is compressed and read as a whole.
      shard_rows: examples in a file, a multiple of `chunk_rows`; None = each chunk is a file.
      attributes: the group's attributes, plain JSON, which say what is exported; an export is resumed only with equal
        attributes.
    """

    arrays: tuple[ArraySpec, ...]
    chunk_rows: int
    shard_rows: int | None = None
    attributes: dict[str, Any] = {}

    @property
    def range_rows(self) -> int:
        """Examples in a range, which is written, committed and recomputed as a whole: one file of each array."""
        return self.shard_rows or self.chunk_rows


def validate_layout(layout: Layout) -> None:
    """Raise `ValueError` for a layout that cannot be stored."""
    for field in ("chunk_rows", "shard_rows"):
        if getattr(layout, field) is not None or field == "chunk_rows":
            check_count(field, getattr(layout, field))
    if layout.shard_rows is not None and (layout.shard_rows < 1 or layout.shard_rows % layout.chunk_rows):
        right = max(round(layout.shard_rows / layout.chunk_rows), 1) * layout.chunk_rows
        raise ValueError(
            f"shard_rows = {layout.shard_rows} is no multiple of chunk_rows = {layout.chunk_rows}: use {right}"
        )
    names = [spec.name for spec in layout.arrays]
    for spec in layout.arrays:
        if not NAME.fullmatch(spec.name) or names.count(spec.name) > 1:
            raise ValueError(
                f"name = {spec.name!r} of an array: use different names of letters, digits, '_', '-' and '.'"
            )
        check_choice(f"type of array {spec.name!r}", spec.dtype, DTYPES)
        for size in spec.tail:
            check_count(f"size of array {spec.name!r}", size, 0)
        if len(spec.dims) != len(spec.tail):
            raise ValueError(f"dims = {spec.dims} of array {spec.name!r}: one name for each axis of {spec.tail}")
        row = math.prod(spec.tail) * np.dtype(spec.dtype).itemsize
        if row * layout.chunk_rows > LARGEST_CHUNK:
            raise ValueError(
                f"chunk_rows = {layout.chunk_rows} makes chunks of {row * layout.chunk_rows} bytes of array "
                f"{spec.name!r}: use at most {max(LARGEST_CHUNK // row, 1)}"
            )


def chunk_key(name: str, start: int, layout: Layout) -> str:
    """Return the key of the file that holds an array's rows of the range from `start`."""
    spec = next(spec for spec in layout.arrays if spec.name == name)
    return ".".join([f"{name}/c", str(start // layout.range_rows), *["0"] * len(spec.tail)])


def array_metadata(spec: ArraySpec, layout: Layout, rows: int) -> dict[str, Any]:
    """Return an array's zarr.json as a dict.

    The compression is the fastest one measured: maps are mostly noise, and a higher level saves only 1 to 5 %. Zarr's
    own checksum covers every stored byte, so that each reader notices damage. The keys are flat (`c.3.0.0`): one folder
    per array.
    """
    itemsize = np.dtype(spec.dtype).itemsize
    shuffle = {"shuffle": "bitshuffle" if itemsize > 1 else "noshuffle", "typesize": itemsize, "blocksize": 0}
    raw, checksum = {"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}
    if itemsize == 1:
        raw = {"name": "bytes"}
    codecs = [raw, {"name": "blosc", "configuration": {"cname": "zstd", "clevel": 1, **shuffle}}, checksum]
    if layout.shard_rows is not None:
        index = [{"name": "bytes", "configuration": {"endian": "little"}}, checksum]
        inner = {"chunk_shape": [layout.chunk_rows, *spec.tail], "codecs": codecs, "index_codecs": index}
        codecs = [{"name": "sharding_indexed", "configuration": {**inner, "index_location": "end"}}]
    grid = {"name": "regular", "configuration": {"chunk_shape": [layout.range_rows, *spec.tail]}}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows, *spec.tail],
        "data_type": spec.dtype,
        "chunk_grid": grid,
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": "NaN" if (fill := fill_of(spec)) != fill else fill,
        "codecs": codecs,
        "dimension_names": [EXAMPLE, *spec.dims],
        "attributes": spec.attributes,
    }


def group_metadata(layout: Layout, num_examples: int | None, *, rows: int, **found: Any) -> dict[str, Any]:
    """Return the group's zarr.json as a dict: its attributes, and a copy of all arrays' metadata.

    Args:
      layout: the export's layout.
      num_examples: number of examples; None = not known yet.
      rows: length of the arrays' first axis.
      **found: attributes that become known at the end.
    """
    stored = {"chunk_rows": layout.chunk_rows, "shard_rows": layout.shard_rows, "num_examples": num_examples}
    arrays = {spec.name: array_metadata(spec, layout, rows) for spec in layout.arrays}
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {**FORMAT, **layout.attributes, **stored, **found},
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": arrays},
    }


def metadata_bytes(metadata: dict[str, Any]) -> bytes:
    """Return metadata as the content of a file; equal metadata give equal bytes."""
    return (json.dumps(metadata, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def fill_of(spec: ArraySpec) -> float | int:
    """Return the value of entries that were never written."""
    if spec.fill is not None:
        return spec.fill
    return math.nan if np.dtype(spec.dtype).kind == "f" else 0


def encode_range(spec: ArraySpec, layout: Layout, rows: np.ndarray) -> bytes:
    """Return the content of the file that holds `rows` `[n, …]` as one range; missing rows get the fill value.

    TensorStore writes the file into memory, so that its checksum is computed before it is on a disk.

    Raises:
      ValueError: when the shape or dtype does not match the array.
    """
    rows = np.asarray(rows)
    if rows.shape[1:] != tuple(spec.tail) or not 0 < len(rows) <= layout.range_rows or rows.dtype != spec.dtype:
        raise ValueError(
            f"array {spec.name!r} = {rows.dtype} {rows.shape} is not a range of it: {spec.dtype} "
            f"(1 to {layout.range_rows}, {', '.join(map(str, spec.tail))})"
        )
    if len(rows) < layout.range_rows:
        missing = np.full((layout.range_rows - len(rows), *spec.tail), fill_of(spec), spec.dtype)
        rows = np.concatenate([rows, missing])
    array = ts.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "memory"},
            "metadata": array_metadata(spec, layout, layout.range_rows),
            "create": True,
            "store_data_equal_to_fill_value": True,
        }
    ).result()
    array.write(rows).result()
    return array.kvstore[".".join(["c", "0", *["0"] * len(spec.tail)])]
