"""LRP's rules: how relevance passes each kind of operation.

A value x with relevance R carries the ratio `c = R/x`. Each rule is then a modified gradient, and a unit is a function
with the network's values and this gradient.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sdecor.rules import deeplift
from sdecor.rules.affine import Affine, affine_layer
from sdecor.rules.patterns import (
    divisor_of,
    elementwise,
    is_float,
    is_linear,
    is_nonnegative,
    linearised,
    route_from_input,
)
from sdecor.rules.program import BILINEAR, MAXIMA, MINIMA, Program, Step, Unit, Unsupported, Value, plain, plan
from sdecor.rules.softmaxes import arranged, log_sums, softmax_weights

RULES = ("epsilon", "gamma", "z_plus", "box")
SOFTMAX = ("taylor", "constant")


class Layer(NamedTuple):
    """A layer to choose a rule for: named scope, kind ("convolution" or "dense"), and whether it sees the image."""

    scope: str
    kind: str
    first: bool


class Settings(NamedTuple):
    """The rule of each layer, ε, γ by kind of layer, the rule of a softmax, and the image's bounds.

    The bounds are `(low, high)`, or empty where they are not needed.
    """

    rule_of: Callable[[Layer], str]
    epsilon: float
    gamma: Mapping[str, float]
    softmax: str
    bounds: tuple[jax.Array, ...]


class _Softmaxes(NamedTuple):
    """Values of all softmaxes: the outputs of their steps, and the weights that count as constants."""

    steps: frozenset[Value]
    constant: frozenset[Value]


def units_of(program: Program, settings: Settings) -> list[Unit]:
    """Return LRP's units of a program; raise ValueError for a step without a rule."""
    weights = softmax_weights(program)
    found = [*weights, *log_sums(program)]
    softmaxes = _Softmaxes(
        steps=frozenset().union(*(softmax.steps for softmax in found)),
        constant=frozenset(softmax.output for softmax in weights if settings.softmax == "constant"),
    )
    return plan(program, partial(_unit_of, program, settings, softmaxes))


def _unit_of(program: Program, settings: Settings, softmaxes: _Softmaxes, step: Step) -> Unit:
    """Return LRP's unit for a step; raise `Unsupported` where there is no rule."""
    if step.outputs[0] in softmaxes.steps:
        # AttnLRP's rule R_i = x_i (R'_i − p_i Σ R') of p = softmax(x) is the gradient: c_i = Σ_j c'_j ∂p_j/∂x_i. What
        # is subtracted from x, such as the maximum, receives 0 in sum.
        return plain(step)
    affine = affine_layer(program, step)
    if affine is not None and affine.has_kernel:
        return Unit((affine.root,), step.outputs, _layer(program, settings, affine))
    if affine is not None and affine.adds:
        return Unit((affine.root,), step.outputs, lambda x: [_shared(affine(x), settings.epsilon)])
    if step.name in ("add", "add_any", "sub", "scatter-add") and is_linear(step):
        return Unit(step.dependent, step.outputs, lambda *x: [_shared(step(*x)[0], settings.epsilon)])
    floats = all(map(is_float, step.dependent + step.outputs))
    if is_linear(step) or (floats and step.name in MAXIMA | MINIMA):
        return plain(step)
    function = elementwise(program, step) if is_float(step.outputs[0]) else None
    if function is not None:
        vanishes = not np.any(function.probed(np.zeros(1))[1])
        return function.unit(_unchanged(function, None if vanishes else settings.epsilon))
    if floats and step.name in ("max", "min"):
        return plain(step)
    divisor = divisor_of(program, step) if floats else None
    if divisor is not None:
        return plain(step)._replace(constants=frozenset({step.inputs[divisor]}))
    if floats and step.name in BILINEAR:
        return _product(program, settings, softmaxes, step)
    raise _unsupported(program, step, "it has no rule for relevance")


def _product(program: Program, settings: Settings, softmaxes: _Softmaxes, step: Step) -> Unit:
    """Return the rule of a product of two values: half of the relevance to each, or all to the one that varies."""
    constants = frozenset(x for x in step.dependent if arranged(program, x) in softmaxes.constant)
    constants = constants if len(constants) < len(set(step.dependent)) else frozenset()
    part = 1.0 if constants else 0.5

    def apply(*operands: jax.Array) -> list[jax.Array]:
        (z,) = step(*operands)
        if step.name == "mul":  # no sum, so that no denominator can vanish
            return [linearised(lax.stop_gradient(z), (jnp.full_like(z, part),), (z,))]
        return [_shared(z, settings.epsilon, part=part)]

    return Unit(step.dependent, step.outputs, apply, constants)


def _unsupported(program: Program, step: Step, why: str) -> Unsupported:
    try:
        deeplift.unit_of(program, step)
    except Unsupported:
        instead = "Use a gradient method, such as 'integrated_gradients'"
    else:
        instead = "Use method='deeplift', which has a rule for it and sums to the score too, or a gradient method"
    return Unsupported("lrp", step, why, instead)


