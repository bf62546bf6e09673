"""Means over seeds with intervals, paired tests over seeds, and the correction for having made several.

NumPy in float64. Seeds are the sample: what is said holds for the training of such networks, measured on these images.

References:
  Student (Gosset), "The probable error of a mean", Biometrika 6, 1908.
  Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special  # jax brings it

from sdecor.core.checks import check_range

LEVEL = 0.95


class Mean(NamedTuple):
    """A mean over `n` seeds with its interval by Student's t; the bounds are None for one seed, all is for none."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


class Difference(NamedTuple):
    """A mean paired difference, its interval, the number of pairs, and the two-sided p of the paired t-test."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    p: float | None


def mean_interval(values: Sequence[float], *, level: float = LEVEL) -> Mean:
    """Return the mean of the values that are numbers, with its t-interval."""
    check_range("level", level, 0, 1, low_open=True, high_open=True)
    values = np.asarray([value for value in values if value is not None], np.float64)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return Mean(None, None, None, 0)
    mean = float(values.mean())
    if values.size == 1:
        return Mean(mean, None, None, 1)
    half = float(special.stdtrit(values.size - 1, (1 + level) / 2)) * standard_error(values)
    return Mean(mean, mean - half, mean + half, int(values.size))


def paired_difference(
    values: Mapping[int, float | None], reference: Mapping[int, float | None], *, level: float = LEVEL
) -> Difference:
    """Return values − reference over the seeds that both have, with the paired t-test.

    Without any spread the test says nothing for no difference (p None), and p = 0 otherwise, as its limit is.

    Args:
      values: by seed.
      reference: by seed.
      level: of the interval.
    """
    both = [seed for seed in values if _is_number(values[seed]) and _is_number(reference.get(seed))]
    differences = np.asarray([values[seed] - reference[seed] for seed in both], np.float64)
    mean = mean_interval(differences, level=level)
    if mean.n < 2:
        return Difference(*mean, None)
    error = standard_error(differences)
    if error == 0:
        return Difference(*mean, None if mean.mean == 0 else 0.0)
    return Difference(*mean, 2 * float(special.stdtr(mean.n - 1, -abs(mean.mean) / error)))


def standard_error(values: np.ndarray) -> float:
    """Return the standard error of the mean of `values [n]`."""
    return float(values.std(ddof=1) / math.sqrt(values.size))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected by Holm: below α exactly where his procedure at level α rejects.

    A test that was planned and could not be made (None) counts as one of the tests.
    """
    order = sorted((place for place, p in enumerate(p_values) if p is not None), key=lambda place: p_values[place])
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
