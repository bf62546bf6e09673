"""A function as a flat list of the steps that depend on its input, for methods with a backward pass of their own.

`flatten` inlines what is called and unrolls loops, so that a layer used twice is two steps; what does not depend on
the input (weights and what is made of them) is computed on the way. A method chooses a `Unit` for what it needs of the
steps, last step first (`plan`), and `execute` runs the units. A unit may stand for several steps, from the value that
it starts from to the one it makes. Its outputs have an ordinary JAX gradient, which is the backward pass of the method.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from sdecor.attribution.equations import body_of, evaluate_now, is_elementwise_call, name_of
from sdecor.jaxpr import called, evaluate, scope_of


class Value(NamedTuple):
    """Stands for an array that depends on the input; a later one has a higher number."""

    number: int
    shape: tuple[int, ...]
    dtype: Any


class Step(NamedTuple):
    """One equation, with constants and values in place of its variables."""

    equation: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Value, ...]
    scope: str

    @property
    def name(self) -> str:
        return self.equation.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        return self.equation.params

    @property
    def dependent(self) -> tuple[Value, ...]:
        """The inputs that depend on the function's input, in order."""
        return tuple(x for x in self.inputs if isinstance(x, Value))

    def __call__(self, *arrays: jax.Array) -> list[jax.Array]:
        """Evaluate the equation with arrays for its dependent inputs."""
        given = iter(arrays)
        return evaluate(self.equation, [next(given) if isinstance(x, Value) else x for x in self.inputs])


class Program(NamedTuple):
    """A function as steps in order; an output that does not depend on the input is an array."""

    inputs: list[Value]
    outputs: list[Any]
    steps: list[Step]
    made_by: dict[Value, Step]


class Unit(NamedTuple):
    """What a method does for one step, or for several: `apply(*operands) -> outputs`."""

    operands: tuple[Value, ...]
    outputs: tuple[Value, ...]
    apply: Callable[..., Sequence[Any]]


def flatten(fn: Callable[..., Any], *examples: Any, enter_custom: bool) -> Program:
    """Return `fn` as a program.

    Args:
      fn: a function of arrays to one array.
      *examples: arrays or shapes of its arguments.
      enter_custom: whether functions with derivatives of their own (`custom_jvp`, `custom_vjp`) are entered too;
        elementwise ones of one array, such as `jax.nn.relu`, are single steps in any case.
    """
    closed = jax.make_jaxpr(fn)(*examples)
    numbers, steps = itertools.count(), []
    inputs = [Value(next(numbers), v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
    outputs = _steps_of(closed, inputs, "", steps, numbers, enter_custom)
    return Program(inputs, outputs, steps, {value: step for step in steps for value in step.outputs})


def plan(program: Program, choose: Callable[[Step], Unit]) -> list[Unit]:
    """Return the units that the outputs need, in order.

    `choose(step)` is asked for the unit that makes a step's outputs, from the last step back. Where it cannot, it
    raises `Unsupported`.

    Raises:
      ValueError: that of the first step, in the order of the network, that cannot be handled.
    """
    needed, units, refused = set(_values(program.outputs)), [], None
    for step in reversed(program.steps):
        if needed.isdisjoint(step.outputs):
            continue
        try:
            unit = choose(step)
        except Unsupported as error:
            refused = error
            unit = plain(step)
        needed.update(unit.operands)
        units.append(unit)
    if refused is not None:
        raise ValueError(str(refused))
    return units[::-1]


def execute(program: Program, units: Sequence[Unit], inputs: Sequence[Any]) -> list[Any]:
    """Return the outputs of a program run by its units."""
    values = dict(zip(program.inputs, inputs, strict=True))
    for unit in units:
        made = unit.apply(*(values[operand] for operand in unit.operands))
        values.update(zip(unit.outputs, made, strict=True))
    return [values[x] if isinstance(x, Value) else x for x in program.outputs]


def plain(step: Step) -> Unit:
    """Return the unit that evaluates a step as it is, with its own gradient."""
    return Unit(step.dependent, step.outputs, step)


class Unsupported(Exception):
    """A step that a method cannot handle."""

    def __init__(self, method: str, step: Step, why: str, instead: str) -> None:
        place = f"in {step.scope!r}" if step.scope else "outside of any named scope"
        shapes = ", ".join(str(value.shape) for value in step.outputs)
        super().__init__(
            f"{method} cannot handle `{name_of(step.equation)}` {place} (result {shapes}): {why}. {instead}"
        )


def _values(items: Sequence[Any]) -> list[Value]:
    return [x for x in items if isinstance(x, Value)]


def _steps_of(
    closed: core.ClosedJaxpr, inputs: Sequence[Any], scope: str, steps: list[Step], numbers: Iterator[int], custom: bool
) -> list[Any]:
    """Append the steps of a jaxpr called with `inputs` (values or arrays) and return its outputs."""
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True)) | dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        given, place = [read(atom) for atom in equation.invars], scope_of(equation, scope)
        if not _values(given):
            outputs = _folded(equation, given)
        elif (inner := _inlined(equation, given, custom)) is not None:
            body, entering = inner
            outputs = _steps_of(body, entering, place, steps, numbers, custom)
        else:
            outputs = [Value(next(numbers), v.aval.shape, v.aval.dtype) for v in equation.outvars]
            steps.append(Step(equation, tuple(given), tuple(outputs), place))
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _folded(equation: Any, constants: list[Any]) -> list[jax.Array]:
    """Evaluate what does not depend on the input: at trace time where it can be, so that constants can be looked at."""
    if any(isinstance(x, jax.core.Tracer) for x in constants):
        return evaluate(equation, constants)
    return evaluate_now(equation, constants)


def _inlined(equation: Any, given: list[Any], custom: bool) -> tuple[core.ClosedJaxpr, list[Any]] | None:
    """Return the jaxpr that takes an equation's place and its inputs; None where the equation is a step."""
    inner = called(equation)
    if inner is not None:
        return inner, given
    name = equation.primitive.name
    if name == "scan":
        return _unrolled(equation), given
    if name == "cond" and not isinstance(given[0], Value | jax.core.Tracer):
        branches = equation.params["branches"]
        return branches[min(max(int(given[0]), 0), len(branches) - 1)], given[1:]
    if custom and name.startswith("custom_") and not is_elementwise_call(equation):
        return body_of(equation), given
    return None


def _unrolled(equation: Any) -> core.ClosedJaxpr:
    """Return a scan as the repetition of its body."""
    body, length, reverse = (equation.params[name] for name in ("jaxpr", "length", "reverse"))
    # Constants and carries have the shapes of the body; what is scanned and what is stacked has one axis more.
    invars, outvars = body.jaxpr.invars, body.jaxpr.outvars
    scanned = [v.aval.ndim > w.aval.ndim for v, w in zip(equation.invars, invars, strict=True)]
    carries = sum(v.aval.ndim == w.aval.ndim for v, w in zip(equation.outvars, outvars, strict=True))
    constants = len(invars) - sum(scanned) - carries
    once = core.jaxpr_as_fun(body)

    def repeated(*inputs: jax.Array) -> list[jax.Array]:
        carry, stacked = list(inputs[constants : constants + carries]), [None] * length
        for i in reversed(range(length)) if reverse else range(length):
            slices = [lax.index_in_dim(x, i, keepdims=False) for x in inputs[constants + carries :]]
            outputs = once(*inputs[:constants], *carry, *slices)
            carry, stacked[i] = outputs[:carries], outputs[carries:]
        return [*carry, *(jnp.stack(column) for column in zip(*stacked, strict=True))]

    return jax.make_jaxpr(repeated)(*(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars))
