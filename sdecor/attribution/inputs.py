"""Inputs of a network: arrays of any rank, or a tree of arrays, such as a tuple or a dict."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.attribution.baselines import baseline_image
from sdecor.core.arrays import at_least_float32, is_array
from sdecor.core.checks import check_choice
from sdecor.core.rng import normal


def checked_inputs(images: Any) -> tuple[Any, int]:
    """Return a batch of inputs as JAX arrays, and the number of examples.

    Args:
      images: floating point `[N, …]`, or a tuple, dict or other tree of such arrays.

    Raises:
      ValueError: for a list, what is no array, an array without examples, other dtypes, and arrays with different
        numbers of examples.
    """
    if isinstance(images, list):
        raise ValueError(
            f"images is a list of {len(images)}: stack examples to one array, jnp.stack(images); pass several inputs "
            "of one network as a tuple or a dict of arrays [N, …]"
        )
    images = jax.tree.map(_array, images)
    leaves = jax.tree.leaves(images)
    if not leaves:
        raise ValueError("images holds no array: pass a batch [N, …], or a tuple or a dict of such arrays")
    for leaf in leaves:
        if leaf.ndim < (2 if is_array(images) else 1):
            raise ValueError(f"images has shape {leaf.shape}: pass a batch, such as [N, H, W, C], [N, T, C] or [N, F]")
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"images has dtype {leaf.dtype}: pass floating point, as the network expects it; for integer tokens "
                "pass fn as a pair (embed, rest), whose second function is explained at the first one's result"
            )
        if leaf.shape[0] != leaves[0].shape[0]:
            shapes = ", ".join(str(each.shape) for each in leaves)
            raise ValueError(f"images has arrays of shape {shapes}: pass as many examples [N, …] in each")
    return images, leaves[0].shape[0]


def _array(leaf: Any) -> jax.Array:
    try:
        return jnp.asarray(leaf)
    except TypeError as error:
        what = f"{leaf!r}" if isinstance(leaf, str) else f"a {type(leaf).__name__}"
        raise ValueError(f"images holds {what}: pass arrays of numbers, a batch [N, …]") from error


def example_of(images: Any) -> Any:
    """Return the shapes of one example of a batch."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), images)


def wide_dtype(image: Any) -> jnp.dtype:
    """Return the widest dtype of an input's arrays, at least float32."""
    dtypes = [at_least_float32(leaf.dtype) for leaf in jax.tree.leaves(image)]
    return max(dtypes, key=lambda dtype: dtype.itemsize)


def positions_of(image: Any, method: str) -> tuple[int, ...]:
    """Return the number of positions along each axis of one input `[*positions, C]`.

    Raises:
      ValueError: for an input without positions: features `[F]`, or several arrays.
    """
    if is_array(image) and image.ndim > 1:
        return image.shape[:-1]
    given = f"has shape {image.shape}" if is_array(image) else "is a tree of arrays"
    raise ValueError(
        f"{method} needs an input with positions, such as [H, W, C], [T, C] or [D, H, W, C], and this one {given}: use "
        "feature_ablation, integrated_gradients or another method for any input"
    )


def with_noise(key: jax.Array, image: Any, scale: float, relative: bool) -> Any:
    """Return an input plus Gaussian noise; each array of several has its own noise and its own range.

    Args:
      key: random key.
      image: floating point, an array or a tree of arrays.
      scale, relative: see `sdecor.attribution.noise.Noise`.
    """

    def noisy(key: jax.Array, leaf: jax.Array) -> jax.Array:
        spread = (leaf.max() - leaf.min()) * scale if relative else scale
        return leaf + spread * normal(key, leaf.shape, leaf.dtype)

    if is_array(image):
        return noisy(key, image)
    leaves, structure = jax.tree.flatten(image)
    return structure.unflatten([noisy(jax.random.fold_in(key, i), leaf) for i, leaf in enumerate(leaves)])


def flattened(image: Any) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """Return a tree of arrays as one vector `[F]`, and the function that turns a vector into such a tree."""
    leaves, structure = jax.tree.flatten(image)
    ends = np.cumsum([leaf.size for leaf in leaves])
    dtype = wide_dtype(image)

    def restore(vector: jax.Array) -> Any:
        parts = [vector[end - leaf.size : end].reshape(leaf.shape) for leaf, end in zip(leaves, ends, strict=True)]
        return structure.unflatten(parts)

    return jnp.concatenate([leaf.astype(dtype).ravel() for leaf in leaves]), restore


def of_any_input(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method of one array take a tree of arrays as well, which it sees as one vector `[F]`."""
    known = inspect.signature(method).parameters

    @functools.wraps(method)
    def general(fn: Callable[[Any], Any], image: Any, target: Any, **options: Any) -> Any:
        if is_array(image):
            return method(fn, image, target, **options)
        vector, restore = flattened(image)
        if "baseline" in known:
            baseline = options.get("baseline", known["baseline"].default)
            options["baseline"] = flattened(baseline_image(baseline, image, key=options.get("key")))[0]
        for bound in {"low", "high"} & options.keys():
            options[bound] = _broadcast(bound, options[bound], image)

        def of_vector(vector: jax.Array) -> Any:
            return fn(jax.tree.map(lambda part, leaf: part.astype(leaf.dtype), restore(vector), image))

        found = method(of_vector, vector, target, **options)
        return (restore(found[0]), *found[1:]) if isinstance(found, tuple) else restore(found)

    return general


def _broadcast(name: str, bound: Any, image: Any) -> Any:
    """Return a bound of each value as a vector; a number or None stays."""
    if bound is None or np.ndim(bound) == 0 and not isinstance(bound, dict):
        return bound
    check_choice(f"structure of {name}", jax.tree.structure(bound), [jax.tree.structure(image)])
    return flattened(
        jax.tree.map(lambda each, leaf: jnp.broadcast_to(jnp.asarray(each, leaf.dtype), leaf.shape), bound, image)
    )[0]
