"""Methods that change the backward pass: guided backpropagation, deconvnet, DeepLIFT, LRP.

Their rules are in `sdecor.rules`.
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.attribution.baselines import Baseline, baseline_image
from sdecor.attribution.canonical import canonical
from sdecor.attribution.inputs import of_any_input
from sdecor.attribution.targets import Target, target_score
from sdecor.core.checks import check_choice, check_range
from sdecor.rules import deeplift as deeplift_rules
from sdecor.rules.guided import with_relus
from sdecor.rules.lrp import RULES, SOFTMAX, Layer, Settings, units_of
from sdecor.rules.program import execute, flatten, plan


@of_any_input
def guided_backpropagation(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    saliency_of: str = "logit",
) -> jax.Array:
    """Return the gradient of the target's score, where each ReLU passes positive gradients of positive inputs only.

    Each ReLU passes `g · (x > 0) · (g > 0)` instead of `g · (x > 0)`. All other operations keep their gradient, other
    activations included. Cost: one gradient.

    A ReLU computes `max(x, 0)` or `min(max(x, 0), c)` elementwise, a multiple of it, or the same of −x. It may be
    written as a maximum, a clip, a selection (`where`, `select`, `piecewise`), `x * (x > 0)`, `(x + |x|) / 2` or
    `-min(-x, 0)`, and one function may be used many times. Code that computes another elementwise function as a whole
    contains no ReLU: `x * relu6(x + 3)` (hard swish), `max(x, 0) + expm1(min(x, 0))` (CELU) and leaky ReLU. The clamp
    that keeps the variance of a LayerNorm from being negative is no ReLU either.

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, `[H, W, C]`.
      target: the class to explain, a `Contrast` of two classes, or a function of the logits.
      saliency_of: score of the target: "logit", "log_probability" or "probability".

    Returns:
      Signed attribution `[H, W, C]`.

    Raises:
      ValueError: for a network without a ReLU, and for an operation that may be or contain a ReLU in an unknown form.
        There are three kinds: an operation whose inside is not read (`while`, a `cond` that depends on the image, a
        callback, a `custom_jvp` or `custom_vjp` that is not elementwise and contains a ReLU); a selection of a value by
        its own sign that is not an elementwise function of this value; and an elementwise function that is constant on
        one side of 0 and bends there, but is no multiple of a ReLU.

    References:
      Springenberg et al., "Striving for Simplicity: The All Convolutional Net", https://arxiv.org/abs/1412.6806, 2014.
    """
    score = lambda x: target_score(fn(x), target, saliency_of=saliency_of)  # noqa: E731
    return jax.grad(canonical(with_relus(score, image, 0.0, "guided_backpropagation")))(image)


@of_any_input
def deconvnet(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    saliency_of: str = "logit",
) -> jax.Array:
    """Return the gradient of the target's score, where each ReLU passes `g · (g > 0)` for every input.

    See `guided_backpropagation` for the arguments, the definition of a ReLU, and errors.

    References:
      Zeiler, Fergus, "Visualizing and Understanding Convolutional Networks", https://arxiv.org/abs/1311.2901, 2013.
    """
    score = lambda x: target_score(fn(x), target, saliency_of=saliency_of)  # noqa: E731
    return jax.grad(canonical(with_relus(score, image, -np.inf, "deconvnet")))(image)


@of_any_input
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
    """Return each feature's contribution to the rise of the score above the baseline's, by the rescale rule.

    Image and baseline pass through the network side by side. Every operation passes the difference of its output back
    to its inputs, in proportion to their differences. The contributions then sum to the difference of the scores. The
    operations are read from the function's jaxpr; the network is not changed. The rules are, by operation:

    - linear operations: exact;
    - elementwise functions of one value, also in several steps such as GELU: Δout/Δin;
    - products, convolutions and matrix products of two values (attention): the other factor's mean over image and
      baseline;
    - quotients `y = a / s`, also by a root as in LayerNorm: the rule of the product `y·s = a`;
    - other elementwise functions of two values: the mean over both orders in which they can change (Shapley);
    - maxima and max pooling: a rise goes to the winner in the image, a fall to the winner in the baseline;
    - softmax, log-softmax and logsumexp: one operation, by the logarithmic mean of image and baseline (see
      `sdecor.rules.deeplift`);
    - `stop_gradient`: contributions pass, because they would not sum to the difference otherwise.

    Cost: one gradient, and one evaluation of the baseline (one per batch if it is the same for all images).

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, `[H, W, C]`.
      target: the class to explain, a `Contrast` of two classes, or a function of the logits.
      baseline: image to compare with: see `baseline_image`.
      saliency_of: score of the target: "logit", "log_probability" or "probability".
      key: random key, for a baseline that draws, such as "uniform".
      with_error: also return the completeness error.

    Returns:
      Signed contributions `[H, W, C]` in score units. With `with_error` a pair of these and the scalar
      `Σ attribution − (score(image) − score(baseline))`, which is 0 up to rounding.

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


