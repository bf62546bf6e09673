"""Methods that change the backward pass: guided backpropagation, deconvnet, DeepLIFT, LRP.

The rules themselves are in `sdecor.rules`.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.attribution.baselines import Baseline, baseline_image
from sdecor.attribution.canonical import canonical
from sdecor.attribution.targets import Target, checked_logits, score_of, target_score
from sdecor.core.checks import check_choice, check_range
from sdecor.rules import deeplift as deeplift_rules, lrp as lrp_rules
from sdecor.rules.guided import with_relus
from sdecor.rules.lrp import RULES, Layer, Settings
from sdecor.rules.program import execute, flatten, plan


def guided_backpropagation(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    saliency_of: str = "logit",
) -> jax.Array:
    """Return the gradient of the target's score in which a ReLU passes what is positive, forward and backward.

    Each ReLU passes `g · (x > 0) · (g > 0)` in place of `g · (x > 0)`; everything else, other activations included,
    keeps its gradient. A ReLU is what computes `max(x, 0)` or `min(max(x, 0), c)` elementwise, or a multiple of it, or
    the same of −x, however it is written: as a maximum, a clip, a selection (`where`, `select`, `piecewise`),
    `x * (x > 0)`, `(x + |x|) / 2` or `-min(-x, 0)`, and however often one function is used. What computes another
    function of x as a whole has no ReLU in it: `x * relu6(x + 3)` (hard swish), `max(x, 0) + expm1(min(x, 0))` (CELU),
    and leaky ReLU alike. Nor is the clamp one that keeps the variance of a LayerNorm from being negative. Cost: one
    gradient.

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, `[H, W, C]`.
      target: what is explained: a class, a `Contrast` of two, or a function of the logits.
      saliency_of: "logit", "log_probability" or "probability".

    Returns:
      Signed attribution `[H, W, C]`.

    Raises:
      ValueError: for a network without a ReLU, and for one with something that may be a ReLU and is not known to be: an
        operation that is not entered (`while`, a `cond` that depends on the image, a callback, a `custom_jvp` or
        `custom_vjp` that is not elementwise and has a ReLU in it); a selection of a value by the sign of the same
        value that is not an elementwise function of it; an elementwise function that is constant on one side of 0 and
        bends there, but is no multiple of a ReLU.

    References:
      Springenberg et al., "Striving for Simplicity: The All Convolutional Net", https://arxiv.org/abs/1412.6806, 2014.
    """
    changed = with_relus(lambda x: checked_logits(fn(x)), image, 0.0, "guided_backpropagation")
    return jax.grad(score_of(changed, target, saliency_of=saliency_of))(image)


def deconvnet(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    saliency_of: str = "logit",
) -> jax.Array:
    """Return the gradient of the target's score in which a ReLU passes `g · (g > 0)`, whatever its input was.

    See `guided_backpropagation` for the arguments, what counts as a ReLU, and errors.

    References:
      Zeiler, Fergus, "Visualizing and Understanding Convolutional Networks", https://arxiv.org/abs/1311.2901, 2013.
    """
    changed = with_relus(lambda x: checked_logits(fn(x)), image, -np.inf, "deconvnet")
    return jax.grad(score_of(changed, target, saliency_of=saliency_of))(image)


def deeplift(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    baseline: Baseline = "zero",
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
      key: for a baseline that is drawn, such as "uniform".
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
    units = plan(program, partial(deeplift_rules.unit_of, program))

    def scores(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        (score,) = execute(program, units, [deeplift_rules.Pair(x, start)])
        return tuple(score) if isinstance(score, deeplift_rules.Pair) else (score, score)

    (score, score_of_start), multipliers = jax.value_and_grad(canonical(scores), has_aux=True)(image)
    attribution = (image - start) * multipliers
    return (attribution, attribution.sum() - (score - score_of_start)) if with_error else attribution


COMPOSITES = ("composite", "epsilon", "gamma", "z_plus")


def lrp(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    rule: str | Callable[[Layer], str] = "composite",
    epsilon: float = 1e-6,
    gamma: float = 0.25,
    low: float | jax.Array | None = None,
    high: float | jax.Array | None = None,
    saliency_of: str = "logit",
    with_error: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Return the relevance of each feature: the score, handed back from layer to layer in proportion to what each gave.

    A layer is a convolution or matrix product with a constant kernel and what is added to and multiplied with its
    output by constants, so that a bias and a BatchNorm are merged into it. With `z = Σ_j x_j w_j + b` and `q = R/z` its
    output's relevance over a denominator, a layer's input j receives, by the rule

    - "epsilon": `x_j w_j q`, denominator `z + ε sign z`;
    - "gamma": `x_j w_j` and γ times its positive part (negative part where z < 0), over the sum of these;
    - "z_plus": the positive part of `x_j w_j` alone, over the sum of these and the positive bias;
    - "box", for the first layer of images with values from `low` to `high`: `x_j w_j − low w_j⁺ − high w_j⁻`.

    Sums, means and residual additions take the epsilon rule; maxima pass relevance to the winner; an activation with
    f(0) = 0, such as ReLU or GELU, passes it unchanged. Biases take their share of relevance out ("box" has none).
    Cost: one gradient for "epsilon"; two for "gamma" and "z_plus" (three in a layer whose input may be negative).

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, `[H, W, C]`.
      target: what is explained: a class, a `Contrast` of two, or a linear function of the logits.
      rule: of all layers; "composite" for gamma in convolutions, epsilon in dense layers, and box in the first layer
        if `low` and `high` are given; or a function from a `Layer` to the name of its rule.
      epsilon: stabilises denominators, in units of the layer's output; at least 0.
      gamma: how much positive contributions are favored; at least 0.
      low, high: least and greatest value that a pixel can have: a number, `[C]` or `[H, W, C]`.
      saliency_of: "logit"; relevance cannot start from a probability, which is not made of what a class received.
      with_error: also return what is lost.

    Returns:
      Signed relevance `[H, W, C]` in score units. With `with_error` a pair of these and the scalar
      `Σ attribution − score`: minus what biases and ε took out, zero up to rounding without biases. With "z_plus" also
      minus what a layer's outputs had without one positive part to hand it to: behind a ReLU those are 0 and have none,
      but not behind GELU, nor the score itself if it is negative.

    Raises:
      ValueError: for an operation without a rule: products of two values that depend on the image (LayerNorm,
        attention, gates), softmax, and activations with f(0) ≠ 0; or an option out of range.

    References:
      Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation",
      https://doi.org/10.1371/journal.pone.0130140, 2015. Montavon et al., "Layer-Wise Relevance Propagation: An
      Overview", https://doi.org/10.1007/978-3-030-28954-6_10, 2019 (gamma, composites). Montavon et al., "Explaining
      NonLinear Classification Decisions with Deep Taylor Decomposition", https://arxiv.org/abs/1512.02479, 2015 (z⁺,
      box). Anders et al., https://arxiv.org/abs/2106.13200, 2021 (inputs of both signs, as in zennit).
    """
    rule_of = rules_of(rule, low, high, saliency_of)
    check_range("epsilon", epsilon, 0)
    check_range("gamma", gamma, 0)
    program = flatten(lambda x: target_score(fn(x), target), image, enter_custom=True)

    def score(x: jax.Array, bounds: tuple[jax.Array, ...]) -> jax.Array:
        settings = Settings(rule_of, epsilon, gamma, bounds)
        units = plan(program, partial(lrp_rules.unit_of, program, settings))
        return execute(program, units, [x])[0]

    given = () if low is None else (low, high)
    bounds = tuple(jnp.broadcast_to(jnp.asarray(bound, image.dtype), image.shape) for bound in given)
    explained, gradients = jax.value_and_grad(canonical(score), argnums=(0, 1))(image, bounds)
    parts = jax.tree.map(jnp.multiply, (image, bounds), gradients)
    relevance = sum(parts[1], parts[0])
    return (relevance, relevance.sum() - explained) if with_error else relevance


def rules_of(rule: str | Callable, low: object, high: object, saliency_of: str) -> Callable[[Layer], str]:
    """Return the rule of each layer as a function, and check what belongs together."""
    if saliency_of != "logit":
        raise ValueError(f"saliency_of = {saliency_of!r}: relevance starts from a 'logit', or a contrast of two")
    if (low is None) != (high is None):
        raise ValueError("low and high go together: pass the least and the greatest value that a pixel can have")
    if callable(rule):

        def checked(layer: Layer) -> str:
            chosen = rule(layer)
            check_choice(f"rule of {layer}", chosen, RULES)
            if chosen == "box" and low is None:
                raise ValueError(f"the rule 'box' of {layer} needs low and high, the bounds of a pixel's values")
            return chosen

        return checked
    check_choice("rule", rule, COMPOSITES)
    if rule != "composite":
        if low is not None:
            raise ValueError(f"low and high belong to the rule 'box', which rule = {rule!r} does not use")
        return lambda layer: rule
    of_first = None if low is None else "box"
    return lambda layer: (layer.first and of_first) or {"convolution": "gamma", "dense": "epsilon"}[layer.kind]
