"""What training carries from step to step."""

from typing import Any

import flax.linen as nn
import jax
import optax
from flax import struct
from flax.training import train_state


class TrainState(train_state.TrainState):
    """Parameters, optimizer state and step, with BatchNorm's running statistics and an optional average.

    `batch_stats` is an empty dict where the model has no BatchNorm; `ema_params` is None without an average.
    """

    batch_stats: Any = struct.field(default_factory=dict)
    ema_params: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """What evaluation applies: the averaged parameters where there are any, and the running statistics."""
        params = self.params if self.ema_params is None else self.ema_params
        return {"params": params, "batch_stats": self.batch_stats}


def create_train_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    key: jax.Array,
    image_shape: tuple[int, int, int],
    ema: bool = False,
) -> TrainState:
    """Initialise `model` for images of `image_shape` (H, W, C) and return the state before the first step."""

    def create() -> TrainState:
        images = jax.numpy.zeros((1, *image_shape))
        variables = model.init({"params": key}, images, train=False)
        params = variables["params"]
        state = TrainState.create(
            apply_fn=model.apply,
            params=params,
            tx=tx,
            batch_stats=variables.get("batch_stats", {}),
            ema_params=jax.tree.map(jax.numpy.copy, params) if ema else None,
        )
        # A Python 0 would be weakly typed, and a state read from a checkpoint another type: a second compilation.
        return state.replace(step=jax.numpy.zeros((), jax.numpy.int32))

    return jax.jit(create)()
