"""Programs: a function as a flat list of the steps that depend on its input.

Attribution methods with their own backward pass replace steps of a program by units:

1. `flatten` inlines calls and unrolls loops, so that a layer that is used twice is two steps. Values that do not depend
   on the input, such as weights and what is computed from them, are computed on the way.
2. `plan` asks the method for a `Unit` for each step that is needed, the last step first. A unit may stand for several
   steps, from the value where it starts to the value that it computes.
3. `execute` runs the units. The ordinary JAX gradient of its outputs is the backward pass of the method.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from sdecor.core.jaxpr import (
    Reference,
    body_of,
    called,
    evaluate,
    has_own_derivative,
    inner_jaxprs,
    is_loop_over_references,
    kind_of,
    on_reference,
    parameters,
    run,
    scope_of,
)

# Each output element depends only on the input elements at the same position.
ELEMENTWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy copy_p cos "
    "cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log log1p "
    "logistic lt max min mul name ne neg nextafter not or pow reduce_precision rem round rsqrt select_n sign sin sinh "
    "sqrt square stop_gradient sub tan tanh xor".split()
)
# Each output element is a copy of an input element, or a constant.
ROUTING = frozenset(
    "broadcast_in_dim concatenate copy copy_p dynamic_slice dynamic_update_slice expand_dims gather name "
    "optimization_barrier pad reshape rev scatter sharding_constraint slice split squeeze stack tile transpose "
    "unstack".split()
)
# Sums of elements of one input, with weights 1.
SUMS = frozenset("cumsum reduce_sum reduce_window_sum".split())
# The largest or smallest element of a region.
MAXIMA = frozenset("reduce_max reduce_window_max".split())
MINIMA = frozenset("reduce_min reduce_window_min".split())
# Linear in each of two inputs.
BILINEAR = frozenset("conv_general_dilated dot_general mul".split())


def name_of(equation: Any) -> str:
    """Return an equation's name for errors: its primitive, and the function of a `custom_jvp` or `custom_vjp` call."""
    name = kind_of(equation)
    return f"{name} {body_of(equation).jaxpr.debug_info.func_name}" if has_own_derivative(equation) else name


def is_elementwise_call(equation: Any) -> bool:
    """Return whether an equation calls an elementwise function with its own derivative, such as `jax.nn.relu`."""
    if not has_own_derivative(equation) or len(equation.outvars) != 1:
        return False
    shape = equation.outvars[0].aval.shape
    fitting = all(v.aval.shape in (shape, ()) for v in equation.invars)
    return fitting and _only_elementwise(body_of(equation).jaxpr)


def _only_elementwise(jaxpr: core.Jaxpr) -> bool:
    for equation in jaxpr.eqns:
        inner = inner_jaxprs(equation)
        known = kind_of(equation) in ELEMENTWISE | {"broadcast_in_dim"}
        if not (known or inner) or not all(map(_only_elementwise, inner)):
            return False
    return True


def evaluate_now(equation: Any, constants: list[Any]) -> list[jax.Array]:
    """Evaluate an equation of constants at trace time, so that its results are concrete arrays."""
    with jax.ensure_compile_time_eval():
        outputs = _entered(equation, constants)
        return evaluate(equation, constants, _entered) if outputs is None else outputs


def _entered(equation: Any, inputs: list[jax.Array], scope: str = "") -> list[jax.Array] | None:
    """Evaluate the body of a call; None for any other equation.

    Calls with their own derivative are entered too, because `vmap` would trace them even at compile time.
    """
    inner = body_of(equation) if has_own_derivative(equation) else called(equation)
    return None if inner is None else run(inner, inputs, _entered)


class Value(NamedTuple):
    """A placeholder for an array that depends on the input; later values have higher numbers."""

    number: int
    shape: tuple[int, ...]
    dtype: Any


class Step(NamedTuple):
    """One equation of a program, with constants and values in place of its variables."""

    equation: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Value, ...]
    scope: str

    @property
    def name(self) -> str:
        return kind_of(self.equation)

    @property
    def params(self) -> dict[str, Any]:
        return parameters(self.equation)

    @property
    def dependent(self) -> tuple[Value, ...]:
        """The inputs that depend on the function's input, in order."""
        return tuple(x for x in self.inputs if isinstance(x, Value))

    def __call__(self, *arrays: jax.Array) -> list[jax.Array]:
        """Evaluate the equation with `arrays` as its dependent inputs."""
        given = iter(arrays)
        return evaluate(self.equation, [next(given) if isinstance(x, Value) else x for x in self.inputs])


