"""Decorrelation: penalties on dependence between feature dimensions, and quantities to log beside them.

All values are statistics of the global batch. Inside `pmap` or `vmap(axis_name=…)`, sums and counts are taken over all
members of `axis_name`, which hold equally many samples. Every member gets the same value. The *mean* of the members'
gradients is the gradient for the whole batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.core.checks import check_choice, check_range
from sdecor.core.parallel import automatic
from sdecor.losses import statistics

_ROOT_EPSILON = 1e-6


class Form(NamedTuple):
    """A form of decorrelation.

    Attributes:
      penalty: `(samples [N, D], axis_name, **options) -> scalar`.
      floor: `(n, width) -> expected penalty` of independent Gaussian features of unit variance, for n > 1.
      centred: whether the features are centred first.
      options: arguments of `decorrelation` that the penalty takes.
    """

    penalty: Callable[..., jax.Array]
    floor: Callable[[int, int], float]
    centred: bool = True
    options: tuple[str, ...] = ("gram",)


def _covariance(samples: jax.Array, axis_name: str | None, *, gram: bool) -> jax.Array:
    count, width = statistics.count(samples, axis_name), samples.shape[-1]
    centred = statistics.centre(samples, axis_name)
    # Divided by the width before squaring, so that the sum of squares stays in range.
    return statistics.off_diagonal(centred / max(count - 1, 1) ** 0.5 / width**0.25, axis_name, gram=gram)


def _correlation(samples: jax.Array, axis_name: str | None, *, gram: bool, epsilon: float | None) -> jax.Array:
    samples = statistics.centre_live(samples, axis_name)
    unit = statistics.unit_columns(samples, axis_name, epsilon=epsilon or 0.0)
    return statistics.off_diagonal(unit, axis_name, gram=gram) / _pairs(samples)


def _decov(samples: jax.Array, axis_name: str | None, *, gram: bool) -> jax.Array:
    centred = statistics.centre(samples, axis_name)
    scaled = centred / statistics.count(samples, axis_name) ** 0.5
    return 0.5 * statistics.off_diagonal(scaled, axis_name, gram=gram)


def _whitening(samples: jax.Array, axis_name: str | None, **options: float | None) -> jax.Array:
    return _whitened(samples, axis_name, **options)[0]


def _cosine(samples: jax.Array, axis_name: str | None, *, gram: bool) -> jax.Array:
    unit = statistics.unit_columns(samples, axis_name)
    several = float(statistics.count(samples, axis_name) > 1)
    return several * statistics.off_diagonal(unit, axis_name, gram=gram) / _pairs(samples)


def _density(samples: jax.Array, axis_name: str | None) -> jax.Array:
    several = float(statistics.count(samples, axis_name) > 1)
    return several * statistics.mean_density(samples, axis_name)


def _pairs(samples: jax.Array) -> int:
    return max(samples.shape[-1] * (samples.shape[-1] - 1), 1)


def _whitened(
    samples: jax.Array, axis_name: str | None, *, epsilon: float | None, iterations: int
) -> tuple[jax.Array, jax.Array]:
    epsilon = _ROOT_EPSILON if epsilon is None else epsilon
    size, width = statistics.count(samples, axis_name) * samples.shape[-1], samples.shape[-1]
    centred, target = statistics.whiten(samples, axis_name, epsilon=epsilon, iterations=iterations)
    limit = 0.5 * float(np.finfo(np.float32).max / size) ** 0.5
    value = statistics.total(jnp.sum(statistics.bounded_square(centred - target, limit)), axis_name) / size
    residual = jnp.linalg.norm(statistics.covariance(target, axis_name) - jnp.eye(width)) / width**0.5
    return value, residual


def _white_whitening(n: int, width: int) -> float:
    # Midpoint rule over θ in (0, π): the non-zero variances x = 1 + γ + 2 √γ cos θ have the density 2 sin²θ / (π x).
    angles, ratio = (np.arange(4096) + 0.5) * np.pi / 4096, width / (n - 1)
    variances = 1 + ratio + 2 * np.sqrt(ratio) * np.cos(angles)
    shrink = np.mean(2 * np.sin(angles) ** 2 * (np.sqrt(variances) - 1) ** 2 / variances)
    return float(shrink * (n - 1) / n)


FORMS: dict[str, Form] = {
    "covariance": Form(_covariance, lambda n, width: (width - 1) / (n - 1)),
    "correlation": Form(_correlation, lambda n, width: 1 / (n - 1) if width > 1 else 0.0, options=("gram", "epsilon")),
    "decov": Form(_decov, lambda n, width: width * (width - 1) * (n - 1) / (2 * n**2)),
    "whitening": Form(_whitening, _white_whitening, options=("epsilon", "iterations")),
    "cosine": Form(_cosine, lambda n, width: 1 / n if width > 1 else 0.0, centred=False),
    "density": Form(_density, lambda n, width: 1 / n, centred=False, options=()),
}
CENTRED = tuple(name for name, form in FORMS.items() if form.centred)


@automatic
def decorrelation(
    features: jax.Array,
    *,
    form: str = "covariance",
    axis_name: str | None = None,
    spatial: str = "pool",
    gram: bool | None = None,
    epsilon: float | None = None,
    iterations: int = 20,
) -> jax.Array:
    """Compute a decorrelation penalty of the features over the global batch of N samples.

    Four forms use centred features `Hc` and their covariance `C`, divided by N − 1 unless stated otherwise:

    - "covariance": `1/D Σ_{i≠j} C_ij²`. It depends on the scale of the features, as "decov" does.
    - "correlation": `1/(D(D−1)) Σ_{i≠j} R_ij²` with the correlations `R`; in [0, 1] and independent of scale. Constant
      features count as uncorrelated.
    - "decov": `½ Σ_{i≠j} C_ij²` with `C` divided by N.
    - "whitening": `1/(ND) ‖Hc − Hc W‖²` with `W = C^-½`. No gradient flows through the target `Hc W`. The gradient is
      that of `mean_i (σ_i − 1)²`, times (N − 1)/N, with the standard deviations σ_i along the principal axes.

    Two forms use uncentred features. They are meant for outputs of a ReLU with `spatial="positions"`, where they show
    how many features are active at a time (docs/theory.md):

    - "cosine": `1/(D(D−1)) Σ_{i≠j} cos_ij²` with the cosines of the features as vectors over samples; in [0, 1].
    - "density": `1/D Σ_i (E h_i)² / E h_i²`; in [0, 1]. For an on-off feature it is the share of samples where the
      feature is on. The cosine of two uncorrelated features is the square root of the product of their densities.
      Features that are always 0 count as 0.

    Args:
      features: `[N, D]`, or maps `[N, T, D]` or `[N, H, W, D]`.
      form: one of `FORMS`.
      axis_name: mapped axis to combine statistics over; None means this batch alone.
      spatial: for maps, "pool" (mean over positions) or "positions" (each position is a sample).
      gram: whether to use the matrix `[N, N]` of samples instead of the matrix `[D, D]` of features; the value is the
        same up to rounding. None chooses the cheaper one, `[N, N]` where N < D. Not for "whitening" and "density".
      epsilon: for "correlation", added to each variance, relative to the mean variance (default 0); it damps nearly
        constant features, so that the form depends on the scale of each feature. For "whitening", added to the
        covariance's diagonal, relative to its Frobenius norm (default 1e-6, the smallest value that keeps a
        rank-deficient batch stable). Unused in other forms.
      iterations: Newton-Schulz steps of "whitening". Each step lowers the smallest standard deviation that is whitened
        by a factor of 1.5; `whitening` also returns the residual.

    Returns:
      Scalar ≥ 0, float32; 0 with gradient 0 when N = 1. "covariance" and "decov" and their gradients are finite up to
      |features| = 1e8, the others up to 1e37 (the value of "whitening" is capped there). NaN, with a gradient of NaN,
      for features that are not finite.

    Raises:
      ValueError: for an unknown `form` or `spatial`, `gram` with "whitening" or "density", or a negative `epsilon`.

    References:
      Bardes et al., VICReg, 2022, https://arxiv.org/abs/2105.04906 (covariance). Cogswell et al., Reducing Overfitting
      in Deep Networks by Decorrelating Representations, 2016, https://arxiv.org/abs/1511.06068 (decov). Huang et al.,
      Iterative Normalization, 2019, https://arxiv.org/abs/1904.03441 (Newton-Schulz whitening of a batch). Treves &
      Rolls, What determines the capacity of autoassociative memories in the brain?, 1991,
      https://doi.org/10.1088/0954-898X_2_4_004 (density, there called sparseness).
    """
    check_choice("form", form, FORMS)
    if epsilon is not None:
        check_range("epsilon", epsilon, 0.0)
    options = FORMS[form].options
    if gram and "gram" not in options:
        raise ValueError(f"gram = True is not possible with form = {form!r}: leave it None")
    samples = statistics.as_samples(features, spatial)
    if gram is None:
        gram = statistics.count(samples, axis_name) < samples.shape[-1]
    given = {"gram": gram, "epsilon": epsilon, "iterations": iterations}
    return FORMS[form].penalty(samples, axis_name, **{name: given[name] for name in options})


@automatic
def variance_hinge(
    features: jax.Array,
    *,
    axis_name: str | None = None,
    spatial: str = "pool",
    target: float = 1.0,
    epsilon: float = 1e-4,
) -> jax.Array:
    """Penalise features whose standard deviation is below `target`: `mean_j relu(target − sqrt(C_jj + epsilon))`.

    It keeps features from shrinking, which would lower "covariance" and "decov".

    Args:
      features, axis_name, spatial: as for `decorrelation`.
      target: the desired standard deviation, in units of the features.
      epsilon: added to the variance, so that the gradient exists at a constant feature.

    Returns:
      Scalar in [0, target], float32; 0 with gradient 0 when N = 1.

    References:
      Bardes et al., VICReg, 2022, https://arxiv.org/abs/2105.04906.
    """
    check_range("epsilon", epsilon, 0.0, low_open=True)
    samples = statistics.as_samples(features, spatial)
    deviation = jnp.sqrt(statistics.variances(samples, axis_name) + epsilon)
    return float(statistics.count(samples, axis_name) > 1) * jnp.mean(jax.nn.relu(target - deviation))


@automatic
def whitening(
    features: jax.Array,
    *,
    axis_name: str | None = None,
    spatial: str = "pool",
    epsilon: float | None = None,
    iterations: int = 20,
) -> tuple[jax.Array, jax.Array]:
    """Return the "whitening" form of `decorrelation` and the residual of its target, computed together.

    Args:
      features, axis_name, spatial, epsilon, iterations: as for `decorrelation`.

    Returns:
      `(value, residual)`, scalars ≥ 0, float32. The residual `‖cov(Hc W) − I‖_F / √D` has no gradient. It is 0 for a
      white target, and at least `√((D − N + 1) / D)` where N ≤ D.

    Raises:
      ValueError: for an unknown `spatial` or a negative `epsilon`.
    """
    if epsilon is not None:
        check_range("epsilon", epsilon, 0.0)
    samples = statistics.as_samples(features, spatial)
    return _whitened(samples, axis_name, epsilon=epsilon, iterations=iterations)


def whitening_residual(
    features: jax.Array,
    *,
    axis_name: str | None = None,
    spatial: str = "pool",
    epsilon: float | None = None,
    iterations: int = 20,
) -> jax.Array:
    """Return the residual of `whitening` alone (same arguments); 0 for a white target."""
    return whitening(features, axis_name=axis_name, spatial=spatial, epsilon=epsilon, iterations=iterations)[1]


@automatic
def feature_scale(features: jax.Array, *, axis_name: str | None = None, spatial: str = "pool") -> jax.Array:
    """Return the mean standard deviation of the features, a scalar without gradient; it shows if features shrink."""
    return jnp.mean(statistics.standard_deviations(statistics.as_samples(features, spatial), axis_name))


def sample_count(features: jax.Array, *, axis_name: str | None = None, spatial: str = "pool") -> int:
    """Return the number N of samples in the statistics of `features`, over all members of the axis."""
    return statistics.count(jax.eval_shape(lambda f: statistics.as_samples(f, spatial), features), axis_name)


def white_floor(n: int, width: int, *, form: str = "covariance") -> float:
    """Return the expected `decorrelation` of `n` samples of `width` independent Gaussian features of unit variance.

    Perfectly decorrelated features still have this value: `(D−1)/(N−1)` for "covariance", `1/(N−1)` for "correlation",
    `D(D−1)(N−1)/(2N²)` for "decov", `1/N` for "cosine" and "density". For "whitening" it is the limit of large N and D
    at a fixed ratio (Marchenko–Pastur), about 5 % too low at D = 16.
    """
    check_choice("form", form, FORMS)
    return 0.0 if n <= 1 or width < 1 else FORMS[form].floor(n, width)
