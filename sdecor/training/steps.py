"""The training step and the validation step: pure functions of one device's part of the batch, with named results.

Static choices are in `Objective`. Every number that a sweep changes is in `Hyper`, an argument of the step.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sdecor import losses, masking
from sdecor.core.classes import check_classes, correct
from sdecor.core.rng import example_keys
from sdecor.training.objective import Keys, Objective, Ramp, Terms, Values, apply_model, loss_and_gradients
from sdecor.training.state import TrainState, with_hyperparams


class Hyper(NamedTuple):
    """Every number that a sweep changes: a pytree of float32 scalars, and an argument of the compiled step.

    Attributes:
      learning_rate: peak learning rate.
      weight_decay: weight decay of the kernels.
      mask_fraction: share of the positions that is masked.
      weights: weights of the loss's terms, by name.
    """

    learning_rate: Any
    weight_decay: Any
    mask_fraction: Ramp
    weights: Mapping[str, Ramp]

    def at(self, step: jax.Array, objective: Objective) -> Values:
        """Return the numbers of the loss at `step`."""
        weights = {name: ramp.at(step) for name, ramp in self.weights.items()}
        if objective.masking is None:
            return Values(weights)
        highest = masking.masks_highest(objective.masking.order, step)
        return Values(weights, self.mask_fraction.at(step), highest)


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    hyper: Hyper,
    key: jax.Array,
    *,
    objective: Objective,
    prepare: Callable[[jax.Array, jax.Array], jax.Array],
    schedule: optax.Schedule,
    ema_decay: float | None = None,
    accumulate: int = 1,
    skip_nonfinite: bool = False,
    axis_name: str | None = None,
) -> tuple[TrainState, Terms]:
    """Take one optimizer step on this device's part of the global batch.

    Args:
      state: the state, equal on all devices.
      batch: `image` as stored, such as uint8 `[n, H, W, C]`, `label` `[n]` and `position` `[n]` in the global batch,
        each with a leading axis `[accumulate]` if `accumulate` is above 1.
      hyper: the numbers that a sweep changes, equal on all devices.
      key: the run's key, the same at every step and on every device.
      objective: the static choices of the loss.
      prepare: `(keys [n], images) -> float32 images`, augmentation and normalisation.
      schedule: the learning rate's shape, with peak 1.
      ema_decay: decay of the averaged parameters; None for no average.
      accumulate: number of micro-batches whose gradients are averaged.
      skip_nonfinite: whether a step whose loss or gradient is not finite leaves all but the state's step unchanged.
      axis_name: mapped axis of the devices.

    Returns:
      The next state and the named terms, scalars, both equal on all devices.
    """
    values = hyper.at(state.step, objective)
    gradients = partial(
        micro_gradients, state, values=values, key=key, objective=objective, prepare=prepare, axis_name=axis_name
    )
    if accumulate == 1:
        grads, batch_stats, terms = gradients(state.batch_stats, batch)
    else:
        grads, batch_stats, terms = accumulated(gradients, state, batch, accumulate)
    # The mean of equal numbers rounds; that of no change is none, so that frozen statistics stay as they are.
    change = jax.tree.map(jnp.subtract, batch_stats, state.batch_stats)
    grads, terms, change = _pmean((grads, terms, change), axis_name)
    batch_stats = jax.tree.map(jnp.add, state.batch_stats, change)
    learning_rate = hyper.learning_rate * schedule(state.step)
    terms |= {"gradient_norm": optax.tree.norm(grads), "learning_rate": learning_rate}
    terms |= {f"{name}_weight": values.weights[name] for name in objective.terms}
    terms |= {} if objective.masking is None else {"mask_fraction": values.mask_fraction}
    opt_state = with_hyperparams(state.opt_state, learning_rate=learning_rate, weight_decay=hyper.weight_decay)
    after = apply_gradients(state.replace(opt_state=opt_state), grads, batch_stats, ema_decay)
    if skip_nonfinite:
        # Loss and gradient are means over all devices, so that all devices decide alike.
        after = where(jnp.isfinite(terms["loss"]) & jnp.isfinite(terms["gradient_norm"]), after, state)
    return after, terms


def where(condition: jax.Array, after: TrainState, before: TrainState) -> TrainState:
    """Return the state `after` a step if `condition` holds, else the state `before` it with the step counted."""
    step = after.step  # replicas share it: it does not depend on the condition
    after, before = after.replace(step=None), before.replace(step=None)
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), after, before).replace(step=step)


def accumulated(gradients: Callable, state: TrainState, batch: Any, accumulate: int) -> tuple[Any, Any, Terms]:
    """Average gradients and terms over micro-batches; BatchNorm's running statistics pass from one to the next."""

    def body(carry: tuple[Any, Any, Terms], micro: Any) -> tuple[Any, None]:
        total, batch_stats = carry
        grads, batch_stats, terms = gradients(batch_stats, micro)
        total = jax.tree.map(lambda a, b: a + b / accumulate, total, (grads, terms))
        return (total, batch_stats), None

    first = jax.tree.map(lambda x: x[0], batch)
    shapes = jax.eval_shape(lambda: gradients(state.batch_stats, first))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0], shapes[2]))
    ((grads, terms), batch_stats), _ = jax.lax.scan(body, (zeros, state.batch_stats), batch)
    return grads, batch_stats, terms


