"""What a metric is given: arrays that belong together and mean what they should; how many are evaluated at a time."""

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
    """Raise `ValueError` unless images are floating point `[N, H, W, C]`: differences of integers wrap around."""
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
    """Return the classes of images that have maps; see `check_classes`.

    Raises:
      ValueError: unless images are floating point `[N, H, W, C]`, maps `[N, H, W]`, and targets as said there.
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
    """Return classes as int32 `[N]`, −1 for one that is traced and does not exist: see `sdecor.core.classes`.

    Args:
      images: `[N, H, W, C]`.
      targets: integers `[N]`, as an array or a list; one integer for all; or, where there is a network to ask,
        "predicted", each image's most probable class.
      fn: the network for one image, `image -> logits [K]`; None where "predicted" has no meaning.
      count: number of classes, where there is no `fn` and it is known.
      field: what the targets are called.

    Raises:
      ValueError: for anything else, a class that does not exist, and an `fn` that does not return logits `[K]`.
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
    """Return the number of classes of a network; nothing is computed.

    Raises:
      ValueError: unless it returns logits `[K]` for one image.
    """
    return checked_logits(jax.eval_shape(fn, _one(images))).shape[0]


def nan_without_class(targets: jax.Array, values: Any) -> Any:
    """Return a tree of values `[N, …]` with NaN for the targets of `check_classes` that are no class."""

    def where(leaf: jax.Array) -> jax.Array:
        return jnp.where((targets >= 0).reshape(-1, *[1] * (leaf.ndim - 1)), leaf, jnp.nan)

    return jax.tree.map(where, values)


def check_maps(**arrays: jax.Array | None) -> None:
    """Raise `ValueError` unless arrays are `[N, H, W]` of one shape and, all but `maps`, masks; None is left out."""
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
    """Return how many examples, and samples of each, are evaluated together: see `sdecor.core.chunks.divide`.

    Args:
      fn: what is evaluated, of one example.
      chunk_size: evaluations in flight; None = what the device's memory holds, as of `default_chunk_size`.
      *batch: the arguments of `fn` for N examples, `[N, …]`.
    """
    if chunk_size is None:
        chunk_size = default_chunk_size(fn, *map(_one, batch))
    check_count("chunk_size", chunk_size)
    return divide(batch[0].shape[0], chunk_size)


def _one(array: jax.Array) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype of an example; the dtype is the one that JAX makes of it."""
    return jax.eval_shape(lambda x: x[0], array)


def _shape(name: str, array: Any) -> tuple[int, ...]:
    if not hasattr(array, "shape"):
        raise ValueError(f"{name} is a {type(array).__name__}: pass an array")
    return tuple(array.shape)
