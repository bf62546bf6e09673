"""The size of arrays in a traced function, found without compiling."""

from typing import Any

import jax


def largest(jaxpr: Any) -> int:
    """Return the size of the largest array in the equations, inner functions included."""
    sizes = [1]
    for equation in jaxpr.eqns:
        sizes += [v.aval.size for v in equation.outvars]
        for value in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(value, "jaxpr", value)
            sizes += [largest(inner)] if hasattr(inner, "eqns") else []
    return max(sizes)
