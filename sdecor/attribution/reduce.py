"""Reduction of attributions over channels, and scaling of maps; each is an explicit choice."""

import jax
import jax.numpy as jnp

from sdecor.core.arrays import moderate
from sdecor.core.checks import check_choice, check_count, check_range

REDUCTIONS = ("abs_sum", "abs_mean", "abs_max", "sum")
NORMALISATIONS = ("max", "sum", "percentile")


def reduce(attribution: jax.Array, *, how: str = "abs_sum") -> jax.Array:
    """Reduce an attribution over its channels.

    Args:
      attribution: `[..., H, W, C]`.
      how: "abs_sum", "abs_mean" or "abs_max" of the absolute values (maps ≥ 0), or the signed "sum".

    Returns:
      Maps `[..., H, W]`, float32 for every dtype of the attribution.
    """
    check_choice("how", how, REDUCTIONS)
    attribution = attribution.astype(jnp.float32)
    if how == "sum":
        return attribution.sum(-1)
    magnitude = jnp.abs(attribution)
    if how == "abs_sum":
        return magnitude.sum(-1)
    return magnitude.mean(-1) if how == "abs_mean" else magnitude.max(-1)


def normalise(maps: jax.Array, *, how: str = "max", percentile: float = 99.0, axes: int = 2) -> jax.Array:
    """Scale each map by a statistic of its own absolute values; the batch does not matter.

    Args:
      maps: `[..., H, W]`, any sign.
      how: "max" (into [-1, 1]), "sum" (absolute values sum to 1), or "percentile" (as "max", after values above the
        percentile are clipped, so that one outlier does not darken the rest).
      percentile: percentile of the absolute values, in (0, 100], for "percentile".
      axes: number of axes of a map: 2 for images, 1 for series and features, 3 for volumes.

    Returns:
      Maps `[..., H, W]`, float32. A map of zeros stays 0; a map with a NaN or an infinity becomes all NaN.
    """
    check_choice("how", how, NORMALISATIONS)
    check_range("percentile", percentile, 0, 100, low_open=True)
    check_count("axes", axes, 1, max(maps.ndim, 1))
    own = tuple(range(-axes, 0))
    maps = moderate(maps.astype(jnp.float32), own)
    magnitude = jnp.abs(maps)
    peak = magnitude.max(own, keepdims=True)
    # Scaling by the peak first keeps tiny and huge gradients inside float32's range in the sums below.
    peak = jnp.where(peak == 0, 1, jnp.where(jnp.isfinite(peak), peak, jnp.nan))
    maps, magnitude = maps / peak, magnitude / peak
    if how == "max":
        return maps
    if how == "sum":
        scale = magnitude.sum(own, keepdims=True)
    else:
        flat = magnitude.reshape(*magnitude.shape[:-axes], -1)
        scale = jnp.percentile(flat, percentile, axis=-1).reshape(*magnitude.shape[:-axes], *[1] * axes)
        # If more than `percentile` per cent of the map is exactly 0, the peak (1 after scaling) is the scale.
        scale = jnp.where(scale > 0, scale, 1.0)
        maps = jnp.clip(maps, -scale, scale)
    return maps / jnp.where(scale > 0, scale, 1)
