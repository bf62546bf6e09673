"""Recognition of ReLUs in a program, in any of the ways to write them."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.rules.patterns import Elementwise, elementwise, is_float, is_nonnegative
from sdecor.rules.program import ROUTING, Program, Step, Unit, Value, is_elementwise_call

_NEAR = 2.0**-10  # functions are probed at this distance from 0 and at twice it
# Points that identify a ReLU; dyadic, so that they are exact in every dtype.
_POSITIVE = (_NEAR, 2 * _NEAR, 2.0**-6, 0.5, 1.0, 4.0, 5.5, 8.0, 1024.0)
_POINTS = np.array([-1024.0, -8.0, -1.0, -0.5, -(2.0**-6), -2 * _NEAR, -_NEAR, 0.0, *_POSITIVE])
_ALONE = ("clamp", "max", "min", "reduce_max", "reduce_min", "select_n")  # may be a ReLU of one dependent input
_ORDERING = ("ge", "gt", "le", "lt")
# Operations that keep each element, or a multiple of it, possibly in another shape.
_KEEPING = ROUTING - {"dynamic_slice", "gather", "slice", "split", "unstack"} | {"convert_element_type", "mul", "neg"}


class ReLU(NamedTuple):
    """A ReLU `scale · min(max(side · x, 0), cap)`.

    Attributes:
      function: the steps that compute the ReLU; their root is x.
      scale: factor of either sign.
      side: 1, or −1 for a ReLU that passes negative x.
      cap: ∞ for a plain ReLU, 6 for ReLU6.
    """

    function: Elementwise
    scale: float
    side: int
    cap: float

    def unit(self, rule: Callable[[jax.Array], jax.Array]) -> Unit:
        """Return the unit that computes the ReLU with `rule` in place of `min(max(x, 0), cap)`."""
        dtype = self.function.output.dtype

        def apply(x: jax.Array) -> list[jax.Array]:
            y = rule(x if self.side > 0 else -x)
            return [(y if self.scale == 1 else self.scale * y).astype(dtype)]

        return self.function.unit(apply)


def relu_at(program: Program, step: Step) -> ReLU | str | None:
    """Return the ReLU that ends with `step`, or the reason why `step` may be an unrecognised ReLU; otherwise None."""
    if not is_float(step.outputs[0]):
        return None
    if len(step.dependent) > 1 or step.name in _ALONE or is_elementwise_call(step.equation):
        function = elementwise(program, step)
        if function is not None:
            return None if _is_variance(program, function) else _judged(program, function)
    condition, kept = _selection(program, step)
    if _sources(program, _signs(program, condition)).isdisjoint(_sources(program, kept)):
        return None
    return (
        "it selects a value by the sign of the same value, which may be a ReLU and is not recognised. Write it with "
        "jax.nn.relu; if it is not a ReLU, take the sign of jax.lax.stop_gradient(value)"
    )


def _judged(program: Program, function: Elementwise) -> ReLU | str | None:
    x, y = function.probed(_POINTS)
    for side in (1, -1):
        relu = _relu_of(function, side, side * x, y)
        if relu is not None:
            return relu
    if any(_has_kink(side * x, y) for side in (1, -1)) and not is_nonnegative(program, function.root):
        return (
            "it is constant on one side of 0 and bends there, as a ReLU does, but it is not a multiple of a ReLU. "
            "Write it as a function of jax.nn.relu"
        )
    return None


def _relu_of(function: Elementwise, side: int, x: np.ndarray, y: np.ndarray) -> ReLU | None:
    """Return the ReLU with values `y` at points `x`, which are positive on its side; None if it is no ReLU."""
    positive = x > 0
    scale = y[x == _NEAR][0] / _NEAR
    if np.any(y[~positive] != 0) or not np.isfinite(scale) or scale == 0:
        return None
    x, y = x[positive], y[positive] / scale
    cap = y.max()
    tolerance = 8 * max(float(jnp.finfo(value.dtype).eps) for value in (function.root, function.output))
    if not cap > 3 * _NEAR or not np.allclose(y, x.clip(0, cap), rtol=tolerance, atol=0):
        return None
    return ReLU(function, float(scale), side, np.inf if cap > 1000 else float(cap))


def _has_kink(x: np.ndarray, y: np.ndarray) -> bool:
    """Return whether a function with values `y` at `x` is constant below 0, and continuous but not smooth at 0."""
    at = {point: y[x == point][0] for point in (0.0, _NEAR, 2 * _NEAR, 1.0)}
    rise = abs(at[2 * _NEAR] - at[_NEAR])
    is_continuous = abs(2 * at[_NEAR] - at[2 * _NEAR] - at[0.0]) <= 4 * rise
    return bool(np.all(y[x < 0] == at[0.0]) and is_continuous and rise > _NEAR * abs(at[1.0] - at[0.0]) / 8)


def _is_variance(program: Program, function: Elementwise) -> bool:
    """Return whether a ReLU's input is a variance, `E[x²] − E[x]²` or `E[(x − E[x])²]`; only rounding is below 0."""
    if _is_square(program.made_by.get(_averaged(program, function.root))):
        return True
    made = program.made_by.get(function.root)
    if made is None or made.name != "sub" or len(made.dependent) < 2:
        return False
    mean_of_squares, square_of_mean = made.dependent
    square = program.made_by.get(square_of_mean)
    return (
        _is_square(program.made_by.get(_averaged(program, mean_of_squares)))
        and _is_square(square)
        and _averaged(program, square.dependent[0]) is not None
    )


