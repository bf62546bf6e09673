"""The training objective: a weighted sum of named terms, and its gradient from one clean forward, pulled back twice.

A forward is pulled back: its vector-Jacobian product (`jax.vjp`) is taken. The first pull-back is to the images, for
the saliency that selects the mask. The second is to the parameters, for the loss. See docs/method.md for the
mathematics, and terms.py for the terms.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdecor import losses, masking
from sdecor.core.classes import check_classes, one_hot
from sdecor.models import frozen_statistics, record_statistics
from sdecor.training.terms import Outputs, Watched, classification, watch

Terms = dict[str, jax.Array]
FORWARDS = ("shared", "frozen", "eval")


class Ramp(NamedTuple):
    """A value that rises linearly from 0 over `steps` steps, at once if `steps` is 0; before step `start` it is 0."""

    value: jax.Array | float
    steps: jax.Array | float = 0.0
    start: jax.Array | float | None = None

    def at(self, step: jax.Array) -> jax.Array:
        """Return the value at `step`."""
        since = jnp.asarray(step, jnp.float32) - (0.0 if self.start is None else self.start)
        share = jnp.clip(since / jnp.maximum(self.steps, 1.0), jnp.where(self.steps > 0, 0.0, 1.0), 1.0)
        return self.value * share if self.start is None else jnp.where(since < 0, 0.0, self.value * share)


@dataclasses.dataclass(frozen=True)
class Masking:
    """Options of the masked images, documented in configs/default.py."""

    rank_by: str = "abs"
    saliency_of: str = "logit"
    order: str = "lowest"
    fill: str = "uniform"
    blur_sigma: float = 2.0
    forward: str = "shared"
    every: int = 1
    block: int = 1
    remat: bool = False


@dataclasses.dataclass(frozen=True)
class Objective:
    """The static choices of the loss.

    Attributes:
      terms: functions of the terms beside the classification, by name, as in `terms.TERMS` with their options bound.
      loss: the classification loss, one of `losses.CLASSIFICATIONS`.
      label_smoothing: share of label smoothing in the classification loss.
      masking: options of the masked images; None for no masked forward.
      penalty_of: score that the gradient penalty differentiates, one of `losses.PENALTY_OF`; None for no penalty.
      watch: `(outputs, axis_name) -> scalars` that are logged but are not part of the loss.
    """

    terms: Mapping[str, Callable[..., tuple[jax.Array, Watched]]] = dataclasses.field(default_factory=dict)
    loss: str = "cross_entropy"
    label_smoothing: float = 0.0
    masking: Masking | None = None
    penalty_of: str | None = None
    watch: Callable[..., Watched] = watch


class Values(NamedTuple):
    """The numbers of the loss at one step.

    Attributes:
      weights: weights of the terms, by name.
      mask_fraction: share of the positions that is masked.
      mask_highest: whether the most salient positions are masked.
    """

    weights: Mapping[str, jax.Array]
    mask_fraction: jax.Array | float = 0.0
    mask_highest: jax.Array | bool = False


class Keys(NamedTuple):
    """Random keys of a batch: one per example for ties and fills, `[N]`; one per forward for dropout, `[2]`."""

    ties: jax.Array
    fills: jax.Array
    dropout: jax.Array


def apply_model(
    apply_fn: Callable, params: Any, images: jax.Array, *, batch_stats: Any, dropout_key: jax.Array, train: bool = True
) -> tuple[tuple[jax.Array, Any], Any]:
    """Apply the model and return `((logits, features), new batch_stats)`."""
    variables = {"params": params, "batch_stats": batch_stats}
    if not train:
        return apply_fn(variables, images, train=False), batch_stats
    rngs = {"dropout": dropout_key}
    outputs, updates = apply_fn(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
    return outputs, updates.get("batch_stats", batch_stats)


def loss_and_gradients(
    forward: Callable,
    params: Any,
    images: jax.Array,
    labels: jax.Array,
    *,
    keys: Keys,
    values: Values,
    objective: Objective,
    axis_name: str | None,
) -> tuple[Any, Any, Terms]:
    """Return the loss's gradients, the clean forward's running statistics and the named terms.

    The clean forward is linearised once, together with its gradient penalty, if any. Its pull-back serves the saliency
    and the loss.

    Args:
      forward: `(params, images, dropout_key, train=True) -> ((logits, features), batch_stats)`.
      params: the parameters.
      images: `[N, H, W, C]`, normalised.
      labels: true classes, int `[N]`.
      keys: random keys of the batch.
      values: weights of the terms, and options of the mask.
      objective: the static choices of the loss.
      axis_name: mapped axis of the devices.
    """
    clean = partial(forward, dropout_key=keys.dropout[0])
    how = objective.masking
    recorded = partial(_recorded, clean, how is not None and how.forward == "frozen")
    (outputs, penalties), pull_back, (batch_stats, record) = jax.vjp(
        partial(_penalised, recorded, labels=labels, objective=objective), params, images, has_aux=True
    )
    masked_logits, masked_pull_back = None, None
    if how is not None:
        no_penalty = jax.tree.map(jnp.zeros_like, penalties)
        of_outputs = lambda cotangent: pull_back((cotangent, no_penalty))  # noqa: E731
        linear = {"outputs": outputs, "pull_back": of_outputs, "record": record}
        gradient = saliency(partial(clean, params), images, labels, how=how, **linear)
        ranking = masking.rank_saliency(gradient, rank_by=how.rank_by)
        ties, fills, chosen = (each[:: how.every] for each in (keys.ties, keys.fills, images))
        amount = {"fraction": values.mask_fraction, "highest": values.mask_highest}
        mask = masking.least_salient(ties, ranking, block=how.block, **amount)
        masked = masking.fill(fills, chosen, mask, how=how.fill, blur_sigma=how.blur_sigma)

        def masked_forward(params: Any) -> jax.Array:
            (logits, _), _ = forward(params, masked, dropout_key=keys.dropout[1])
            return logits

        if how.remat:
            masked_forward = jax.checkpoint(masked_forward, policy=_is_statistic)
        masked_logits, masked_pull_back = jax.vjp(masked_forward, params)
    loss = partial(loss_fn, labels=labels, values=values, objective=objective, axis_name=axis_name)
    cotangents, terms = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(outputs, penalties, masked_logits)
    grads, _ = pull_back(cotangents[:2])
    if how is not None:
        masked_cotangent = cotangents[2]
        if how.remat:  # the clean forward's activations are freed before the masked one's are computed again
            grads, masked_cotangent = jax.lax.optimization_barrier((grads, masked_cotangent))
        (masked_grads,) = masked_pull_back(masked_cotangent)
        grads = jax.tree.map(jnp.add, grads, masked_grads)
    return grads, batch_stats, terms


def _is_statistic(primitive: Any, *_: Any, **__: Any) -> bool:
    """Return whether a primitive's results are small, and are stored: sums, and what is combined over devices."""
    return primitive.name in ("reduce_sum", "psum", "psum_invariant", "psum2")


