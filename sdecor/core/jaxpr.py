"""Interpretation of a function's jaxpr, equation by equation; the function itself is not changed.

`interpret` runs a function one equation at a time and lets a rule replace some of them. It enters called functions
(`jit`, `checkpoint`). A `custom_jvp`, a `custom_vjp` and control flow are single equations unless a rule enters them.
The scope of an equation is the path of `jax.named_scope`s around it, which Linen sets to module names.

Several operations have two forms in JAX, chosen by flags such as `jax_remat3`: their own primitive, or an object in
the primitive `call_hi_primitive`. `kind_of` and `parameters` read both forms, so that rules see no difference.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

# A rule takes an equation, its inputs and its scope. It returns the outputs, or None to evaluate as usual.
Rule = Callable[[Any, list[jax.Array], str], list[jax.Array] | None]
_CALLS = ("jit", "pjit", "closed_call", "core_call", "core_closed_call", "eval_jaxpr")
_CHECKPOINTS = ("checkpoint", "remat", "remat2")
_CUSTOM = ("custom_jvp_call", "custom_vjp_call")
_WHOLE = jax.tree.structure(())  # the index of a reference that is read or written as a whole
# Classes of the objects in `call_hi_primitive`, and the primitives that they replace.
_HIGH = {
    "CheckpointName": "name",
    "CheckpointNameFwd": "name",
    "CustomJVPTraced": "custom_jvp_call",
    "CustomVJPTraced": "custom_vjp_call",
    "OptRemat": "custom_vjp_call",
    "RematTraced": "checkpoint",
    "Scan3": "scan",
}


class Reference:
    """A mutable array (`jax.new_ref`) during interpretation; `value` is its current content."""

    def __init__(self, value: Any) -> None:
        self.value = value


def interpret(fn: Callable[..., Any], rule: Rule) -> Callable[..., Any]:
    """Return `fn` interpreted equation by equation, with the outputs of `rule` where it returns any.

    Args:
      fn: a function of arrays; arrays that it closes over become constants.
      rule: `rule(equation, inputs, scope) -> outputs`, or None to evaluate the equation as usual.

    Returns:
      A function with the arguments and results of `fn`; it can be transformed like any other.
    """

    def interpreted(*args: Any) -> Any:
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
        outputs = run(closed, jax.tree.leaves(args), rule)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return interpreted


def run(closed: core.ClosedJaxpr, inputs: Sequence[jax.Array], rule: Rule, scope: str = "") -> list[jax.Array]:
    """Evaluate a closed jaxpr with `rule`, as `interpret` does."""
    values = values_of(closed, inputs)
    run_equations(closed.jaxpr.eqns, values, rule, scope)
    return [value_of(values, atom) for atom in closed.jaxpr.outvars]


def run_equations(equations: Sequence[Any], values: dict[core.Var, Any], rule: Rule, scope: str = "") -> None:
    """Evaluate equations in order with `rule`, as `interpret` does, and add their outputs to `values`."""
    for equation in equations:
        given = [value_of(values, atom) for atom in equation.invars]
        place = scope_of(equation, scope)
        outputs = on_reference(equation, given)
        if outputs is None:
            outputs = rule(equation, given, place)
        if outputs is None:
            outputs = evaluate(equation, given, rule, place)
        values.update(zip(equation.outvars, outputs, strict=True))


def values_of(closed: core.ClosedJaxpr, inputs: Sequence[jax.Array]) -> dict[core.Var, Any]:
    """Return the values of a closed jaxpr's constants and inputs."""
    jaxpr = closed.jaxpr
    return dict(zip(jaxpr.constvars, closed.consts, strict=True)) | dict(zip(jaxpr.invars, inputs, strict=True))


def value_of(values: dict[core.Var, Any], atom: Any) -> Any:
    """Return the value of a variable, or of a literal."""
    return atom.val if isinstance(atom, core.Literal) else values[atom]


def evaluate(equation: Any, inputs: Sequence[jax.Array], rule: Rule | None = None, scope: str = "") -> list[jax.Array]:
    """Evaluate one equation as usual; with a rule, enter called functions."""
    if is_loop_over_references(equation):
        return _looped(equation, inputs, rule, scope)
    inner = called(equation)
    if rule is not None and inner is not None:
        if kind_of(equation) in _CALLS:
            return run(inner, inputs, rule, scope)
        return _recomputed(equation, inner, inputs, rule, scope)
    bound = equation.primitive.get_bind_params(equation.params)  # a pair in some versions of JAX, a dict in others
    functions, options = bound if isinstance(bound, tuple) else ((), bound)
    given = [jax.new_ref(x.value) if isinstance(x, Reference) else x for x in inputs]
    with jax.named_scope(scope) if scope else contextlib.nullcontext():
        outputs = equation.primitive.bind(*functions, *given, **options)
    for reference, changed in zip(inputs, given, strict=True):
        if isinstance(reference, Reference):
            reference.value = changed[...]
    return list(outputs) if equation.primitive.multiple_results else [outputs]


def kind_of(equation: Any) -> str:
    """Return the name of an equation's primitive; "custom_…" for an object with its own derivative."""
    name = equation.primitive.name
    if name != "call_hi_primitive":
        return name
    high = type(equation.params["_prim"]).__name__
    return _HIGH.get(high, f"custom_{high}")


