"""Gradients that pass a ReLU by another rule: guided backpropagation and the deconvolutional network."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from sdecor.attribution.equations import is_elementwise_call
from sdecor.attribution.patterns import Elementwise, elementwise, is_float, is_linear
from sdecor.attribution.program import Program, Step, Unit, Unsupported, Value, execute, flatten, plain, plan
from sdecor.attribution.targets import Target, checked_logits, score_of
from sdecor.jaxpr import inner_jaxprs

# What a ReLU is told by; dyadic, so that they are exact in every dtype.
_POINTS = np.array([-1024.0, -8.0, -1.0, -0.5, -(2.0**-6), 0.0, 2.0**-6, 0.5, 1.0, 4.0, 5.5, 8.0, 1024.0])
_MAY_BE_RELU = ("clamp", "custom_jvp_call", "custom_vjp_call", "max", "min", "select_n")


def guided_backpropagation(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    saliency_of: str = "logit",
) -> jax.Array:
    """Return the gradient of the target's score in which a ReLU passes what is positive, forward and backward.

    Each ReLU passes `g · (x > 0) · (g > 0)` in place of `g · (x > 0)`; everything else, other activations included,
    keeps its gradient. A ReLU is what computes `max(x, 0)` or `min(max(x, 0), c)` elementwise, written as a maximum, a
    clip, a selection, `x * (x > 0)`, `(x + |x|) / 2` or `-min(-x, 0)`, and however often one function is used. What
    computes another function of x as a whole has no ReLU in it: `x * relu6(x + 3)` (hard swish), `max(x, 0) +
    expm1(min(x, 0))` (CELU), and `x + relu(x)` alike. Nor is the clamp one that keeps the variance of a LayerNorm from
    being negative. Cost: one gradient.

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, `[H, W, C]`.
      target: what is explained: a class, a `Contrast` of two, or a function of the logits.
      saliency_of: "logit", "log_probability" or "probability".

    Returns:
      Signed attribution `[H, W, C]`.

    Raises:
      ValueError: for a network without a ReLU, or with one inside of an operation that is not entered (`while`, a
        `cond` that depends on the image, a `custom_jvp` or `custom_vjp` that is not elementwise).

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

    def choose(step: Step) -> Unit:
        relu = _relu_in(program, step) if is_float(step.outputs[0]) else None
        if relu is not None:
            found.append(step)
            return Unit((relu[0],), step.outputs, lambda x: [_relu(x, low, relu[1])])
        function = elementwise(program, step) if len(step.dependent) > 1 else None
        if function is not None:  # as a whole: what looks like a ReLU in it is a part of another activation
            return Unit((function.root,), step.outputs, lambda x: [function(x)])
        if not is_elementwise_call(step.equation) and any(map(_may_hold_relu, inner_jaxprs(step.equation))):
            instead = "Write it with `scan` or a Python loop, or without control flow that depends on the image."
            raise Unsupported(method, step, "it may hold a ReLU and is not entered", instead)
        return plain(step)

    units = plan(program, choose)
    if not found:
        raise ValueError(
            f"{method} changes how gradients pass a ReLU, and fn has none (other activations keep their gradient): "
            "use method='gradient', 'integrated_gradients' or 'deeplift'"
        )
    return lambda x: execute(program, units, [x])[0]


def _relu_in(program: Program, step: Step) -> tuple[Value, float] | None:
    """Return what enters the ReLU that a step completes, and its cap; None if it completes none."""
    for function in _functions(program, step):
        cap = _relu_cap(function)
        if cap is not None and not _is_variance(program, function):
            return function.root, cap
    return None


def _functions(program: Program, step: Step) -> Iterator[Elementwise]:
    """Yield the elementwise functions that a step completes and that may be a ReLU, that of the nearest value first.

    Each is a step, or several that come together again, with constant factors behind it and before it, as in
    `(x + |x|) / 2` and `-min(-x, 0)`.
    """
    behind = []
    while step is not None and _is_scaling(step):
        behind.append(step)
        step = program.made_by.get(step.dependent[0])
    if step is None or (len(step.dependent) < 2 and step.name not in _MAY_BE_RELU):
        return
    function = elementwise(program, step)
    while function is not None:
        yield Elementwise(function.root, (*function.steps, *behind[::-1]))
        before = program.made_by.get(function.root)
        if before is None or not _is_scaling(before):
            return
        function = Elementwise(before.dependent[0], (before, *function.steps))


def _is_scaling(step: Step) -> bool:
    return step.name in ("div", "mul", "neg") and is_linear(step)


def _relu_cap(function: Elementwise) -> float | None:
    """Return the cap of a ReLU, ∞ for a plain one; None for any other function."""
    if function.steps[-1].outputs[0].dtype != function.root.dtype:
        return None
    x, y = function.probed(_POINTS)
    cap = y.max()
    if cap <= 0 or not np.array_equal(y, x.clip(0, cap)):
        return None
    return np.inf if cap == x.max() else cap


def _is_variance(program: Program, function: Elementwise) -> bool:
    """Return whether a ReLU's input is `E[x²] − E[x]²`, which only rounding makes negative."""
    made = program.made_by.get(function.root)
    if made is None or made.name != "sub" or len(made.dependent) < 2:
        return False
    square = program.made_by.get(made.dependent[1])
    return square is not None and (
        square.name == "square"
        or (square.name == "integer_pow" and square.params["y"] == 2)
        or (square.name == "mul" and len(square.dependent) == 2 and len(set(square.dependent)) == 1)
    )


def _may_hold_relu(jaxpr: core.Jaxpr) -> bool:
    names = {equation.primitive.name for equation in jaxpr.eqns}
    inner = [sub for equation in jaxpr.eqns for sub in inner_jaxprs(equation)]
    return bool(names & {"clamp", "max", "select_n"}) or any(map(_may_hold_relu, inner))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _relu(x: jax.Array, low: float, cap: float) -> jax.Array:
    """A ReLU, capped, whose backward pass keeps positive cotangents where `low < x < cap`."""
    return jnp.maximum(x, 0) if cap == np.inf else jnp.clip(x, 0, cap)


def _forward(x: jax.Array, low: float, cap: float) -> tuple[jax.Array, jax.Array]:
    return _relu(x, low, cap), (x > low) & (x < cap)


def _backward(low: float, cap: float, inside: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    return (jnp.where(inside & ~(cotangent <= 0), cotangent, 0),)  # NaN, of a class that does not exist, passes


_relu.defvjp(_forward, _backward)
