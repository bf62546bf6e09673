"""Baselines: images to compare with, used as starts of paths and as replacements of hidden pixels."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sdecor.core.arrays import blur, widened
from sdecor.core.checks import check_choice
from sdecor.core.rng import uniform

BASELINES = ("zero", "mean", "blur", "uniform", "white", "black")
Baseline = str | float | jax.Array | Callable[[jax.Array, jax.Array | None], jax.Array]
BLUR_SIGMA = 5.0  # pixels


def baseline_image(baseline: Baseline, image: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """Return the baseline of one image: an image without the evidence to explain.

    Args:
      baseline: a name, values, or a function. Names: "zero", in normalised space the data set's mean color; "mean", the
        image's mean of each channel; "white" or "black", the image's maximum or minimum of each channel; "blur", the
        image blurred by a Gaussian of 5 pixels; "uniform", noise between the minimum and the maximum of each channel,
        drawn for every pixel and channel. Values: a number, one for each channel `[C]`, or an image `[H, W, C]`.
        Function: `(image, key) -> values`, such as `functools.partial(blurred, sigma=2.0)`.
      image: `[H, W, C]`.
      key: random key, for "uniform" and for functions that draw.

    Returns:
      Image `[H, W, C]` in the dtype of `image`.

    Raises:
      ValueError: for an unknown name, a shape other than those, or "uniform" without a key.
    """
    if not isinstance(baseline, str):
        given = jnp.asarray(baseline(image, key) if callable(baseline) else baseline, image.dtype)
        if given.shape not in ((), image.shape[-1:], image.shape):
            known = f"{image.shape}, {image.shape[-1:]}, a number, a function, or one of {BASELINES}"
            raise ValueError(f"baseline has shape {given.shape}: pass {known}")
        return jnp.broadcast_to(given, image.shape)
    check_choice("baseline", baseline, BASELINES)
    if baseline == "uniform":
        return _uniform_within(key, image)
    if baseline == "blur":
        return blurred(image)
    if baseline == "zero":
        return jnp.zeros_like(image)
    color = {"mean": jnp.mean, "white": jnp.max, "black": jnp.min}[baseline](image, axis=(0, 1))
    return jnp.broadcast_to(color, image.shape)


def blurred(images: jax.Array, key: jax.Array | None = None, *, sigma: float | None = BLUR_SIGMA) -> jax.Array:
    """Blur images by a Gaussian that is renormalised at the borders; this is the baseline "blur".

    Pass `functools.partial(blurred, sigma=2.0)` as the `baseline` of a method or a metric for another width.

    Args:
      images: `[N, H, W, C]`, or one image `[H, W, C]`.
      key: not used; every function that is a baseline takes a key.
      sigma: standard deviation in pixels; None = `widest_sigma` of the images' shape.

    Returns:
      Images in the shape and the dtype of `images`.
    """
    sigma = widest_sigma(images.shape) if sigma is None else sigma
    return blur(images, sigma) if images.ndim == 4 else blur(images[None], sigma)[0]


def widest_sigma(shape: tuple[int, ...]) -> float:
    """Return a quarter of the shorter side of images `[…, H, W, C]`, in pixels: a Gaussian that hides almost all."""
    return min(shape[-3:-1]) / 4


def _uniform_within(key: jax.Array | None, image: jax.Array) -> jax.Array:
    if key is None:
        raise ValueError("baseline = 'uniform' draws random numbers: pass key=jax.random.key(seed)")
    low, high = (widened(extreme(image, axis=(0, 1), keepdims=True)) for extreme in (jnp.min, jnp.max))
    return (low + uniform(key, image.shape, low.dtype) * (high - low)).astype(image.dtype)
