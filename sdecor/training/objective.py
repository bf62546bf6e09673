"""The method: classification, consistency under masking, decorrelation, gradient penalty; their joint gradient.

The clean forward is made once and pulled back twice: to the images for the saliency that places the mask, and to
the parameters for the loss. See docs/method.md for the mathematics.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sdecor import losses, masking
from sdecor.core.classes import check_classes, correct, one_hot
from sdecor.models import frozen_statistics, record_statistics

Terms = dict[str, jax.Array]
FORWARDS = ("shared", "frozen", "eval")
METHODS = {  # name → whether it has the terms (consistency, decorrelation, gradient penalty)
    "ce": (False, False, False),
    "sgt": (True, False, False),
    "decor": (False, True, False),
    "sdecor": (True, True, False),
    "gradpen": (False, False, True),
}


@dataclasses.dataclass(frozen=True)
class Objective:
    """The static choices of the loss: each field is documented in configs/default.py."""

    consistency: bool = True  # whether the masked forward is made at all
    decorrelation: bool = True
    gradient_penalty: bool = False  # whether the input gradient is differentiated again
    label_smoothing: float = 0.0
    direction: str = "clean_masked"
    stop_gradient: bool = False
    rank_by: str = "abs"
    saliency_of: str = "logit"
    order: str = "lowest"
    fill: str = "uniform"
    blur_sigma: float = 2.0
    forward: str = "shared"
    form: str = "covariance"
    spatial: str = "pool"
    rectify: bool = False
    variance: bool = False
    epsilon: float | None = None
    iterations: int = 20
    penalty_of: str = "cross_entropy"


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
    tie_keys: jax.Array,
    fill_keys: jax.Array,
    dropout_keys: jax.Array,
    values: Terms,
    highest: jax.Array | bool,
    objective: Objective,
    axis_name: str | None,
) -> tuple[Any, Any, Terms]:
    """Return the loss's gradients, the clean forward's running statistics and the named terms.

    The clean forward is linearised once, with the penalty on its input gradient where that is a term; its pull-back
    serves the saliency and the loss.
    """
    clean = partial(forward, dropout_key=dropout_keys[0])
    recorded = partial(_recorded, clean, objective.forward == "frozen")
    (outputs, penalties), pull_back, (batch_stats, record) = jax.vjp(
        partial(_penalised, recorded, labels=labels, objective=objective), params, images, has_aux=True
    )
    masked_logits, masked_pull_back = None, None
    if objective.consistency:
        no_penalty = jax.tree.map(jnp.zeros_like, penalties)
        of_outputs = lambda cotangent: pull_back((cotangent, no_penalty))  # noqa: E731
        linear = {"outputs": outputs, "pull_back": of_outputs, "record": record}
        gradient = saliency(partial(clean, params), images, labels, objective=objective, **linear)
        ranking = masking.rank_saliency(gradient, rank_by=objective.rank_by)
        mask = masking.least_salient(tie_keys, ranking, fraction=values["mask_fraction"], highest=highest)
        masked = masking.fill(fill_keys, images, mask, how=objective.fill, blur_sigma=objective.blur_sigma)

        def masked_forward(params: Any) -> jax.Array:
            (logits, _), _ = forward(params, masked, dropout_key=dropout_keys[1])
            return logits

        masked_logits, masked_pull_back = jax.vjp(masked_forward, params)
    loss = partial(loss_fn, labels=labels, values=values, objective=objective, axis_name=axis_name)
    cotangents, terms = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(outputs, penalties, masked_logits)
    grads, _ = pull_back(cotangents[:2])
    if objective.consistency:
        (masked_grads,) = masked_pull_back(cotangents[2])
        grads = jax.tree.map(jnp.add, grads, masked_grads)
    return grads, batch_stats, terms


def _recorded(forward: Callable, record: bool, params: Any, images: jax.Array) -> tuple[Any, tuple[Any, Any]]:
    """Apply `forward`; beside its batch_stats return the record that lets frozen statistics repeat nothing."""
    with record_statistics() if record else contextlib.nullcontext({}) as found:
        outputs, batch_stats = forward(params, images)
    return outputs, (batch_stats, found)


def _penalised(
    forward: Callable, params: Any, images: jax.Array, *, labels: jax.Array, objective: Objective
) -> tuple[tuple[Any, jax.Array | None], Any]:
    """Apply `forward`, which returns `(outputs, others)`; beside its outputs return the gradient penalties `[N]`.

    One function of the parameters gives both, so that one backward pass serves the loss and the penalty.
    """
    if not objective.gradient_penalty:
        outputs, others = forward(params, images)
        return (outputs, None), others

    def logits_first(images: jax.Array) -> tuple[jax.Array, Any]:
        outputs, others = forward(params, images)
        return outputs[0], (outputs, others)

    penalties, (outputs, others) = losses.gradient_penalty(
        logits_first, images, labels, of=objective.penalty_of, label_smoothing=objective.label_smoothing
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
    objective: Objective,
) -> jax.Array:
    """Return the true class's input gradient `[N, H, W, C]` by the chosen forward.

    With BatchNorm, `shared` couples the examples through the batch's statistics, `frozen` takes these as constants
    and `eval` takes the running ones, for one more forward. Without BatchNorm and dropout the three agree.

    Args:
      forward: `images -> ((logits, features), batch_stats)`, in train mode unless called with `train=False`.
      images: `[N, H, W, C]`, normalised.
      labels: true classes, `[N]`.
      outputs: `forward`'s, in train mode.
      pull_back: of the outputs' cotangent to `(params, images)`.
      record: `record_statistics` of the forward, for `frozen`; empty without BatchNorm.
      objective: its `forward` and `saliency_of`.
    """
    cotangent = partial(_true_class, labels=labels, saliency_of=objective.saliency_of)
    if objective.forward == "shared" or (objective.forward == "frozen" and not record):
        return pull_back(cotangent(outputs))[1]
    train = objective.forward == "frozen"
    with frozen_statistics(record) if train else contextlib.nullcontext():
        outputs, pull_back, _ = jax.vjp(partial(forward, train=train), images, has_aux=True)
        return pull_back(cotangent(outputs))[0]


def _true_class(outputs: tuple[jax.Array, Any], *, labels: jax.Array, saliency_of: str) -> tuple[jax.Array, Any]:
    """The cotangent of the outputs whose pull-back is the gradient of z_y, or of log p_y."""
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
    values: Terms,
    objective: Objective,
    axis_name: str | None,
) -> tuple[jax.Array, Terms]:
    """Return the total loss of the model's outputs, and its named terms before weighting."""
    logits, features = outputs
    labels = check_classes("labels", labels, logits.shape[-1])
    layers = jax.tree.leaves(features)
    if objective.rectify and (objective.decorrelation or objective.variance):
        layers = [jax.nn.relu(layer) for layer in layers]
    classification = losses.classification(logits, labels, label_smoothing=objective.label_smoothing)
    terms = {"classification": jnp.mean(classification)}
    total = terms["classification"]
    if objective.consistency:
        kl = losses.consistency(
            logits, masked_logits, direction=objective.direction, stop_gradient=objective.stop_gradient
        )
        terms["consistency"] = jnp.mean(kl)
        total += values["consist_weight"] * terms["consistency"]
        terms["masked_accuracy"] = jnp.mean(correct(masked_logits, labels))
    if objective.decorrelation:
        terms |= _decorrelation_terms(layers, objective=objective, axis_name=axis_name)
        total += values["decor_weight"] * terms["decorrelation"]
    if objective.variance:
        hinge = partial(losses.variance_hinge, axis_name=axis_name, spatial=objective.spatial)
        terms["variance"] = sum(map(hinge, layers)) / len(layers)
        total += values["variance_weight"] * terms["variance"]
    if objective.gradient_penalty:
        terms["gradient_penalty"] = jnp.mean(penalties)
        total += values["gradient_penalty_weight"] * terms["gradient_penalty"]
    scale = partial(losses.feature_scale, axis_name=axis_name, spatial=objective.spatial)
    terms["feature_scale"] = sum(map(scale, layers)) / len(layers)
    terms["accuracy"] = jnp.mean(correct(logits, labels))
    return total, {"loss": total, **terms}


def _decorrelation_terms(layers: list[jax.Array], *, objective: Objective, axis_name: str | None) -> Terms:
    """The decorrelation term averaged over layers, from how many samples, and what white features would score.

    What comes out of a ReLU is never white, and the uncentred forms are for that, so the last is for the others alone.
    """
    options = {"axis_name": axis_name, "spatial": objective.spatial}
    samples = [losses.sample_count(layer, **options) for layer in layers]
    terms = {"decorrelation_samples": jnp.float32(min(samples))}
    if objective.form in losses.CENTRED and not objective.rectify:
        widths = [layer.shape[-1] for layer in layers]
        floors = [losses.white_floor(n, width, form=objective.form) for n, width in zip(samples, widths, strict=True)]
        terms["decorrelation_floor"] = jnp.float32(sum(floors) / len(floors))
    options |= {"epsilon": objective.epsilon, "iterations": objective.iterations}
    if objective.form == "whitening":
        found = [losses.whitening(layer, **options) for layer in layers]
        terms["whitening_residual"] = sum(residual for _, residual in found) / len(layers)
        values = [value for value, _ in found]
    else:
        values = [losses.decorrelation(layer, form=objective.form, **options) for layer in layers]
    return terms | {"decorrelation": sum(values) / len(layers)}
