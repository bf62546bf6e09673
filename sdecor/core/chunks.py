"""Many evaluations of a function in bounded memory: evaluations at once, maps over examples, running sums."""

import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from sdecor.core.arrays import at_least_float32
from sdecor.core.checks import check_count
from sdecor.core.jaxpr import inner_jaxprs, parameters

# More evaluations at once gain nothing: a CPU's caches, or an accelerator's cores, are full.
_MOST = {"cpu": 64}
_MOST_ELSEWHERE = 1024
_SHARE_OF_MEMORY = {"cpu": 0.25}
_SHARE_ELSEWHERE = 0.5


def default_chunk_size(fn: Callable[..., Any], *example: Any) -> int:
    """Return how many evaluations of `fn` and its gradient fit into the memory of one local device.

    Args:
      fn: the function of one example.
      *example: its arguments, arrays or shapes; only shapes are used, so tracers work too.

    Returns:
      A power of two, at least 1. One evaluation is assumed to take the memory of all its intermediate arrays, because a
      gradient may keep them. All evaluations together may take half of an accelerator's memory, or a quarter of the
      machine's on a CPU.
    """
    device = jax.local_devices()[0]
    budget = _memory(device) * _SHARE_OF_MEMORY.get(device.platform, _SHARE_ELSEWHERE)
    most = _MOST.get(device.platform, _MOST_ELSEWHERE)
    fitting = budget / max(_intermediate_bytes(jax.make_jaxpr(fn)(*example).jaxpr), 1)
    return 2 ** int(math.log2(min(max(fitting, 1), most)))


