"""DeepLIFT: the difference from a baseline, divided among the pixels on the way back through the network."""

from collections.abc import Callable
from functools import partial

import jax

from sdecor.attribution.baselines import baseline_image
from sdecor.attribution.canonical import canonical
from sdecor.attribution.deeplift_rules import unit_of
from sdecor.attribution.deeplift_softmax import Pair
from sdecor.attribution.program import execute, flatten, plan
from sdecor.attribution.targets import Target, target_score


def deeplift(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    baseline: str | float | jax.Array = "zero",
    saliency_of: str = "logit",
    key: jax.Array | None = None,
    with_error: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Return what each feature contributes to the rise of the score above the baseline's, by the rescale rule.

    Image and baseline go through the network side by side, and every operation passes the difference of its output back
    to its inputs in proportion to theirs, so that the contributions sum to the difference of the scores. What the
    operations are is read from the function itself; the network is not changed.

    - linear: exact; elementwise functions of one value, also those of several steps such as GELU: Δout/Δin;
    - products, convolutions and matrix products of two values (attention): the other factor's mean of both ends;
      quotients, also by a root as in LayerNorm: as products the other way round, `y·s = a`; other elementwise functions
      of two values: the mean over both orders in which they can change (Shapley);
    - maxima and max pooling: the rise goes to the winner in the image, a fall to the winner in the baseline;
    - softmax, log-softmax and logsumexp: as a whole, by the logarithmic mean of both ends (see `deeplift_softmax`);
    - `stop_gradient` passes contributions, which a sum to the difference needs.

    Cost: one gradient, and an evaluation of the baseline: once a batch where it is the same for all images.

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, `[H, W, C]`.
      target: what is explained: a class, a `Contrast` of two, or a function of the logits.
      baseline: what the image is compared with: see `baseline_image`.
      saliency_of: "logit", "log_probability" or "probability".
      key: of the noise of the baseline "uniform", which alone needs it.
      with_error: also return the completeness error.

    Returns:
      Signed contributions `[H, W, C]` in score units. With `with_error` a pair of these and the scalar
      `Σ attribution − (score(image) − score(baseline))`, which is zero up to rounding.

    Raises:
      ValueError: for an operation without a rule, such as sorting, indices that depend on the image or `while`.

    References:
      Shrikumar, Greenside, Kundaje, "Learning Important Features Through Propagating Activation Differences",
      https://arxiv.org/abs/1704.02685, 2017. Lundberg, Lee, https://arxiv.org/abs/1705.07874, 2017 (maxima, products).
    """
    start = baseline_image(baseline, image, key=key)
    program = flatten(lambda x: target_score(fn(x), target, saliency_of=saliency_of), image, enter_custom=True)
    units = plan(program, partial(unit_of, program))

    def scores(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        (score,) = execute(program, units, [Pair(x, start)])
        return tuple(score) if isinstance(score, Pair) else (score, score)

    (score, score_of_start), multipliers = jax.value_and_grad(canonical(scores), has_aux=True)(image)
    attribution = (image - start) * multipliers
    return (attribution, attribution.sum() - (score - score_of_start)) if with_error else attribution