def _recorded(forward: Callable, record: bool, params: Any, images: jax.Array) -> tuple[Any, tuple[Any, Any]]:
    """Apply `forward`; beside its batch_stats return the statistics recorded for `frozen_statistics`, if `record`."""
    with record_statistics() if record else contextlib.nullcontext({}) as found:
        outputs, batch_stats = forward(params, images)
    return outputs, (batch_stats, found)


def _penalised(
    forward: Callable, params: Any, images: jax.Array, *, labels: jax.Array, objective: Objective
) -> tuple[tuple[Any, jax.Array | None], Any]:
    """Apply `forward`, which returns `(outputs, others)`; beside its outputs return the gradient penalties `[N]`.

    One function of the parameters returns both, so that one backward pass serves the loss and the penalty.
    """
    if objective.penalty_of is None:
        outputs, others = forward(params, images)
        return (outputs, None), others

    def logits_first(images: jax.Array) -> tuple[jax.Array, Any]:
        outputs, others = forward(params, images)
        return outputs[0], (outputs, others)

    penalties, (outputs, others) = losses.gradient_penalty(
        logits_first, images, labels, of=objective.penalty_of, **_of_classes(objective)
    )
    return (outputs, penalties), others


def saliency(
    forward: Callable,
    images: jax.Array,
    labels: jax.Array,
    *,
    outputs: tuple[jax.Array, Any],
    pull_back: Callable,
    record: Any,
    how: Masking,
) -> jax.Array:
    """Return the input gradient of the true class with the chosen forward, `[N / how.every, H, W, C]`.

    With BatchNorm, `shared` couples the examples through the batch's statistics. `frozen` treats these as constants.
    `eval` uses the running statistics, which takes one more forward. Without BatchNorm and dropout the three agree.
    `frozen` and `eval` pull back the examples that are masked alone, every `how.every`-th.

    Args:
      forward: `images -> ((logits, features), batch_stats)`, in train mode unless called with `train=False`.
      images: `[N, H, W, C]`, normalised.
      labels: true classes, `[N]`.
      outputs: outputs of `forward` in train mode.
      pull_back: pull-back of the outputs' cotangent to `(params, images)`.
      record: recorded statistics of the forward, for `frozen`; empty without BatchNorm.
      how: options of the masked images, with the chosen `forward` and `saliency_of`.
    """
    cotangent = partial(_true_class, labels=labels, saliency_of=how.saliency_of)
    if how.forward == "shared" or (how.forward == "frozen" and not record and how.every == 1):
        return pull_back(cotangent(outputs))[1][:: how.every]
    train = how.forward == "frozen"
    of_chosen = {name: [_every(call, how.every) for call in calls] for name, calls in record.items()}
    with frozen_statistics(of_chosen) if train and record else contextlib.nullcontext():
        outputs, pull_back, _ = jax.vjp(partial(forward, train=train), images[:: how.every], has_aux=True)
        return pull_back(cotangent(outputs, labels=labels[:: how.every]))[0]


