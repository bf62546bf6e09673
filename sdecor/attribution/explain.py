"""Explaining a batch: one method for one image, lifted over the examples in bounded memory."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.attribution.gradients import gradient
from sdecor.checks import check_choice
from sdecor.rng import per_example

# A method is a pure function `method(fn, image, target, *, …options)` of one image; one that draws also has `key`.
METHODS: dict[str, Callable[..., jax.Array]] = {"gradient": gradient}


def explain(
    fn: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    targets: jax.Array | int,
    *,
    method: str = "gradient",
    chunk_size: int | None = None,
    key: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    """Explain a batch of images, each for its own target. Works under `jit` and `pmap`.

    Args:
      fn: the network for one image, `image [H, W, C] -> logits [K]`, with parameters closed over and in
        evaluation mode (examples must not depend on one another).
      images: floating point, `[N, H, W, C]`.
      targets: classes to explain, integers `[N]`, or one integer for all.
      method: a name in `METHODS`.
      chunk_size: images explained at a time; it bounds memory and does not change the result beyond rounding.
        Default: all.
      key: one key, or `[N]` keys, for the methods that draw; the others ignore it.
      **options: passed on to the method.

    Returns:
      Signed attributions `[N, H, W, C]` (C = 1 for purely spatial methods).

    Raises:
      ValueError: for an unknown method or option, wrong shapes or dtypes, or (outside of `jit`) targets that
        are not classes of `fn`. Under `jit` such a target yields a map of NaN.
    """
    check_choice("method", method, METHODS)
    one = METHODS[method]
    images, targets = _checked(fn, images, targets)
    known = [name for name, p in inspect.signature(one).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        check_choice(f"option of method {method!r}", option, [name for name in known if name != "key"])
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size = {chunk_size!r}: pass a number of images, at least 1, or None for all")
    if "key" not in known:
        return _map(lambda x, y: one(fn, x, y, **options), (images, targets), chunk_size)
    if key is None:
        raise ValueError(f"method {method!r} draws random numbers: pass key=jax.random.key(seed)")
    arrays = (images, targets, per_example(key, images.shape[0]))
    return _map(lambda x, y, k: one(fn, x, y, key=k, **options), arrays, chunk_size)


def _map(one: Callable[..., jax.Array], arrays: tuple[jax.Array, ...], chunk_size: int | None) -> jax.Array:
    """Lift `one` over the leading axis: all at once, or `chunk_size` examples at a time."""
    if chunk_size is None or chunk_size >= arrays[0].shape[0]:
        return jax.vmap(one)(*arrays)
    return jax.lax.map(lambda example: one(*example), arrays, batch_size=chunk_size)


def _checked(fn: Callable, images: jax.Array, targets: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    images, targets = jnp.asarray(images), jnp.asarray(targets)
    if images.ndim != 4:
        raise ValueError(f"images has shape {images.shape}: pass a batch [N, H, W, C]")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images has dtype {images.dtype}: pass floating point, as the network expects it")
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"targets has dtype {targets.dtype}: pass integer classes")
    if targets.shape not in ((), images.shape[:1]):
        raise ValueError(f"targets has shape {targets.shape}: pass one class, or [{images.shape[0]}] classes")
    if not isinstance(targets, jax.core.Tracer):
        logits = jax.eval_shape(fn, jax.ShapeDtypeStruct(images.shape[1:], images.dtype))
        classes, values = logits.shape[-1] if logits.shape else 0, np.atleast_1d(np.asarray(targets))
        wrong = values[(values < 0) | (values >= classes)]
        if logits.ndim == 1 and wrong.size:
            raise ValueError(f"targets contains {wrong[0]}: fn has {classes} classes, 0 to {classes - 1}")
    return images, jnp.broadcast_to(targets, images.shape[:1])
