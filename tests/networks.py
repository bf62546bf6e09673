"""Tiny networks and batches that several tests share."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sdecor import objective as method
from sdecor import optim, parallel, steps
from sdecor.data.augment import normalise
from sdecor.models import SmallCNN
from sdecor.state import TrainState, create_train_state

SHAPE, CLASSES, N = (12, 12, 3), 4, 16
HYPER = {
    "learning_rate": 0.01,
    "weight_decay": 1e-4,
    "consist_weight": 1.0,
    "consist_ramp": 0.0,
    "decor_weight": 0.5,
    "decor_ramp": 0.0,
    "variance_weight": 0.0,
    "mask_fraction": 0.5,
    "mask_ramp": 0.0,
}


def tiny_model(norm: str = "batch", axis_name: str | None = None, **options) -> nn.Module:
    return SmallCNN(num_classes=CLASSES, widths=(6, 8), norm=norm, axis_name=axis_name, **options)


def tiny_state(model: nn.Module, *, tx=None, ema: bool = False, shape=SHAPE) -> TrainState:
    tx = tx or optim.create_optimizer("sgd")
    return create_train_state(model, tx, key=jax.random.key(1), image_shape=shape, ema=ema)


def tiny_batch(n: int = N, seed: int = 0, shape=SHAPE) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (n, *shape), dtype=np.uint8),
        "label": rng.integers(0, CLASSES, n).astype(np.int32),
        "position": np.arange(n, dtype=np.int32),
    }


def hyper(**changes) -> dict[str, np.ndarray]:
    return {name: np.float32(value) for name, value in (HYPER | changes).items()}


def prepare(keys: jax.Array, images: jax.Array) -> jax.Array:
    return normalise(images, (0.5,) * 3, (0.25,) * 3)


def make_step(objective: method.Objective, *, axis_name: str | None = None, prepare=prepare, **options):
    return partial(
        steps.train_step,
        objective=objective,
        prepare=prepare,
        schedule=lambda step: jnp.float32(1.0),
        axis_name=axis_name,
        **options,
    )


def pmapped(step, devices: int):
    """Return `(state, batch, hyper, key) -> (state, terms)` on so many devices, with host values in and out."""
    chosen = jax.local_devices()[:devices]
    compiled = parallel.pmap_step(step, chosen)

    def run(state, batch, values, key):
        state, values, key = (parallel.replicate(tree, chosen) for tree in (state, values, key))
        return jax.device_get(compiled(state, parallel.shard(batch, devices), values, key))

    return run
