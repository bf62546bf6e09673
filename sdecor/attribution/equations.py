"""What the primitives of a jaxpr do to values that depend on the image: the vocabulary of the backward rules."""

from typing import Any

import jax
from jax.extend import core

from sdecor.core.jaxpr import body_of, called, evaluate, has_own_derivative, inner_jaxprs, kind_of, run

# Each element of the output is made of the elements at the same place in the inputs.
ELEMENTWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy copy_p cos "
    "cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log log1p "
    "logistic lt max min mul name ne neg nextafter not or pow reduce_precision rem round rsqrt select_n sign sin sinh "
    "sqrt square stop_gradient sub tan tanh xor".split()
)
# Each element of the output is an element of an input, or a constant.
ROUTING = frozenset(
    "broadcast_in_dim concatenate copy copy_p dynamic_slice dynamic_update_slice expand_dims gather name "
    "optimization_barrier pad reshape rev scatter sharding_constraint slice split squeeze stack tile transpose "
    "unstack".split()
)
# Sums over elements of one input, with weights 1.
SUMS = frozenset("cumsum reduce_sum reduce_window_sum".split())
# Largest or smallest of the elements of a region.
MAXIMA = frozenset("reduce_max reduce_window_max".split())
MINIMA = frozenset("reduce_min reduce_window_min".split())
# Linear in each of two inputs.
BILINEAR = frozenset("conv_general_dilated dot_general mul".split())


def name_of(equation: Any) -> str:
    """Return what to call an equation: its primitive, and the function behind a `custom_jvp` or `custom_vjp` call."""
    name = kind_of(equation)
    return f"{name} {body_of(equation).jaxpr.debug_info.func_name}" if has_own_derivative(equation) else name


def is_elementwise_call(equation: Any) -> bool:
    """Return whether an equation calls an elementwise function with a derivative of its own, such as `jax.nn.relu`."""
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
    """Evaluate an equation of constants while tracing, so that the result is an array that can be looked at."""
    with jax.ensure_compile_time_eval():
        outputs = _entered(equation, constants)
        return evaluate(equation, constants, _entered) if outputs is None else outputs


def _entered(equation: Any, inputs: list[jax.Array], scope: str = "") -> list[jax.Array] | None:
    """Enter calls, also those with their own derivative, which `vmap` would trace at compile time too."""
    inner = body_of(equation) if has_own_derivative(equation) else called(equation)
    return None if inner is None else run(inner, inputs, _entered)
