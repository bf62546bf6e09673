"""Array functions: precision, sorting and ranks, Gaussian blur, the inverse root of a matrix.

XLA's sort on a CPU calls its comparison for one pair at a time. Values therefore become integers of the same order, and
on a CPU a network of minima and maxima sorts all rows together in the vector units. This gives the same result ten
times faster than a sort of floats, for 64 maps of 64×64 pixels.
"""

import functools

import jax
import jax.numpy as jnp

from sdecor.core.checks import check_range


def at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
    """Return a floating dtype of at least 32 bits: `dtype` itself if it is one, else float32.

    `jnp.promote_types` returns the same, but fails under `jax_numpy_dtype_promotion="strict"`.
    """
    wide = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits >= 32
    return jnp.dtype(dtype) if wide else jnp.dtype(jnp.float32)


def is_array(value: object) -> bool:
    """Return whether a value is one array, or its shape, and not a tree of arrays."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def widened(array: jax.Array) -> jax.Array:
    """Return an array in float32 or wider."""
    return array.astype(at_least_float32(array.dtype))


def moderate(values: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Scale float32 values down by a power of two where their maximum over `axes` is near the end of float32's range.

    Use it for results that do not depend on scale. Near the end of the range differences overflow, and a quotient is 0
    if the compiler multiplies by the reciprocal, which float32 cannot hold.
    """
    huge = jnp.abs(values).max(axes, keepdims=True) > 2.0**100
    return jnp.where(huge, values * 2.0**-32, values)


# A key above those of all finite values, for entries that are not ranked.
LAST = jnp.iinfo(jnp.int32).max
_LOWEST = jnp.iinfo(jnp.int32).min
_SHORT = 128  # for fewer values, the sorting network is not worth its compile time


def order_keys(values: jax.Array) -> jax.Array:
    """Return int32 keys that sort like the float32 values; equal values, also 0 and −0, have equal keys."""
    values = jnp.asarray(values, jnp.float32)
    return _flip_negative(jax.lax.bitcast_convert_type(jnp.where(values == 0, 0, values), jnp.int32))


def key_values(keys: jax.Array) -> jax.Array:
    """Return the float32 values of keys from `order_keys`."""
    return jax.lax.bitcast_convert_type(_flip_negative(keys), jnp.float32)


def sort_rows(keys: jax.Array) -> jax.Array:
    """Return each row of int32 keys `[N, F]` in ascending order."""
    if keys.shape[1] <= _SHORT:
        return jnp.sort(keys)
    return jax.lax.platform_dependent(keys, cpu=_network_sort, default=jnp.sort)


def average_ranks(values: jax.Array) -> jax.Array:
    """Return each value's rank in its row, from 0; equal values share their mean rank. Float32 `[N, F]`, exact."""
    keys = order_keys(values)
    ordered = sort_rows(keys)
    n = keys.shape[1]
    first = jax.vmap(jnp.searchsorted)(ordered, keys)
    last = jax.lax.cummin(jnp.where(ends_of_runs(ordered), jnp.arange(n)[None], n), axis=1, reverse=True)
    return (first + jnp.take_along_axis(last, first, axis=1)) / 2


def ends_of_runs(ordered: jax.Array) -> jax.Array:
    """Return where a run of equal values in a sorted row ends, bool `[N, F]`."""
    end = jnp.ones((ordered.shape[0], 1), bool)
    return jnp.concatenate([ordered[:, 1:] != ordered[:, :-1], end], axis=1)


def kth_largest(keys: jax.Array, k: jax.Array) -> jax.Array:
    """Return the k-th largest key, from k = 1, of each row: int32 `[N]` from int32 `[N, F]` and `[N]`.

    The search finds the highest bits of the answer first, in passes that only count, which is faster than a sort.
    """
    # A TPU takes longer to start a pass than to count: there a pass finds four bits. A CPU reads once per count.
    return jax.lax.platform_dependent(keys, k, tpu=_search_digits, default=_search_bits)


