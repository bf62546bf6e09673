"""A convolution for training, whose kernel's gradient is fast on a CPU."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

_SMALL = 8  # height and width of the output, below which XLA's own gradient is as fast


def training_convolution(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Sequence[tuple[int, int]], **options: Any
) -> jax.Array:
    """Convolve `x [N, H, W, C]` with a kernel `[h, w, C, K]`; a `conv_general_dilated` for `nn.Conv`.

    XLA's CPU compiler computes the kernel's gradient as a convolution whose window is the whole map, on large maps
    several times slower than the forward (docs/performance.md). On a CPU the gradient is one matrix product for each
    row of the kernel instead. Values are XLA's own, and gradients equal up to rounding. Programs for other devices stay
    as they are. It can be differentiated any number of times, in forward and reverse mode.

    Raises:
      ValueError: for dilation or groups, which are not implemented.
    """
    groups = options.get("feature_group_count", 1)
    dilations = options.get("lhs_dilation"), options.get("rhs_dilation")
    if groups != 1 or any(set(each or (1,)) != {1} for each in dilations):
        raise ValueError(f"feature_group_count = {groups}, dilations {dilations}: only plain convolutions are possible")
    return _convolve(x, kernel, tuple(strides), tuple(map(tuple, padding)), options.get("precision"))


def _plain(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, precision: Any) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision
    )


_convolve = jax.custom_jvp(_plain, nondiff_argnums=(2, 3, 4))


def _jvp(strides: Any, padding: Any, precision: Any, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (to_x, to_kernel) = primals, tangents
    static = (strides, padding, precision)
    value = _convolve(x, kernel, *static)
    parts = []
    if not isinstance(to_x, SymbolicZero):
        parts.append(_convolve(to_x, kernel, *static))
    if not isinstance(to_kernel, SymbolicZero):
        small = min(value.shape[1:3]) < _SMALL or kernel.shape[:2] == (1, 1)
        linear = partial(_plain if small else _by_platform, strides=strides, padding=padding, precision=precision)
        # Its gradient is what runs. `checkpoint` keeps x for that, not the windows, which are `w` times as large.
        parts.append((linear if small else jax.checkpoint(linear, prevent_cse=False))(x, to_kernel))
    return value, sum(parts[1:], parts[0])


_convolve.defjvp(_jvp, symbolic_zeros=True)


def _by_platform(x: jax.Array, kernel: jax.Array, **static: Any) -> jax.Array:
    return lax.platform_dependent(x, kernel, cpu=partial(_products, **static), default=partial(_plain, **static))


def _products(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, precision: Any) -> jax.Array:
    """Convolve by one matrix product for each row of the kernel."""
    rows, columns, channels, features = kernel.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = (
        (size - side) // stride + 1 for size, side, stride in zip(x.shape[1:3], (rows, columns), strides, strict=True)
    )
    down, right = strides
    x = jnp.concatenate([x[:, :, j : j + right * (width - 1) + 1 : right] for j in range(columns)], axis=3)
    windows = (x[:, i : i + down * (height - 1) + 1 : down] for i in range(rows))
    products = (
        jnp.matmul(window.reshape(-1, columns * channels), weights.reshape(-1, features), precision=precision)
        for window, weights in zip(windows, kernel, strict=True)
    )
    return sum(products).reshape(-1, height, width, features)
