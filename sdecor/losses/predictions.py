"""Losses on predictions: cross-entropy with the true class, and divergence between clean and masked predictions."""

import chex
import jax
import jax.numpy as jnp
import optax

from sdecor.core.arrays import widened
from sdecor.core.checks import check_choice, check_range
from sdecor.core.classes import check_classes, check_several, is_class, one_hot, one_or_nan

DIRECTIONS = ("clean_masked", "masked_clean")


def classification(logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """Compute the cross-entropy of each example.

    Args:
      logits: `[N, K]`; −inf excludes a class.
      labels: class indices, integers `[N]` of any type, in [0, K).
      label_smoothing: share of the target's mass that is spread evenly over the K classes, in [0, 1].

    Returns:
      Losses `[N]`, float32, ≥ 0, in nats; inf where the target has mass on a class of logit −inf. Label smoothing puts
      mass on every class. Under `jit` a label that is no class gives NaN and a NaN gradient.

    Raises:
      ValueError: for K = 1, labels that are no integers, and (outside of `jit`) labels outside [0, K).
    """
    chex.assert_rank([logits, labels], [2, 1])
    check_range("label_smoothing", label_smoothing, 0.0, 1.0)
    classes = logits.shape[-1]
    check_several(classes)
    labels = check_classes("labels", labels, classes)
    logits = widened(logits)
    if label_smoothing == 0.0:
        values = optax.losses.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        return values * one_or_nan(is_class(labels, classes), values.dtype)
    targets = optax.losses.smooth_labels(one_hot(labels, classes, logits.dtype), label_smoothing)
    return optax.losses.softmax_cross_entropy(logits, targets)


def consistency(
    logits: jax.Array,
    masked_logits: jax.Array,
    *,
    direction: str = "clean_masked",
    stop_gradient: bool = False,
) -> jax.Array:
    """Compute the Kullback-Leibler divergence between the clean and the masked prediction of each example.

    Args:
      logits: logits of the clean images, `[N, K]`; −inf excludes a class.
      masked_logits: logits of the masked images, `[N, K]`.
      direction: "clean_masked" for KL(p(x) ‖ p(x̃)), "masked_clean" for KL(p(x̃) ‖ p(x)).
      stop_gradient: treat the clean prediction as a constant.

    Returns:
      Divergences `[N]`, float32, ≥ 0 up to rounding, in nats; inf where the second prediction excludes a class that
      the first does not.

    Raises:
      ValueError: for an unknown `direction`, and for K = 1, where predictions always agree.

    References:
      Ismail et al., Improving Deep Learning Interpretability by Saliency Guided Training, 2021,
      https://arxiv.org/abs/2111.14338 (clean_masked, gradient through both).
    """
    check_choice("direction", direction, DIRECTIONS)
    chex.assert_rank(logits, 2)
    chex.assert_equal_shape([logits, masked_logits])
    check_several(logits.shape[-1])
    clean, masked = jax.nn.log_softmax(widened(logits)), jax.nn.log_softmax(widened(masked_logits))
    if stop_gradient:
        clean = jax.lax.stop_gradient(clean)
    if direction == "clean_masked":
        return _divergence(clean, masked)
    return _divergence(masked, clean)


def _divergence(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """Return `KL(p ‖ q)` over the last axis; a class without mass in p adds nothing, even if q excludes it."""
    # Replaced before the difference, not after it: the gradient of −inf − (−inf) is NaN even if its value is unused.
    p = jnp.exp(log_p)
    gap = jnp.where(p == 0, 0.0, log_p) - jnp.where(p == 0, 0.0, log_q)
    return jnp.sum(p * gap, axis=-1)
