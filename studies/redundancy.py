"""Closed forms for redundant detectors of one concept, and for features of which few are active at a time.

D detectors read separate pixel groups: `h_d = s + σ_d ε_d`, with the concept s and the noise ε_d of unit variance. Two
of them correlate by `1 / √((1 + σ_d²)(1 + σ_e²))`. A linear model `wᵀh` of s has the gradient `w_d / √m` on each of the
m pixels of group d. Everything is NumPy in float64. docs/theory.md has the derivations.
"""

import numpy as np


def participation(values: np.ndarray) -> np.ndarray:
    """Return the number of entries that share the magnitude, `(Σ|v|)² / Σv²` in [1, F], of each row `[..., F]`."""
    values = np.abs(np.asarray(values, np.float64))
    return values.sum(-1) ** 2 / (values**2).sum(-1)


def noise_of(correlation: float, ratios: np.ndarray) -> np.ndarray:
    """Return noise variances `σ_d² ∝ ratios [D]` at which detectors of ratio 1 correlate by `correlation` in (0, 1]."""
    return (1 / correlation - 1) * np.asarray(ratios, np.float64)


def ridge_weights(noise: np.ndarray, ridge: float | np.ndarray) -> np.ndarray:
    """Return the minimiser `[D]` of `E(s − wᵀh)² + Σ_d ridge_d w_d²`.

    It is `τ_d / (1 + Σ τ)` with `τ_d = 1 / (σ_d² + ridge_d)`.

    Args:
      noise: variances `σ_d²`, `[D]`; where they are 0, `ridge` must be positive.
      ridge: one value for all detectors, or `[D]`.
    """
    precision = 1 / (np.asarray(noise, np.float64) + ridge)
    return precision / (1 + precision.sum())


def whitened_ridge_weights(noise: np.ndarray, ridge: float) -> np.ndarray:
    """Return the ridge solution on whitened detectors, in terms of the detectors, `[D]`.

    It is the solution with `ridge = 0` over `1 + ridge`: in white coordinates the ridge shrinks all directions alike.
    """
    return ridge_weights(noise, 0.0) / (1 + ridge)


def explained_error(noise: np.ndarray, weights: np.ndarray) -> float:
    """Return `E(s − wᵀh)²` of any weights `[D]`; the least is `1 / (1 + Σ 1/σ_d²)`."""
    return float((1 - weights.sum()) ** 2 + (noise * weights**2).sum())


def active_paths(mean_cosine: float, width: int) -> float:
    """Return `E(Σ a_d)² / E Σ a_d²` of non-negative features with equal second moments: `1 + (D − 1) · mean cosine`.

    This is the mean number of active features: their participation, each sample weighted by its `Σ a_d²`.
    `mean_cosine` is the mean uncentred cosine `E a_d a_e / √(E a_d² E a_e²)` over pairs.
    """
    return 1 + (width - 1) * mean_cosine


def collapse_floor(width: int, classes: int) -> float:
    """Return the least mean squared correlation of `width` features that take one value per class.

    It is `(D − K + 1) / ((K − 1)(D − 1))`, or 0 where D < K: the correlation matrix has rank at most K − 1 and trace D.
    """
    return max(0.0, (width - classes + 1) / ((classes - 1) * (width - 1)))


def averaged_variance(width: int, correlation: float) -> float:
    """Return the variance of the mean of `width` unit-variance input gradients of one pairwise `correlation`."""
    return (1 + (width - 1) * correlation) / width


def white_filters(size: int, basis: str) -> np.ndarray:
    """Return linear filters `J [size, size]`, one per row, whose features are white under 1/f amplitudes on a ring.

    Both bases satisfy `J Σ Jᵀ = I`. "fourier" filters are the principal axes, spread over every pixel. "local" filters
    (ZCA) are the same features rotated, each around one pixel.
    """
    places = np.arange(size)
    frequencies = np.minimum(places, size - places)
    amplitudes = 1 / np.maximum(frequencies, 1.0)
    angles = 2 * np.pi * np.outer(places, places) / size
    # The Hartley basis is real, orthogonal, and made of Fourier pairs of equal amplitude.
    axes = (np.cos(angles) + np.sin(angles)) / np.sqrt(size)
    fourier = axes / amplitudes[:, None]
    return fourier if basis == "fourier" else axes.T @ fourier
