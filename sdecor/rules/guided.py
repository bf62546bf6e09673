"""Guided backpropagation and the deconvolutional network: gradients with another rule at each ReLU."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from sdecor.core.jaxpr import body_of, has_own_derivative, holds_function
from sdecor.rules.patterns import elementwise, is_float
from sdecor.rules.program import Program, Step, Unit, Unsupported, execute, flatten, is_elementwise_call, plain, plan
from sdecor.rules.relus import ReLU, relu_at

_COMBINING = ("scatter", "scatter-add", "scatter_add", "scatter_mul")  # they hold a function, but of two numbers


def with_relus(fn: Callable, image: jax.Array, low: float, method: str) -> Callable[[jax.Array], jax.Array]:
    """Return `fn` with each ReLU replaced by `_relu(x, low, cap)`; raise ValueError if it has none."""
    program = flatten(fn, image, enter_custom=False)
    found = []
    units = plan(program, lambda step: _unit_of(program, step, low, method, found))
    if not found:
        raise ValueError(
            f"{method} changes how gradients pass a ReLU, and fn has none (other activations keep their gradient): "
            "use method='gradient', 'integrated_gradients' or 'deeplift'"
        )
    return lambda x: execute(program, units, [x])[0]


def _unit_of(program: Program, step: Step, low: float, method: str, found: list[Step]) -> Unit:
    """Return the unit of a step, and add the step to `found` if it completes a ReLU."""
    passes = any(map(is_float, step.dependent)) and any(map(is_float, step.outputs))
    if passes and not _is_known(step):
        instead = "Write it with `scan` or a Python loop, or without control flow that depends on the image."
        raise Unsupported(method, step, "it may hold a ReLU and is not entered", instead)
    relu = relu_at(program, step)
    if isinstance(relu, ReLU):
        found.append(step)
        return relu.unit(lambda x: _relu(x, low, relu.cap))
    if relu is not None:
        raise Unsupported(method, step, relu, "Or use a gradient method, such as 'integrated_gradients'.")
    function = elementwise(program, step) if passes and len(step.dependent) > 1 else None
    # One unit, because a ReLU inside another activation keeps its gradient.
    return plain(step) if function is None else function.unit(lambda x: [function(x)])


def _is_known(step: Step) -> bool:
    """Return whether no ReLU can be hidden inside a step."""
    if not holds_function(step.equation) or step.name in _COMBINING or is_elementwise_call(step.equation):
        return True
    if not has_own_derivative(step.equation):
        return False
    body = body_of(step.equation)
    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in body.jaxpr.invars]
    inside = flatten(core.jaxpr_as_fun(body), *shapes, enter_custom=False)
    found = []
    try:
        plan(inside, lambda step: _unit_of(inside, step, 0.0, "", found))
    except ValueError:
        return False
    return not found


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _relu(x: jax.Array, low: float, cap: float) -> jax.Array:
    """Compute `min(max(x, 0), cap)`; the backward pass keeps positive cotangents where `low < x < cap`."""
    return jnp.maximum(x, 0) if cap == np.inf else jnp.clip(x, 0, cap)


def _forward(x: jax.Array, low: float, cap: float) -> tuple[jax.Array, jax.Array]:
    return _relu(x, low, cap), (x > low) & (x < cap)


def _backward(low: float, cap: float, inside: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    return (jnp.where(inside & ~(cotangent <= 0), cotangent, 0),)  # NaN, from a class that does not exist, passes


_relu.defvjp(_forward, _backward)