def _every(call: Mapping[str, jax.Array], step: int) -> dict[str, jax.Array]:
    """Return the record of a BatchNorm's call for every `step`-th example."""
    return dict(call) | {"output": call["output"][::step]}


def _true_class(outputs: tuple[jax.Array, Any], *, labels: jax.Array, saliency_of: str) -> tuple[jax.Array, Any]:
    """Return the cotangent of the outputs whose pull-back is the gradient of z_y or of log p_y."""
    logits, features = outputs
    classes = logits.shape[-1]
    cotangent = one_hot(check_classes("labels", labels, classes), classes, logits.dtype)
    if saliency_of == "log_probability":
        cotangent = cotangent - jax.nn.softmax(logits)
    return cotangent, jax.tree.map(jnp.zeros_like, features)


def loss_fn(
    outputs: tuple[jax.Array, Any],
    penalties: jax.Array | None,
    masked_logits: jax.Array | None,
    *,
    labels: jax.Array,
    values: Values,
    objective: Objective,
    axis_name: str | None,
) -> tuple[jax.Array, Terms]:
    """Return the loss, `classification + Σ weight · term`, and its named terms before weighting."""
    logits, features = outputs
    labels = check_classes("labels", labels, logits.shape[-1])
    every = 1 if objective.masking is None else objective.masking.every
    found = Outputs(logits, jax.tree.leaves(features), labels, masked_logits, penalties, every)
    terms = {"classification": classification(found, **_of_classes(objective))}
    total = terms["classification"]
    for name, term in objective.terms.items():
        terms[name], watched = term(found, axis_name=axis_name)
        total += values.weights[name] * terms[name]
        terms |= watched
    return total, {"loss": total, **terms, **objective.watch(found, axis_name=axis_name)}


def _of_classes(objective: Objective) -> dict[str, Any]:
    """Return the options of the classification loss."""
    return {"loss": objective.loss, "label_smoothing": objective.label_smoothing}
