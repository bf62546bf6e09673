"""Gaussian blur that counts nothing outside the image."""

import jax
import jax.numpy as jnp

from sdecor.checks import check_range


def blur(images: jax.Array, sigma: jax.Array | float) -> jax.Array:
    """Smooth rows, then columns, each as one small dense matrix, which is exact at the borders.

    Args:
      images: `[N, H, W, C]`.
      sigma: the Gaussian's standard deviation in pixels, a positive number or a traced scalar.

    Returns:
      Images `[N, H, W, C]` in the dtype of `images`, computed in float32. A constant image stays as it is.

    Raises:
      ValueError: when `sigma` is a Python number that is not positive.
    """
    if isinstance(sigma, int | float):
        check_range("blur_sigma", sigma, 0.0, low_open=True)
    _, height, width, _ = images.shape
    smooth = images.astype(jnp.float32)
    smooth = jnp.einsum("ih,nhwc->niwc", _matrix(height, sigma), smooth, precision="highest")
    smooth = jnp.einsum("jw,nhwc->nhjc", _matrix(width, sigma), smooth, precision="highest")
    return smooth.astype(images.dtype)


def _matrix(side: int, sigma: jax.Array | float) -> jax.Array:
    """Return the weights `[side, side]`; rows sum to 1."""
    place = jnp.arange(side, dtype=jnp.float32)
    weights = jnp.exp(-0.5 * ((place[:, None] - place[None, :]) / sigma) ** 2)
    return weights / jnp.sum(weights, axis=1, keepdims=True)