def divide(n: int, chunk_size: int | None) -> tuple[int, int]:
    """Split `chunk_size` evaluations at once into examples and, if there are fewer examples, samples of each.

    Returns:
      `(examples, samples)`, both at least 1, with a product of at most `chunk_size`; `(n, 1)` for None.

    Raises:
      ValueError: when `chunk_size` is less than 1.
    """
    if chunk_size is None:
        return n, 1
    check_count("chunk_size", chunk_size)
    examples = max(1, min(n, chunk_size))
    return examples, max(1, chunk_size // examples)


def map_examples(one: Callable[..., Any], arrays: tuple[Any, ...], at_once: int | None = None) -> Any:
    """Lift `one` over the leading axis of `arrays` (trees), at most `at_once` examples at a time; None = all.

    Examples that are evaluated together are spread over the whole batch. Under `jit`, a batch that is sharded over
    devices then keeps all devices busy.
    """
    n = jax.tree.leaves(arrays)[0].shape[0]
    if at_once is None or at_once >= n:
        return jax.vmap(one)(*arrays)
    groups = -(-n // at_once)
    size = -(-n // groups)  # groups of nearly equal size need the fewest padding examples

    def grouped(x: jax.Array) -> jax.Array:
        if size * groups > n:
            x = jnp.concatenate([x, jnp.broadcast_to(x[-1:], (size * groups - n, *x.shape[1:]))])
        return jnp.moveaxis(x.reshape(size, groups, *x.shape[1:]), 1, 0)

    def ungrouped(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 1).reshape(size * groups, *x.shape[2:])[:n]

    results = jax.lax.map(lambda group: jax.vmap(one)(*group), jax.tree.map(grouped, arrays))
    return jax.tree.map(ungrouped, results)


def sum_over(evaluate: Callable[[jax.Array], Any], count: int, *, at_once: int | None = None) -> Any:
    """Return the sum of `evaluate(i)` for `i` in `0 … count−1` as a running sum.

    Args:
      evaluate: function from an int32 scalar to an array, or a tree of arrays.
      count: number of terms, at least 1.
      at_once: number of terms evaluated together; None = one. It changes the result by rounding only.

    Returns:
      A tree like one term, with floats of less than 32 bits as float32. At most `at_once` terms exist at a time.
    """

    def add(total: Any, terms: Any, real: jax.Array) -> Any:
        return jax.tree.map(lambda t, x: t + jnp.where(_like(real, x), x, 0).sum(0, dtype=t.dtype), total, terms)

    return _fold(evaluate, count, at_once, _zeros_like_one(evaluate), add)


def moments_over(
    evaluate: Callable[[jax.Array], jax.Array], count: int, *, at_once: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return mean and variance (divided by `count`) of the floats `evaluate(i)`; arguments as for `sum_over`.

    Groups of terms are merged one by one.

    References:
      Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
    """

    def merge(total: tuple[jax.Array, ...], terms: jax.Array, real: jax.Array) -> tuple[jax.Array, ...]:
        seen, mean, squares = total
        new, mask, terms = real.sum(dtype=seen.dtype), _like(real, terms), terms.astype(mean.dtype)
        both = seen + new
        mean_of_new = jnp.where(mask, terms, 0).sum(0) / new
        gap = mean_of_new - mean
        squares += jnp.where(mask, (terms - mean_of_new[None]) ** 2, 0).sum(0) + gap**2 * (seen * new / both)
        return both, mean + gap * (new / both), squares

    zero = _zeros_like_one(evaluate)
    _, mean, squares = _fold(evaluate, count, at_once, (jnp.zeros((), zero.dtype), zero, zero), merge)
    return mean, squares / count


def _fold(evaluate: Callable, count: int, at_once: int | None, start: Any, add: Callable) -> Any:
    """Return `add(… add(start, terms, real) …)` over groups of terms; `real` is False for the last group's padding."""
    check_count("count", count)
    groups = math.ceil(count / max(1, at_once or 1))
    size = math.ceil(count / groups)  # groups of nearly equal size need the fewest padding terms

    def group(total: Any, g: jax.Array) -> tuple[Any, None]:
        if size == 1:
            terms = jax.tree.map(lambda x: x[None], evaluate(g))
            return add(total, terms, jnp.ones(1, bool)), None
        places = g * size + jnp.arange(size, dtype=jnp.int32)
        return add(total, jax.vmap(evaluate)(jnp.minimum(places, count - 1)), places < count), None

    if groups == 1:
        return group(start, jnp.int32(0))[0]
    return jax.lax.scan(group, start, jnp.arange(groups, dtype=jnp.int32))[0]


def _zeros_like_one(evaluate: Callable) -> Any:
    """Return zeros like one term, from which sums start.

    Floats are at least float32: a sum in bfloat16 soon stops growing, so that the size of groups would change it.
    """

    def zeros(term: jax.ShapeDtypeStruct) -> jax.Array:
        floating = jnp.issubdtype(term.dtype, jnp.floating)
        return jnp.zeros(term.shape, at_least_float32(term.dtype) if floating else term.dtype)

    return jax.tree.map(zeros, jax.eval_shape(evaluate, jnp.int32(0)))


def _like(real: jax.Array, terms: jax.Array) -> jax.Array:
    return real.reshape(-1, *[1] * (terms.ndim - 1))


def _memory(device: Any) -> float:
    statistics = device.memory_stats() if device.platform != "cpu" else None
    if statistics and "bytes_limit" in statistics:
        return float(statistics["bytes_limit"])
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _intermediate_bytes(jaxpr: core.Jaxpr) -> int:
    """Return the bytes of all outputs of the equations; a call counts as the equations of its function."""
    return sum(map(_bytes_of, jaxpr.eqns))


def _bytes_of(equation: Any) -> int:
    inner = [_intermediate_bytes(jaxpr) for jaxpr in inner_jaxprs(equation)]
    if not inner:
        shaped = [v.aval for v in equation.outvars if hasattr(v.aval, "dtype")]
        return sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in shaped)
    if equation.primitive.name == "cond":
        return max(inner)
    # A gradient keeps the outputs of every round of a loop. The number of rounds of a `while` is not known.
    return sum(inner) * parameters(equation).get("length", 1)