class Program(NamedTuple):
    """A function as a list of steps; an output that does not depend on the input is an array.

    `made_by` maps each value to its step, `first` to the first value with the same operation and inputs.
    """

    inputs: list[Value]
    outputs: list[Any]
    steps: list[Step]
    made_by: dict[Value, Step]
    first: dict[Value, Value]


class Unit(NamedTuple):
    """A method's computation of one or more steps: `apply(*operands) -> outputs`.

    Nothing is passed back to the operands in `constants`.
    """

    operands: tuple[Value, ...]
    outputs: tuple[Value, ...]
    apply: Callable[..., Sequence[Any]]
    constants: frozenset[Value] = frozenset()


def flatten(fn: Callable[..., Any], *examples: Any, enter_custom: bool) -> Program:
    """Return `fn` as a program.

    Args:
      fn: a function of arrays that returns one or more arrays.
      *examples: its arguments, arrays or shapes.
      enter_custom: whether to enter functions with their own derivative (`custom_jvp`, `custom_vjp`). Elementwise ones,
        such as `jax.nn.relu`, are always single steps.
    """
    closed = jax.make_jaxpr(fn)(*examples)
    found = _Found([], itertools.count(), {}, {}, enter_custom)
    inputs = found.values(closed.jaxpr.invars)
    outputs = _steps_of(closed, inputs, "", found)
    made_by = {value: step for step in found.steps for value in step.outputs}
    return Program(inputs, outputs, found.steps, made_by, found.first)


def plan(program: Program, choose: Callable[[Step], Unit]) -> list[Unit]:
    """Return the units that compute the program's outputs, in order of evaluation.

    `choose(step)` returns the unit that makes a step's outputs, or raises `Unsupported`. It is called for the steps
    that the outputs need, from the last step back. Steps that only constants of units need are evaluated unchanged.

    Raises:
      ValueError: if a step is unsupported, with the message of the first such step in the network.
    """
    needed, units, refused = set(_values(program.outputs)), [], None
    followed = set(needed)  # values to which something is passed back
    for step in reversed(program.steps):
        if needed.isdisjoint(step.outputs):
            continue
        unit = plain(step)
        if not followed.isdisjoint(step.outputs):
            try:
                unit = choose(step)
            except Unsupported as error:
                refused = error
            followed.update(set(unit.operands) - unit.constants)
        needed.update(unit.operands)
        units.append(unit)
    if refused is not None:
        raise ValueError(str(refused))
    return units[::-1]


def execute(program: Program, units: Sequence[Unit], inputs: Sequence[Any]) -> list[Any]:
    """Run a program's units on `inputs` and return the program's outputs."""
    values = dict(zip(program.inputs, inputs, strict=True))
    for unit in units:
        given = ((values[x], x in unit.constants) for x in unit.operands)
        made = unit.apply(*(lax.stop_gradient(x) if constant else x for x, constant in given))
        values.update(zip(unit.outputs, made, strict=True))
    return [values[x] if isinstance(x, Value) else x for x in program.outputs]


def plain(step: Step) -> Unit:
    """Return the unit that evaluates a step unchanged, with its ordinary gradient."""
    return Unit(step.dependent, step.outputs, step)


class Unsupported(Exception):
    """Error for a step that a method cannot handle."""

    def __init__(self, method: str, step: Step, why: str, instead: str) -> None:
        place = f"in {step.scope!r}" if step.scope else "outside of any named scope"
        shapes = ", ".join(str(value.shape) for value in step.outputs)
        super().__init__(
            f"{method} cannot handle `{name_of(step.equation)}` {place} (result {shapes}): {why}. {instead}"
        )


class _Found(NamedTuple):
    """The parts of a program that are collected while its jaxprs are read.

    `made` maps an operation with its inputs to its outputs, for constants too; `first` is that of `Program`.
    """

    steps: list[Step]
    numbers: Iterator[int]
    made: dict[Any, tuple[list[Any], list[Any], Any]]
    first: dict[Value, Value]
    enter_custom: bool

    def values(self, variables: Sequence[core.Var]) -> list[Value]:
        return [Value(next(self.numbers), v.aval.shape, v.aval.dtype) for v in variables]

    def once(self, equation: Any, given: list[Any], make: Callable[[], list[Any]]) -> list[Any]:
        """Return the outputs of an earlier equal operation on the same inputs; if there is none, return `make()`."""
        same = [self.first.get(x, x) if isinstance(x, Value) else _identity(x) for x in given]
        key = (equation.primitive, frozenset((name, _hashable(x)) for name, x in equation.params.items()), *same)
        if equation.effects or any(isinstance(x, Reference) for x in given):
            return make()
        if key not in self.made:
            self.made[key] = make(), given, equation  # inputs stay alive, so that no `id` in a key is reused
        return self.made[key][0]