COMPOSITES = ("composite", "epsilon", "gamma", "vit", "z_plus")
_GAMMA = {"convolution": 0.25, "dense": 0.25}
_GAMMA_OF_VIT = {"convolution": 0.25, "dense": 0.05}


@of_any_input
def lrp(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    rule: str | Callable[[Layer], str] = "composite",
    epsilon: float = 1e-6,
    gamma: float | Mapping[str, float] | None = None,
    softmax: str | None = None,
    low: float | jax.Array | None = None,
    high: float | jax.Array | None = None,
    saliency_of: str = "logit",
    with_error: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Return the relevance of each feature: the score, passed back through the layers in proportion to contributions.

    A layer is a convolution or matrix product with a constant kernel, and the constants added to its output and
    multiplied with it. It thus includes a bias and a BatchNorm. Let `z = Σ_j x_j w_j + b` be the layer's output, and R
    the output's relevance. Input j receives `R t_j / d`; the term `t_j` and the denominator d depend on the rule:

    - "epsilon": `t_j = x_j w_j`, and d is `z + ε sign z`;
    - "gamma": `t_j` is `x_j w_j` plus γ times its positive part (negative part where z < 0), and d is the sum of these
      terms and the same term of the bias;
    - "z_plus": `t_j` is the positive part of `x_j w_j`, and d is the sum of these terms and the positive bias;
    - "box", for the first layer of images with values from `low` to `high`: `t_j = x_j w_j − low w_j⁺ − high w_j⁻`, and
      d is the sum of these terms.

    Sums, means and residual additions use the rule "epsilon". Maxima pass relevance to the winner. Biases and other
    added constants (positions, a class token) absorb their share of the relevance, except in "box". For transformers,
    gates and normalisations the rules are those of AttnLRP:

    - an elementwise function of one value, such as ReLU, GELU or a sigmoid: relevance passes unchanged;
    - a product or matrix product of two values: half of the relevance to each, in a sum by the rule "epsilon";
    - a quotient `a / s`, also by a root as in LayerNorm, RMSNorm, GroupNorm or a cosine: s counts as a constant;
    - a softmax p of x: `R_i = x_i (R'_i − p_i Σ R')`, the first-order Taylor expansion at x, whose constant part
      absorbs relevance; or, with `softmax="constant"` (CP-LRP), the weights count as constants in products, and all
      relevance goes to the values that they weight.

    Cost: one gradient for "epsilon"; two for "gamma", "z_plus" and "vit" (three for "z_plus" in a layer whose input may
    be negative). These count products with kernels; in a transformer, elementwise rules take time beside them.

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, `[H, W, C]`.
      target: the class to explain, a `Contrast` of two classes, or a linear function of the logits.
      rule: the rule of all layers; or "composite", which is "gamma" in convolutions, "epsilon" in dense layers, and
        "box" in the first layer if `low` and `high` are given; or "vit", which is "gamma" in all layers and
        `softmax="constant"`, for vision transformers; or a function from a `Layer` to the name of its rule.
      epsilon: stabiliser of all denominators, in units of the layer's output; at least 0.
      gamma: additional weight of positive contributions, at least 0; one number, or one for each of "convolution" and
        "dense". Default: 0.25, but 0.05 in the dense layers of "vit".
      softmax: rule of a softmax, "taylor" or "constant". Default: "taylor", but "constant" in "vit".
      low, high: smallest and largest value that a pixel can have: a number, `[C]` or `[H, W, C]`.
      saliency_of: always "logit". A probability is not a sum of contributions, so relevance cannot start from it.
      with_error: also return the completeness error.

    Returns:
      Signed relevance `[H, W, C]` in score units. With `with_error` a pair of these and the scalar
      `Σ attribution − score`. The scalar is minus the relevance that biases, other added constants, ε and the Taylor
      rule of a softmax absorb; without them it is 0 up to rounding. With "z_plus", relevance is also lost at a layer's
      outputs without any positive part `x_j w_j`. After a ReLU such outputs are 0 and have no relevance, but after a
      GELU they have some, and so has a negative score.

    Raises:
      ValueError: for an operation without a rule, such as sorting or a selection by another value; or an option out of
        range.

    References:
      Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation",
      https://doi.org/10.1371/journal.pone.0130140, 2015. Montavon et al., "Layer-Wise Relevance Propagation: An
      Overview", https://doi.org/10.1007/978-3-030-28954-6_10, 2019 (gamma, composites). Montavon et al., "Explaining
      NonLinear Classification Decisions with Deep Taylor Decomposition", https://arxiv.org/abs/1512.02479, 2015 (z⁺,
      box). Anders et al., https://arxiv.org/abs/2106.13200, 2021 (inputs of both signs, as in zennit). Achtibat et al.,
      "AttnLRP", https://arxiv.org/abs/2402.05602, 2024 (transformers; γ for vision). Ali et al., "XAI for Transformers:
      Better Explanations through Conservative Propagation", https://arxiv.org/abs/2202.07304, 2022 (CP-LRP).
    """
    rule_of = rules_of(rule, low, high, saliency_of)
    check_range("epsilon", epsilon, 0)
    gamma = _gamma_of(gamma, rule)
    softmax = ("constant" if rule == "vit" else "taylor") if softmax is None else softmax
    check_choice("softmax", softmax, SOFTMAX)
    program = flatten(lambda x: target_score(fn(x), target), image, enter_custom=True)

    def score(x: jax.Array, bounds: tuple[jax.Array, ...]) -> jax.Array:
        units = units_of(program, Settings(rule_of, epsilon, gamma, softmax, bounds))
        return execute(program, units, [x])[0]

    given = () if low is None else (low, high)
    bounds = tuple(jnp.broadcast_to(jnp.asarray(bound, image.dtype), image.shape) for bound in given)
    explained, gradients = jax.value_and_grad(canonical(score), argnums=(0, 1))(image, bounds)
    parts = jax.tree.map(jnp.multiply, (image, bounds), gradients)
    relevance = sum(parts[1], parts[0])
    return (relevance, relevance.sum() - explained) if with_error else relevance


def _gamma_of(gamma: float | Mapping[str, float] | None, rule: str | Callable) -> Mapping[str, float]:
    """Return γ by kind of layer, after a check of the values."""
    default = _GAMMA_OF_VIT if rule == "vit" else _GAMMA
    if gamma is None:
        return default
    if not isinstance(gamma, Mapping):
        check_range("gamma", gamma, 0)
        return dict.fromkeys(_GAMMA, gamma)
    for kind, value in gamma.items():
        check_choice("kind of layer in gamma", kind, _GAMMA)
        check_range(f"gamma[{kind!r}]", value, 0)
    return default | dict(gamma)


def rules_of(rule: str | Callable, low: object, high: object, saliency_of: str) -> Callable[[Layer], str]:
    """Return the function from a layer to its rule, after a check that the options fit together."""
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
        return lambda layer: "gamma" if rule == "vit" else rule
    of_first = None if low is None else "box"
    return lambda layer: (layer.first and of_first) or {"convolution": "gamma", "dense": "epsilon"}[layer.kind]
