"""Bias terms of a program: what each of its operations adds to its own linear part at the values of one input.

An operation `y = f(u)` with the derivative J at u has the bias `f(u) − J u`. It is the added constant of an affine
layer; the implicit bias of a non-linearity, 0 for a ReLU and any other function with `f(a u) = a f(u)` for a > 0; and
minus the value of a product of two values. The input and all biases, weighted by the output's gradient, sum to the
output.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sdecor.rules.affine import affine_layer
from sdecor.rules.patterns import Elementwise, divisor_of, elementwise, is_float, is_linear
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
    is_elementwise_call,
    plain,
    plan,
)
from sdecor.rules.softmaxes import log_sums, softmax_weights

BIAS, ACTIVATION, NORMALIZATION, PRODUCT, OTHER = "bias", "activation", "normalization", "product", "other"
_INSERTING = ("add", "add_any", "concatenate", "dynamic_update_slice", "pad", "scatter", "scatter-add", "select_n")
_INSERTING = (*_INSERTING, "stack", "sub")  # linear operations whose constants are part of the result
_WITHIN = ELEMENTWISE | ROUTING | SUMS | MAXIMA | MINIMA  # operations that a normalization consists of
_POINTS = np.array([-64.0, -1.0, -(2.0**-6), 0.0, 2.0**-6, 1.0, 64.0])

# A function from an operation's operands to the biases of its outputs; None for an output that is no real number.
Biases = Callable[..., Sequence[jax.Array | None]]


class Part(NamedTuple):
    """An operation of a program, and its bias.

    Attributes:
      unit: the operation.
      scope: its named scope.
      kind: "bias" for added constants; "activation", "normalization" or "product" for implicit biases; or "other".
      biases: its biases; None if they are known to be 0.
    """

    unit: Unit
    scope: str = ""
    kind: str = OTHER
    biases: Biases | None = None

    @property
    def places(self) -> list[int]:
        """The positions of the outputs that have a bias."""
        return [] if self.biases is None else [i for i, value in enumerate(self.unit.outputs) if is_float(value)]


def parts_of(program: Program) -> list[Part]:
    """Return the operations that the program's outputs need, in order, with their biases.

    The constants of an affine layer are one bias: that of the convolution or matrix product, and the scale and shift of
    a BatchNorm behind it. An elementwise function, or a normalization, is one operation, whatever its steps are.
    """
    softmaxes = [*softmax_weights(program), *log_sums(program)]
    within = frozenset().union(*(softmax.steps for softmax in softmaxes))
    found: dict[Value, Part] = {}

    def choose(step: Step) -> Unit:
        part = _part_of(program, within, step)
        found[part.unit.outputs[0]] = part
        return part.unit

    units = plan(program, choose)
    return [found.get(unit.outputs[0], Part(unit)) for unit in units]


def _part_of(program: Program, within_softmax: frozenset[Value], step: Step) -> Part:
    unit = plain(step)
    if not any(map(is_float, step.outputs)):
        return Part(unit)
    affine = affine_layer(program, step)
    if affine is not None:
        if not any(each.name in _INSERTING for each in affine.chain):
            return Part(unit)
        start = (affine.base.outputs if affine.base else affine.chain[0].dependent)[0]
        chain = affine._replace(base=None)
        whole = Unit((affine.root,), step.outputs, lambda x: [affine(x)])
        return Part(whole, step.scope, BIAS, lambda x: [chain(jnp.zeros(start.shape, start.dtype))])
    if is_linear(step):
        constants = [x for x in step.inputs if not isinstance(x, Value)]
        if step.name not in _INSERTING or all(map(_is_zero, constants)):
            return Part(unit)
        return Part(unit, step.scope, BIAS, lambda *operands: step(*map(jnp.zeros_like, operands)))
    if step.outputs[0] in within_softmax:
        return Part(unit, step.scope, OTHER, _by_derivative(step, unit.operands))
    function = elementwise(program, step) if is_float(step.outputs[0]) else None
    if function is not None:
        own = function.unit(lambda x: [function(x)])
        return Part(own, step.scope, ACTIVATION, None if _is_homogeneous(function) else _of_activation(function))
    floats = all(map(is_float, step.dependent))
    if floats and (step.name in MAXIMA | MINIMA or (step.name in ("max", "min") and len(step.dependent) == 2)):
        return Part(unit)
    normalized = _normalization(program, step) if floats else None
    if normalized is not None:
        return Part(normalized, step.scope, NORMALIZATION, _by_derivative(normalized.apply, normalized.operands))
    if floats and step.name in BILINEAR:
        return Part(unit, step.scope, PRODUCT, lambda *operands: [-step(*operands)[0]])
    return Part(unit, step.scope, OTHER, _by_derivative(step, unit.operands))


def _is_zero(constant: Any) -> bool:
    return not isinstance(constant, jax.core.Tracer) and not np.any(np.asarray(constant))


def _is_homogeneous(function: Elementwise) -> bool:
    """Return whether `f(a x) = a f(x)` for a > 0, as for a ReLU, at several points."""
    constants = [x for step in function.steps for x in step.inputs if not isinstance(x, Value)]
    if any(np.size(x) > 1 for x in constants):  # not all points can be tried at all positions
        return False
    points, values = function.probed(np.concatenate([_POINTS, 2 * _POINTS]))
    found = dict(zip(points.ravel().tolist(), values.ravel().tolist(), strict=True))
    return all(found.get(2 * point) == 2 * found[point] for point in _POINTS.tolist())


def _of_activation(function: Elementwise) -> Biases:
    def biases(x: jax.Array) -> list[jax.Array]:
        y, pull_back = jax.vjp(function, x)  # a function with its own derivative may have no forward derivative
        (slope,) = pull_back(jnp.ones_like(y))
        return [(y - jnp.where(slope == 0, 0, slope * x)).reshape(function.output.shape)]

    return biases


def _by_derivative(apply: Callable[..., Sequence[jax.Array]], operands: Sequence[Value]) -> Biases:
    """Return the biases `f(u) − J u`, by the forward derivative J of `apply` with respect to real operands."""
    real = [i for i, value in enumerate(operands) if is_float(value)]

    def biases(*arrays: jax.Array) -> list[jax.Array | None]:
        def of_real(*given: jax.Array) -> list[jax.Array]:
            chosen = dict(zip(real, given, strict=True))
            return list(apply(*(chosen.get(i, array) for i, array in enumerate(arrays))))

        moved = tuple(arrays[i] for i in real)
        values, changes = jax.jvp(of_real, moved, moved) if moved else (of_real(), None)
        if changes is None:
            changes = [jnp.zeros_like(value) for value in values]
        pairs = zip(values, changes, strict=True)
        return [y - dy if jnp.issubdtype(y.dtype, jnp.floating) else None for y, dy in pairs]

    return biases


def _normalization(program: Program, step: Step) -> Unit | None:
    """Return a quotient with all steps from the one value that it is computed from; None for any other step.

    A value counts as normalized if between it and the quotient there are only elementwise functions, sums and
    rearrangements, as in LayerNorm, RMSNorm and GroupNorm.
    """
    if divisor_of(program, step) is None:
        return None
    steps, open_values, maker = [], set(), step
    while True:
        if maker is None or not (maker.name in _WITHIN or is_elementwise_call(maker.equation)):
            return None
        inputs = tuple(program.first.get(x, x) if isinstance(x, Value) else x for x in maker.inputs)
        steps.append(maker._replace(inputs=inputs))
        open_values.update(steps[-1].dependent)
        root = max(open_values)
        if len(open_values) == 1 and is_float(root):
            break
        open_values.remove(root)
        maker = program.made_by.get(root)

    def apply(x: jax.Array) -> list[jax.Array]:
        values = {root: x}
        for each in reversed(steps):
            values.update(zip(each.outputs, each(*(values[v] for v in each.dependent)), strict=True))
        return [values[step.outputs[0]]]

    return Unit((root,), step.outputs, apply)


def evaluated(
    program: Program, parts: Sequence[Part], inputs: Sequence[jax.Array], changes: Sequence[jax.Array]
) -> tuple[list[Any], list[jax.Array]]:
    """Return the program's outputs, with `changes` added to each value that has a bias, and these biases in order."""
    values, changed, found = dict(zip(program.inputs, inputs, strict=True)), iter(changes), []
    for part in parts:
        operands = [values[v] for v in part.unit.operands]
        made = list(part.unit.apply(*operands))
        if part.biases is not None:
            biases = part.biases(*map(lax.stop_gradient, operands))
            for i in part.places:
                made[i] = made[i] + next(changed)
                found.append(biases[i])
        values.update(zip(part.unit.outputs, made, strict=True))
    return [values[x] if isinstance(x, Value) else x for x in program.outputs], found


def zeros_of(parts: Sequence[Part]) -> list[jax.Array]:
    """Return a zero array for each value that has a bias, in order."""
    values = [part.unit.outputs[i] for part in parts for i in part.places]
    return [jnp.zeros(value.shape, value.dtype) for value in values]
