"""How concentrated a saliency map is."""

import jax
import jax.numpy as jnp


def gini(maps: jax.Array) -> jax.Array:
    """Return the Gini index of the absolute values: 0 for a constant map, near 1 for a single salient pixel.

    With the F values in ascending order, `Σ_i (2i − F − 1)·a_i / (F·Σ a)`; the most that F pixels reach is `1 − 1/F`.

    Args:
      maps: `[N, H, W]`, any sign and scale.

    Returns:
      `[N]` in [0, 1), NaN for a map of zeros or one that is not finite.

    References:
      Chalasani et al., "Concise Explanations of Neural Networks using Adversarial Training",
      https://arxiv.org/abs/1810.06583, 2020.
    """
    values = jnp.abs(maps.astype(jnp.float32)).reshape(maps.shape[0], -1)
    peak = values.max(-1, keepdims=True)
    values = jnp.sort(values / jnp.where(peak > 0, peak, 1), axis=-1)
    count = values.shape[-1]
    # Each coefficient is an exact integer over F: no cumulative sum, whose rounding would grow with the pixels.
    ranks = (2.0 * jnp.arange(1, count + 1) - count - 1) / count
    index = (ranks[None] * values).sum(-1) / jnp.maximum(values.sum(-1), 1e-30)
    return jnp.where((peak[:, 0] > 0) & jnp.isfinite(peak[:, 0]), index, jnp.nan)
