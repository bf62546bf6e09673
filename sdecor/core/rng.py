"""Random keys per example: the same draws on any number of devices and in any batch layout."""

import math

import jax
import jax.numpy as jnp


def example_keys(key: jax.Array, step: jax.Array | int, positions: jax.Array) -> jax.Array:
    """Derive one key per example from the run's key, the step and the example's position in the global batch.

    Args:
      key: the run's typed key, shape `[]`.
      step: the training step, scalar.
      positions: positions in the global batch, int `[N]`.

    Returns:
      Typed keys `[N]`, independent of the batch's layout on devices and processes.
    """
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(lambda position: jax.random.fold_in(step_key, position))(positions)


def run_key(seed: int, use: int) -> jax.Array:
    """Return a run's key for one use: 0 = initialisation, 1 = training."""
    return jax.random.fold_in(jax.random.key(seed), use)


def per_example(key: jax.Array, n: int, axis_name: str | None = None) -> jax.Array:
    """Return `[n]` keys: `n` keys unchanged, or a single key folded with each example's position.

    The positions are `0 … n−1`; with `axis_name` they are those in the global batch.

    Raises:
      ValueError: when `key` is neither one key nor `n` keys.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"key has dtype {key.dtype}: pass a typed key, made with jax.random.key(seed)")
    if key.shape == (n,):
        return key
    if key.shape == ():
        first = 0 if axis_name is None else n * jax.lax.axis_index(axis_name)
        return jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(n))
    raise ValueError(f"key has shape {key.shape}: pass one key, or one for each of the {n} examples")


def normal(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Return standard normal draws, as `jax.random.normal` does.

    They are drawn flat: on a CPU a draw of three-dimensional shape takes more than twice as long, also to compile.
    """
    return jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)


def uniform(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Return draws in [0, 1), as `jax.random.uniform` does; they are drawn flat, as in `normal`."""
    return jax.random.uniform(key, (math.prod(shape),), dtype).reshape(shape)
