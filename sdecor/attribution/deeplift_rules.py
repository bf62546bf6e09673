"""How DeepLIFT passes differences back through each kind of operation.

Every value is a `Pair`, of the image and of the baseline. A unit computes both; the gradient of the image's half is the
multiplier `m` with `Δout = Σ m · Δin`, exactly.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sdecor.attribution.equations import BILINEAR, ELEMENTWISE, MAXIMA, MINIMA
from sdecor.attribution.patterns import elementwise, is_float, is_linear
from sdecor.attribution.program import Program, Step, Unit, Unsupported, Value
from sdecor.attribution.surrogates import linearised, same, slope

_RESHAPING = ("broadcast_in_dim", "expand_dims", "reshape", "squeeze")


class Pair(NamedTuple):
    """A value of the network for the image and for the baseline."""

    image: jax.Array
    baseline: jax.Array


def unit_of(program: Program, step: Step) -> Unit:
    """Return how differences pass a step; raise `Unsupported` where there is no rule."""
    if step.name == "stop_gradient":
        return Unit(step.dependent, step.outputs, lambda x: [x])
    if is_linear(step):
        return Unit(step.dependent, step.outputs, _at_both_ends(step))
    if not is_float(step.outputs[0]):
        raise _unsupported(step, "its result is no real number that differences can pass through")
    normalised = _softmax_in(program, step) or _logsumexp_in(program, step)
    if normalised is not None:
        return normalised
    function = elementwise(program, step)
    if function is not None:
        return Unit((function.root,), step.outputs, _rescale(function))
    if not all(map(is_float, step.dependent)):
        raise _unsupported(step, "it selects by a condition on other values that depend on the image")
    if len(step.dependent) == 2 and step.name in BILINEAR:
        return Unit(step.dependent, step.outputs, _product(step))
    if len(step.dependent) == 2 and (step.name in ELEMENTWISE or step.name.startswith("custom_")):
        return Unit(step.dependent, step.outputs, _either_order(step))
    if step.name in MAXIMA | MINIMA:
        return Unit(step.dependent, step.outputs, _extremum(step))
    raise _unsupported(step, "it has no rule for a difference of its inputs")


def _unsupported(step: Step, why: str) -> Unsupported:
    instead = "Methods that evaluate the network only, such as 'integrated_gradients', can"
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
    """A product `a·b`: `Δ(a·b) = mean(b)·Δa + mean(a)·Δb`."""

    @jax.custom_jvp
    def multiply(a: jax.Array, b: jax.Array, mean_a: jax.Array, mean_b: jax.Array) -> jax.Array:
        return step(a, b)[0]

    @multiply.defjvp
    def jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
        a, b, mean_a, mean_b = primals
        return step(a, b)[0], step(tangents[0], mean_b)[0] + step(mean_a, tangents[1])[0]

    def apply(a: Pair, b: Pair) -> list[Pair]:
        means = [lax.stop_gradient(x.image + x.baseline) / 2 for x in (a, b)]
        return [Pair(multiply(a.image, b.image, *means), step(a.baseline, b.baseline)[0])]

    return apply


def _either_order(step: Step) -> Callable[[Pair, Pair], list[Pair]]:
    """A function of two values: the mean of changing one at the old and at the new value of the other."""
    shape = step.outputs[0].shape

    def apply(*operands: Pair) -> list[Pair]:
        a, b = (Pair(*(jnp.broadcast_to(x, shape) for x in pair)) for pair in operands)
        x, y = lax.stop_gradient((a.image, b.image))
        if step.name == "div":
            to_a = (1 / y + 1 / b.baseline) / 2
            to_b = -(x + a.baseline) / 2 / (y * b.baseline)
        else:
            to_a = sum(slope(lambda t, y=y: step(t, y)[0], x, a.baseline) for y in (y, b.baseline)) / 2
            to_b = sum(slope(lambda t, x=x: step(x, t)[0], y, b.baseline) for x in (x, a.baseline)) / 2
        value = linearised(step(x, y)[0], (to_a, to_b), (a.image, b.image))
        return [Pair(value, step(a.baseline, b.baseline)[0])]

    return apply


def _extremum(step: Step) -> Callable[[Pair], list[Pair]]:
    """A maximum: what it gains comes from its place in the image, what it loses from its place in the baseline."""

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


def _softmax_in(program: Program, step: Step) -> Unit | None:
    """The rule of `exp(u) / Σ exp(u)`, which a step may complete.

    With `p = exp(u − L)` and `ℓ` the logarithmic mean of `p` at both ends, `Δp_i = ℓ_i (Δu_i − ΔL)`; since `Σ Δp = 0`,
    `ΔL = Σ ℓ_j Δu_j / Σ ℓ_j`. The multipliers are bounded by 1, and a shift of all `u` contributes nothing.
    """
    if step.name != "div" or len(step.dependent) != 2:
        return None
    u, total = _exponent(program, step.inputs[0]), _total(program, step.inputs[1], _RESHAPING)
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


def _logsumexp_in(program: Program, step: Step) -> Unit | None:
    """The rule of `L = log Σ exp(u)`: `ΔL = Σ ℓ_j Δu_j / Σ ℓ_j`, as in the softmax."""
    total = _total(program, step.inputs[0], (*_RESHAPING, "abs")) if step.name == "log" else None
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
    """Return the sum behind a value, however it has been reshaped."""
    made = program.made_by.get(value)
    while made is not None and made.name in passing:
        made = program.made_by.get(made.dependent[0])
    return made if made is not None and made.name == "reduce_sum" else None


def _logarithmic_mean(u: jax.Array, start: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Return `(p − p₀) / (log p − log p₀)` of the softmax at both ends."""
    high, low = (x - jax.nn.logsumexp(x, axes, keepdims=True) for x in (u, start))
    high, low = jnp.maximum(high, low), jnp.minimum(high, low)
    gap = jnp.where(jnp.isfinite(high), high - low, 0)
    return jnp.exp(high) * jnp.where(gap > 0, -jnp.expm1(-gap) / jnp.where(gap > 0, gap, 1), 1)