def parameters(equation: Any) -> dict[str, Any]:
    """Return the parameters of an equation, or of the object in its `call_hi_primitive`."""
    high = equation.params.get("_prim")
    return equation.params if high is None else high.params


def called(equation: Any) -> core.ClosedJaxpr | None:
    """Return the jaxpr that a call (`jit`, `checkpoint`) runs; None for any other equation."""
    if kind_of(equation) not in (*_CALLS, *_CHECKPOINTS):
        return None
    given = parameters(equation)
    return _closed(given["jaxpr"] if "jaxpr" in given else given["call_jaxpr"])


def has_own_derivative(equation: Any) -> bool:
    """Return whether an equation calls a function with its own derivative (`custom_jvp`, `custom_vjp`)."""
    is_high = equation.primitive.name == "call_hi_primitive"
    return kind_of(equation) in _CUSTOM or (is_high and type(equation.params["_prim"]).__name__ not in _HIGH)


def body_of(equation: Any) -> core.ClosedJaxpr:
    """Return the jaxpr of the function that an equation with its own derivative calls."""
    given = parameters(equation)
    for name in ("call_jaxpr", "traced_fwd", "traced"):
        if name in given:
            return _closed(given[name] if name == "call_jaxpr" else given[name].jaxpr)
    high = equation.params["_prim"]
    shapes = jax.tree.map(lambda aval: jax.ShapeDtypeStruct(aval.shape, aval.dtype), high.in_avals)
    return jax.make_jaxpr(high.expand)(*shapes)


def inner_jaxprs(equation: Any) -> list[core.Jaxpr]:
    """Return the jaxprs in an equation's parameters."""
    if has_own_derivative(equation):
        return [body_of(equation).jaxpr]
    held = (item for item in _held(equation) if isinstance(item, core.ClosedJaxpr | core.Jaxpr))
    return [item.jaxpr if isinstance(item, core.ClosedJaxpr) else item for item in held]


def holds_function(equation: Any) -> bool:
    """Return whether an equation's parameters hold a function: a jaxpr or a callable."""
    no_function = type | contextlib.ContextDecorator  # callable, but no function: a dtype, a mesh
    return has_own_derivative(equation) or any(
        isinstance(item, core.ClosedJaxpr | core.Jaxpr) or (callable(item) and not isinstance(item, no_function))
        for item in _held(equation)
    )


def scope_of(equation: Any, outer: str = "") -> str:
    """Return an equation's path of named scopes, inside `outer`, such as "CNN/block1/conv2"."""
    stack = equation.source_info.name_stack.stack
    names = [outer, *(entry.name for entry in stack if type(entry).__name__ == "Scope")]
    return "/".join(name for name in names if name)


def on_reference(equation: Any, inputs: Sequence[Any]) -> list[Any] | None:
    """Create, read or write a whole `Reference` and return the outputs; None for any other equation."""
    name = equation.primitive.name
    if name == "new_ref":
        return [Reference(inputs[0])]
    whole = name == "freeze" or (name in ("get", "swap") and equation.params["tree"] == _WHOLE)
    if not whole or not isinstance(inputs[0], Reference):
        return None
    before = inputs[0].value
    if name == "swap":
        inputs[0].value = inputs[1]
    return [before]


def is_loop_over_references(equation: Any) -> bool:
    """Return whether an equation is a `scan` whose carry is held in references (`jax_scan3`)."""
    return kind_of(equation) == "scan" and "extensives" in parameters(equation)


def _looped(equation: Any, inputs: Sequence[Any], rule: Rule | None, scope: str) -> list[jax.Array]:
    """Evaluate a `scan` over references round by round: JAX supports neither its reverse derivative nor its `vmap`."""
    given, rounds = parameters(equation), {}
    for i in reversed(range(given["length"])) if given["reverse"] else range(given["length"]):
        pairs = zip(inputs, given["extensives"], strict=True)
        slices = [lax.index_in_dim(x, i, keepdims=False) if scanned else x for x, scanned in pairs]
        rounds[i] = run(_closed(given["jaxpr"]), slices, rule or (lambda *_: None), scope)
    if not rounds:
        return [jnp.zeros(v.aval.shape, v.aval.dtype) for v in equation.outvars]
    return [jnp.stack(column) for column in zip(*(rounds[i] for i in range(len(rounds))), strict=True)]


def _recomputed(equation: Any, inner: core.ClosedJaxpr, inputs: Sequence[Any], rule: Rule, scope: str) -> list[Any]:
    """Evaluate a `checkpoint` with `rule`; the backward pass still recomputes it."""
    references = [i for i, x in enumerate(inputs) if isinstance(x, Reference)]

    def body(*args: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        given = [Reference(x) if i in references else x for i, x in enumerate(args)]
        return run(inner, given, rule, scope), [given[i].value for i in references]

    options = {name: parameters(equation)[name] for name in ("prevent_cse", "policy")}
    outputs, after = jax.checkpoint(body, **options)(*(x.value if isinstance(x, Reference) else x for x in inputs))
    for i, value in zip(references, after, strict=True):
        inputs[i].value = value
    return outputs


def _closed(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> core.ClosedJaxpr:
    return jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else core.ClosedJaxpr(jaxpr, ())


def _held(equation: Any) -> list[Any]:
    """Return an equation's parameters, and the items of those that are tuples or lists."""
    found = []
    for value in parameters(equation).values():
        found += value if isinstance(value, tuple | list) else (value,)
    return found
