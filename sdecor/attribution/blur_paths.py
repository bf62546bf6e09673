"""Gradients gathered while the image comes into focus."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sdecor.attribution.paths import completeness_error, quadrature
from sdecor.attribution.targets import Target, score_of
from sdecor.core.arrays import at_least_float32, blur, widened
from sdecor.core.checks import check_range
from sdecor.core.chunks import sum_over

# In pixels: the weight of the nearest neighbour, exp(−5000), is zero in any precision, and so is its derivative.
_SHARP = 0.01


def blur_integrated_gradients(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    max_sigma: float | None = None,
    steps: int = 50,
    rule: str = "gauss_legendre",
    saliency_of: str = "logit",
    chunk_size: int | None = None,
    with_error: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Return what each pixel contributes to the rise of the score while a Gaussian blur of the image narrows to none.

    The path needs no baseline color. Its derivative is that of the blur itself, where the published code takes the
    difference of two blurs, and nothing outside the image enters, where that blurs into black borders. Cost: `steps`
    gradients, each with a blur and its derivative; with the error, two evaluations more.

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, `[H, W, C]`.
      target: what is explained: a class, a `Contrast` of two, or a function of the logits.
      max_sigma: the Gaussian's standard deviation at the start of the path, in pixels. Default: a quarter of the
        shorter side (the published 50 pixels at 224).
      steps: points on the path.
      rule: how the integral over sigma is approximated: see `quadrature`.
      saliency_of: "logit", "log_probability" or "probability".
      chunk_size: points in flight.
      with_error: also return the completeness error.

    Returns:
      Signed contributions `[H, W, C]` in score units. With `with_error` a pair of these and the scalar
      `Σ attribution − (score(image) − score(most blurred image))`.

    References:
      Xu, Venugopalan, Sundararajan, "Attribution in Scale and Space", https://arxiv.org/abs/2004.03383, 2020.
    """
    max_sigma = min(image.shape[:2]) / 4 if max_sigma is None else max_sigma
    check_range("max_sigma", max_sigma, _SHARP)
    score = score_of(fn, target, saliency_of=saliency_of)
    places, weights = quadrature(rule, steps)
    sigmas, weights = (jnp.asarray(max_sigma * values, at_least_float32(image.dtype)) for values in (places, weights))

    def blurred(sigma: jax.Array) -> jax.Array:
        return blur(image[None], jnp.maximum(sigma, _SHARP))[0]

    def term(i: jax.Array) -> jax.Array:
        point, change = jax.jvp(blurred, (sigmas[i],), (jnp.ones_like(sigmas[i]),))
        return -weights[i] * widened(change) * widened(jax.grad(score)(point))

    attribution = sum_over(term, steps, at_once=chunk_size)
    if not with_error:
        return attribution
    return attribution, completeness_error(attribution, score, image, blurred(jnp.asarray(max_sigma, sigmas.dtype)))
