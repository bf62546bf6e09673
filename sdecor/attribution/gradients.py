"""Attribution by the gradient of the target's score with respect to the image."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sdecor.checks import check_choice

SALIENCY_OF = ("logit", "log_probability", "probability")


def target_score(logits: jax.Array, target: jax.Array | int, *, saliency_of: str = "logit") -> jax.Array:
    """Return the scalar that is explained: the target's logit, log-probability or probability.

    Args:
      logits: of one image, `[K]`.
      target: class, integer scalar in [0, K).
      saliency_of: "logit", "log_probability" or "probability".

    Returns:
      Scalar. A target outside [0, K) gives NaN, and so does everything derived from it: indexing alone would
      silently explain the nearest class.

    Raises:
      ValueError: for an unknown `saliency_of`, or logits that are not `[K]`.
    """
    check_choice("saliency_of", saliency_of, SALIENCY_OF)
    if logits.ndim != 1:
        raise ValueError(
            f"fn returned shape {logits.shape}: it must map one image [H, W, C] to logits [K], with no batch axis"
        )
    if saliency_of == "log_probability":
        logits = jax.nn.log_softmax(logits)
    elif saliency_of == "probability":
        logits = jax.nn.softmax(logits)
    target = jnp.asarray(target)
    inside = (target >= 0) & (target < logits.shape[0])
    return logits[target] * jnp.where(inside, 1, jnp.nan).astype(logits.dtype)


def gradient(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: jax.Array | int,
    *,
    saliency_of: str = "logit",
) -> jax.Array:
    """Return the gradient of the target's score with respect to one image ("vanilla" gradient saliency).

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, `[H, W, C]`.
      target: class to explain, integer scalar.
      saliency_of: what is differentiated: the "logit" `z_y`, the "log_probability" `log p_y` or the "probability".

    Returns:
      Signed gradient `[H, W, C]` in score units per input unit, in the image's dtype.

    References:
      Simonyan, Vedaldi, Zisserman, "Deep Inside Convolutional Networks", https://arxiv.org/abs/1312.6034, 2013.
    """
    return jax.grad(lambda x: target_score(fn(x), target, saliency_of=saliency_of))(image)
