"""How DeepLIFT passes differences back through each kind of operation.

Every value is a `Pair`, of the image and of the baseline. A unit computes both; the gradient of the image's half is the
multiplier `m` with `Δout = Σ m · Δin`, exactly.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from sdecor.attribution.deeplift_softmax import RESHAPING, Pair, logsumexp_in, softmax_in
from sdecor.attribution.equations import BILINEAR, ELEMENTWISE, MAXIMA, MINIMA
from sdecor.attribution.patterns import elementwise, is_float, is_linear
from sdecor.attribution.program import Program, Step, Unit, Unsupported, Value
from sdecor.attribution.surrogates import linearised, same, slope
from sdecor.core.jaxpr import has_own_derivative


def unit_of(program: Program, step: Step) -> Unit:
    """Return how differences pass a step; raise `Unsupported` where there is no rule."""
    if step.name == "stop_gradient":
        return Unit(step.dependent, step.outputs, lambda x: [x])
    if is_linear(step):
        return Unit(step.dependent, step.outputs, _at_both_ends(step))
    if not is_float(step.outputs[0]):
        raise _unsupported(step, "its result is no real number that differences can pass through")
    normalised = softmax_in(program, step) or logsumexp_in(program, step)
    if normalised is not None:
        return normalised
    function = elementwise(program, step)
    if function is not None:
        return function.unit(_rescale(function))
    if not all(map(is_float, step.dependent)):
        raise _unsupported(step, "it selects by a condition on other values that depend on the image")
    divisor = _divisor(program, step)
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
        means = [_middle(x) for x in (a, b)]
        return [Pair(multiply(a.image, b.image, *means), step(a.baseline, b.baseline)[0])]

    return apply


def _middle(x: Pair) -> jax.Array:
    return lax.stop_gradient(x.image / 2 + x.baseline / 2)


def _divisor(program: Program, step: Step) -> int | None:
    """Return the place of the input that a step divides by, or multiplies with after dividing 1 by it; else None."""
    if len(step.dependent) != 2 or step.name not in ("div", "mul"):
        return None
    return 1 if step.name == "div" else next((i for i in (0, 1) if _is_reciprocal(program, step.inputs[i])), None)


def _is_reciprocal(program: Program, value: Value) -> bool:
    made = program.made_by.get(value)
    while made is not None and made.name in (*RESHAPING, "convert_element_type", "mul") and len(made.dependent) == 1:
        made = program.made_by.get(made.dependent[0])
    return made is not None and (made.name == "rsqrt" or (made.name == "div" and not isinstance(made.inputs[0], Value)))


def _quotient(step: Step, divisor: int) -> Callable[[Pair, Pair], list[Pair]]:
    """A quotient `y = a / s`, taken as the product `y·s = a`: `Δy = (Δa − mean(y)·Δs) / mean(s)`.

    As a product `a·r` with `r = 1 / s` too. It stays bounded where s is 0 at one end, as in the LayerNorm of a constant
    baseline, of which `mean(r)·Δa + mean(a)·Δr` makes large contributions that cancel. Where the sign of s changes,
    that is the rule.
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
    """A function of two values: the mean of changing one at the old and at the new value of the other."""
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
