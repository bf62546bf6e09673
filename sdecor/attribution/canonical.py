"""Convolutions whose input gradient is an ordinary convolution.

In JAX, the input gradient of a convolution names the kernel's two feature axes in exchanged order. Inside a loop, XLA's
CPU compiler then leaves its fast path, and a gradient costs about three times as much (docs/performance.md). Here the
kernel itself is transposed, and a gradient costs the same inside and outside of a loop. For a convolution over patches
that do not overlap, as in a vision transformer, it is a matrix product: a convolution of the spread cotangent would
also multiply the zeros between its elements, `stride²` times as many products.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sdecor.core.jaxpr import interpret


def canonical(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return `fn` with `_input_gradient` in every ungrouped convolution; values and gradients are unchanged."""
    return interpret(fn, _rule)


def _rule(equation: Any, inputs: list[jax.Array], scope: str) -> list[jax.Array] | None:
    if equation.primitive is not lax.conv_general_dilated_p:
        return None
    params = equation.params
    if params["feature_group_count"] != 1 or params["batch_group_count"] != 1:
        return None
    return [_convolution(params, *inputs)]


def _convolution(params: dict[str, Any], x: jax.Array, kernel: jax.Array) -> jax.Array:
    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated_p.bind(x, kernel, **params)

    @jax.custom_vjp
    def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return plain(x, kernel)

    def forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        return plain(x, kernel), (x, kernel)

    def backward(kept: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, kernel = kept
        (to_kernel,) = jax.vjp(lambda kernel: plain(x, kernel), kernel)[1](cotangent)
        return _input_gradient(params, x.shape, kernel, cotangent).astype(x.dtype), to_kernel

    convolution.defvjp(forward, backward)
    return convolution(x, kernel)


def _input_gradient(
    params: dict[str, Any], shape: tuple[int, ...], kernel: jax.Array, cotangent: jax.Array
) -> jax.Array:
    """Convolve the cotangent with the flipped kernel, whose input and output features are exchanged."""
    lhs, rhs, out = params["dimension_numbers"]
    if _is_of_patches(params, tuple(kernel.shape[place] for place in rhs[2:])):
        return _patches_gradient(params, shape, kernel, cotangent)
    strides, lhs_dilation, rhs_dilation = (params[n] for n in ("window_strides", "lhs_dilation", "rhs_dilation"))
    padding = []
    for i, (low, _) in enumerate(params["padding"]):
        reach = rhs_dilation[i] * (kernel.shape[rhs[2 + i]] - 1)
        before = reach - low
        spread_input = lhs_dilation[i] * (shape[lhs[2 + i]] - 1)
        spread_output = strides[i] * (cotangent.shape[out[2 + i]] - 1)
        padding.append((before, spread_input + reach - spread_output - before))
    return lax.conv_general_dilated(
        cotangent,
        jnp.swapaxes(lax.rev(kernel, rhs[2:]), rhs[0], rhs[1]),
        window_strides=lhs_dilation,
        padding=padding,
        lhs_dilation=strides,
        rhs_dilation=rhs_dilation,
        dimension_numbers=lax.ConvDimensionNumbers(out, rhs, lhs),
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )


def _is_of_patches(params: dict[str, Any], sides: tuple[int, ...]) -> bool:
    """Return whether the windows of a convolution lie side by side, without padding, and are larger than 1×1."""
    dilated = any(n != 1 for n in (*params["lhs_dilation"], *params["rhs_dilation"]))
    padded = any(n != 0 for pair in params["padding"] for n in pair)
    return not dilated and not padded and tuple(params["window_strides"]) == sides and max(sides, default=1) > 1


def _patches_gradient(
    params: dict[str, Any], shape: tuple[int, ...], kernel: jax.Array, cotangent: jax.Array
) -> jax.Array:
    """Return each position's cotangent times the kernel, laid side by side, and 0 at pixels outside of all windows."""
    lhs, rhs, out = params["dimension_numbers"]
    of_output, of_kernel = jnp.transpose(cotangent, out), jnp.transpose(kernel, rhs)  # [N, O, *grid], [O, C, *sides]
    options = {name: params[name] for name in ("precision", "preferred_element_type")}
    products = lax.dot_general(of_output, of_kernel, (((1,), (0,)), ((), ())), **options)  # [N, *grid, C, *sides]
    axes = len(lhs) - 2
    pairs = [place for i in range(axes) for place in (1 + i, 2 + axes + i)]
    together = products.transpose(0, 1 + axes, *pairs)
    n, channels, *sides = (shape[place] for place in lhs)
    covered = [of_output.shape[2 + i] * of_kernel.shape[2 + i] for i in range(axes)]
    rest = [(0, side - length) for side, length in zip(sides, covered, strict=True)]
    whole = jnp.pad(together.reshape(n, channels, *covered), [(0, 0), (0, 0), *rest])
    return jnp.transpose(whole, [lhs.index(i) for i in range(len(lhs))])
