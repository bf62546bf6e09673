"""DeepLIFT's rules: how differences pass each kind of operation. A softmax counts as one operation.

Each value is a `Pair`, for the image and for the baseline, and a unit computes both. The gradient of the image's half
is the multiplier `m`, with `Δout = Σ m · Δin` exactly.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sdecor.core.jaxpr import has_own_derivative
from sdecor.rules.patterns import RESHAPING, divisor_of, elementwise, is_float, is_linear, linearised, same, slope
from sdecor.rules.program import BILINEAR, ELEMENTWISE, MAXIMA, MINIMA, Program, Step, Unit, Unsupported, Value


class Pair(NamedTuple):
    """A value of the network for the image and for the baseline."""

    image: jax.Array
    baseline: jax.Array


def softmax_in(program: Program, step: Step) -> Unit | None:
    """Return the rule of a softmax `exp(u) / Σ exp(u)` that ends with `step`; None for any other step.

    Let `L = log Σ exp(u)`, `p = exp(u − L)` and `ℓ` the logarithmic mean of `p` at image and baseline. Then
    `Δp_i = ℓ_i (Δu_i − ΔL)`, and `Σ Δp = 0` gives `ΔL = Σ ℓ_j Δu_j / Σ ℓ_j`. The multipliers are bounded by 1, and a
    shift of all `u` contributes nothing.
    """
    if step.name != "div" or len(step.dependent) != 2:
        return None
    u, total = _exponent(program, step.inputs[0]), _total(program, step.inputs[1], RESHAPING)
    if u is None or total is None or _exponent(program, total.inputs[0]) != u:
        return None
    axes = total.params["axes"]
    if step.inputs[1].shape != tuple(1 if i in axes else n for i, n in enumerate(u.shape)):
        return None

    def apply(x: Pair) -> list[Pair]:
        fixed = lax.stop_gradient(x.image)
        weights = _logarithmic_mean(fixed, x.baseline, axes)
        centred = x.image - (weights * x.image).sum(axes, keepdims=True) / weights.sum(axes, keepdims=True)
        return [Pair(linearised(jax.nn.softmax(fixed, axes), (weights,), (centred,)), jax.nn.softmax(x.baseline, axes))]

    return Unit((u,), step.outputs, apply)


def logsumexp_in(program: Program, step: Step) -> Unit | None:
    """Return the rule of `L = log Σ exp(u)` that ends with `step`; None for any other step.

    As in the softmax, `ΔL = Σ ℓ_j Δu_j / Σ ℓ_j`.
    """
    total = _total(program, step.inputs[0], (*RESHAPING, "abs")) if step.name == "log" else None
    u = None if total is None else _exponent(program, total.inputs[0])
    if u is None or math.prod(total.outputs[0].shape) != math.prod(step.outputs[0].shape):
        return None
    axes, shape = total.params["axes"], step.outputs[0].shape

    def apply(x: Pair) -> list[Pair]:
        fixed = lax.stop_gradient(x.image)
        weights = _logarithmic_mean(fixed, x.baseline, axes)
        mean = (weights * x.image).sum(axes) / weights.sum(axes)
        value = linearised(jax.nn.logsumexp(fixed, axes), (jnp.ones_like(mean),), (mean,))
        return [Pair(value.reshape(shape), jax.nn.logsumexp(x.baseline, axes).reshape(shape))]

    return Unit((u,), step.outputs, apply)


def _exponent(program: Program, value: Value) -> Value | None:
    made = program.made_by.get(value)
    return made.dependent[0] if made is not None and made.name == "exp" else None


def _total(program: Program, value: Value, passing: tuple[str, ...]) -> Step | None:
    """Return the `reduce_sum` that a value comes from through steps named in `passing`; None if there is none."""
    made = program.made_by.get(value)
    while made is not None and made.name in passing:
        made = program.made_by.get(made.dependent[0])
    return made if made is not None and made.name == "reduce_sum" else None


def _logarithmic_mean(u: jax.Array, start: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Return the logarithmic mean `(p − p₀) / (log p − log p₀)` of the softmax p at image and baseline."""
    high, low = (x - jax.nn.logsumexp(x, axes, keepdims=True) for x in (u, start))
    high, low = jnp.maximum(high, low), jnp.minimum(high, low)
    gap = jnp.where(jnp.isfinite(high), high - low, 0)
    return jnp.exp(high) * jnp.where(gap > 0, -jnp.expm1(-gap) / jnp.where(gap > 0, gap, 1), 1)


def unit_of(program: Program, step: Step) -> Unit:
    """Return DeepLIFT's unit for a step; raise `Unsupported` where there is no rule."""
    if step.name == "stop_gradient":
        return Unit(step.dependent, step.outputs, lambda x: [x])
    if is_linear(step):
        return Unit(step.dependent, step.outputs, _at_both_ends(step))
    if not is_float(step.outputs[0]):
        raise _unsupported(step, "its result is not a real number, so differences cannot pass through it")
    normalised = softmax_in(program, step) or logsumexp_in(program, step)
    if normalised is not None:
        return normalised
    function = elementwise(program, step)
    if function is not None:
        return function.unit(_rescale(function))
    if not all(map(is_float, step.dependent)):
        raise _unsupported(step, "it selects by a condition on other values that depend on the image")
    divisor = divisor_of(program, step)
    if divisor is not None:
        return Unit(step.dependent, step.outputs, _quotient(step, divisor))
    if len(step.dependent) == 2 and step.name in BILINEAR:
        return Unit(step.dependent, step.outputs, _product(step))
    if len(step.dependent) == 2 and (step.name in ELEMENTWISE or has_own_derivative(step.equation)):
        return Unit(step.dependent, step.outputs, _either_order(step))
    if step.name in MAXIMA | MINIMA:
        return Unit(step.dependent, step.outputs, _extremum(step))
    raise _unsupported(step, "it has no rule for a difference of its inputs")


