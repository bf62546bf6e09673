"""Layer-wise relevance propagation (LRP), with the layers and their rules found in the function itself."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from sdecor.attribution.canonical import canonical
from sdecor.attribution.lrp_rules import RULES, Layer, Settings, unit_of
from sdecor.attribution.program import execute, flatten, plan
from sdecor.attribution.targets import Target, target_score
from sdecor.core.checks import check_choice, check_range

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
        units = plan(program, partial(unit_of, program, settings))
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
