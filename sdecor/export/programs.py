"""Device programs of an export: they predict and explain a batch and encode its maps; and the arrays they return.

Each method is a compiled program of its own, so that its maps do not depend on the other methods. A device always gets
the same number of examples, and there are no collectives. An example's results therefore depend neither on the number
of devices nor on that of processes.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdecor.attribution import ABOVE_BASELINE, REDUCTIONS, SALIENCY_OF, baseline_image, reduce, target_score
from sdecor.core import parallel
from sdecor.core.checks import check_choice, check_range
from sdecor.core.chunks import default_chunk_size, map_examples
from sdecor.core.classes import check_classes
from sdecor.core.files import plain_settings
from sdecor.evaluation import Method
from sdecor.evaluation.programs import TARGETS, attributions_of, classes_of
from sdecor.export.encode import DTYPES, encode, zero_point
from sdecor.export.layout import ArraySpec

Batch = dict[str, jax.Array]


class Task(NamedTuple):
    """The computation for each example.

    Attributes:
      images_of: function from images `[n, H, W, C]` as read to the network's floating-point inputs.
      fn_of: function from the variables to the network for one image, `image [H, W, C] -> logits [K]`.
      methods: attribution methods by array name.
      logits_of: the network for a batch, `(variables, images [n, H, W, C]) -> logits [n, K]`; None = `fn_of`, mapped
        over the batch.
      target: the class whose score is explained: "predicted", "label", or a class number.
      saliency_of: the score explained by methods whose default is the logit.
      reduction: reduction of channels to one map; None keeps the channels.
      dtype: type of the stored maps.
      clip_percentile: see `encode`.
      chunk_size: network evaluations at once on a device.
    """

    images_of: Callable[[jax.Array], jax.Array]
    fn_of: Callable[[Any], Callable[[jax.Array], jax.Array]]
    methods: Mapping[str, Method]
    logits_of: Callable[[Any, jax.Array], jax.Array] | None = None
    target: str | int = "predicted"
    saliency_of: str = "logit"
    reduction: str | None = "abs_sum"
    dtype: str = "float32"
    clip_percentile: float = 100.0
    chunk_size: int = 1


class Programs(NamedTuple):
    """The compiled programs of a task: one that predicts, and one per method that explains."""

    predict: Callable[[Any, Batch, jax.Array], Batch]
    explain: dict[str, Callable[[Any, Batch, jax.Array], tuple[Batch, jax.Array]]]

    def __call__(self, variables: Any, batch: Batch, key: jax.Array) -> tuple[Batch, dict[str, jax.Array]]:
        """Dispatch all programs for a batch; return the arrays to store, and the counts `[…, n, 3]` by method."""
        predicted = self.predict(variables, batch, key)
        batch = batch | {"target": predicted["target"]}
        arrays, counts = dict(predicted), {}
        for name, program in self.explain.items():
            found, counts[name] = program(variables, batch, key)
            arrays |= found
        return arrays, counts


def compiled(task: Task) -> Programs:
    """Return the task's programs; each is compiled for this process's devices at its first call."""
    explaining = {name: parallel.pmap_local(make_explanation(task, name)) for name in task.methods}
    return Programs(parallel.pmap_local(make_prediction(task)), explaining)


def check(task: Task) -> None:
    """Raise `ValueError` if a choice of the task is invalid."""
    if isinstance(task.target, str):
        check_choice("target", task.target, TARGETS)
    else:
        check_classes("target", task.target, None)
    check_choice("saliency_of", task.saliency_of, SALIENCY_OF)
    check_choice("reduce", task.reduction, (*REDUCTIONS, None))
    check_choice("dtype", task.dtype, DTYPES)
    check_range("clip_percentile", task.clip_percentile, 0, 100, low_open=True)


def make_prediction(task: Task) -> Callable[[Any, Batch, jax.Array], Batch]:
    """Return `predict(variables, batch, key) -> arrays` with `logits`, `prediction` and `target`."""

    def predict(variables: Any, batch: Batch, key: jax.Array) -> Batch:
        images = task.images_of(batch["image"])
        if task.logits_of is None:
            logits = map_examples(task.fn_of(variables), (images,), task.chunk_size)
        else:
            logits = task.logits_of(variables, images)
        logits = logits.astype(jnp.float32)
        return {"logits": logits, **classes_of(logits, batch["label"], task.target)}

    return predict


def make_explanation(task: Task, name: str) -> Callable[[Any, Batch, jax.Array], tuple[Batch, jax.Array]]:
    """Return `explain_batch(variables, batch, key) -> (arrays, counts)` for the method stored as `name`.

    Explanations equal those of an evaluation. An example's random draws depend on its index, not on its batch.
    """
    method = task.methods[name]
    with_error = method.info.with_error
    options = {"chunk_size": task.chunk_size} | ({"with_error": True} if with_error else {})

    def explain_batch(variables: Any, batch: Batch, key: jax.Array) -> tuple[Batch, jax.Array]:
        images, fn = task.images_of(batch["image"]), task.fn_of(variables)
        found = attributions_of(method, fn, images, batch, key, saliency_of=task.saliency_of, **options)
        attributions, error = found if with_error else (found, None)
        if method.info.sums_to == ABOVE_BASELINE and not with_error:
            error = _error(task, fn, images, batch["target"], attributions, method)
        maps = attributions if task.reduction is None else reduce(attributions, how=task.reduction)
        stored, scale, counts = encode(maps, task.dtype, signed=is_signed(task), clip_percentile=task.clip_percentile)
        arrays = {name: stored, scale_name(name): scale, error_name(name): error}
        return {key: value for key, value in arrays.items() if value is not None}, counts

    return explain_batch


def _error(
    task: Task, fn: Callable, images: jax.Array, targets: jax.Array, attributions: jax.Array, method: Method
) -> jax.Array:
    """Return the attributions' sums minus the rise of the score from the method's baseline to the image."""
    settings = method.settings(task.saliency_of)
    baseline = method.info.baseline(settings)

    def rise(image: jax.Array, target: jax.Array) -> jax.Array:
        score = partial(target_score, target=target, saliency_of=settings["saliency_of"])
        return score(fn(image)) - score(fn(baseline_image(baseline, image)))

    rises = map_examples(rise, (images, targets), task.chunk_size)
    return attributions.astype(jnp.float32).sum(tuple(range(1, attributions.ndim))) - rises.astype(jnp.float32)


def fitting_chunk_size(task: Task, variables: Any, shape: tuple[int, ...], dtype: Any) -> int:
    """Return the number of evaluations at once that fit in a device's memory, for images of `shape` as read."""
    example = jax.eval_shape(task.images_of, jax.ShapeDtypeStruct((1, *shape), dtype))
    image = jax.ShapeDtypeStruct(example.shape[1:], example.dtype)
    return default_chunk_size(lambda variables, image: task.fn_of(variables)(image), variables, image)


