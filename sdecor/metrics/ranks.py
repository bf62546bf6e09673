"""Which pixel comes first: places in the order of the values, equal values at random."""

import math

import jax
import jax.numpy as jnp

from sdecor.core.arrays import order_keys, signed, sort_rows, unsigned
from sdecor.core.checks import check_choice
from sdecor.core.rng import per_example

ORDERS = ("morf", "lerf", "random")


def ranks(values: jax.Array, key: jax.Array, *, order: str = "morf") -> jax.Array:
    """Return the place of each value among those of its example, 0 for the first; equal values in random order.

    Args:
      values: `[N, ...]`, for example maps `[N, H, W]`.
      key: one key or `[N]` keys.
      order: "morf" (most relevant first: descending), "lerf" (least relevant first) or "random" (whatever the values).

    Returns:
      Permutations of 0 … F−1, int32 in the shape of `values`.
    """
    check_choice("order", order, ORDERS)
    if order == "random":
        return random_ranks(key, values.shape)
    n = values.shape[0]
    rows = values.astype(jnp.float32).reshape(n, -1)
    keys = order_keys(-rows if order == "morf" else rows)
    return _places(keys, _random_bits(key, rows.shape)).reshape(values.shape)


def random_ranks(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return a random permutation of 0 … F−1 for each example, int32 in `shape` `[N, ...]`."""
    n, *rest = shape
    bits = _random_bits(key, (n, math.prod(rest)))
    width = max(1, (bits.shape[1] - 1).bit_length())
    # The order of random numbers is as random as the places in it, which would cost a scatter more.
    return _order(bits >> width, width).astype(jnp.int32).reshape(shape)


def _random_bits(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    return jax.vmap(lambda k: jax.random.bits(k, shape[1:]))(per_example(key, shape[0]))


def _places(keys: jax.Array, bits: jax.Array) -> jax.Array:
    """Return places in ascending order of int32 keys `[N, F]`, then of random bits."""
    count = keys.shape[1]
    if count > 2**16:
        order = jnp.lexsort((bits, keys), axis=1)
    else:
        # Radix sort, least significant digit first: sorting single integers is several times faster than sorting
        # pairs, so each pass sorts 16 bits and keeps the index in the other 16.
        number = unsigned(keys)
        digits = jnp.stack([bits >> 16, number & 0xFFFF, number >> 16])

        def sort_by(order: jax.Array, digit: jax.Array) -> tuple[jax.Array, None]:
            moved = _order(jnp.take_along_axis(digit, order, axis=1), 16)
            return jnp.take_along_axis(order, moved, axis=1), None

        start = jnp.broadcast_to(jnp.arange(count, dtype=jnp.uint32), keys.shape)
        order, _ = jax.lax.scan(sort_by, start, digits)
    places = jnp.arange(count, dtype=jnp.int32)
    return jax.vmap(lambda row: jnp.zeros_like(places).at[row].set(places))(order)


def _order(digits: jax.Array, width: int) -> jax.Array:
    """Return the stable ascending order of rows of digits that leave `width` bits free for their index, uint32."""
    packed = digits << width | jnp.arange(digits.shape[1], dtype=jnp.uint32)[None]
    return unsigned(sort_rows(signed(packed))) & jnp.uint32(2**width - 1)
