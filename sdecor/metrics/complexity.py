"""Complexity metrics: how concentrated a saliency map is. All of them use absolute values."""

import jax
import jax.numpy as jnp

from sdecor.core.arrays import key_values, moderate, order_keys, sort_rows
from sdecor.core.checks import check_choice, check_range
from sdecor.metrics.inputs import check_maps

SCALES = ("peak", "sum", "raw")


def gini(maps: jax.Array) -> jax.Array:
    """Return the Gini index of the absolute values: 0 for a constant map, near 1 for a single salient pixel.

    With the F values `a_i` in ascending order it is `Σ_i (2i − F − 1)·a_i / (F·Σ a)`, at most `1 − 1/F`.

    Args:
      maps: `[N, H, W]`, any sign and scale.

    Returns:
      `[N]` in [0, 1), NaN for a map of zeros or one that is not finite.

    References:
      Chalasani et al., "Concise Explanations of Neural Networks using Adversarial Training",
      https://arxiv.org/abs/1810.06583, 2020.
    """
    values, defined = _magnitudes(maps)
    values = key_values(sort_rows(order_keys(values)))
    count = values.shape[-1]
    # Coefficients are exact integers over F. The rounding of a cumulative sum would grow with the number of pixels.
    ranks = (2 * jnp.arange(1, count + 1, dtype=values.dtype) - count - 1) / count
    index = (ranks[None] * values).sum(-1) / jnp.maximum(values.sum(-1), 1e-30)
    return jnp.where(defined, index, jnp.nan)


def entropy(maps: jax.Array) -> jax.Array:
    """Return the entropy of the pixels' shares of the absolute values, `−Σ p·ln p` in nats.

    Args:
      maps: `[N, H, W]`, any sign and scale.

    Returns:
      `[N]` in [0, ln(H·W)]: 0 for a single salient pixel, ln(H·W) for a constant map. NaN for a map of zeros or one
      that is not finite.

    References:
      Bhatt, Weller, Moura, "Evaluating and Aggregating Feature-based Model Explanations",
      https://arxiv.org/abs/2005.00631, 2020.
    """
    values, defined = _magnitudes(maps)
    shares = values / jnp.maximum(values.sum(-1, keepdims=True), 1e-30)
    return jnp.where(defined, jax.scipy.special.entr(shares).sum(-1), jnp.nan)


def effective_complexity(maps: jax.Array, *, threshold: float = 1e-5, scale: str = "peak") -> jax.Array:
    """Return the number of pixels with an absolute value above the threshold.

    Args:
      maps: `[N, H, W]`.
      threshold: a number ≥ 0, in the unit of `scale`.
      scale: "peak" divides each map by its largest absolute value, "sum" by the sum of its absolute values (a threshold
        on shares), "raw" does not scale it.

    Returns:
      Counts `[N]` in [0, H·W] as float32. NaN for a map of zeros or one that is not finite.

    References:
      Nguyen, Martínez, "On Quantitative Aspects of Model Interpretability", https://arxiv.org/abs/2007.07584, 2020.
    """
    check_choice("scale", scale, SCALES)
    check_range("threshold", threshold, 0)
    values, defined = _magnitudes(maps)
    if scale == "sum":
        values = values / jnp.maximum(values.sum(-1, keepdims=True), 1e-30)
    if scale == "raw":
        values = jnp.abs(maps.astype(jnp.float32)).reshape(values.shape)
    return jnp.where(defined, (values > threshold).sum(-1).astype(jnp.float32), jnp.nan)


def _magnitudes(maps: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return absolute values divided by the map's largest, `[N, F]`, and whether they are finite and not all 0, `[N]`.

    Metrics that do not depend on scale use them, because their sums stay in float32's range for any gradient.
    """
    check_maps(maps=maps, of_images=False)
    values = moderate(jnp.abs(maps.astype(jnp.float32)).reshape(maps.shape[0], -1), (-1,))
    peak = values.max(-1, keepdims=True)
    return values / jnp.where(peak > 0, peak, 1), (peak[:, 0] > 0) & jnp.isfinite(peak[:, 0])
