"""The gradient penalty: how sensitive the network's output is to small changes of the image."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from sdecor.core.arrays import widened
from sdecor.core.checks import check_choice
from sdecor.core.classes import check_classes, check_several, of_class
from sdecor.losses.predictions import classification

PENALTY_OF = ("cross_entropy", "log_probabilities", "logit")


def gradient_penalty(
    forward: Callable[[jax.Array], tuple[jax.Array, Any]],
    images: jax.Array,
    labels: jax.Array,
    *,
    of: str = "cross_entropy",
    label_smoothing: float = 0.0,
    loss: str = "cross_entropy",
) -> tuple[jax.Array, Any]:
    """Compute the squared norm of each example's input gradient, for double backpropagation.

    The gradient is that of the sum over the batch, so it does not depend on the batch's size. Train-mode BatchNorm
    couples examples: the gradient then contains each image's effect on the others, on all devices if BatchNorm combines
    its statistics over devices.

    Args:
      forward: `images -> (logits [N, K], others)`; `others` are returned from the same forward.
      images: `[N, ...]`, in the model's normalised input space.
      labels: class indices, integers `[N]` of any type, in [0, K).
      of: the score to differentiate: "cross_entropy", the loss of training; "log_probabilities", summed over the
        classes whose logit is not −inf; or "logit", the logit of the true class.
      label_smoothing, loss: options of the loss of training, as for `classification`.

    Returns:
      `(penalties [N], others)`, penalties float32, ≥ 0, summed over all pixels and channels. Under `jit` a label that
      is no class gives NaN, unless `of` is "log_probabilities", which uses no label.

    Raises:
      ValueError: for an unknown `of`, labels that are no integers, (outside of `jit`) labels outside [0, K), and K = 1
        unless `of` is "logit".

    References:
      Drucker & LeCun, Improving generalization performance using double backpropagation, 1992,
      https://doi.org/10.1109/72.165600 (cross_entropy; there with a squared error). Ross et al., Right for the Right
      Reasons, 2017, https://arxiv.org/abs/1703.03717 (log_probabilities; here without annotations, so all pixels
      count). Ross & Doshi-Velez, Improving the Adversarial Robustness and Interpretability of Deep Neural Networks by
      Regularizing their Input Gradients, 2018, https://arxiv.org/abs/1711.09404.
    """
    check_choice("of", of, PENALTY_OF)
    chex.assert_type(images, float)
    chex.assert_rank(labels, 1)

    def total(images: jax.Array) -> tuple[jax.Array, Any]:
        logits, others = forward(images)
        logits = widened(logits)
        if of == "cross_entropy":
            return jnp.sum(classification(logits, labels, label_smoothing=label_smoothing, loss=loss)), others
        classes = check_classes("labels", labels, logits.shape[-1])
        if of == "log_probabilities":
            check_several(logits.shape[-1])
            log_p = jax.nn.log_softmax(logits)
            return jnp.sum(log_p, where=~jnp.isneginf(log_p)), others
        return jnp.sum(jax.vmap(of_class)(logits, classes)), others

    gradient, others = jax.grad(total, has_aux=True)(images)
    axes = tuple(range(1, images.ndim))
    # A ReLU makes the gradient of a NaN pixel 0, which would hide it.
    return jnp.where(jnp.isfinite(images).all(axes), jnp.sum(widened(gradient) ** 2, axes), jnp.nan), others
