"""Complexity metrics: how concentrated a saliency map is. All of them use absolute values."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from sdecor.core.arrays import key_values, moderate, order_keys, sort_rows, split_axis
from sdecor.core.checks import check_choice, check_count, check_range
from sdecor.core.parallel import automatic
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


def checkerboard(maps: jax.Array, *, period: int = 2) -> jax.Array:
    """Return the share of the saliency that lies unevenly over the places of a grid: 0 for none.

    Pixels whose row and column have the same remainders by the period are one place. The value is half the sum, over
    the `period²` places, of |share of the absolute values − share of the pixels|: the part that would have to move. A
    network with a stride or with patches may read some pixels of each stride only. Its maps look sparse then, whatever
    is in the image, and so they score well in other metrics.

    Args:
      maps: `[N, H, W]`, any sign and scale, or series `[N, T]`.
      period: distance of two pixels in the same place, such as the stride of the first layer.

    Returns:
      `[N]` in [0, 1), at most 1 minus the share of the pixels in the smallest place; ½ where only every second column
      counts (period 2). Noise makes it a little larger than 0. NaN for a map of zeros or one that is not finite.

    References:
      Odena, Dumoulin, Olah, "Deconvolution and Checkerboard Artifacts", https://doi.org/10.23915/distill.00003, 2016,
      describe such patterns, also in gradients. The measure is ours.
    """
    check_count("period", period, 2)
    values, defined = _magnitudes(maps)
    shares = values / jnp.maximum(values.sum(-1, keepdims=True), 1e-30)
    uneven = (shares - 1 / shares.shape[-1]).reshape(maps.shape)
    for axis in range(1, maps.ndim):
        uneven = _sum_places(uneven, axis, period)
    return jnp.where(defined, jnp.abs(uneven).sum(range(1, maps.ndim)) / 2, jnp.nan)


def _sum_places(values: jax.Array, axis: int, period: int) -> jax.Array:
    """Return the sums over all positions of an axis with the same remainder by the period."""
    values = jnp.pad(values, [(0, -size % period if place == axis else 0) for place, size in enumerate(values.shape)])
    return split_axis(values, axis, period).sum(axis)


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


@automatic
def mst_compactness(maps: jax.Array, *, percentile: float = 80.0) -> jax.Array:
    """Return MST-C, the structural compactness of the most salient pixels: `100·d·|V| / (L·√A)`.

    V are the pixels whose absolute value is not 0 and at least the percentile of the map's, L is the length of their
    Euclidean minimum spanning tree, A the area of the convex hull of their centers, all in pixels; d is the map's
    diagonal. Many points near each other in a small area give a large value.

    The tree is exact. It takes |V| steps over all pixels: on two CPU cores, 0.5 ms for a map of 32×32 and 0.7 s for one
    of 224×224.

    Args:
      maps: `[N, H, W]`, any sign and scale.
      percentile: a number in [0, 100).

    Returns:
      `[N]`, above 0. Pixels on one line have no area and count as `A = d²`. NaN for fewer than two pixels, a map of
      zeros or one that is not finite.

    References:
      Mesgari et al., "Structural Compactness as a Complementary Criterion for Explanation Quality",
      https://arxiv.org/abs/2603.29491, 2026. The defaults and the scale are those of its authors' implementation.
    """
    check_range("percentile", percentile, 0, 100, high_open=True)
    check_maps(maps=maps, only_for="structural compactness")
    _, defined = _magnitudes(maps)
    n, height, width = maps.shape
    keys = order_keys(jnp.abs(maps.astype(jnp.float32)).reshape(n, -1))  # unscaled, since rounding would make ties
    # A percentile between two neighbouring values is interpolated: the pixels above it start at the larger one.
    place = math.ceil(percentile / 100 * (height * width - 1) - 1e-6)
    salient = (keys >= sort_rows(keys)[:, place, None]) & (keys > order_keys(jnp.zeros((1, 1))))
    count, area = salient.sum(-1).astype(jnp.float32), _hull_area(salient.reshape(maps.shape))
    diagonal = math.hypot(height, width)
    side = jnp.where(area > 0.25, jnp.sqrt(area), diagonal)  # three pixels that are not on a line have an area of ½
    score = 100 * diagonal * count / (jnp.maximum(_tree_length(salient, width), 1) * side)
    return jnp.where(defined & (count > 1), score, jnp.nan)


def _tree_length(salient: jax.Array, width: int) -> jax.Array:
    """Return the length of the minimum spanning tree of the salient pixels `[N, H·W]`, by Prim's algorithm."""
    n, pixels = salient.shape
    far = jnp.iinfo(jnp.int32).max
    position = jnp.arange(pixels, dtype=jnp.int32)[None]
    row, column = position // width, position % width

    def add_nearest(_: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        outside, distance, last, length = state
        squared = (row - (last // width)[:, None]) ** 2 + (column - (last % width)[:, None]) ** 2
        distance = jnp.where(outside, jnp.minimum(distance, squared), far)
        nearest, step = distance.argmin(-1).astype(jnp.int32), distance.min(-1)
        length += jnp.where(step < far, jnp.sqrt(step.astype(jnp.float32)), 0)
        return outside & (position != nearest[:, None]), distance, nearest, length

    first = salient.argmax(-1).astype(jnp.int32)
    state = (salient & (position != first[:, None]), jnp.full(salient.shape, far), first, jnp.zeros(n, jnp.float32))
    return lax.fori_loop(0, salient.sum(-1).max() - 1, add_nearest, state)[-1]


def _hull_area(salient: jax.Array) -> jax.Array:
    """Return the area of the convex hull of the salient pixels' centers `[N, H, W]`; its corners are whole numbers."""
    n, height, width = salient.shape
    rows, columns = jnp.arange(height, dtype=jnp.float32), jnp.arange(width)
    top = jnp.where(salient, rows[None, :, None], -jnp.inf).max(1)
    bottom = jnp.where(salient, -rows[None, :, None], -jnp.inf).max(1)
    left, right = columns[:, None], columns[None]

    def upper(heights: jax.Array, column: jax.Array) -> jax.Array:
        """Return the hull's upper bound at a column, the highest line between any two columns around it."""
        share = (jnp.where(left < right, column - left, 0) / jnp.maximum(right - left, 1))[None]
        around = ((left <= column) & (column <= right))[None]
        a, b = heights[:, :, None], heights[:, None, :]
        both = around & jnp.isfinite(a) & jnp.isfinite(b)
        line = jnp.where(both, a, 0) * (1 - share) + jnp.where(both, b, 0) * share
        return jnp.where(both, line, -jnp.inf).max((1, 2))

    thickness = lax.map(lambda column: upper(top, column) + upper(bottom, column), columns).T
    known = jnp.isfinite(thickness)
    inside = jnp.where(known, thickness, 0)
    first, last = known.argmax(1), width - 1 - known[:, ::-1].argmax(1)
    return inside.sum(1) - (inside[jnp.arange(n), first] + inside[jnp.arange(n), last]) / 2


def _magnitudes(maps: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return absolute values divided by the map's largest, `[N, F]`, and whether they are finite and not all 0, `[N]`.

    Metrics that do not depend on scale use them, because their sums stay in float32's range for any gradient.
    """
    check_maps(maps=maps)
    values = moderate(jnp.abs(maps.astype(jnp.float32)).reshape(maps.shape[0], -1), (-1,))
    peak = values.max(-1, keepdims=True)
    return values / jnp.where(peak > 0, peak, 1), (peak[:, 0] > 0) & jnp.isfinite(peak[:, 0])
