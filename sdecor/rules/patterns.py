"""Patterns in a program (linear steps, elementwise functions, values at least 0), and arrays with given derivatives.

With given derivatives, an ordinary JAX gradient is the backward pass of an attribution method.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.rules.program import (
    BILINEAR,
    ELEMENTWISE,
    MAXIMA,
    MINIMA,
    ROUTING,
    SUMS,
    Program,
    Step,
    Unit,
    Value,
    evaluate_now,
    is_elementwise_call,
)

RESHAPING = ("broadcast_in_dim", "expand_dims", "reshape", "squeeze")
_NEAR = 16  # in units of rounding: smaller differences are not divided by


@jax.custom_jvp
def linearised(value: jax.Array, multipliers: tuple[jax.Array, ...], inputs: tuple[jax.Array, ...]) -> jax.Array:
    """Return `value` with the derivatives `multipliers` (of the same shape) with respect to `inputs`."""
    return value


@linearised.defjvp
def _linearised_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    value, multipliers, _ = primals
    changes = [m * change for m, change in zip(multipliers, tangents[2], strict=True)]
    return value, sum(changes[1:], changes[0])


def slope(function: Callable[[jax.Array], jax.Array], x: jax.Array, start: jax.Array) -> jax.Array:
    """Return `(f(x) − f(start)) / (x − start)` of an elementwise function; `f'(x)` where x and start are the same."""
    y, pull_back = jax.vjp(function, x)
    (derivative,) = pull_back(jnp.ones_like(y))
    near = same(x, start)
    multiplier = jnp.where(near, derivative, (y - function(start)) / jnp.where(near, 1, x - start))
    return jnp.where(jnp.isfinite(multiplier), multiplier, 0)


def same(x: jax.Array, start: jax.Array) -> jax.Array:
    """Return where two arrays are equal up to rounding, or not both finite."""
    return ~(jnp.abs(x - start) > _NEAR * jnp.finfo(x.dtype).eps * (jnp.abs(x) + jnp.abs(start)))


_LINEAR = ROUTING | SUMS | {"add", "add_any", "convert_element_type", "neg", "scatter-add", "select_n", "sub"}
# Positions of the operands that hold indices or a condition.
_INDICES = {
    "dynamic_slice": slice(1, None),
    "dynamic_update_slice": slice(2, None),
    "gather": slice(1, 2),
    "scatter": slice(1, 2),
    "scatter-add": slice(1, 2),
    "select_n": slice(0, 1),
}
_KEEPING_SIGN = ROUTING | SUMS | MAXIMA | MINIMA
_SIGN_POINTS = np.array([-64.0, -8.0, -1.0, -0.5, -(2.0**-6), 0.0, 2.0**-6, 0.5, 1.0, 8.0, 64.0])
# Operations that remove axes, and operations along one axis, with the parameter that holds the axis.
_OVER_AXES = ("argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum")
_ALONG_AXIS = {"concatenate": "dimension", "cumsum": "axis", "cummax": "axis", "cummin": "axis", "cumprod": "axis"}
_UNKNOWN = 0.375  # replaces a constant that is unknown at trace time, such as a learned slope


def is_float(value: Value) -> bool:
    """Return whether a value is a floating-point number, through which a gradient can pass."""
    return jnp.issubdtype(value.dtype, jnp.floating)


def is_linear(step: Step) -> bool:
    """Return whether a step is jointly affine in its dependent inputs."""
    depends = [isinstance(x, Value) for x in step.inputs]
    if not all(map(is_float, step.dependent + step.outputs)):
        return False
    if step.name in BILINEAR:
        return sum(depends) == 1
    if step.name == "div":
        return not depends[1]
    return step.name in _LINEAR and not any(depends[_INDICES.get(step.name, slice(0, 0))])


class Elementwise(NamedTuple):
    """A real function applied to every element of `root`, computed by one or more steps.

    The output may differ from `root` in axes of length 1; calling and probing return it in the shape of `root`.
    """

    root: Value
    steps: tuple[Step, ...]

    @property
    def output(self) -> Value:
        return self.steps[-1].outputs[0]

    def __call__(self, x: jax.Array) -> jax.Array:
        values = {self.root: x}
        for step in self.steps:
            values.update(zip(step.outputs, step(*(values[v] for v in step.dependent)), strict=True))
        return values[self.output].reshape(x.shape)

    def unit(self, apply: Callable[[Any], list[Any]]) -> Unit:
        """Return the unit that computes the output by `apply`, whose results have the shape of `root`."""
        shape = self.output.shape
        reshaped = apply if shape == self.root.shape else lambda x: jax.tree.map(lambda y: y.reshape(shape), apply(x))
        return Unit((self.root,), (self.output,), reshaped)

    def probed(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return arrays in the shape of `root` that contain all `points`, and the function's values at trace time."""
        size = max(math.prod(self.root.shape), 1)
        groups = [points[i : i + size] for i in range(0, len(points), size)]
        arrays = [np.resize(group, self.root.shape).astype(self.root.dtype) for group in groups]
        return np.stack(arrays).astype(np.float64), np.stack([self._now(x) for x in arrays])

    def _now(self, x: np.ndarray) -> np.ndarray:
        values = {self.root: x}
        for step in self.steps:
            given = [values[v] if isinstance(v, Value) else _known(v) for v in step.inputs]
            values.update(zip(step.outputs, evaluate_now(step.equation, given), strict=True))
        return np.asarray(values[self.output], np.float64).reshape(x.shape)


