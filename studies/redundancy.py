"""Closed forms for redundant detectors of one concept, and for features of which few are active at a time.

D detectors read separate pixel groups: `h_d = s + σ_d ε_d` with the concept s and the noise ε_d of unit variance, so
two of them correlate by `1 / √((1 + σ_d²)(1 + σ_e²))`. A linear model `wᵀh` of s has the gradient `w_d / √m` on each of
the m pixels of group d. NumPy in float64; docs/theory.md derives what is here.
"""

import numpy as np


def participation(values: np.ndarray) -> np.ndarray:
    """Return over how many entries the magnitudes are spread, `(Σ|v|)² / Σv²` in [1, F], of each row `[..., F]`."""
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
      ridge: one for all, or `[D]`.
    """
    precision = 1 / (np.asarray(noise, np.float64) + ridge)
    return precision / (1 + precision.sum())


def whitened_ridge_weights(noise: np.ndarray, ridge: float) -> np.ndarray:
    """Return the ridge solution on whitened detectors in terms of the detectors, `[D]`.

    That of `ridge = 0` over `1 + ridge`: in white coordinates the ridge shrinks every direction alike.
    """
    return ridge_weights(noise, 0.0) / (1 + ridge)


def explained_error(noise: np.ndarray, weights: np.ndarray) -> float:
    """Return `E(s − wᵀh)²` of any weights `[D]`; the least is `1 / (1 + Σ 1/σ_d²)`."""
    return float((1 - weights.sum()) ** 2 + (noise * weights**2).sum())


def active_paths(mean_cosine: float, width: int) -> float:
    """Return `E(Σ a_d)² / E Σ a_d²` of non-negative features with equal second moments: `1 + (D − 1) · mean cosine`.

    The mean number of active features (their participation, each sample weighted by its `Σ a_d²`), from the mean
    uncentred cosine `E a_d a_e / √(E a_d² E a_e²)` over pairs.
    """
    return 1 + (width - 1) * mean_cosine


def collapse_floor(width: int, classes: int) -> float:
    """Return the least mean squared correlation of `width` features that take one value a class.

    `(D − K + 1) / ((K − 1)(D − 1))`, 0 where D < K: their correlation matrix has rank at most K − 1 and trace D.
    """
    return max(0.0, (width - classes + 1) / ((classes - 1) * (width - 1)))


def averaged_variance(width: int, correlation: float) -> float:
    """Return the variance of the mean of `width` unit-variance input gradients that correlate pairwise alike."""
    return (1 + (width - 1) * correlation) / width


def white_filters(size: int, basis: str) -> np.ndarray:
    """Return linear filters `J [size, size]`, a row each, whose features are white under 1/f amplitudes on a ring.

    Both satisfy `J Σ Jᵀ = I`: "fourier" are the principal axes, spread over every pixel; "local" (ZCA) the same
    features rotated, each around one pixel.
    """
    places = np.arange(size)
    frequencies = np.minimum(places, size - places)
    amplitudes = 1 / np.maximum(frequencies, 1.0)
    angles = 2 * np.pi * np.outer(places, places) / size
    # The Hartley basis: real, orthogonal, and made of Fourier pairs of equal amplitude.
    axes = (np.cos(angles) + np.sin(angles)) / np.sqrt(size)
    fourier = axes / amplitudes[:, None]
    return fourier if basis == "fourier" else axes.T @ fourier