def _unchanged(
    function: Callable[[jax.Array], jax.Array], epsilon: float | None
) -> Callable[[jax.Array], list[jax.Array]]:
    """Return the rule of an activation, which passes relevance unchanged: `x c_x = y c_y`.

    If f(0) = 0, `epsilon` is None and f(x)/x is the slope from 0; otherwise it is `f(x) / (x + ε sign x)`.
    """

    def apply(x: jax.Array) -> list[jax.Array]:
        fixed = lax.stop_gradient(x)
        y = function(fixed)
        if epsilon is None:
            # Only at 0 is a derivative needed; the compiler folds it.
            at_zero, pull_back = jax.vjp(function, jnp.zeros_like(fixed))
            (derivative,) = pull_back(jnp.ones_like(at_zero))
            ratio = jnp.where(fixed == 0, derivative, y / jnp.where(fixed == 0, 1, fixed))
            ratio = jnp.where(jnp.isfinite(ratio), ratio, 0)
        else:
            stable = _stabilised(fixed, epsilon)
            ratio = jnp.where(stable == 0, 0, y / jnp.where(stable == 0, 1, stable))
        return [linearised(y, (ratio,), (x,))]

    return apply


def _stabilised(value: jax.Array, epsilon: float) -> jax.Array:
    return value + jnp.where(value < 0, -epsilon, epsilon).astype(value.dtype)


def _shared(denominator: jax.Array, epsilon: float, value: jax.Array | None = None, part: float = 1.0) -> jax.Array:
    """Return `value` (default: `denominator`) with its relevance shared in proportion to the parts of `denominator`.

    Each part receives the factor `part` of its share.
    """
    fixed = lax.stop_gradient(denominator)
    value = fixed if value is None else lax.stop_gradient(value)
    stable = _stabilised(fixed, epsilon)
    none = (stable == 0) | jnp.isneginf(stable)  # a logit of −inf excludes its class: it has no relevance
    share = part * jnp.where(none, 0, value / jnp.where(none, 1, stable))
    return linearised(value, (share,), (denominator,))


def _layer(program: Program, settings: Settings, affine: Affine) -> Callable[[jax.Array], list[jax.Array]]:
    """Return the chosen rule of a layer with a kernel."""
    route = route_from_input(program, affine.root)
    kind = "convolution" if affine.base.name == "conv_general_dilated" else "dense"
    rule = settings.rule_of(Layer(affine.base.scope, kind, route is not None))
    if rule == "box" and route is None:
        why = "the rule 'box' is for layers that see the image itself"
        raise Unsupported("lrp", affine.base, why, "Choose another rule for it")
    nonnegative = is_nonnegative(program, affine.root)

    def apply(x: jax.Array) -> list[jax.Array]:
        if rule == "epsilon":
            return [_shared(affine(x), settings.epsilon)]
        kernel, shift, linear = affine.weights()
        if rule == "box":
            z, above, below = linear(x, kernel), jnp.maximum(kernel, 0), jnp.minimum(kernel, 0)
            low, high = (_routed(route, bound) for bound in settings.bounds)
            denominator = z - linear(low, above) - linear(high, below)
            return [_shared(denominator, settings.epsilon, z + shift)]
        if rule == "z_plus":
            z, positive = _with_positive(affine, linear, x, kernel, nonnegative)
            return [_shared(positive + jnp.maximum(shift, 0), settings.epsilon, z + shift)]
        # The terms of z's sign sum to (z ± Σ |x_j w_j|) / 2. It has z's sign, so that nothing cancels in the
        # denominator, and takes no separate sums for inputs of both signs.
        z, magnitude = _with_magnitude(linear, x, kernel, nonnegative)
        z, magnitude = z + shift, magnitude + jnp.abs(shift)
        favored = (z + jnp.where(z > 0, magnitude, -magnitude)) / 2
        return [_shared(z + settings.gamma[kind] * favored, settings.epsilon, z)]

    return apply


def _with_positive(
    affine: Affine, linear: Callable, x: jax.Array, kernel: jax.Array, nonnegative: bool
) -> tuple[jax.Array, jax.Array]:
    """Return the sums of all terms `x_j w_j` and of the positive ones, which are exactly 0 where there are none."""
    above, below = jnp.maximum(kernel, 0), jnp.minimum(kernel, 0)
    if nonnegative:  # one layer with twice the features costs less than two layers
        return tuple(jax.vmap(linear, (None, 0))(x, jnp.stack([kernel, above])))
    return linear(x, kernel), affine.added(linear, (jnp.where(x > 0, x, 0), jnp.where(x < 0, x, 0)), (above, below))


def _with_magnitude(
    linear: Callable, x: jax.Array, kernel: jax.Array, nonnegative: bool
) -> tuple[jax.Array, jax.Array]:
    """Return the sums of all terms `x_j w_j` and of their magnitudes."""
    if nonnegative:
        return tuple(jax.vmap(linear, (None, 0))(x, jnp.stack([kernel, jnp.abs(kernel)])))
    return linear(x, kernel), linear(jnp.abs(x), jnp.abs(kernel))


def _routed(route: Sequence[Step], bound: jax.Array) -> jax.Array:
    for step in route:
        (bound,) = step(bound)
    return bound
