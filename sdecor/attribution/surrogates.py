"""Arrays whose derivative is chosen, so that an ordinary gradient is the backward pass of an attribution method."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

_NEAR = 16  # in units of rounding: differences too small to divide by


@jax.custom_jvp
def linearised(value: jax.Array, multipliers: tuple[jax.Array, ...], inputs: tuple[jax.Array, ...]) -> jax.Array:
    """Return `value`, with the derivative `multipliers` (of the same shape) with respect to `inputs`."""
    return value


@linearised.defjvp
def _linearised_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    value, multipliers, _ = primals
    changes = [m * change for m, change in zip(multipliers, tangents[2], strict=True)]
    return value, sum(changes[1:], changes[0])


def slope(function: Callable[[jax.Array], jax.Array], x: jax.Array, start: jax.Array) -> jax.Array:
    """Return `(f(x) − f(start)) / (x − start)` of an elementwise function, `f'(x)` where both are the same."""
    y, pull_back = jax.vjp(function, x)
    (derivative,) = pull_back(jnp.ones_like(y))
    near = same(x, start)
    multiplier = jnp.where(near, derivative, (y - function(start)) / jnp.where(near, 1, x - start))
    return jnp.where(jnp.isfinite(multiplier), multiplier, 0)


def same(x: jax.Array, start: jax.Array) -> jax.Array:
    """Return where two values are the same up to rounding, or not both finite."""
    return ~(jnp.abs(x - start) > _NEAR * jnp.finfo(x.dtype).eps * (jnp.abs(x) + jnp.abs(start)))
