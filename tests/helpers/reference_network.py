"""The small network whose results were stored with captum 0.9.0 and Quantus 0.6.0 (benchmarks/references)."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

FOLDER = pathlib.Path(__file__).parents[1] / "references"
CLASSES = 5


@functools.cache
def stored(name: str) -> dict[str, np.ndarray]:
    """Return the arrays of `tests/references/<name>.npz`."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return dict(arrays)


def images() -> jax.Array:
    """Return the eight images, `[8, 16, 16, 3]`."""
    return jnp.asarray(stored("network")["images"])


def labels() -> jax.Array:
    """Return the images' classes, int32 `[8]`."""
    return jnp.asarray(stored("network")["labels"])


def objects() -> jax.Array:
    """Return the images' object masks, bool `[8, 16, 16]`."""
    return jnp.asarray(stored("network")["objects"])


def parameters() -> dict[str, jax.Array]:
    """Return `kernel` and `bias` of conv1, conv2, dense1 and dense2 under `<layer>/<name>`."""
    return {name: jnp.asarray(value) for name, value in stored("network").items() if "/" in name}


def apply(params: dict[str, jax.Array], image: jax.Array) -> jax.Array:
    """Return the logits `[5]` of one image `[16, 16, 3]`; layers are named scopes."""
    x = image[None]
    for layer, pool in (("conv1", jax.lax.max), ("conv2", jax.lax.add)):
        with jax.named_scope(layer):
            x = jax.lax.conv_general_dilated(
                x, params[f"{layer}/kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = x + params[f"{layer}/bias"][None, None, None]
        x = jax.nn.relu(x)
        start = -jnp.inf if pool is jax.lax.max else 0.0
        x = jax.lax.reduce_window(x, start, pool, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = x if pool is jax.lax.max else x / 4
    x = x[0].transpose(2, 0, 1).ravel()  # PyTorch's order
    x = jax.nn.relu(x @ params["dense1/kernel"] + params["dense1/bias"])
    return x @ params["dense2/kernel"] + params["dense2/bias"]


def network(image: jax.Array) -> jax.Array:
    """Return the logits of the stored network for one image."""
    return apply(parameters(), image)
