"""Class numbers: a number that is no class is an error, or NaN under `jit`; it is never taken for another class."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NO_CLASS = -1  # replaces a number that is no class, under `jit`
_MOST = 2**31  # number of classes that int32 can hold


def check_classes(field: str, numbers: Any, count: int | None) -> jax.Array:
    """Validate class numbers of any integer type and return them as int32.

    Args:
      field: name of the numbers in an error.
      numbers: integers of any shape: an array, a list or one number.
      count: number of classes; None if it is not known.

    Returns:
      int32 in the shape of `numbers`; under `jit`, −1 for a number outside [0, count).

    Raises:
      ValueError: for a type that is not integer, and outside of `jit` for a number outside [0, count).
    """
    known = not isinstance(numbers, jax.core.Tracer) and getattr(numbers, "is_fully_addressable", True)
    values = np.asarray(numbers) if known else numbers  # because JAX would wrap 2**33 + 1 to 1
    _check_integers(field, values.dtype)
    if not known:
        return jnp.where(is_class(values, count), values.astype(jnp.int32), NO_CLASS)
    wrong = values[(values < 0) | (values >= (_MOST if count is None else count))]
    if wrong.size:
        raise ValueError(_no_such_class(field, values, wrong.flat[0], count))
    on_device = isinstance(numbers, jax.Array)  # it keeps its devices and its sharding
    return numbers.astype(jnp.int32) if on_device else jnp.asarray(values.astype(np.int32))


def is_class(numbers: jax.Array | int, count: int | None) -> jax.Array:
    """Return where numbers are classes, in [0, count), as bool; None allows any number of classes."""
    numbers = jnp.asarray(numbers)
    # The comparison is in the numbers' own type, where a count might wrap around: 300 is 44 in uint8.
    last = min((_MOST if count is None else count) - 1, jnp.iinfo(numbers.dtype).max)
    return (numbers >= 0) & (numbers <= last)


def one_or_nan(exists: jax.Array, dtype: Any) -> jax.Array:
    """Return the factor 1 where a class exists and NaN elsewhere, which acts on values and on gradients."""
    return jnp.where(exists, 1, jnp.nan).astype(dtype)


def of_class(scores: jax.Array, number: jax.Array | int) -> jax.Array:
    """Return the score of one class, a scalar from `[K]`; NaN with a NaN gradient for a class that does not exist."""
    _check_integers("target", jnp.asarray(number).dtype)
    exists = is_class(number, scores.shape[0])
    # int32, because a narrow index wraps around when JAX adds the axis's length to it.
    return scores[jnp.where(exists, number, 0).astype(jnp.int32)] * one_or_nan(exists, scores.dtype)


def one_hot(numbers: jax.Array, count: int, dtype: Any) -> jax.Array:
    """Return rows `[..., count]` with a 1 at each class; a row is NaN for a class that does not exist."""
    rows = jax.nn.one_hot(numbers.astype(jnp.int32), count, dtype=dtype)
    # Not a product: XLA turns a converted comparison times NaN into a selection, whose other value is 0.
    return jnp.where(is_class(numbers, count)[..., None], rows, jnp.nan)


def correct(logits: jax.Array, numbers: jax.Array) -> jax.Array:
    """Return 1.0 where the most probable class is the given one, else 0.0: `[..., K]` and `[...]` to `[...]`.

    A prediction with a NaN logit is wrong. The value is NaN for a class that does not exist.

    Raises:
      ValueError: for a single logit.
    """
    check_several(logits.shape[-1])
    predicted = jnp.argmax(logits, axis=-1).astype(jnp.int32) == numbers.astype(jnp.int32)
    right = (predicted & ~jnp.isnan(logits).any(-1)).astype(jnp.float32)
    return jnp.where(is_class(numbers, logits.shape[-1]), right, jnp.nan)


def check_several(count: int, instead: str = "") -> None:
    """Raise `ValueError` for a single logit, whose softmax is always 1; `instead` adds a remedy."""
    if count < 2:
        raise ValueError(
            f"there is {count} logit: its softmax is 1 for every input. "
            f"Return two logits, [0, z] (whose softmax is the sigmoid of z) or [-z, z]{instead}"
        )


def _check_integers(field: str, dtype: Any) -> None:
    if not jnp.issubdtype(dtype, jnp.integer):
        names = ", not names" if getattr(dtype, "kind", "") in "USO" else ""
        raise ValueError(f"{field} has dtype {dtype}: pass classes, integers from 0{names}")


def _no_such_class(field: str, numbers: np.ndarray, wrong: Any, count: int | None) -> str:
    found = f"{field} {'contains' if numbers.ndim else '='} {wrong}"
    if count is None:
        return f"{found}: classes are numbered from 0"
    from_one = count > 0 and numbers.min() > 0 and numbers.max() == count
    hint = "; did you number classes from 1?" if from_one else ""
    classes = "is 1 class, 0" if count == 1 else f"are {count} classes, 0 to {count - 1}"
    return f"{found}: there {classes}{hint}"
