"""Baselines: images to compare with, used as starts of paths and as replacements of hidden pixels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sdecor.core.arrays import blur, is_array, widened
from sdecor.core.checks import check_choice
from sdecor.core.rng import uniform

BASELINES = ("zero", "mean", "blur", "uniform", "white", "black")
Baseline = str | float | jax.Array | Callable[[jax.Array, jax.Array | None], jax.Array]
BLUR_SIGMA = 5.0  # pixels


def baseline_image(baseline: Baseline, image: Any, *, key: jax.Array | None = None) -> Any:
    """Return the baseline of one image, or of any input: an input without the evidence to explain.

    Args:
      baseline: a name, values, or a function. Names: "zero", in normalised space the data set's mean color; "mean", the
        image's mean of each channel; "white" or "black", the image's maximum or minimum of each channel; "blur", the
        image blurred by a Gaussian of 5 pixels; "uniform", noise between the minimum and the maximum of each channel,
        drawn for every pixel and channel. Values: a number, one for each channel `[C]`, or an image `[H, W, C]`.
        Function: `(image, key) -> values`, such as `functools.partial(blurred, sigma=2.0)`.
        For several inputs: one name or number for all, a tree with a baseline for each, or a function of all.
      image: `[H, W, C]`, or an array of another rank whose last axis holds channels, `[*positions, C]`. Features `[F]`
        have no positions: there a baseline is "zero", values or a function. Or a tree of such arrays.
      key: random key, for "uniform" and for functions that draw.

    Returns:
      Image in the shape and the dtype of `image`.

    Raises:
      ValueError: for an unknown name, a shape other than those, "uniform" without a key, or a name that needs
        positions for features `[F]`.
    """
    if not is_array(image):
        return _of_several(baseline, image, key)
    if not isinstance(baseline, str):
        given = jnp.asarray(baseline(image, key) if callable(baseline) else baseline, image.dtype)
        if given.shape not in ((), image.shape[-1:], image.shape):
            known = f"{image.shape}, {image.shape[-1:]}, a number, a function, or one of {BASELINES}"
            raise ValueError(f"baseline has shape {given.shape}: pass {known}")
        return jnp.broadcast_to(given, image.shape)
    check_choice("baseline", baseline, BASELINES)
    if baseline == "zero":
        return jnp.zeros_like(image)
    if image.ndim < 2:
        raise ValueError(
            f"baseline = {baseline!r} is taken over positions, and an input of shape {image.shape} has none: "
            "pass values, such as the mean of each feature over the data set, or 'zero'"
        )
    if baseline == "uniform":
        return _uniform_within(key, image)
    if baseline == "blur":
        return blur(image[None], BLUR_SIGMA)[0]
    color = {"mean": jnp.mean, "white": jnp.max, "black": jnp.min}[baseline](image, axis=tuple(range(image.ndim - 1)))
    return jnp.broadcast_to(color, image.shape)


def _of_several(baseline: Any, image: Any, key: jax.Array | None) -> Any:
    """Return the baseline of a tree of inputs: one for all, a tree of baselines, or a function of all."""
    leaves, structure = jax.tree.flatten(image)
    if callable(baseline):
        baseline = baseline(image, key)
    if isinstance(baseline, str) or (is_array(baseline) and not baseline.shape) or isinstance(baseline, int | float):
        each = [baseline] * len(leaves)
    elif jax.tree.structure(baseline) != structure:
        raise ValueError(
            f"baseline has the structure {jax.tree.structure(baseline)}: pass a baseline for each input, {structure}, "
            "or one name or number for all"
        )
    else:
        each = jax.tree.leaves(baseline)
    keys = [None if key is None else jax.random.fold_in(key, i) for i in range(len(leaves))]
    made = [baseline_image(own, leaf, key=k) for own, leaf, k in zip(each, leaves, keys, strict=True)]
    return structure.unflatten(made)


def blurred(images: jax.Array, key: jax.Array | None = None, *, sigma: float | None = BLUR_SIGMA) -> jax.Array:
    """Blur images by a Gaussian that is renormalised at the borders; this is the baseline "blur".

    It is for images alone; the name "blur" is for inputs with any number of positions' axes.
    Pass `functools.partial(blurred, sigma=2.0)` as the `baseline` of a method or a metric for another width.

    Args:
      images: `[N, H, W, C]`, or one image `[H, W, C]`.
      key: not used; every function that is a baseline takes a key.
      sigma: standard deviation in pixels; None = `widest_sigma` of the images' shape.

    Returns:
      Images in the shape and the dtype of `images`.
    """
    sigma = widest_sigma(images.shape[-3:-1]) if sigma is None else sigma
    return blur(images, sigma) if images.ndim == 4 else blur(images[None], sigma)[0]


def widest_sigma(sides: tuple[int, ...]) -> float:
    """Return a quarter of the shortest side, in pixels: the width of a Gaussian that hides almost all."""
    return min(sides) / 4


def _uniform_within(key: jax.Array | None, image: jax.Array) -> jax.Array:
    if key is None:
        raise ValueError("baseline = 'uniform' draws random numbers: pass key=jax.random.key(seed)")
    axes = tuple(range(image.ndim - 1))
    low, high = (widened(extreme(image, axis=axes, keepdims=True)) for extreme in (jnp.min, jnp.max))
    return (low + uniform(key, image.shape, low.dtype) * (high - low)).astype(image.dtype)
