"""Attribution by the gradient of the target's score with respect to the image."""

from collections.abc import Callable

import jax

from sdecor.attribution.inputs import of_any_input
from sdecor.attribution.targets import Target, score_of


def gradient(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    saliency_of: str = "logit",
) -> jax.Array:
    """Return the gradient of the target's score with respect to one image ("vanilla" gradient saliency).

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, `[H, W, C]`.
      target: the class to explain, a `Contrast` of two classes, or a function of the logits.
      saliency_of: score to differentiate: the "logit" `z_y`, the "log_probability" `log p_y` or the "probability".

    Returns:
      Signed gradient `[H, W, C]` in score units per input unit, in the image's dtype.

    References:
      Simonyan, Vedaldi, Zisserman, "Deep Inside Convolutional Networks", https://arxiv.org/abs/1312.6034, 2013.
    """
    return jax.grad(score_of(fn, target, saliency_of=saliency_of))(image)


@of_any_input
def input_x_gradient(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    saliency_of: str = "logit",
) -> jax.Array:
    """Return the image times the gradient of the target's score: first-order contributions relative to a zero image.

    See `gradient` for the arguments. If the network is linear, the contributions sum to the score minus the score of a
    zero image.

    Returns:
      Signed contributions `[H, W, C]` in score units.

    References:
      Shrikumar et al., "Not Just a Black Box", https://arxiv.org/abs/1605.01713, 2016.
    """
    return image * gradient(fn, image, target, saliency_of=saliency_of)
