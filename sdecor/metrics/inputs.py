"""Inputs of metrics: checks of shapes, dtypes and classes, and the number of evaluations at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sdecor.attribution.explain import PREDICTED
from sdecor.attribution.targets import Contrast, checked_logits
from sdecor.core import classes
from sdecor.core.checks import check_choice, check_count
from sdecor.core.chunks import default_chunk_size, divide, map_examples

Fn = Callable[[jax.Array], jax.Array]


def check_images(images: jax.Array, *, only_for: str = "") -> None:
    """Raise `ValueError` unless inputs are floating point `[N, …]`; differences of integers would wrap around.

    Args:
      images: images `[N, H, W, C]`, other inputs with positions, such as series `[N, T, C]`, or features `[N, F]`.
      only_for: name of a metric that is defined for images alone; "" = any of these.
    """
    if len(_shape("images", images)) < 2 or (only_for and images.ndim != 4):
        why = f": {only_for} is defined for images" if only_for else ", or other inputs [N, T, C], [N, F]"
        raise ValueError(f"images has shape {images.shape}: pass a batch [N, H, W, C]{why}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images has dtype {images.dtype}: pass floating point, as the network expects it")


def check_batch(
    images: jax.Array,
    maps: jax.Array,
    targets: Any,
    *,
    fn: Fn | None = None,
    count: int | None = None,
    field: str = "targets",
    only_for: str = "",
) -> jax.Array:
    """Check images and their maps, and return the targets as `check_classes` does.

    Raises:
      ValueError: unless images are as in `check_images`, maps have their shape without channels (of features `[N, F]`,
        the same shape), and targets are as in `check_classes`.
    """
    check_images(images, only_for=only_for)
    if _shape("maps", maps) != map_shape(images.shape):
        forms = {2: "[N, F] twice", 3: "[N, T, C] and [N, T]"}.get(images.ndim, "[N, H, W, C] and [N, H, W]")
        raise ValueError(f"images {images.shape} and maps {maps.shape} do not belong together: pass {forms}")
    return check_classes(images, targets, fn=fn, count=count, field=field)


def map_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of maps of inputs: without channels, except for features `[N, F]`, which have none."""
    return shape if len(shape) == 2 else shape[:-1]


def over_channels(values: jax.Array, image: jax.Array) -> jax.Array:
    """Return values of an input's positions in a shape that broadcasts to the input `[*positions, C]`, or `[F]`."""
    return values[..., None] if values.ndim < image.ndim else values


def check_classes(
    images: jax.Array, targets: Any, *, fn: Fn | None = None, count: int | None = None, field: str = "targets"
) -> jax.Array:
    """Return target classes as int32 `[N]`; −1 for a traced class that does not exist, see `sdecor.core.classes`.

    Args:
      images: `[N, H, W, C]`.
      targets: integers `[N]`, as an array or a list; one integer for all; or, if `fn` is given, "predicted" for each
        image's most probable class.
      fn: the network for one image, `image -> logits [K]`; None if "predicted" is not possible.
      count: number of classes, if it is known and there is no `fn`.
      field: name of the targets in error messages.

    Raises:
      ValueError: for other targets, a class that does not exist, and an `fn` that does not return logits `[K]`.
    """
    n = images.shape[0]
    count = count if fn is None else class_count(fn, images)
    if isinstance(targets, str):
        if fn is None:
            raise ValueError(f"{field} = {targets!r}: pass classes, integers [{n}]")
        check_choice(field, targets, (PREDICTED,))
        return map_examples(lambda image: jnp.argmax(fn(image)), (images,), in_flight(fn, None, images)[0])
    if isinstance(targets, Contrast) or callable(targets):
        raise ValueError(
            f"{field} = {targets!r}: metrics follow the score of one class, pass integers [{n}]; of another score, "
            "pass fn=lambda x: jnp.stack([score(network(x))]), the class 0 and saliency_of='logit'"
        )
    targets = classes.check_classes(field, targets, count)
    if targets.shape not in ((), (n,)):
        raise ValueError(
            f"images {images.shape} and {field} {targets.shape} do not belong together: pass [N, H, W, C] and [N]"
        )
    return jnp.broadcast_to(targets, (n,))


def class_count(fn: Fn, images: jax.Array) -> int:
    """Return the number of classes of a network, from shapes alone.

    Raises:
      ValueError: unless `fn` returns logits `[K]` for one image.
    """
    return checked_logits(jax.eval_shape(fn, _one(images))).shape[0]


def nan_without_class(targets: jax.Array, values: Any) -> Any:
    """Return a tree of values `[N, …]`, with NaN where a target from `check_classes` is no class."""

    def where(leaf: jax.Array) -> jax.Array:
        return jnp.where((targets >= 0).reshape(-1, *[1] * (leaf.ndim - 1)), leaf, jnp.nan)

    return jax.tree.map(where, values)


def check_maps(*, only_for: str = "", **arrays: jax.Array | None) -> None:
    """Raise `ValueError` unless arrays have one shape and, except for `maps`, dtype bool; skip None.

    The shape is `[N, H, W]`, or `[N, T]` of series and features; maps of volumes are reshaped to it by the caller.

    Args:
      only_for: name of a metric that is defined for images alone, `[N, H, W]`; "" = any of these.
      **arrays: `maps`, and masks by name.
    """
    given = {name: array for name, array in arrays.items() if array is not None}
    shape = _shape(*next(iter(given.items())))
    for name, array in given.items():
        axes = len(_shape(name, array))
        if axes == 2 and only_for:
            raise ValueError(f"{name} has shape {array.shape}: pass [N, H, W]; {only_for} is defined for images")
        if axes not in (2, 3):
            raise ValueError(
                f"{name} has shape {array.shape}: pass [N, H, W], or [N, T] of series; attribution.reduce takes "
                "channels away"
            )
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}: pass {shape}, a mask for each map")
        if name != "maps" and array.dtype != bool:
            raise ValueError(
                f"{name} has dtype {array.dtype}: pass bool; of codes, objects=codes == 1 and ignore=codes == 2"
            )


def in_flight(fn: Callable[..., Any], chunk_size: int | None, *batch: jax.Array) -> tuple[int, int]:
    """Return how many examples, and samples of each, to evaluate at once: see `sdecor.core.chunks.divide`.

    Args:
      fn: the function to evaluate, of one example.
      chunk_size: evaluations at once; None = as many as the device's memory holds, see `default_chunk_size`.
      *batch: arguments of `fn` for N examples, `[N, …]`.
    """
    if chunk_size is None:
        chunk_size = default_chunk_size(fn, *map(_one, batch))
    check_count("chunk_size", chunk_size)
    return divide(batch[0].shape[0], chunk_size)


def _one(array: jax.Array) -> jax.ShapeDtypeStruct:
    """Return the shape of one example, and the dtype to which JAX converts it."""
    return jax.eval_shape(lambda x: x[0], array)


def _shape(name: str, array: Any) -> tuple[int, ...]:
    if not hasattr(array, "shape"):
        several = isinstance(array, dict | list | tuple)
        why = "; of several inputs, join all features to rows [N, F] (docs/metrics.md)" if several else ""
        raise ValueError(f"{name} is a {type(array).__name__}: pass an array{why}")
    return tuple(array.shape)