def micro_gradients(
    state: TrainState,
    batch_stats: Any,
    batch: dict[str, jax.Array],
    *,
    values: Values,
    key: jax.Array,
    objective: Objective,
    prepare: Callable,
    axis_name: str | None,
) -> tuple[Any, Any, Terms]:
    """Augment one micro-batch and return its gradients, new running statistics and terms."""
    keys = jax.vmap(partial(jax.random.split, num=4))(example_keys(key, state.step, batch["position"]))
    images = prepare(keys[:, 0], batch["image"])
    forward = partial(apply_model, state.apply_fn, batch_stats=batch_stats)
    return loss_and_gradients(
        forward,
        state.params,
        images,
        batch["label"],
        # Dropout uses the key of the device's first example, which differs between devices.
        keys=Keys(ties=keys[:, 1], fills=keys[:, 2], dropout=jax.random.split(keys[0, 3])),
        values=values,
        objective=objective,
        axis_name=axis_name,
    )


def apply_gradients(state: TrainState, grads: Any, batch_stats: Any, ema_decay: float | None) -> TrainState:
    """Update the parameters, the running statistics and their average."""
    state = state.replace(batch_stats=batch_stats).apply_gradients(grads=grads)
    if ema_decay is None:
        return state
    # The decay starts low; otherwise the average would keep the initial parameters for about 1/(1 − ema_decay) steps.
    step = jnp.asarray(state.step, jnp.float32)
    decay = jnp.minimum(ema_decay, (1.0 + step) / (10.0 + step))
    follow = partial(optax.incremental_update, step_size=1.0 - decay)
    return state.replace(
        ema_params=follow(state.params, state.ema_params),
        ema_batch_stats=follow(state.batch_stats, state.ema_batch_stats),
    )


def evaluation_step(
    apply_fn: Callable, variables: Any, images: jax.Array, batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Return this device's weighted sums over a padded batch: `correct`, `cross_entropy` and `count`.

    Padding has weight 0 and may have any values. An example whose label is no class makes both sums NaN.
    """
    logits, _ = apply_fn(variables, images, train=False)
    labels, weight = check_classes("label", batch["label"], logits.shape[-1]), batch["weight"]
    values = {"correct": correct(logits, labels), "cross_entropy": losses.classification(logits, labels)}
    # `where`, because 0 · NaN is NaN.
    sums = {name: jnp.sum(jnp.where(weight > 0, value * weight, 0)) for name, value in values.items()}
    return sums | {"count": weight.sum()}


def _pmean(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)
