"""The reference network for one channel, as in benchmarks/references/quantus_faithfulness.py."""

import jax
import jax.numpy as jnp
import numpy as np
import reference_network

GAINS = jnp.array([[[1.0, 0.5, -0.7]]])


def stored(name: str) -> np.ndarray:
    """Return an array written by that script."""
    return reference_network.stored("quantus_faithfulness")[name]


def network(image: jax.Array) -> jax.Array:
    """Return the logits `[5]` of one image `[16, 16, 1]`."""
    return reference_network.network(image * GAINS) - stored("center")


def examples() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return images `[8, 16, 16, 1]`, maps `[8, 16, 16]` and the predicted classes `[8]`."""
    return reference_network.images()[..., :1], jnp.asarray(stored("maps")), jnp.asarray(stored("labels"))
