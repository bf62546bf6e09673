"""The training state, and its optimizers and learning-rate schedules from optax.

The learning rate and the weight decay are values of the state, not constants of the compiled step.
"""

import operator
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.training import train_state

from sdecor.core.checks import check_choice, check_range

OPTIMIZERS = ("sgd", "adamw", "adadelta")
SCHEDULES = ("cosine", "constant")


def create_optimizer(
    name: str,
    *,
    momentum: float = 0.9,
    clip_norm: float | None = None,
    frozen: Callable[[Any], Any] | None = None,
    backbone: Callable[[Any], Any] | None = None,
    backbone_lr: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Build an optimizer whose `opt_state.hyperparams` holds `learning_rate` and `weight_decay`.

    Build it once per run: a second object is a new static field of the state, so that the step compiles again.

    Args:
      name: one of `OPTIMIZERS`. `sgd` has Nesterov momentum; `adadelta` has PyTorch's defaults (rho 0.9, eps 1e-6), as
        in SGT's published recipe.
      momentum: momentum of `sgd`, in [0, 1).
      clip_norm: bound of the global gradient norm; None for no bound.
      frozen: `params -> booleans`, which parameters stay, without moments; None for none.
      backbone: `params -> booleans`, to which parameters `backbone_lr` applies.
      backbone_lr: the learning rate of the backbone as a multiple of the others'; None for 1.

    Raises:
      ValueError: for an unknown name, a momentum out of range, or a bound or multiple that is not positive.
    """
    check_choice("optim.name", name, OPTIMIZERS)
    check_range("optim.momentum", momentum, 0.0, 1.0, high_open=True)
    if clip_norm is not None:
        check_range("optim.clip_norm", clip_norm, 0.0, low_open=True)
    if backbone_lr is not None:
        check_range("optim.backbone_lr", backbone_lr, 0.0, low_open=True)

    def parts(learning_rate: Any, weight_decay: Any) -> list[optax.GradientTransformation]:
        clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
        if name == "adamw":
            return [clip, optax.adamw(learning_rate, weight_decay=weight_decay, mask=is_kernel)]
        decay = optax.add_decayed_weights(weight_decay, mask=is_kernel)
        if name == "adadelta":
            return [clip, decay, optax.adadelta(learning_rate)]
        return [clip, decay, optax.sgd(learning_rate, momentum=momentum, nesterov=True)]

    def build(learning_rate: Any, weight_decay: Any) -> optax.GradientTransformation:
        chain = parts(learning_rate, weight_decay)
        if backbone_lr is not None:  # last: the update, weight decay included, is proportional to the learning rate
            chain.append(optax.masked(optax.scale(backbone_lr), backbone))
        if frozen is None:
            return optax.chain(*chain)
        trained = optax.masked(optax.chain(*chain), lambda params: jax.tree.map(operator.not_, frozen(params)))
        return optax.chain(trained, optax.masked(optax.set_to_zero(), frozen))

    return optax.inject_hyperparams(build)(learning_rate=0.0, weight_decay=0.0)


def is_kernel(params: Any) -> Any:
    """Mark the parameters with weight decay: arrays of rank 2 or more, so neither biases nor normalisation scales."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def with_hyperparams(opt_state: Any, *, learning_rate: jax.Array, weight_decay: jax.Array) -> Any:
    """Return `opt_state` with this step's learning rate and weight decay."""
    hyperparams = {
        **opt_state.hyperparams,
        "learning_rate": jnp.asarray(learning_rate, jnp.float32),
        "weight_decay": jnp.asarray(weight_decay, jnp.float32),
    }
    return opt_state._replace(hyperparams=hyperparams)


def learning_rate_schedule(name: str, *, total_steps: int, warmup_steps: int) -> optax.Schedule:
    """Build the learning rate's shape, with peak 1: linear warm-up, then a cosine to zero or a constant.

    Raises:
      ValueError: for an unknown name, or a warm-up that is not shorter than the run.
    """
    check_choice("optim.schedule", name, SCHEDULES)
    if warmup_steps >= total_steps and warmup_steps > 0:
        raise ValueError(
            f"optim.warmup_epochs is {warmup_steps} steps and the run is {total_steps} steps: shorten the warm-up"
        )
    if name == "constant":
        after = optax.constant_schedule(1.0)
    else:
        after = optax.cosine_decay_schedule(1.0, decay_steps=max(total_steps - warmup_steps, 1))
    warmup = optax.linear_schedule(1.0 / max(warmup_steps, 1), 1.0, max(warmup_steps - 1, 1))
    return optax.join_schedules([warmup, after], [warmup_steps])


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
        """The variables for evaluation: the average if there is one, else the current parameters and statistics."""
        if self.ema_params is None:
            return {"params": self.params, "batch_stats": self.batch_stats}
        return {"params": self.ema_params, "batch_stats": self.ema_batch_stats}


def create_train_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    key: jax.Array,
    image_shape: tuple[int, ...],
    ema: bool = False,
    apply_fn: Callable[..., Any] | None = None,
) -> TrainState:
    """Initialise `model` for inputs of `image_shape`, such as (H, W, C), and return the state before the first step.

    Keys `[R]` give the state of R replicas: each array except the step has a leading axis `[R]`. Training calls
    `apply_fn`, by default `model.apply`.
    """

    def create(key: jax.Array) -> TrainState:
        images = jax.numpy.zeros((1, *image_shape))
        variables = model.init({"params": key}, images, train=False)
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        return TrainState.create(
            apply_fn=apply_fn or model.apply,
            params=params,
            tx=tx,
            batch_stats=batch_stats,
            ema_params=jax.tree.map(jax.numpy.copy, params) if ema else None,
            ema_batch_stats=jax.tree.map(jax.numpy.copy, batch_stats) if ema else None,
        )

    # The key is an argument, not a constant, so that all seeds share one compiled program.
    state = jax.jit(jax.vmap(create) if key.ndim else create)(key)
    # A Python 0 is weakly typed; a state read from a checkpoint is not, and would compile the step again.
    return state.replace(step=np.zeros((), np.int32))