def _unsupported(step: Step, why: str) -> Unsupported:
    instead = "Use a gradient method, such as 'integrated_gradients'"
    return Unsupported("deeplift", step, why, instead)


def _at_both_ends(step: Step) -> Callable[..., list[Pair]]:
    def apply(*operands: Pair) -> list[Pair]:
        images, baselines = zip(*operands, strict=True)
        return [Pair(*both) for both in zip(step(*images), step(*baselines), strict=True)]

    return apply


def _rescale(function: Callable[[jax.Array], jax.Array]) -> Callable[[Pair], list[Pair]]:
    def apply(x: Pair) -> list[Pair]:
        fixed = lax.stop_gradient(x.image)
        multiplier = slope(function, fixed, x.baseline)
        return [Pair(linearised(function(fixed), (multiplier,), (x.image,)), function(x.baseline))]

    return apply


def _product(step: Step) -> Callable[[Pair, Pair], list[Pair]]:
    """Return the rule of a product: `Δ(a·b) = mean(b)·Δa + mean(a)·Δb`."""

    @jax.custom_jvp
    def multiply(a: jax.Array, b: jax.Array, mean_a: jax.Array, mean_b: jax.Array) -> jax.Array:
        return step(a, b)[0]

    @multiply.defjvp
    def jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
        a, b, mean_a, mean_b = primals
        return step(a, b)[0], step(tangents[0], mean_b)[0] + step(mean_a, tangents[1])[0]

    def apply(a: Pair, b: Pair) -> list[Pair]:
        means = [_middle(x) for x in (a, b)]
        return [Pair(multiply(a.image, b.image, *means), step(a.baseline, b.baseline)[0])]

    return apply


def _middle(x: Pair) -> jax.Array:
    return lax.stop_gradient(x.image / 2 + x.baseline / 2)


def _quotient(step: Step, divisor: int) -> Callable[[Pair, Pair], list[Pair]]:
    """Return the rule of a quotient `y = a / s`, also where it is written as `a·r` with `r = 1 / s`.

    The product `y·s = a` gives `Δy = (Δa − mean(y)·Δs) / mean(s)`. This stays bounded where s is 0 for one of image
    and baseline, as in the LayerNorm of a constant baseline. The product `a·r` gives `mean(r)·Δa + mean(a)·Δr`, with
    large contributions that cancel there; this rule is used only where the sign of s changes.
    """

    def apply(*operands: Pair) -> list[Pair]:
        a, b = operands[1 - divisor], operands[divisor]
        y, y_start = (step(*ends)[0] for ends in zip(*lax.stop_gradient(operands), strict=True))
        r = Pair(1 / b.image, 1 / b.baseline) if step.name == "div" else b
        r, mean_r = lax.stop_gradient(r), _middle(r)
        alike = jnp.sign(r.image) * jnp.sign(r.baseline) > 0
        divided = jnp.where(alike, mean_r, 1)
        to_a = jnp.where(alike, r.image * (r.baseline / divided), mean_r)
        to_b = jnp.where(alike, _middle(Pair(y, y_start)) / divided, _middle(a))
        if step.name == "div":
            to_b = -to_b * r.image * r.baseline
        return [Pair(linearised(y, (to_a, to_b), (a.image, b.image)), y_start)]

    return apply


def _either_order(step: Step) -> Callable[[Pair, Pair], list[Pair]]:
    """Return the rule of a function of two values: the slope in one, averaged over image and baseline of the other."""
    shape = step.outputs[0].shape

    def apply(*operands: Pair) -> list[Pair]:
        a, b = (Pair(*(jnp.broadcast_to(x, shape) for x in pair)) for pair in operands)
        x, y = lax.stop_gradient((a.image, b.image))
        to_a = sum(slope(lambda t, y=y: step(t, y)[0], x, a.baseline) for y in (y, b.baseline)) / 2
        to_b = sum(slope(lambda t, x=x: step(x, t)[0], y, b.baseline) for x in (x, a.baseline)) / 2
        value = linearised(step(x, y)[0], (to_a, to_b), (a.image, b.image))
        return [Pair(value, step(a.baseline, b.baseline)[0])]

    return apply


def _extremum(step: Step) -> Callable[[Pair], list[Pair]]:
    """Return the rule of a maximum or minimum.

    A maximum's gain goes to its position in the image, its loss to its position in the baseline. For a minimum it is
    the reverse.
    """

    def extremum(x: jax.Array) -> jax.Array:
        return step(x)[0]

    def backward(kept: Pair, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        (y, pull_back), (y_start, pull_back_start) = (jax.vjp(extremum, x) for x in kept)
        change = jnp.nan_to_num(y - y_start, posinf=0, neginf=0)
        gain, loss = jnp.maximum(change, 0), jnp.minimum(change, 0)
        to_image, to_start = (gain, loss) if step.name in MAXIMA else (loss, gain)
        (passed,), (of_image,) = pull_back(cotangent), pull_back(cotangent * to_image)
        (of_start,) = pull_back_start(cotangent * to_start)
        near = same(*kept)
        share = (of_image + of_start) / jnp.where(near, 1, kept.image - kept.baseline)
        return jnp.where(near, passed, share), jnp.zeros_like(kept.baseline)

    @jax.custom_vjp
    def rule(x: jax.Array, start: jax.Array) -> jax.Array:
        return extremum(x)

    rule.defvjp(lambda x, start: (extremum(x), Pair(x, start)), backward)
    return lambda x: [Pair(rule(*x), extremum(x.baseline))]