def _is_square(made: Step | None) -> bool:
    return made is not None and (
        made.name == "square"
        or (made.name == "integer_pow" and made.params["y"] == 2)
        or (made.name == "mul" and len(made.dependent) == 2 and len(set(made.dependent)) == 1)
    )


def _averaged(program: Program, value: Value) -> Value | None:
    """Return the value that `value` is a sum or mean of; None if it is neither.

    `jnp.var` selects NaN for no elements, by a condition that does not depend on the image.
    """
    made, is_sum = program.made_by.get(value), False
    while made is not None and len(made.dependent) == 1 and made.name in {*_KEEPING, "div", "reduce_sum", "select_n"}:
        if made.name == "select_n" and isinstance(made.inputs[0], Value):
            return None
        is_sum |= made.name == "reduce_sum"
        value = made.dependent[0]
        made = program.made_by.get(value)
    return value if is_sum else None


def _selection(program: Program, step: Step) -> tuple[list[Value], list[Value]]:
    """Return the conditions and the candidates of a selection: `where(condition, x, …)`, or `x * condition`."""
    if step.name == "select_n":
        places = [isinstance(x, Value) for x in step.inputs]
        return list(step.inputs[: int(places[0])]), list(step.dependent[int(places[0]) :])
    if step.name != "mul" or len(step.dependent) < 2:
        return [], []
    conditions = [_converted(program, value) for value in step.dependent]
    kept = [value for value, condition in zip(step.dependent, conditions, strict=True) if condition is None]
    return [condition for condition in conditions if condition is not None], kept


def _converted(program: Program, value: Value) -> Value | None:
    """Return the boolean or integer value that `value` is converted from; None if there is none."""
    made = program.made_by.get(value)
    while made is not None and made.name in _KEEPING and len(made.dependent) == 1:
        if not is_float(made.dependent[0]):
            return made.dependent[0]
        made = program.made_by.get(made.dependent[0])
    return None


def _signs(program: Program, conditions: Iterable[Value]) -> set[Value]:
    """Return the values that the conditions compare with 0."""
    found, seen, waiting = set(), set(), list(conditions)
    while waiting:
        value = waiting.pop()
        made = program.made_by.get(value)
        if made is None or value in seen:
            continue
        seen.add(value)
        if made.name in _ORDERING and any(map(_is_zero, made.inputs)):
            found.update(made.dependent)
        waiting += [x for x in made.dependent if not is_float(x)]
    return found


def _is_zero(x: Any) -> bool:
    return not isinstance(x, Value | jax.core.Tracer) and not np.any(np.asarray(x))


def _sources(program: Program, values: Iterable[Value]) -> set[Value]:
    """Return all values whose elements, or multiples of them, `values` consist of; `values` are included."""
    found, waiting = set(), list(values)
    while waiting:
        value = waiting.pop()
        value = program.first.get(value, value)
        made = program.made_by.get(value)
        if value in found or not is_float(value):
            continue
        found.add(value)
        if made is not None and made.name in _KEEPING:
            waiting += made.dependent
        elif made is not None and made.name == "div" and isinstance(made.inputs[0], Value):
            waiting.append(made.inputs[0])
    return found
