"""Plan of an export: sizes of batches, chunks and ranges, arrays, attributes. A resumed export has the same plan."""

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from sdecor.core import files, parallel
from sdecor.core.checks import check_choice, check_range
from sdecor.core.classes import check_classes
from sdecor.export import programs
from sdecor.export.feed import Reader, validate_labels
from sdecor.export.layout import ArraySpec, Layout
from sdecor.export.programs import specs
from sdecor.export.resume import fill_unread
from sdecor.export.verify import CHECKS

DEVICE_BATCH = 64
_RANGE_BYTES = 16 * 2**20  # size of a range's arrays together, before compression
_MOST_ROWS = 4096
_FEWEST_RANGES = 16  # ranges of data of a known number of examples, so that a stop loses little work


class Options(NamedTuple):
    """Options of computing and storing an export, see `export`; None = the value of the first start, or a default."""

    device_batch: int | None = None
    chunk_size: int | None = None
    chunk_rows: int | None = None
    shard_rows: int | None = None
    seed: int = 0
    check: str = "checksums"
    progress: bool | Callable[[int], Any] = True


def make_plan(
    task: programs.Task, variables: Any, reader: Reader, provenance: Any, options: Options, found: Mapping[str, Any]
) -> tuple[programs.Task, Layout]:
    """Choose the sizes that are not given, and return the task and the layout of its export.

    Args:
      task: the task; its chunk size is set here.
      variables: the network's variables, arrays or shapes.
      reader: reader of the data.
      provenance: plain JSON to store.
      options: see `Options`.
      found: attributes of the export to resume; empty for a new one.

    Returns:
      `(task, layout)`.

    Raises:
      ValueError: for an invalid choice, a number out of range, a target or label that is no class, or a method that
        does not support the network.
    """
    programs.check(task)
    check_choice("check", options.check, CHECKS)
    given = {name: getattr(options, name) for name in ("device_batch", "chunk_size", "chunk_rows", "shard_rows")}
    for name, value in given.items():
        if value is not None:
            check_range(name, value, 1)
    given = {name: found.get(name) if value is None else value for name, value in given.items()}
    size = given["device_batch"] or min(DEVICE_BATCH, reader.count or DEVICE_BATCH)
    fitting = given["chunk_size"] or programs.fitting_chunk_size(task, variables, reader.shape, reader.dtype)
    # All processes take the smallest chunk size, because their memory may differ.
    task = task._replace(chunk_size=int(parallel.gather(np.array([fitting])).min()))
    reader = reader._replace(fingerprint=fill_unread(reader.fingerprint, found.get("data")))
    arrays = specs(task, variables, reader.shape, reader.dtype, size)
    _validate_classes(task, reader, _class_count(arrays))
    rows = given["chunk_rows"] or _default_rows(arrays, size, reader.count, given["shard_rows"])
    layout = Layout(arrays, rows, given["shard_rows"], _attributes(task, arrays, reader, provenance, options, size))
    _validate_divisible(layout, size)
    return task, layout


def _attributes(
    task: programs.Task, arrays: tuple[ArraySpec, ...], reader: Reader, provenance: Any, options: Options, size: int
) -> dict[str, Any]:
    """Return the attributes that identify an export; they are the same at each start, except versions."""
    image = jax.eval_shape(task.images_of, jax.ShapeDtypeStruct((1, *reader.shape), reader.dtype))
    versions = files.versions() | {"tensorstore": importlib.metadata.version("tensorstore")}
    attributes = {
        "methods": {method.key: name for name, method in task.methods.items()},
        **{name: getattr(task, name) for name in ("target", "saliency_of", "reduction", "dtype", "clip_percentile")},
        **{"seed": options.seed, "device_batch": size, "chunk_size": task.chunk_size},
        **{"image_shape": image.shape[1:], "num_classes": _class_count(arrays)},
        **{"data": reader.fingerprint, "provenance": provenance},
        "versions": versions | {"device": jax.local_devices()[0].device_kind},
    }
    return files.plain_settings(attributes)


def _class_count(arrays: tuple[ArraySpec, ...]) -> int:
    (logits,) = [array for array in arrays if array.name == "logits"]
    return logits.tail[0]


def _validate_classes(task: programs.Task, reader: Reader, classes: int) -> None:
    """Raise `ValueError` if the target, or a label known before reading, is no class of the network."""
    if not isinstance(task.target, str):
        check_classes("target", task.target, classes)
    validate_labels(reader.labels, classes, needed=task.target == "label")


def _default_rows(arrays: tuple[ArraySpec, ...], size: int, count: int | None, shard_rows: int | None) -> int:
    if shard_rows is not None:
        return size
    row = sum(np.dtype(array.dtype).itemsize * int(np.prod(array.tail)) for array in arrays)
    most = min(_MOST_ROWS, _RANGE_BYTES // row, count // _FEWEST_RANGES if count else _MOST_ROWS)
    return max(1, most // size) * size


def _validate_divisible(layout: Layout, size: int) -> None:
    sharded = layout.shard_rows is not None
    parts = {"device_batch": size} | ({"chunk_rows": layout.chunk_rows} if sharded else {})
    field = "shard_rows" if sharded else "chunk_rows"
    for name, part in parts.items():
        if layout.range_rows % part:
            right = -(-layout.range_rows // part) * part
            raise ValueError(
                f"{field} = {layout.range_rows} is not a multiple of {name} = {part}: use one, such as {right}"
            )