def elementwise(program: Program, step: Step) -> Elementwise | None:
    """Return the elementwise function that ends with `step`, with its root as near as possible; None if there is none.

    The root of an elementwise step with one dependent input is this input. With several dependent inputs, as in
    `x * sigmoid(x)` or `where(x > 0, x, 0)`, it is the value that all of them are elementwise functions of. Steps
    between may stack alternatives along new axes (`jnp.select`, a maximum of stacked values) or repeat a computation.
    """
    steps, maker, axes = [], step, _long(step.outputs[0].shape)
    open_values = {}  # each with the positions of the result's axes in it
    while True:
        behind = None if maker is None else _axes_behind(maker, axes)
        if behind is None:
            return None
        inputs = (program.first.get(x, x) if isinstance(x, Value) else x for x in maker.inputs)
        maker = maker._replace(inputs=tuple(inputs))
        steps.append(maker)
        if any(open_values.setdefault(value, behind) != behind for value in maker.dependent):
            return None
        latest = max(open_values)
        axes = open_values[latest]
        if len(open_values) == 1 and is_float(latest) and axes == _long(latest.shape):
            return Elementwise(latest, tuple(steps[::-1]))
        del open_values[latest]
        maker = program.made_by.get(latest)


def _axes_behind(step: Step, axes: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the input axes that become `axes` of a step's output; None if it mixes or creates elements along them."""
    before, after = step.dependent[0].shape, step.outputs[0].shape
    same, of = {i: i for i in range(len(after))}, None  # maps an output axis to an input axis
    if _is_elementwise(step):
        of = same
    elif step.name == "broadcast_in_dim":
        of = {place: i for i, place in enumerate(step.params["broadcast_dimensions"])}
    elif step.name in ("expand_dims", "reshape", "squeeze"):
        long_before, long_after = _long(before), _long(after)
        if [before[i] for i in long_before] == [after[i] for i in long_after]:
            of = dict(zip(long_after, long_before, strict=True))
    elif step.name in _OVER_AXES:
        of = dict(enumerate(i for i in range(len(before)) if i not in step.params["axes"]))
    elif step.name == "stack":
        of = {i + (i >= step.params["axis"]): i for i in range(len(before))}
    elif step.name in _ALONG_AXIS:
        of = {i: i for i in same if i != step.params[_ALONG_AXIS[step.name]]}
    elif step.name == "slice":
        of = same
    is_whole = of is not None and all(i in of and before[of[i]] == after[i] for i in axes)
    return tuple(of[i] for i in axes) if is_whole else None


def _long(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes with more than one element."""
    return tuple(i for i, n in enumerate(shape) if n != 1)


def divisor_of(program: Program, step: Step) -> int | None:
    """Return the position of a quotient's divisor, or of its reciprocal, among the inputs; None for another step."""
    if len(step.dependent) != 2 or step.name not in ("div", "mul"):
        return None
    return 1 if step.name == "div" else next((i for i in (0, 1) if _is_reciprocal(program, step.inputs[i])), None)


def _is_reciprocal(program: Program, value: Value) -> bool:
    made = program.made_by.get(value)
    while made is not None and made.name in (*RESHAPING, "convert_element_type", "mul") and len(made.dependent) == 1:
        made = program.made_by.get(made.dependent[0])
    if made is None or len(made.dependent) != 1:
        return False
    if made.name in ("integer_pow", "pow"):
        exponent = made.params["y"] if made.name == "integer_pow" else made.inputs[1]
        is_known = not isinstance(exponent, Value | jax.core.Tracer)
        return is_known and np.ndim(exponent) == 0 and float(exponent) < 0
    return made.name == "rsqrt" or (made.name == "div" and not isinstance(made.inputs[0], Value))


def is_nonnegative(program: Program, value: Value) -> bool:
    """Return whether a value is known to be at least 0, such as a ReLU's output after pooling and reshaping."""
    step = program.made_by.get(value)
    while step is not None:
        if step.name in ("mul", "div") and len(step.dependent) == 1:
            constants = [x for x in step.inputs if not isinstance(x, Value)]
            if isinstance(constants[0], jax.core.Tracer) or np.any(np.asarray(constants[0]) < 0):
                return False
        elif step.name not in _KEEPING_SIGN or len(step.inputs) > 1:
            function = elementwise(program, step)
            return function is not None and bool((function.probed(_SIGN_POINTS)[1] >= 0).all())
        step = program.made_by.get(step.dependent[0])
    return False


def route_from_input(program: Program, value: Value) -> tuple[Step, ...] | None:
    """Return the steps from the program's input to a value if they only reshape, cut or pad it; otherwise None."""
    steps = []
    while value not in program.inputs:
        step = program.made_by[value]
        if step.name not in (*ROUTING, "convert_element_type") or len(step.dependent) != 1 or not is_linear(step):
            return None
        steps.append(step)
        (value,) = step.dependent
    return tuple(steps[::-1])


def _is_elementwise(step: Step) -> bool:
    same_shape = all(value.shape == step.outputs[0].shape for value in step.dependent)
    return same_shape and (step.name in ELEMENTWISE or is_elementwise_call(step.equation))


def _known(constant: Any) -> Any:
    is_tracer = isinstance(constant, jax.core.Tracer)
    return np.full(constant.shape, _UNKNOWN, constant.dtype) if is_tracer else constant
