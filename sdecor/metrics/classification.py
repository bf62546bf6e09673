"""How right and how sure a classifier is: per-example values, and the calibration error from binned sums."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdecor.core.classes import check_classes, check_several, correct, is_class, one_or_nan


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return 1.0 where the most probable class is the label, else 0.0: `[N]` from `[N, K]` and `[N]`.

    A row with a NaN logit has no prediction: it is wrong. Under `jit` a label that is no class gives NaN.

    Raises:
      ValueError: for K = 1, labels that are no integers, and (outside of `jit`) labels outside [0, K).
    """
    check_several(logits.shape[-1])
    return correct(logits, check_classes("labels", labels, logits.shape[-1]))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the negative log-probability of the label in nats, `[N]` float32.

    Under `jit` a label that is no class gives NaN; see `accuracy` for what is refused.
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
      confidences: probability of the predicted class, `[N]` in [0, 1]. NaN means that there is no prediction to be
        sure of: the example is in no bin, its row is 0, and the count for `calibration_error` is without it. (It is
        wrong, which `accuracy` shows.)
      correct: 1 or 0, `[N]`. NaN means that there is no right class to compare with: the same.
      bins: number of equal-width bins `(i/bins, (i+1)/bins]`; the first also holds 0.

    Returns:
      `[N, 2·bins]` float64: in the example's bin its confidence, then its correctness, and 0 elsewhere. Sums
      of rows (over batches, devices or a resample) go to `calibration_error`, with the number of rows.
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
      sums: `[..., 2·bins]`, rows of `calibration_bins` summed over `count` examples.
      count: number of examples in the sums that are in a bin, one or `[...]`.

    Returns:
      `[...]` in [0, 1]; 0 is perfect calibration, NaN that there is no example.

    References:
      Guo et al., "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599, 2017.
    """
    confidence_sum, correct_sum = np.split(np.asarray(sums, np.float64), 2, axis=-1)
    # Σ_b (n_b/N)·|conf_b/n_b − acc_b/n_b|: the bin counts cancel, so empty bins need no special case.
    gap = np.abs(confidence_sum - correct_sum).sum(-1)
    return np.divide(gap, count, out=np.full(gap.shape, np.nan), where=np.asarray(count) > 0)
