"""Maps made comparable: a map divided by its sum, counted in multiples of an even spread, so 1 everywhere is uniform.

The magnitude of a gradient depends on the scale of a network's logits and says nothing between networks; the share of
its saliency that a map gives to a pixel does. The unit does not depend on the number of pixels.
"""

from collections.abc import Iterable

import numpy as np

_BRIGHTEST = 99.5  # percentile of a map from which its color is saturated: single pixels do not darken all others


def relative(saliency: np.ndarray, *, signed: bool = False) -> np.ndarray:
    """Return a map over the mean of its magnitudes.

    Args:
      saliency: `[H, W]`; negative values count as 0 unless `signed`.
      signed: keep signs; the mean is then that of the absolute values.

    Returns:
      float64 `[H, W]` with mean magnitude 1; NaN everywhere where the map has a value that is not finite, or no
      saliency at all.
    """
    values = np.asarray(saliency, np.float64)
    values = values if signed else np.maximum(values, 0)
    total = np.abs(values).mean()
    return values / total if np.isfinite(total) and total > 0 else np.full(values.shape, np.nan)


def brightest(map_: np.ndarray) -> float:
    """Return the magnitude from which a map's color is saturated; NaN for an undefined map."""
    return float(np.percentile(np.abs(map_), _BRIGHTEST))


def common_scale(maps: Iterable[np.ndarray]) -> float:
    """Return the top of the scale on which all the maps of an image are drawn; undefined maps do not count."""
    return max((top for top in map(brightest, maps) if top > 0), default=1.0)


def shrink(values: np.ndarray, longest: int) -> np.ndarray:
    """Average an array `[H, W]` over areas, so that neither side is longer than `longest`; smaller ones stay."""
    factor = min(1.0, longest / max(values.shape))
    for axis, length in enumerate(values.shape):
        size = max(1, round(length * factor))
        starts = np.arange(size) * length // size
        counts = np.diff(np.append(starts, length))
        sums = np.add.reduceat(values, starts, axis=axis)
        values = sums / np.expand_dims(counts, 1 - axis)
    return values
