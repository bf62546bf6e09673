"""Which arrays a task gives: their names, shapes and attributes."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sdecor.evaluation import Method
from sdecor.evaluation.plan import plain
from sdecor.export.device import Task, error_name, is_signed, make_explanation, make_prediction, scale_name
from sdecor.export.encode import zero_point
from sdecor.export.layout import ArraySpec

AXES = ("y", "x", "channel")


def specs(task: Task, variables: Any, shape: tuple[int, ...], dtype: Any, device_batch: int) -> tuple[ArraySpec, ...]:
    """Return the arrays that the task gives of images `shape` as they are read.

    Raises:
      ValueError: when a method refuses the network.
    """
    batch = {name: jax.ShapeDtypeStruct((device_batch,), jnp.int32) for name in ("label", "index", "target")}
    batch["image"] = jax.ShapeDtypeStruct((device_batch, *shape), dtype)
    key = jax.random.key(0)
    predicted = jax.eval_shape(make_prediction(task), variables, batch, key)
    arrays = [ArraySpec("example_id", dtype="int64", fill=-1)]
    arrays += [ArraySpec(name, dtype="int32", fill=-1) for name in ("label", "prediction", "target")]
    arrays.append(ArraySpec("logits", tuple(predicted["logits"].shape[1:]), dims=("class",)))
    for name, method in task.methods.items():
        found, _ = jax.eval_shape(make_explanation(task, name), variables, batch, key)
        arrays += _specs_of(task, name, method, found)
    names = [array.name for array in arrays]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"methods: two arrays would be named {twice[0]!r}: export one of these methods elsewhere")
    return tuple(arrays)


def _specs_of(task: Task, name: str, method: Method, found: Mapping[str, Any]) -> list[ArraySpec]:
    settings, zero = plain(method.settings(task.saliency_of)), zero_point(task.dtype, signed=is_signed(task))
    scale, error = scale_name(name), error_name(name)
    attributes = {
        "method": method.key,
        "settings": settings,
        "reduction": task.reduction,
        "encoding": {
            "dtype": task.dtype,
            "scale": scale if scale in found else None,
            "zero_point": zero,
            "clip_percentile": task.clip_percentile,
        },
        "completeness_error": error if error in found else None,
    }
    tail = tuple(found[name].shape[1:])
    fill = zero if task.dtype == "uint8" else None
    own = [ArraySpec(name, tail, task.dtype, AXES[: len(tail)], fill, attributes)]
    return own + [ArraySpec(each) for each in (scale, error) if each in found]


def named(methods: Iterable[Method]) -> dict[str, Method]:
    """Return methods by what their arrays are named: their keys, in letters, digits and underscores."""
    found: dict[str, Method] = {}
    for method in methods:
        name = re.sub(r"[^A-Za-z0-9_]+", "_", method.key).strip("_")
        if name in found:
            raise ValueError(f"methods: {found[name].key!r} and {method.key!r} would both be stored as {name!r}")
        found[name] = method
    return found
