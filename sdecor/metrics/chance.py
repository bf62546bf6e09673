"""Metrics of an order of pixels, against a random order."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sdecor.core.parallel import automatic
from sdecor.core.rng import per_example
from sdecor.metrics.inputs import Fn, check_batch


def relative_to_random(metric: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return the metric minus its value for a random order of pixels on the same network, in one compiled loop.

    A network that was trained on masked images bears them better whatever its maps say: only the difference compares
    maps across networks. 0 is chance; the better direction stays. Options that are arrays belong to the examples.
    """

    @automatic
    def relative(
        fn: Fn,
        images: jax.Array,
        maps: jax.Array,
        targets: jax.Array,
        *,
        key: jax.Array,
        chunk_size: int | None = None,
        **options: Any,
    ) -> jax.Array:
        targets, n = check_batch(images, maps, targets, fn=fn), images.shape[0]
        values = metric(
            fn,
            _twice(images),
            jnp.concatenate([maps, jnp.ones_like(maps)]),  # equal values are ordered at random
            _twice(targets),
            key=_twice(per_example(key, n)),
            chunk_size=chunk_size,
            **{name: _twice(value) if getattr(value, "ndim", 0) else value for name, value in options.items()},
        )
        return values[:n] - values[n:]

    relative.__name__ = f"{metric.__name__}_vs_random"
    relative.__doc__ = f"Return `{metric.__name__}` (same arguments) minus that of a random order, `[N]`; 0 is chance."
    return relative


def _twice(array: jax.Array) -> jax.Array:
    return jnp.concatenate([array, array])
