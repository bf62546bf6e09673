"""Reading a function's own equations: the user's network is interpreted, never changed.

`interpret` runs a function one equation at a time and lets a rule replace some of them. Called functions (`jit`,
`checkpoint`) are entered; `custom_jvp`, `custom_vjp` and control flow are single equations unless a rule looks inside.
Each equation comes with its scope, the path of `jax.named_scope`s it was traced under (Linen names its modules so).
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

# A rule gets an equation, its inputs and its scope, and returns the list of its outputs; None = as usual.
Rule = Callable[[Any, list[jax.Array], str], list[jax.Array] | None]
_CALLS = ("jit", "pjit", "closed_call", "core_call", "core_closed_call")


def interpret(fn: Callable[..., Any], rule: Rule) -> Callable[..., Any]:
    """Return `fn` run equation by equation, with those for which `rule` returns something replaced.

    Args:
      fn: a function of arrays; what it closes over becomes constants.
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
    """Evaluate a closed jaxpr under `rule`: see `interpret`."""
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True)) | dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> jax.Array:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        given = [read(atom) for atom in equation.invars]
        place = scope_of(equation, scope)
        outputs = rule(equation, given, place)
        if outputs is None:
            outputs = evaluate(equation, given, rule, place)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def evaluate(equation: Any, inputs: Sequence[jax.Array], rule: Rule | None = None, scope: str = "") -> list[jax.Array]:
    """Evaluate one equation as usual; called functions are entered when there is a rule."""
    inner = called(equation)
    if rule is not None and inner is not None:
        if equation.primitive.name in _CALLS:
            return run(inner, inputs, rule, scope)
        recomputed = jax.checkpoint(
            lambda *args: run(inner, args, rule, scope),
            prevent_cse=equation.params["prevent_cse"],
            policy=equation.params["policy"],
        )
        return recomputed(*inputs)
    bound = equation.primitive.get_bind_params(equation.params)  # a pair in some versions of JAX, a dict in others
    functions, parameters = bound if isinstance(bound, tuple) else ((), bound)
    with jax.named_scope(scope) if scope else contextlib.nullcontext():
        outputs = equation.primitive.bind(*functions, *inputs, **parameters)
    return list(outputs) if equation.primitive.multiple_results else [outputs]


def called(equation: Any) -> core.ClosedJaxpr | None:
    """Return what a call (`jit`, `checkpoint`) calls; None for any other equation."""
    name = equation.primitive.name
    if name not in _CALLS and name not in ("checkpoint", "remat", "remat2"):
        return None
    inner = equation.params["jaxpr"] if "jaxpr" in equation.params else equation.params["call_jaxpr"]
    return inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ())


def inner_jaxprs(equation: Any) -> list[core.Jaxpr]:
    """Return the jaxprs in an equation's parameters."""
    found = []
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr | core.Jaxpr):
                found.append(item.jaxpr if isinstance(item, core.ClosedJaxpr) else item)
    return found


def scope_of(equation: Any, outer: str = "") -> str:
    """Return the path of named scopes of an equation inside `outer`, such as "CNN/block1/conv2"."""
    stack = equation.source_info.name_stack.stack
    names = [outer, *(entry.name for entry in stack if type(entry).__name__ == "Scope")]
    return "/".join(name for name in names if name)
