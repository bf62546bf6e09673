"""Losses on predictions: cross-entropy with the true class, and divergence between clean and masked predictions."""

import chex
import jax
import jax.numpy as jnp
import optax

from sdecor.core.arrays import widened
from sdecor.core.checks import check_choice, check_range
from sdecor.core.classes import check_classes, check_several, is_class, one_hot, one_or_nan

DIRECTIONS = ("clean_masked", "masked_clean")
CLASSIFICATIONS = ("cross_entropy", "bce")


def classification(
    logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0, loss: str = "cross_entropy"
) -> jax.Array:
    """Compute the classification loss of each example.

    - "cross_entropy": `−Σ_k t_k log p_k`, with p the softmax of the logits.
    - "bce": binary cross-entropy of each class against all others, `−Σ_k t_k log σ(z_k) + (1 − t_k) log σ(−z_k)`. It
      is summed over the classes, so that the gradient at the true class is of the size that cross-entropy has.

    Args:
      logits: `[N, K]`; −inf excludes a class.
      labels: class indices, integers `[N]` of any type, in [0, K).
      label_smoothing: share of the target's mass that is spread evenly over the K classes, in [0, 1].
      loss: one of `CLASSIFICATIONS`.

    Returns:
      Losses `[N]`, float32, ≥ 0, in nats; inf where the target has mass on a class of logit −inf. Label smoothing puts
      mass on every class. Under `jit` a label that is no class gives NaN and a NaN gradient.

    Raises:
      ValueError: for K = 1, an unknown `loss`, labels that are no integers, and (outside of `jit`) labels outside
        [0, K).

    References:
      Gairola et al., How to Probe: Simple Yet Effective Techniques for Improved Post-hoc Explanations, 2025,
      https://arxiv.org/abs/2503.00641 (bce).
    """
    check_choice("loss", loss, CLASSIFICATIONS)
    chex.assert_rank([logits, labels], [2, 1])
    check_range("label_smoothing", label_smoothing, 0.0, 1.0)
    classes = logits.shape[-1]
    check_several(classes)
    labels = check_classes("labels", labels, classes)
    logits = widened(logits)
    if loss == "bce":
        targets = optax.losses.smooth_labels(one_hot(labels, classes, logits.dtype), label_smoothing)
        return jnp.sum(_binary(logits, targets), axis=-1)
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
    loss: str = "cross_entropy",
) -> jax.Array:
    """Compute the Kullback-Leibler divergence between the clean and the masked prediction of each example.

    For logits that are trained with "bce", a prediction is one probability σ(z_k) for each class, and the divergence is
    the sum over the classes.

    Args:
      logits: logits of the clean images, `[N, K]`; −inf excludes a class.
      masked_logits: logits of the masked images, `[N, K]`.
      direction: "clean_masked" for KL(p(x) ‖ p(x̃)), "masked_clean" for KL(p(x̃) ‖ p(x)).
      stop_gradient: treat the clean prediction as a constant.
      loss: classification loss of the logits, one of `CLASSIFICATIONS`.

    Returns:
      Divergences `[N]`, float32, ≥ 0 up to rounding, in nats; inf where the second prediction excludes a class that
      the first does not.

    Raises:
      ValueError: for an unknown `direction` or `loss`, and for K = 1, where predictions always agree.

    References:
      Ismail et al., Improving Deep Learning Interpretability by Saliency Guided Training, 2021,
      https://arxiv.org/abs/2111.14338 (clean_masked, gradient through both).
    """
    check_choice("direction", direction, DIRECTIONS)
    chex.assert_rank(logits, 2)
    chex.assert_equal_shape([logits, masked_logits])
    check_several(logits.shape[-1])
    check_choice("loss", loss, CLASSIFICATIONS)
    clean, masked = widened(logits), widened(masked_logits)
    if stop_gradient:
        clean = jax.lax.stop_gradient(clean)
    first, second = (clean, masked) if direction == "clean_masked" else (masked, clean)
    if loss == "bce":
        # Each class and its opposite, [N, K, 2], are the two outcomes of a prediction of its own.
        first, second = (jnp.stack([z, jnp.zeros_like(z)], axis=-1) for z in (first, second))
        return jnp.sum(_divergence(jax.nn.log_softmax(first), jax.nn.log_softmax(second)), axis=-1)
    return _divergence(jax.nn.log_softmax(first), jax.nn.log_softmax(second))


def _binary(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the binary cross-entropy of each logit; an outcome without mass in `targets` costs nothing."""

    def cost(mass: jax.Array, logits: jax.Array) -> jax.Array:
        # Replaced before the product, not after it: the gradient of 0 · inf is NaN even if its value is unused.
        return -mass * jax.nn.log_sigmoid(jnp.where(mass == 0, 0.0, logits))

    return cost(targets, logits) + cost(1 - targets, -logits)


def _divergence(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """Return `KL(p ‖ q)` over the last axis; a class without mass in p adds nothing, even if q excludes it."""
    # Replaced before the difference, not after it: the gradient of −inf − (−inf) is NaN even if its value is unused.
    p = jnp.exp(log_p)
    gap = jnp.where(p == 0, 0.0, log_p) - jnp.where(p == 0, 0.0, log_q)
    return jnp.sum(p * gap, axis=-1)