def _search_bits(keys: jax.Array, k: jax.Array) -> jax.Array:
    n, count = keys.shape
    width = max(64, -(-count // 2**14))  # so that 16 bits hold the sum of a column
    blocks = jnp.pad(keys, ((0, 0), (0, -count % width)), constant_values=_LOWEST).reshape(n, -1, width)

    def halve(step: jax.Array, found: jax.Array) -> jax.Array:
        # Bits of the answer are set from the highest down, each if k keys are at least as large. The highest bit is
        # the sign: flipping it turns the smallest integer into 0.
        higher = found ^ jnp.left_shift(jnp.int32(1), 31 - step)
        # Columns first, in another type: XLA's CPU compiler would merge both sums into one without vector registers.
        reached = (blocks >= higher[:, None, None]).sum(1, dtype=jnp.int16).sum(1, dtype=jnp.int32)
        return jnp.where(reached >= k, higher, found)

    return jax.lax.fori_loop(0, 32, halve, jnp.full_like(keys[:, 0], _LOWEST))  # varies over the mapped axes of `keys`


def _search_digits(keys: jax.Array, k: jax.Array, bits: int = 4) -> jax.Array:
    def next_digit(step: jax.Array, found: jax.Array) -> jax.Array:
        digit, unit = jnp.zeros_like(found), jnp.left_shift(jnp.int32(1), 32 - bits * (step + 1))
        for candidate in range(1, 2**bits):  # separate sums, which the compiler merges into one pass over the keys
            reached = (keys >= (found + candidate * unit)[:, None]).sum(1, dtype=jnp.int32)
            digit += (reached >= k).astype(jnp.int32)
        return found + digit * unit

    return jax.lax.fori_loop(0, 32 // bits, next_digit, jnp.full_like(keys[:, 0], _LOWEST))


def kth_smallest(keys: jax.Array, k: jax.Array) -> jax.Array:
    """Return the k-th smallest key of each row, as `kth_largest` does; the smallest integer for k = 0."""
    return ~kth_largest(~keys, k)


def signed(numbers: jax.Array) -> jax.Array:
    """Return int32 values that sort like the uint32 `numbers`."""
    return jax.lax.bitcast_convert_type(numbers ^ jnp.uint32(1 << 31), jnp.int32)


def unsigned(keys: jax.Array) -> jax.Array:
    """Return uint32 values that sort like the int32 `keys`."""
    return jax.lax.bitcast_convert_type(keys, jnp.uint32) ^ jnp.uint32(1 << 31)


def _flip_negative(bits: jax.Array) -> jax.Array:
    # Positive floats sort like their bits, negative floats in reverse.
    return jnp.where(bits < 0, bits ^ LAST, bits)


def _network_sort(keys: jax.Array) -> jax.Array:
    """Sort rows by merging sorted runs of 1, 2, 4, … keys: compare mirrored keys of two runs, then ever closer keys.

    References:
      Batcher, "Sorting Networks and Their Applications", https://doi.org/10.1145/1468075.1468121, 1968.
    """
    n, count = keys.shape
    levels = (count - 1).bit_length()
    # With rows side by side along the last axis, comparisons of close keys fill vector registers too.
    columns = jnp.pad(keys, ((0, 0), (0, 2**levels - count)), constant_values=LAST).T
    for level in range(levels):
        low, high = _parts(columns, 2, 2**level)
        high = high[:, ::-1]
        columns = _joined(jnp.minimum(low, high), jnp.maximum(low, high)[:, ::-1])
        # Two distances in one pass, because reading and writing the keys takes longer than comparing them.
        for step in range(level - 2, -1, -2):
            a, b, c, d = _parts(columns, 4, 2**step)
            a, c, b, d = jnp.minimum(a, c), jnp.maximum(a, c), jnp.minimum(b, d), jnp.maximum(b, d)
            columns = _joined(jnp.minimum(a, b), jnp.maximum(a, b), jnp.minimum(c, d), jnp.maximum(c, d))
        if level % 2:
            low, high = _parts(columns, 2, 1)
            columns = _joined(jnp.minimum(low, high), jnp.maximum(low, high))
    return columns[:count].T


def _parts(columns: jax.Array, parts: int, distance: int) -> list[jax.Array]:
    """Return parts `[blocks, distance, N]` of each block of `parts * distance` keys."""
    blocks = columns.reshape(-1, parts, distance, columns.shape[-1])
    return [blocks[:, i] for i in range(parts)]


def _joined(*parts: jax.Array) -> jax.Array:
    return jnp.concatenate(parts, axis=1).reshape(-1, parts[0].shape[-1])


def split_axis(values: jax.Array, axis: int, size: int) -> jax.Array:
    """Split an axis into parts of `size`: the part is the axis, and the place within it the next one."""
    before, length, after = values.shape[:axis], values.shape[axis], values.shape[axis + 1 :]
    return values.reshape(*before, length // size, size, *after)


def blur(images: jax.Array, sigma: jax.Array | float) -> jax.Array:
    """Blur images by a Gaussian: rows, then columns, each by a small dense matrix, which is exact at the borders.

    Args:
      images: `[N, H, W, C]`, or with another number of axes between the first and the last, as in a series
        `[N, T, C]`; all of them are blurred.
      sigma: the Gaussian's standard deviation in pixels, a positive number or a traced scalar.

    Returns:
      Images in the shape and dtype of `images`, computed in float32. Only pixels of the image count, so a constant
      image is unchanged.

    Raises:
      ValueError: when `sigma` is a Python number that is not positive.
    """
    if isinstance(sigma, int | float):
        check_range("blur_sigma", sigma, 0.0, low_open=True)
    smooth, letters = images.astype(jnp.float32), "nabdefgc"[: images.ndim - 1] + "c"
    for axis in range(1, images.ndim - 1):
        along = letters[axis]
        how = f"i{along},{letters}->{letters.replace(along, 'i')}"
        smooth = jnp.einsum(how, _matrix(images.shape[axis], sigma), smooth, precision="highest")
    return smooth.astype(images.dtype)


def _matrix(side: int, sigma: jax.Array | float) -> jax.Array:
    """Return the Gaussian's weights `[side, side]`; rows sum to 1."""
    place = jnp.arange(side, dtype=jnp.float32)
    weights = jnp.exp(-0.5 * ((place[:, None] - place[None, :]) / sigma) ** 2)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def inverse_root(matrix: jax.Array, *, epsilon: float, iterations: int) -> jax.Array:
    """Approximate `matrix^-½` of a symmetric positive semi-definite `[D, D]` by the coupled Newton-Schulz iteration.

    The iteration uses matrix products only. Unlike the uncoupled one it is stable, and unlike an eigendecomposition it
    is finite at equal and zero eigenvalues. `epsilon`, relative to the Frobenius norm, is added to the diagonal. Above
    the rounding of the products, it keeps null directions from becoming negative, where the iteration diverges.
    """
    eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    squares = jnp.sum(matrix**2)
    norm = jnp.sqrt(jnp.where(squares > 0, squares, 1.0))  # replaced before the root, whose gradient at 0 is infinite
    product = functools.partial(jnp.matmul, precision="highest")

    def step(_: int, roots: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        root, inverse = roots
        update = 1.5 * eye - 0.5 * product(inverse, root)
        return product(root, update), product(update, inverse)

    start = matrix / norm + epsilon * eye
    _, inverse = jax.lax.fori_loop(0, iterations, step, (start, eye + jnp.zeros_like(start)))
    return inverse / jnp.sqrt(norm)
