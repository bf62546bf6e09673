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


def check_images(images: jax.Array) -> None:
    """Raise `ValueError` unless images are floating point `[N, H, W, C]`; differences of integers would wrap around."""
    if len(_shape("images", images)) != 4:
        raise ValueError(f"images has shape {images.shape}: pass a batch [N, H, W, C]")
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
) -> jax.Array:
    """Check images and their maps, and return the targets as `check_classes` does.

    Raises:
      ValueError: unless images are floating point `[N, H, W, C]`, maps `[N, H, W]`, and targets as in `check_classes`.
    """
    check_images(images)
    if _shape("maps", maps) != images.shape[:3]:
        raise ValueError(
            f"images {images.shape} and maps {maps.shape} do not belong together: pass [N, H, W, C] and [N, H, W]"
        )
    return check_classes(images, targets, fn=fn, count=count, field=field)


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
        raise ValueError(f"{field} = {targets!r}: metrics follow the score of one class, pass integers [{n}]")
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


def check_maps(**arrays: jax.Array | None) -> None:
    """Raise `ValueError` unless arrays have one shape `[N, H, W]` and, except for `maps`, dtype bool; skip None."""
    given = {name: array for name, array in arrays.items() if array is not None}
    shape = _shape(*next(iter(given.items())))
    for name, array in given.items():
        if len(_shape(name, array)) != 3:
            raise ValueError(f"{name} has shape {array.shape}: pass [N, H, W]; attribution.reduce takes channels away")
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
        raise ValueError(f"{name} is a {type(array).__name__}: pass an array")
    return tuple(array.shape)
