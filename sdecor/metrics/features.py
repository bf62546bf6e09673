"""Diagnostics of a feature space from accumulated moments: correlation, effective rank, scale.

`feature_moments` runs on the device, once a batch, and centres before it multiplies (sums of raw squares lose
the variance at large means); `merge_moments` adds batches, devices and processes exactly in any order and
split; and `feature_diagnostics` finishes in float64 on the host.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.core.parallel import automatic


@automatic
def feature_moments(
    features: jax.Array, weight: jax.Array | None = None, *, axis_name: str | None = None
) -> dict[str, jax.Array]:
    """Return count, mean and centred second moment of a batch.

    Args:
      features: `[N, D]`, any floating dtype; statistics are float32.
      weight: `[N]`, 1 for an example and 0 for padding. Default: all 1.
      axis_name: combine over this mapped axis; every device then returns the moments of all.

    Returns:
      `count []`, `mean [D]` and `scatter [D, D]` = `Σ w (h − mean)(h − mean)ᵀ`.
    """
    features = features.astype(jnp.float32)
    weight = jnp.ones(features.shape[0], jnp.float32) if weight is None else weight.astype(jnp.float32)
    add = (lambda x: x) if axis_name is None else (lambda x: jax.lax.psum(x, axis_name))
    # `where`, not a product: padding may hold anything, and 0 · inf is NaN.
    real = (weight > 0)[:, None]
    count = add(weight.sum())
    mean = add((jnp.where(real, features, 0) * weight[:, None]).sum(0)) / jnp.maximum(count, 1)
    centred = jnp.where(real, features - mean[None], 0)
    scatter = add(jnp.matmul((centred * weight[:, None]).T, centred, precision=jax.lax.Precision.HIGHEST))
    return {"count": count, "mean": mean, "scatter": scatter}


def merge_moments(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the moments of two sets of examples together, in float64 on the host.

    References:
      Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
    """
    (n, mean, scatter), (m, other, other_scatter) = (
        [np.asarray(part[name], np.float64) for name in ("count", "mean", "scatter")] for part in (a, b)
    )
    total = n + m
    if total == 0:
        return {"count": total, "mean": mean, "scatter": scatter + other_scatter}
    shift = other - mean
    return {
        "count": total,
        "mean": mean + shift * (m / total),
        "scatter": scatter + other_scatter + np.outer(shift, shift) * (n * m / total),
    }


def feature_diagnostics(moments: dict[str, np.ndarray], *, dead: float = 1e-6) -> dict[str, float]:
    """Return how correlated, how rich and how large the features are.

    Args:
      moments: `count`, `mean`, `scatter` as of `feature_moments` and `merge_moments`.
      dead: a feature whose standard deviation is at most this share of its own mean, or of the largest
        standard deviation, does not vary beyond float32 rounding; it has no correlation and is only counted.

    Returns:
      `mean_abs_correlation` in [0, 1] over pairs of living features, `correlation_floor` (what independent
      Gaussian features score with as many examples), `effective_rank` in [1, D] (exponential of the entropy
      of the covariance's normalised eigenvalues; Roy and Vetterli, 2007), `mean_std` over all features,
      `dead_features`, `n`. NaN where undefined.
    """
    count, mean, scatter = (np.asarray(moments[name], np.float64) for name in ("count", "mean", "scatter"))
    n = int(round(float(count)))
    names = ("mean_abs_correlation", "correlation_floor", "effective_rank", "mean_std", "dead_features")
    out = {name: float("nan") for name in names} | {"n": n}
    if n < 2 or not np.isfinite(scatter).all():
        return out
    covariance = scatter / (n - 1)
    std = np.sqrt(np.clip(np.diag(covariance), 0, None))
    alive = std > dead * np.maximum(np.abs(mean), std.max())
    out |= {"mean_std": float(std.mean()), "dead_features": int((~alive).sum())}
    out["correlation_floor"] = float(np.sqrt(2 / (np.pi * (n - 1))))
    living, d = covariance[np.ix_(alive, alive)], int(alive.sum())
    if d >= 2:
        correlation = np.abs(living / np.outer(std[alive], std[alive]))
        out["mean_abs_correlation"] = float((correlation.sum() - np.trace(correlation)) / (d * (d - 1)))
    if d >= 1:
        eigenvalues = np.clip(np.linalg.eigvalsh(living), 0, None)
        shares = eigenvalues[eigenvalues > 0] / eigenvalues.sum()
        out["effective_rank"] = float(np.exp(-(shares * np.log(shares)).sum()))
    return out
