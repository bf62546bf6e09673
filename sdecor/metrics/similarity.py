"""Similarity of two maps: one value for each pair in two arrays `[N, ...]`.

Signs count; pass absolute values to compare magnitudes. A value is NaN for an input that is not finite, and for one
without the variation that the function compares (see each function).
"""

import jax
import jax.numpy as jnp

from sdecor.core.arrays import average_ranks, moderate
from sdecor.core.checks import check_choice
from sdecor.core.parallel import automatic

WINDOWS = ("gaussian", "uniform")


def pearson(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the linear correlation of each pair, `[N]` in [−1, 1]; NaN where an input is constant.

    It does not depend on the scale and the offset of either input.
    """
    a, b = (moderate(rows, (1,)) for rows in _rows(a, b))
    return jnp.where(_finite(a, b) & _varies(a) & _varies(b), _correlation(a, b), jnp.nan)


@automatic
def spearman(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the rank correlation of each pair, `[N]` in [−1, 1]; NaN where an input is constant.

    Equal values share the average of their ranks. Any increasing function of either input gives the same value.
    """
    a, b = _rows(a, b)
    defined = _finite(a, b) & _varies(a) & _varies(b)
    ranks_of_a, ranks_of_b = jnp.split(average_ranks(jnp.concatenate([a, b])), 2)
    return jnp.where(defined, _correlation(ranks_of_a, ranks_of_b), jnp.nan)


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the cosine of the angle of each pair, `[N]` in [−1, 1]; NaN where an input is all zeros.

    It does not depend on a positive factor of either input.
    """
    a, b = (moderate(rows, (1,)) for rows in _rows(a, b))
    largest_a, largest_b = jnp.abs(a).max(1, keepdims=True), jnp.abs(b).max(1, keepdims=True)
    defined = _finite(a, b) & (largest_a > 0)[:, 0] & (largest_b > 0)[:, 0]
    return jnp.where(defined, _cosine(a / _or_one(largest_a), b / _or_one(largest_b)), jnp.nan)


@automatic
def ssim(
    a: jax.Array, b: jax.Array, *, window: str = "gaussian", data_range: float | jax.Array | None = None
) -> jax.Array:
    """Return the structural similarity of each pair of maps, the mean over all positions of a window inside the map.

    Args:
      a: `[N, H, W]`.
      b: `[N, H, W]`.
      window: "gaussian", 11×11 with a standard deviation of 1.5 pixels, as published; or "uniform", 7×7 with the
        unbiased variance, the default of scikit-image.
      data_range: range of possible values for the stabilising constants (0.01·range)² and (0.03·range)², a positive
        number or `[N]`: 2 for maps divided by their largest absolute value. None = the largest minus the smallest value
        of the pair, so that a common factor does not matter.

    Returns:
      `[N]` in [−1, 1]; 1 for equal maps. NaN where the range is not positive.

    Raises:
      ValueError: for maps that are smaller than the window.

    References:
      Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity",
      https://doi.org/10.1109/TIP.2003.819861, 2004.
    """
    check_choice("window", window, WINDOWS)
    rows_a, rows_b = _rows(a, b)
    if a.ndim != 3:
        raise ValueError(f"a has shape {a.shape}: pass [N, H, W]; structural similarity is defined for images")
    if data_range is None:
        rows_a, rows_b = moderate(jnp.stack([rows_a, rows_b]), (0, 2))
        data_range = jnp.maximum(rows_a.max(1), rows_b.max(1)) - jnp.minimum(rows_a.min(1), rows_b.min(1))
    span = jnp.broadcast_to(jnp.asarray(data_range, jnp.float32), a.shape[:1])
    scale = jnp.where(span > 0, span, 1)[:, None]
    values = _structural_similarity((rows_a / scale).reshape(a.shape), (rows_b / scale).reshape(b.shape), window)
    return jnp.where(_finite(rows_a, rows_b) & (span > 0), values, jnp.nan)


def _rows(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return both as float32 `[N, F]`."""
    if a.shape != b.shape:
        raise ValueError(f"a {a.shape} and b {b.shape} do not belong together: pass two arrays of one shape [N, ...]")
    n = a.shape[0]
    return jnp.asarray(a, jnp.float32).reshape(n, -1), jnp.asarray(b, jnp.float32).reshape(n, -1)


def _finite(a: jax.Array, b: jax.Array) -> jax.Array:
    return (jnp.isfinite(a) & jnp.isfinite(b)).all(1)


def _varies(x: jax.Array) -> jax.Array:
    return x.max(1) > x.min(1)


def _or_one(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x, 1)


def _correlation(a: jax.Array, b: jax.Array) -> jax.Array:
    return _cosine(_centered(a), _centered(b))


def _centered(x: jax.Array) -> jax.Array:
    # Subtracting the smallest value is exact for small variations around a large value. Dividing by the range gives
    # values in [0, 1], where no square over- or underflows.
    x = x - x.min(1, keepdims=True)
    x = x / _or_one(x.max(1, keepdims=True))
    return x - x.mean(1, keepdims=True)


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    lengths = jnp.sqrt((a * a).sum(1)) * jnp.sqrt((b * b).sum(1))
    return jnp.clip((a * b).sum(1) / _or_one(lengths), -1, 1)


def _structural_similarity(a: jax.Array, b: jax.Array, window: str) -> jax.Array:
    """Return the mean structural similarity, `[N]`, of maps `[N, H, W]` whose data range is 1."""
    weights = jnp.ones(7) if window == "uniform" else jnp.exp(-0.5 * (jnp.arange(-5.0, 6.0) / 1.5) ** 2)
    unbiased = 49 / 48 if window == "uniform" else 1.0
    # Maps are centred first, because a variance as difference of two squares is then more exact.
    center_a, center_b = a.mean((1, 2), keepdims=True), b.mean((1, 2), keepdims=True)
    a, b = a - center_a, b - center_b
    mean_a, mean_b, square_a, square_b, product = _local_means(jnp.stack([a, b, a * a, b * b, a * b]), weights)
    variance_a, variance_b = unbiased * (square_a - mean_a**2), unbiased * (square_b - mean_b**2)
    covariance = unbiased * (product - mean_a * mean_b)
    mean_a, mean_b = mean_a + center_a, mean_b + center_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return (luminance * structure).mean((1, 2))


def _local_means(maps: jax.Array, weights: jax.Array) -> jax.Array:
    """Return weighted means over every window inside `[..., H, W]`, by two small matrices for rows and columns."""
    height, width = maps.shape[-2:]
    side = weights.size
    if min(height, width) < side:
        raise ValueError(f"maps of {height}×{width} pixels are smaller than the window: ssim needs {side}×{side}")
    maps = jnp.einsum("ih,...hw->...iw", _band(weights, height), maps, precision="highest")
    return jnp.einsum("jw,...iw->...ij", _band(weights, width), maps, precision="highest")


def _band(weights: jax.Array, side: int) -> jax.Array:
    """Return the matrix `[side − window + 1, side]` whose row i averages the window that starts at i."""
    offset = jnp.arange(side)[None, :] - jnp.arange(side - weights.size + 1)[:, None]
    inside = (offset >= 0) & (offset < weights.size)
    return jnp.where(inside, weights[jnp.clip(offset, 0, weights.size - 1)], 0) / weights.sum()
