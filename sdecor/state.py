"""What training carries from step to step."""

from typing import Any

import flax.linen as nn
import jax
import optax
from flax import struct
from flax.training import train_state


class TrainState(train_state.TrainState):
    """Parameters, optimizer state and step, with BatchNorm's running statistics and an optional average.

    `batch_stats` is an empty dict where the model has no BatchNorm; `ema_params` and `ema_batch_stats` are None
    without an average. Statistics are averaged with the parameters that they belong to.
    """

    batch_stats: Any = struct.field(default_factory=dict)
    ema_params: Any = None
    ema_batch_stats: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """What evaluation applies: the average where there is one, else the present parameters and statistics."""
        if self.ema_params is None:
            return {"params": self.params, "batch_stats": self.batch_stats}
        return {"params": self.ema_params, "batch_stats": self.ema_batch_stats}


def create_train_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    key: jax.Array,
    image_shape: tuple[int, int, int],
    ema: bool = False,
) -> TrainState:
    """Initialise `model` for images of `image_shape` (H, W, C) and return the state before the first step.

    With keys `[R]` it is the state of R replicas: each array has a leading axis `[R]`, apart from the step.
    """

    def create(key: jax.Array) -> TrainState:
        images = jax.numpy.zeros((1, *image_shape))
        variables = model.init({"params": key}, images, train=False)
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        return TrainState.create(
            apply_fn=model.apply,
            params=params,
            tx=tx,
            batch_stats=batch_stats,
            ema_params=jax.tree.map(jax.numpy.copy, params) if ema else None,
            ema_batch_stats=jax.tree.map(jax.numpy.copy, batch_stats) if ema else None,
        )

    state = jax.jit(lambda: jax.vmap(create)(key) if key.ndim else create(key))()
    # A Python 0 would be weakly typed, and a state read from a checkpoint another type: a second compilation.
    return state.replace(step=jax.numpy.zeros((), jax.numpy.int32))