def is_signed(task: Task) -> bool:
    return task.reduction is None or not task.reduction.startswith("abs")


def scale_name(name: str) -> str:
    return f"{name}_scale"


def error_name(name: str) -> str:
    return f"{name}_completeness_error"


POSITIONS = {1: ("time",), 2: ("y", "x"), 3: ("z", "y", "x")}  # names of axes, by their number


def specs(task: Task, variables: Any, shape: tuple[int, ...], dtype: Any, device_batch: int) -> tuple[ArraySpec, ...]:
    """Return the arrays of a task, for images of `shape` and `dtype` as read.

    Raises:
      ValueError: when inputs have more than three axes of positions, a method does not support the network, or two
        arrays would have the same name.
    """
    batch = {name: jax.ShapeDtypeStruct((device_batch,), jnp.int32) for name in ("label", "index", "target")}
    batch["image"] = jax.ShapeDtypeStruct((device_batch, *shape), dtype)
    key = jax.random.key(0)
    if len(shape) - 1 not in POSITIONS:
        raise ValueError(
            f"data has images of shape {shape}: an export takes one to three axes of positions, and channels"
        )
    predicted = jax.eval_shape(make_prediction(task), variables, batch, key)
    arrays = [ArraySpec("example_id", dtype="int64", fill=-1)]
    arrays += [ArraySpec(name, dtype="int32", fill=-1) for name in ("label", "prediction", "target")]
    arrays.append(ArraySpec("logits", tuple(predicted["logits"].shape[1:]), dims=("class",)))
    for name, method in task.methods.items():
        found, _ = jax.eval_shape(make_explanation(task, name), variables, batch, key)
        arrays += _specs_of(task, name, method, found, (*POSITIONS[len(shape) - 1], "channel"))
    names = [array.name for array in arrays]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"methods: two arrays would be named {twice[0]!r}: export one of these methods elsewhere")
    return tuple(arrays)


def _specs_of(
    task: Task, name: str, method: Method, found: Mapping[str, Any], axes: tuple[str, ...]
) -> list[ArraySpec]:
    settings, zero = plain_settings(method.settings(task.saliency_of)), zero_point(task.dtype, signed=is_signed(task))
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
    own = [ArraySpec(name, tail, task.dtype, axes[: len(tail)], fill, attributes)]
    return own + [ArraySpec(each) for each in (scale, error) if each in found]


def named(methods: Iterable[Method]) -> dict[str, Method]:
    """Return methods by array name: the method's key in letters, digits and underscores."""
    found: dict[str, Method] = {}
    for method in methods:
        name = re.sub(r"[^A-Za-z0-9_]+", "_", method.key).strip("_")
        if name in found:
            raise ValueError(f"methods: {found[name].key!r} and {method.key!r} would both be stored as {name!r}")
        found[name] = method
    return found
