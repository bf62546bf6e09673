"""Gradients that pass a ReLU by another rule: guided backpropagation and the deconvolutional network."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from sdecor.attribution.equations import is_elementwise_call
from sdecor.attribution.patterns import elementwise, is_float
from sdecor.attribution.program import Program, Step, Unit, Unsupported, execute, flatten, plain, plan
from sdecor.attribution.relus import ReLU, relu_at
from sdecor.attribution.targets import Target, checked_logits, score_of
from sdecor.core.jaxpr import body_of, has_own_derivative, holds_function

_COMBINING = ("scatter", "scatter-add", "scatter_add", "scatter_mul")  # which hold a function of two numbers


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
    changed = _with_relus(fn, image, 0.0, "guided_backpropagation")
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
    changed = _with_relus(fn, image, -np.inf, "deconvnet")
    return jax.grad(score_of(changed, target, saliency_of=saliency_of))(image)


def _with_relus(fn: Callable, image: jax.Array, low: float, method: str) -> Callable[[jax.Array], jax.Array]:
    """Return `fn` with `_relu(x, low, cap)` for each of its ReLUs."""
    program = flatten(lambda x: checked_logits(fn(x)), image, enter_custom=False)
    found = []
    units = plan(program, lambda step: _unit_of(program, step, low, method, found))
    if not found:
        raise ValueError(
            f"{method} changes how gradients pass a ReLU, and fn has none (other activations keep their gradient): "
            "use method='gradient', 'integrated_gradients' or 'deeplift'"
        )
    return lambda x: execute(program, units, [x])[0]


def _unit_of(program: Program, step: Step, low: float, method: str, found: list[Step]) -> Unit:
    """Return how a gradient passes a step, and add the step to `found` if it completes a ReLU."""
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
    # As a whole: what looks like a ReLU in it is a part of another activation.
    return plain(step) if function is None else function.unit(lambda x: [function(x)])


def _is_known(step: Step) -> bool:
    """Return whether all that a step computes can be seen, and has no ReLU in it."""
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
    """A ReLU, capped, whose backward pass keeps positive cotangents where `low < x < cap`."""
    return jnp.maximum(x, 0) if cap == np.inf else jnp.clip(x, 0, cap)


def _forward(x: jax.Array, low: float, cap: float) -> tuple[jax.Array, jax.Array]:
    return _relu(x, low, cap), (x > low) & (x < cap)


def _backward(low: float, cap: float, inside: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    return (jnp.where(inside & ~(cotangent <= 0), cotangent, 0),)  # NaN, of a class that does not exist, passes


_relu.defvjp(_forward, _backward)
