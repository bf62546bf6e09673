"""The terms of the loss by name, each with its function and the config fields of its weight and options.

A new term is a function here, a row of `TERMS` and a group in configs/default.py. A training method that has it is a
row of `METHODS`, here and in configs/default.py. See docs/method.md for the mathematics, and `sdecor.losses` for the
losses themselves.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sdecor import losses
from sdecor.core.classes import correct

Watched = dict[str, jax.Array]  # scalars that are logged beside a term


class Outputs(NamedTuple):
    """Outputs of the network for a batch, on one device.

    Attributes:
      logits: `[N, K]`.
      features: outputs of the layers to decorrelate, each `[N, D]` or maps `[N, H, W, D]`.
      labels: true classes, int `[N]`.
      masked_logits: logits of the masked images, `[N / masked_every, K]`; None without a masked forward.
      penalties: squared norms of the input gradients, `[N]`; None without a gradient penalty.
      masked_every: 1 if all examples are masked, 2 for the first, third, fifth, …
    """

    logits: jax.Array
    features: Sequence[jax.Array]
    labels: jax.Array
    masked_logits: jax.Array | None = None
    penalties: jax.Array | None = None
    masked_every: int = 1


def classification(outputs: Outputs, *, loss: str = "cross_entropy", label_smoothing: float = 0.0) -> jax.Array:
    """Return the mean classification loss with the true classes."""
    options = {"loss": loss, "label_smoothing": label_smoothing}
    return jnp.mean(losses.classification(outputs.logits, outputs.labels, **options))


def consistency(
    outputs: Outputs,
    *,
    axis_name: str | None = None,
    direction: str = "clean_masked",
    stop_gradient: bool = False,
    loss: str = "cross_entropy",
) -> tuple[jax.Array, Watched]:
    """Return the mean divergence between clean and masked predictions, and the accuracy on masked images to log."""
    clean, labels = (each[:: outputs.masked_every] for each in (outputs.logits, outputs.labels))
    options = {"direction": direction, "stop_gradient": stop_gradient, "loss": loss}
    divergence = losses.consistency(clean, outputs.masked_logits, **options)
    return jnp.mean(divergence), {"masked_accuracy": jnp.mean(correct(outputs.masked_logits, labels))}


def decorrelation(
    outputs: Outputs,
    *,
    axis_name: str | None = None,
    form: str = "covariance",
    spatial: str = "pool",
    rectify: bool = False,
    epsilon: float | None = None,
    iterations: int = 20,
) -> tuple[jax.Array, Watched]:
    """Return the decorrelation of the features, averaged over layers.

    Logged beside it are the number of samples and the value that white features would have. Outputs of a ReLU are never
    white, so this value is left out for rectified features and for the uncentred forms, which are meant for a ReLU.
    """
    layers = _layers(outputs, rectify)
    options = {"axis_name": axis_name, "spatial": spatial}
    samples = [losses.sample_count(layer, **options) for layer in layers]
    watched = {"decorrelation_samples": jnp.float32(min(samples))}
    if form in losses.CENTRED and not rectify:
        widths = [layer.shape[-1] for layer in layers]
        floors = [losses.white_floor(n, width, form=form) for n, width in zip(samples, widths, strict=True)]
        watched["decorrelation_floor"] = jnp.float32(_mean(floors))
    options |= {"epsilon": epsilon, "iterations": iterations}
    if form == "whitening":
        values, residuals = zip(*(losses.whitening(layer, **options) for layer in layers), strict=True)
        watched["whitening_residual"] = _mean(residuals)
    else:
        values = [losses.decorrelation(layer, form=form, **options) for layer in layers]
    return _mean(values), watched


def variance(
    outputs: Outputs, *, axis_name: str | None = None, spatial: str = "pool", rectify: bool = False
) -> tuple[jax.Array, Watched]:
    """Return VICReg's hinge on small standard deviations of the features, averaged over layers."""
    hinge = partial(losses.variance_hinge, axis_name=axis_name, spatial=spatial)
    return _mean([hinge(layer) for layer in _layers(outputs, rectify)]), {}


def gradient_penalty(outputs: Outputs, *, axis_name: str | None = None) -> tuple[jax.Array, Watched]:
    """Return the mean squared norm of the input gradient."""
    return jnp.mean(outputs.penalties), {}


def watch(outputs: Outputs, *, axis_name: str | None = None, spatial: str = "pool", rectify: bool = False) -> Watched:
    """Return the scalars that every training method logs: the accuracy, and the features' mean standard deviation."""
    scale = partial(losses.feature_scale, axis_name=axis_name, spatial=spatial)
    scales = [scale(layer) for layer in _layers(outputs, rectify)]
    return {"feature_scale": _mean(scales), "accuracy": jnp.mean(correct(outputs.logits, outputs.labels))}


class Term(NamedTuple):
    """A term of the loss beside the classification.

    Attributes:
      function: `(outputs, axis_name, **options) -> (scalar, watched)`.
      weight: dotted name of the config field of its weight. A term of weight 0 is not computed.
      ramp: config field of the number of epochs over which the weight rises.
      start: config field of the epoch before which the weight is 0; None if it acts from the first.
      options: config fields of its options, each named like the function's keyword.
    """

    function: Callable[..., tuple[jax.Array, Watched]]
    weight: str
    ramp: str
    options: tuple[str, ...] = ()
    start: str | None = None


TERMS: dict[str, Term] = {
    "consistency": Term(
        consistency,
        weight="consistency.weight",
        ramp="consistency.ramp_epochs",
        options=("consistency.direction", "consistency.stop_gradient", "train.loss"),
        start="masking.start_epoch",
    ),
    "decorrelation": Term(
        decorrelation,
        weight="decorrelation.weight",
        ramp="decorrelation.ramp_epochs",
        options=(
            *("decorrelation.form", "decorrelation.spatial", "decorrelation.rectify"),
            *("decorrelation.epsilon", "decorrelation.iterations"),
        ),
    ),
    "variance": Term(
        variance,
        weight="decorrelation.variance_weight",
        ramp="decorrelation.ramp_epochs",
        options=("decorrelation.spatial", "decorrelation.rectify"),
    ),
    "gradient_penalty": Term(gradient_penalty, weight="gradient_penalty.weight", ramp="gradient_penalty.ramp_epochs"),
}
# Training methods by name, each with the config groups of its terms. configs/default.py sets the weights to match.
METHODS: dict[str, tuple[str, ...]] = {
    "ce": (),
    "sgt": ("consistency",),
    "decor": ("decorrelation",),
    "sdecor": ("consistency", "decorrelation"),
    "gradpen": ("gradient_penalty",),
}


def _layers(outputs: Outputs, rectify: bool) -> list[jax.Array]:
    return [jax.nn.relu(layer) if rectify else layer for layer in outputs.features]


def _mean(values: Sequence[jax.Array]) -> jax.Array:
    return sum(values) / len(values)