def _identity(constant: Any) -> Any:
    is_number = isinstance(constant, np.generic | np.ndarray) and constant.ndim == 0
    return (type(constant), constant.dtype, constant.item()) if is_number else id(constant)


def _hashable(parameter: Any) -> Any:
    try:
        hash(parameter)
    except TypeError:
        return id(parameter)
    return parameter


def _values(items: Sequence[Any]) -> list[Value]:
    return [x for x in items if isinstance(x, Value)]


def _steps_of(closed: core.ClosedJaxpr, inputs: Sequence[Any], scope: str, found: _Found) -> list[Any]:
    """Append the steps of a jaxpr, called with `inputs` (values or arrays), to `found`; return its outputs."""
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True)) | dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        given, place = [read(atom) for atom in equation.invars], scope_of(equation, scope)
        outputs = on_reference(equation, given)
        if outputs is None and not _values([_held(x) for x in given]):
            outputs = found.once(equation, given, partial(_folded, equation, given))
        elif outputs is None and (inner := _inlined(equation, given, found.enter_custom)) is not None:
            body, entering = inner
            outputs = _steps_of(body, entering, place, found)
            outputs = _written_back(given, outputs) if is_loop_over_references(equation) else outputs
        elif outputs is None:
            if any(isinstance(x, Reference) for x in given):
                raise ValueError(
                    f"`{name_of(equation)}` changes a mutable array (jax.new_ref) that depends on the image, in a way "
                    "that is not supported: avoid the mutable array, or read and write it as a whole, `ref[...]`"
                )
            outputs = found.values(equation.outvars)
            found.steps.append(Step(equation, tuple(given), tuple(outputs), place))
            found.first.update(zip(outputs, found.once(equation, given, lambda made=outputs: made), strict=True))
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _held(given: Any) -> Any:
    return given.value if isinstance(given, Reference) else given


def _written_back(given: Sequence[Any], outputs: list[Any]) -> list[Any]:
    """Store the last outputs of an unrolled loop in its references and return the other outputs."""
    references = [x for x in given if isinstance(x, Reference)]
    own = len(outputs) - len(references)
    for reference, value in zip(references, outputs[own:], strict=True):
        reference.value = value
    return outputs[:own]


def _folded(equation: Any, constants: list[Any]) -> list[jax.Array]:
    """Evaluate an equation of constants, at trace time unless one is a tracer, so that rules can inspect the result."""
    if any(isinstance(_held(x), jax.core.Tracer) for x in constants):
        return evaluate(equation, constants)
    return evaluate_now(equation, constants)


def _inlined(equation: Any, given: list[Any], custom: bool) -> tuple[core.ClosedJaxpr, list[Any]] | None:
    """Return the jaxpr that replaces an equation, with its inputs; None where the equation stays a step."""
    inner = called(equation)
    if inner is not None:
        return inner, given
    if is_loop_over_references(equation):
        return _rounds(equation), [_held(x) for x in given]
    name = kind_of(equation)
    if name == "scan":
        return _unrolled(equation), given
    if name == "cond" and not isinstance(given[0], Value | jax.core.Tracer):
        branches = equation.params["branches"]
        return branches[min(max(int(given[0]), 0), len(branches) - 1)], given[1:]
    if custom and has_own_derivative(equation) and not is_elementwise_call(equation):
        return body_of(equation), given
    return None


def _rounds(equation: Any) -> core.ClosedJaxpr:
    """Return a scan over references as its repeated body, with the references' values as extra inputs and outputs."""
    is_carry = ["Ref" in type(v.aval).__name__ for v in equation.invars]

    def repeated(*inputs: jax.Array) -> list[jax.Array]:
        given = [Reference(x) if carry else x for x, carry in zip(inputs, is_carry, strict=True)]
        return [*evaluate(equation, given), *(x.value for x in given if isinstance(x, Reference))]

    return jax.make_jaxpr(repeated)(*(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars))


def _unrolled(equation: Any) -> core.ClosedJaxpr:
    """Return a scan as its repeated body."""
    body, length, reverse = (equation.params[name] for name in ("jaxpr", "length", "reverse"))
    # Constants and carries have the body's shapes; scanned inputs and stacked outputs have one axis more.
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
