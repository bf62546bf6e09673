"""Decorrelation: penalties on what the feature dimensions have in common, and the quantities to watch beside them."""

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.core.checks import check_choice, check_range
from sdecor.core.parallel import automatic
from sdecor.losses import statistics

CENTRED = ("covariance", "correlation", "decov", "whitening")
FORMS = (*CENTRED, "cosine", "density")

_ROOT_EPSILON = 1e-6


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
    """Penalise what the dimensions of the features have in common, over the global batch of N samples.

    With centred features `Hc` and their covariance `C` (over N − 1 unless said otherwise):

    - "covariance": `1/D Σ_{i≠j} C_ij²`. Depends on the scale of the features, as "decov" does.
    - "correlation": `1/(D(D−1)) Σ_{i≠j} R_ij²` with the correlations `R`; in [0, 1] and free of scale. Constant
      features count as uncorrelated.
    - "decov": `½ Σ_{i≠j} C_ij²` with `C` over N.
    - "whitening": `1/(ND) ‖Hc − Hc W‖²` with `W = C^-½`; no gradient flows through the target `Hc W`, which makes the
      gradient that of `mean_i (σ_i − 1)²` over the standard deviations along the principal axes, times (N − 1)/N.

    Two are of the features themselves, not of what is left without their mean; they are meant for what comes after a
    ReLU, by positions, where they say how many features are active at a time (docs/theory.md):

    - "cosine": `1/(D(D−1)) Σ_{i≠j} cos_ij²` with the cosines of the features as vectors over samples; in [0, 1].
    - "density": `1/D Σ_i (E h_i)² / E h_i²`, of an on-off feature the share of samples on which it is on; in [0, 1].
      The cosine of uncorrelated features is the root of the product of their densities. Features that are 0 throughout
      count as 0.

    Args:
      features: `[N, D]`, or maps `[N, T, D]` or `[N, H, W, D]`.
      form: one of `FORMS`.
      axis_name: mapped axis to combine statistics over; None means this batch alone.
      spatial: for maps, "pool" (mean over positions) or "positions" (each position is a sample).
      gram: work on the `[N, N]` side instead of the `[D, D]` side; the value is the same up to rounding. None chooses
        the cheaper one, `[N, N]` where N < D. "whitening" and "density" have no such choice.
      epsilon: "correlation": added to each variance, relative to the mean variance; damps nearly constant features
        and ends the freedom from scale (default 0). "whitening": added to the covariance's diagonal, relative to its
        Frobenius norm (default 1e-6, the least that keeps a rank-deficient batch stable). Others: unused.
      iterations: Newton-Schulz steps of "whitening". Each lowers the smallest standard deviation that is whitened by
        a factor 1.5; `whitening` also returns what is left.

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
    if gram and form in ("whitening", "density"):
        raise ValueError(f"gram = True is not possible with form = {form!r}: leave it None")
    if form == "whitening":
        return whitening(features, axis_name=axis_name, spatial=spatial, epsilon=epsilon, iterations=iterations)[0]
    samples = statistics.as_samples(features, spatial)
    count, width = statistics.count(samples, axis_name), samples.shape[-1]
    gram = count < width if gram is None else gram
    if form == "density":
        return float(count > 1) * jnp.mean(statistics.densities(samples, axis_name))
    if form == "cosine":
        unit = statistics.unit_columns(samples, axis_name)
        return float(count > 1) * statistics.off_diagonal(unit, axis_name, gram=gram) / max(width * (width - 1), 1)
    if form == "correlation":
        samples = statistics.centre_live(samples, axis_name)
        unit = statistics.unit_columns(samples, axis_name, epsilon=epsilon or 0.0)
        return statistics.off_diagonal(unit, axis_name, gram=gram) / max(width * (width - 1), 1)
    centred = statistics.centre(samples, axis_name)
    if form == "decov":
        return 0.5 * statistics.off_diagonal(centred / count**0.5, axis_name, gram=gram)
    # The division by the width comes before the squares, which keeps their sum in range.
    return statistics.off_diagonal(centred / max(count - 1, 1) ** 0.5 / width**0.25, axis_name, gram=gram)


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

    Keeps "covariance" and "decov" from being lowered by shrinking the features.

    Args:
      features, axis_name, spatial: as for `decorrelation`.
      target: the wanted standard deviation, in units of the features.
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
    """Return the "whitening" form of `decorrelation`, and how white its target is, from one iteration.

    Args:
      features, axis_name, spatial, epsilon, iterations: as for `decorrelation`.

    Returns:
      `(value, residual)`, scalars ≥ 0, float32. The residual `‖cov(Hc W) − I‖_F / √D` has no gradient; 0 is white, and
      at N ≤ D it cannot be less than `√((D − N + 1) / D)`.

    Raises:
      ValueError: for an unknown `spatial` or a negative `epsilon`.
    """
    epsilon = _ROOT_EPSILON if epsilon is None else epsilon
    check_range("epsilon", epsilon, 0.0)
    samples = statistics.as_samples(features, spatial)
    size, width = statistics.count(samples, axis_name) * samples.shape[-1], samples.shape[-1]
    centred, target = statistics.whiten(samples, axis_name, epsilon=epsilon, iterations=iterations)
    limit = 0.5 * float(np.finfo(np.float32).max / size) ** 0.5
    value = statistics.total(jnp.sum(statistics.bounded_square(centred - target, limit)), axis_name) / size
    residual = jnp.linalg.norm(statistics.covariance(target, axis_name) - jnp.eye(width)) / width**0.5
    return value, residual


def whitening_residual(
    features: jax.Array,
    *,
    axis_name: str | None = None,
    spatial: str = "pool",
    epsilon: float | None = None,
    iterations: int = 20,
) -> jax.Array:
    """Return the residual of `whitening` alone (same arguments): how white the target of that form is."""
    return whitening(features, axis_name=axis_name, spatial=spatial, epsilon=epsilon, iterations=iterations)[1]


@automatic
def feature_scale(features: jax.Array, *, axis_name: str | None = None, spatial: str = "pool") -> jax.Array:
    """Return the mean standard deviation of the features, a scalar without gradient: it shows a shrink."""
    samples = jax.lax.stop_gradient(statistics.as_samples(features, spatial))
    return jnp.mean(jnp.sqrt(statistics.variances(samples, axis_name)))


def sample_count(features: jax.Array, *, axis_name: str | None = None, spatial: str = "pool") -> int:
    """Return the number N of samples that the statistics of `features` are taken over, on all members of the axis."""
    return statistics.count(jax.eval_shape(lambda f: statistics.as_samples(f, spatial), features), axis_name)


def white_floor(n: int, width: int, *, form: str = "covariance") -> float:
    """Expected `decorrelation` of `n` samples of `width` independent Gaussian features of unit variance.

    What a perfect network still scores: `(D−1)/(N−1)` for "covariance", `1/(N−1)` for "correlation",
    `D(D−1)(N−1)/(2N²)` for "decov", `1/N` for "cosine" and "density". For "whitening" the limit of large N and D at
    their ratio (Marchenko–Pastur), which is some 5 % low at D = 16.
    """
    check_choice("form", form, FORMS)
    if n <= 1 or width < 1:
        return 0.0
    if form == "covariance":
        return (width - 1) / (n - 1)
    if form == "correlation":
        return 1 / (n - 1) if width > 1 else 0.0
    if form == "decov":
        return width * (width - 1) * (n - 1) / (2 * n**2)
    if form == "density" or form == "cosine":
        return 1 / n if form == "density" or width > 1 else 0.0
    # The density 2 sin²θ / (π x) over θ in (0, π) of the non-zero variances x = 1 + γ + 2 √γ cos θ, by midpoints.
    angles, ratio = (np.arange(4096) + 0.5) * np.pi / 4096, width / (n - 1)
    variances = 1 + ratio + 2 * np.sqrt(ratio) * np.cos(angles)
    shrink = np.mean(2 * np.sin(angles) ** 2 * (np.sqrt(variances) - 1) ** 2 / variances)
    return float(shrink * (n - 1) / n)
