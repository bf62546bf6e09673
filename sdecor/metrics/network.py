"""Metrics of the network itself: accuracy, confidence, calibration and temperature, and correlation of its features.

Features are summarised by moments. `feature_moments` runs on the device for each batch. It centres the features before
it multiplies, because sums of raw squares lose the variance at large means. `merge_moments` joins batches, devices and
processes exactly, in any order and split. `feature_diagnostics` computes the results in float64 on the host.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdecor.core.classes import check_classes, check_several, correct, is_class, one_or_nan
from sdecor.core.parallel import automatic

TEMPERATURES = (0.05, 20.0)  # bounds of a fitted temperature


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return 1.0 where the most probable class is the label, else 0.0: `[N]` from `[N, K]` and `[N]`.

    A row with a NaN logit has no prediction and counts as wrong. Under `jit` a label that is no class gives NaN.

    Raises:
      ValueError: for K = 1, labels that are no integers, and (outside of `jit`) labels outside [0, K).
    """
    check_several(logits.shape[-1])
    return correct(logits, check_classes("labels", labels, logits.shape[-1]))


def majority_share(labels: np.ndarray) -> float:
    """Return the share of the most frequent label among `[N]`: the accuracy if this label is always predicted."""
    return float(np.unique(labels, return_counts=True)[1].max() / labels.size)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the negative log-probability of the label in nats, `[N]` float32.

    Under `jit` a label that is no class gives NaN. See `accuracy` for the errors.
    """
    check_several(logits.shape[-1])
    labels = check_classes("labels", labels, logits.shape[-1])
    values = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), jnp.maximum(labels, 0))
    return values * one_or_nan(is_class(labels, None), values.dtype)


def confidence(logits: jax.Array) -> jax.Array:
    """Return the probability of the predicted class, `[N]` float32 in [1/K, 1]; NaN where a logit is NaN or +inf.

    Raises:
      ValueError: for K = 1.
    """
    check_several(logits.shape[-1])
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1).max(-1)


def calibration_bins(confidences: np.ndarray, correct: np.ndarray, *, bins: int = 15) -> np.ndarray:
    """Return each example's contribution to the equal-width confidence bins, to be summed over examples.

    Args:
      confidences: probability of the predicted class, `[N]` in [0, 1]. NaN means that there is no prediction: the
        example is in no bin, its row is 0, and the count for `calibration_error` must not include it. (`accuracy`
        counts it as wrong.)
      correct: 1 or 0, `[N]`. NaN means that there is no true class, and is treated in the same way.
      bins: number of equal-width bins `(i/bins, (i+1)/bins]`; the first also holds 0.

    Returns:
      `[N, 2·bins]` float64: the first half holds the example's confidence in the column of its bin, the second half its
      correctness, and all other values are 0. Pass sums of rows (over batches, devices or a resample) to
      `calibration_error`, with the number of rows.
    """
    confidences, correct = np.asarray(confidences, np.float64), np.asarray(correct, np.float64)
    columns = np.zeros((confidences.size, 2 * bins))
    rows = np.flatnonzero(~np.isnan(confidences + correct))
    place = np.clip(np.ceil(confidences[rows] * bins).astype(int) - 1, 0, bins - 1)
    columns[rows, place] = confidences[rows]
    columns[rows, bins + place] = correct[rows]
    return columns


def calibration_error(sums: np.ndarray, count: np.ndarray | float) -> np.ndarray:
    """Return the expected calibration error: |confidence − accuracy| of each bin, weighted by its examples.

    Args:
      sums: rows of `calibration_bins` summed over `count` examples, `[..., 2·bins]`.
      count: number of examples in the bins, one number or `[...]`.

    Returns:
      `[...]` in [0, 1]; 0 is perfect calibration. NaN without examples.

    References:
      Guo et al., "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599, 2017.
    """
    confidence_sum, correct_sum = np.split(np.asarray(sums, np.float64), 2, axis=-1)
    # Σ_b (n_b/N)·|conf_b/n_b − acc_b/n_b|: the bin counts cancel, so empty bins need no special case.
    gap = np.abs(confidence_sum - correct_sum).sum(-1)
    return np.divide(gap, count, out=np.full(gap.shape, np.nan), where=np.asarray(count) > 0)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature T for which the softmax of logits / T has the smallest cross-entropy.

    Fit it on examples that were neither trained on nor are tested on. The predicted classes stay the same.

    Args:
      logits: `[N, K]`.
      labels: true classes, integers `[N]`.

    Returns:
      T in `TEMPERATURES`, computed in float64. No temperature is best where all or none of the predictions are right:
      T is then one at which the cross-entropy is 0 to rounding, or the upper bound.

    Raises:
      ValueError: for K = 1, no examples, labels that are no class, or logits that are not finite.

    References:
      Guo et al., "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599, 2017.
    """
    from scipy.optimize import minimize_scalar  # here, because its import takes time
    from scipy.special import log_softmax

    logits, rows = np.asarray(logits, np.float64), np.arange(len(labels))
    check_several(logits.shape[-1])
    labels = np.asarray(check_classes("labels", labels, logits.shape[-1]))
    if not rows.size:
        raise ValueError("labels = []: a temperature is fitted to at least one example")
    if not np.isfinite(logits).all():
        raise ValueError("logits have values that are not finite: no temperature fits them")
    loss = lambda log_t: -log_softmax(logits / np.exp(log_t), axis=1)[rows, labels].mean()  # noqa: E731
    return float(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x))


@automatic
def feature_moments(
    features: jax.Array, weight: jax.Array | None = None, *, axis_name: str | None = None
) -> dict[str, jax.Array]:
    """Return the count, the mean and the centred second moment of a batch of features.

    Args:
      features: `[N, D]`, any floating dtype; statistics are float32.
      weight: `[N]`, 1 for an example and 0 for padding. Default: all 1.
      axis_name: mapped axis to combine over; every device then returns the moments of all devices.

    Returns:
      `count []`, `mean [D]` and `scatter [D, D]` = `Σ w (h − mean)(h − mean)ᵀ`.
    """
    features = features.astype(jnp.float32)
    weight = jnp.ones(features.shape[0], jnp.float32) if weight is None else weight.astype(jnp.float32)
    add = (lambda x: x) if axis_name is None else (lambda x: jax.lax.psum(x, axis_name))
    # `where`, not a product, because padding may hold any value, and 0 · inf is NaN.
    real = (weight > 0)[:, None]
    count = add(weight.sum())
    mean = add((jnp.where(real, features, 0) * weight[:, None]).sum(0)) / jnp.maximum(count, 1)
    centred = jnp.where(real, features - mean[None], 0)
    scatter = add(jnp.matmul((centred * weight[:, None]).T, centred, precision=jax.lax.Precision.HIGHEST))
    return {"count": count, "mean": mean, "scatter": scatter}


def merge_moments(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the moments of the union of two sets of examples, in float64 on the host.

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
    """Return the correlation, the effective rank and the scale of the features.

    Args:
      moments: `count`, `mean` and `scatter`, from `feature_moments` or `merge_moments`.
      dead: bound on a dead feature's standard deviation, as a share of the feature's mean or of the largest standard
        deviation. A dead feature varies by float32 rounding only; it is counted and has no correlation.

    Returns:
      `mean_abs_correlation` in [0, 1] over pairs of features that are not dead, `correlation_floor` (the value of
      independent Gaussian features for the same number of examples), `effective_rank` in [1, D] (exponential of the
      entropy of the covariance's normalised eigenvalues; Roy and Vetterli, 2007), `mean_std` over all features,
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
