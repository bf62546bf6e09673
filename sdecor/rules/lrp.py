"""LRP's rules: how relevance passes each kind of operation.

A value x with relevance R carries the ratio `c = R/x`. Each rule is then a modified gradient, and a unit is a function
with the network's values and this gradient.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sdecor.rules import deeplift
from sdecor.rules.affine import Affine, affine_layer
from sdecor.rules.patterns import elementwise, is_float, is_linear, is_nonnegative, linearised, route_from_input, slope
from sdecor.rules.program import BILINEAR, MAXIMA, MINIMA, Program, Step, Unit, Unsupported, plain

RULES = ("epsilon", "gamma", "z_plus", "box")
# Operations that an error names by their purpose.
_PART_OF = {
    "exp": "a softmax or an attention",
    "logistic": "a gate",
    "rsqrt": "a normalisation by the image's own values, such as LayerNorm",
}


class Layer(NamedTuple):
    """A layer to choose a rule for: named scope, kind ("convolution" or "dense"), and whether it sees the image."""

    scope: str
    kind: str
    first: bool


class Settings(NamedTuple):
    """The rule of each layer, ε, γ, and the image's bounds `(low, high)`, empty where they are not needed."""

    rule_of: Callable[[Layer], str]
    epsilon: float
    gamma: float
    bounds: tuple[jax.Array, ...]


def unit_of(program: Program, settings: Settings, step: Step) -> Unit:
    """Return LRP's unit for a step; raise `Unsupported` where there is no rule."""
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
        if np.any(function.probed(np.zeros(1))[1] != 0):
            whole = _PART_OF.get(step.name)
            why = "its value at 0 is not 0, so that it does not conserve relevance"
            raise _unsupported(program, step, f"it is a part of {whole}, which has no rule" if whole else why)
        return function.unit(_unchanged(function))
    if floats and step.name in ("max", "min"):
        return plain(step)
    if step.name in BILINEAR | {"div"}:
        why = "it multiplies or divides values that both depend on the image (LayerNorm, attention, a gate)"
        raise _unsupported(program, step, why)
    raise _unsupported(program, step, "it has no rule for relevance")


def _unsupported(program: Program, step: Step, why: str) -> Unsupported:
    try:
        deeplift.unit_of(program, step)
    except Unsupported:
        instead = "Use a gradient method, such as 'integrated_gradients'"
    else:
        instead = "Use method='deeplift', which has a rule for it and sums to the score too, or a gradient method"
    return Unsupported("lrp", step, why, instead)


def _unchanged(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], list[jax.Array]]:
    """Return the rule of an activation, which passes relevance unchanged: `x c_x = y c_y`."""

    def apply(x: jax.Array) -> list[jax.Array]:
        fixed = lax.stop_gradient(x)
        return [linearised(function(fixed), (slope(function, fixed, jnp.zeros_like(fixed)),), (x,))]

    return apply


def _shared(denominator: jax.Array, epsilon: float, value: jax.Array | None = None) -> jax.Array:
    """Return `value` (default: `denominator`) with its relevance shared in proportion to the parts of `denominator`."""
    fixed = lax.stop_gradient(denominator)
    value = fixed if value is None else lax.stop_gradient(value)
    stable = fixed + jnp.where(fixed < 0, -epsilon, epsilon).astype(fixed.dtype)
    none = (stable == 0) | jnp.isneginf(stable)  # a logit of −inf excludes its class: it has no relevance
    share = jnp.where(none, 0, value / jnp.where(none, 1, stable))
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
        above, below = jnp.maximum(kernel, 0), jnp.minimum(kernel, 0)
        if rule == "box":
            z = linear(x, kernel)
            low, high = (_routed(route, bound) for bound in settings.bounds)
            denominator = z - linear(low, above) - linear(high, below)
            return [_shared(denominator, settings.epsilon, z + shift)]
        if nonnegative:  # one layer with twice the features costs less than two layers
            z, positive = jax.vmap(linear, (None, 0))(x, jnp.stack([kernel, above]))
        else:
            parts = jnp.where(x > 0, x, 0), jnp.where(x < 0, x, 0)
            z, positive = linear(x, kernel), affine.added(linear, parts, (above, below))
        z, positive = z + shift, positive + jnp.maximum(shift, 0)
        if rule == "z_plus":
            return [_shared(positive, settings.epsilon, z)]
        favored = jnp.where(z > 0, positive, z - positive)
        return [_shared(z + settings.gamma * favored, settings.epsilon, z)]

    return apply


def _routed(route: Sequence[Step], bound: jax.Array) -> jax.Array:
    for step in route:
        (bound,) = step(bound)
    return bound
