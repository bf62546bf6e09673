"""The precision in which statistics, sums and losses are computed: float32, or wider where an array is wider."""

import jax
import jax.numpy as jnp


def at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
    """Return a floating dtype of at least 32 bits: `dtype` itself where it is one, else float32.

    `jnp.promote_types` says the same, but refuses under `jax_numpy_dtype_promotion="strict"`.
    """
    wide = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits >= 32
    return jnp.dtype(dtype) if wide else jnp.dtype(jnp.float32)


def widened(array: jax.Array) -> jax.Array:
    """Return an array in at least float32."""
    return array.astype(at_least_float32(array.dtype))


def moderate(values: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Scale float32 values down by a power of two where the largest over `axes` is next to the end of their range.

    For what does not depend on scale. Up there differences are infinite, and a quotient is 0 where the compiler
    multiplies by the reciprocal, which float32 cannot hold.
    """
    huge = jnp.abs(values).max(axes, keepdims=True) > 2.0**100
    return jnp.where(huge, values * 2.0**-32, values)
