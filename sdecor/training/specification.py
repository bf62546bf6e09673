"""The specification of SaliencyDecor: its loss as one function, for any training loop. train.py computes it faster."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sdecor import losses, masking
from sdecor.core import rng
from sdecor.core.checks import check_choice, check_count
from sdecor.core.classes import of_class

Apply = Callable[[Any, jax.Array], Any]


def saliency_decor(
    apply: Apply,
    params: Any,
    images: jax.Array,
    labels: jax.Array,
    *,
    key: jax.Array,
    consistency: jax.Array | float = 1.0,
    decorrelation: jax.Array | float = 0.1,
    fraction: jax.Array | float = 0.5,
    fill: str = "uniform",
    form: str = "covariance",
    axis_name: str | None = None,
    rank_by: str = "abs",
    saliency_of: str = "logit",
    spatial: str = "pool",
    every: int = 1,
    block: int = 1,
    saliency_apply: Apply | None = None,
    masked_apply: Apply | None = None,
    has_aux: bool = False,
) -> tuple[jax.Array, Any]:
    """Compute SaliencyDecor's loss: cross-entropy, consistency under saliency-guided masking, decorrelation.

    Differentiate it with respect to `params`. No gradient flows through the mask or the masked images.

    Args:
      apply: `(params, images) -> (logits [N, K], features)`, in train mode. The features, usually the input of the last
        linear layer, are `[N, D]`, maps, or a tree of these, over which the decorrelation is averaged.
      params: the parameters, or a model that `apply` calls; they serve three calls. If a call changes the model in
        place, as NNX's BatchNorm does, let `apply` call a copy of the model (examples/train_nnx.py).
      images: `[N, H, W, C]`, float, in the model's normalised space.
      labels: class indices, int `[N]`.
      key: one typed key for the whole batch, new at each step, or `[N]` keys, one for each example.
      consistency: weight of KL(p(x) ‖ p(masked x)).
      decorrelation: weight of the decorrelation of the features.
      fraction: share of the positions that is masked, in [0, 1).
      fill: values at the masked positions, one of `masking.FILLS`.
      form: form of the decorrelation, one of `losses.FORMS`; "covariance" is the paper's.
      axis_name: mapped axis over which the batch is split; None if `images` is the whole batch. The loss uses this
        member's examples and the whole batch's features: take the mean of loss and gradients over the axis.
      rank_by: "abs" for the mean gradient magnitude over channels, "signed" for the signed mean.
      saliency_of: score whose input gradient is the saliency: "logit" or "log_probability" of the true class.
      spatial: for feature maps, "pool" averages over space, and "positions" takes each position as a sample.
      every: 1 masks all examples; 2 masks the first, the third, and so on, which makes the masked forward cheaper.
      block: side of the square blocks that are masked whole, see `masking.least_salient`; 1 masks single positions.
      saliency_apply: forward for the saliency, such as one in evaluation mode; None for `apply`.
      masked_apply: forward for the masked images, such as one with another dropout key; None for `apply`.
      has_aux: whether each forward returns `((logits, features), aux)`. The clean forward's aux is returned, such as
        BatchNorm's new statistics, which masked images must not change.

    Returns:
      `(loss, terms)`, or `(loss, (terms, aux))` with `has_aux`: scalars, the terms before weighting.

    Raises:
      ValueError: for an unknown `fill`, `form`, `rank_by`, `saliency_of` or `spatial`, an `every` that is no positive
        number, a `block` that does not divide the positions, and for labels that are no class; under `jit` the loss is
        then NaN.

    References:
      Karkehabadi et al., SaliencyDecor, 2026, https://arxiv.org/abs/2604.25315.
    """
    check_choice("saliency_of", saliency_of, masking.SALIENCY_OF)
    check_count("every", every, 1)

    def forward(apply: Apply, images: jax.Array) -> tuple[tuple[jax.Array, Any], Any]:
        return apply(params, images) if has_aux else (apply(params, images), None)

    def true_class(images: jax.Array) -> jax.Array:
        (logits, _), _ = forward(saliency_apply or apply, images)
        scores = jax.nn.log_softmax(logits) if saliency_of == "log_probability" else logits
        return jnp.sum(jax.vmap(of_class)(scores, labels))

    keys = jax.vmap(jax.random.split)(rng.per_example(key, len(images), axis_name))
    saliency = masking.rank_saliency(jax.grad(true_class)(images)[::every], rank_by=rank_by)
    mask = masking.least_salient(keys[::every, 0], saliency, fraction=fraction, block=block)
    masked = masking.fill(keys[::every, 1], images[::every], mask, how=fill)
    (logits, features), aux = forward(apply, images)
    (masked_logits, _), _ = forward(masked_apply or apply, masked)
    options = {"form": form, "spatial": spatial, "axis_name": axis_name}
    layers = [losses.decorrelation(layer, **options) for layer in jax.tree.leaves(features)]
    terms = {
        "classification": jnp.mean(losses.classification(logits, labels)),
        "consistency": jnp.mean(losses.consistency(logits[::every], masked_logits)),
        "decorrelation": sum(layers) / len(layers),
    }
    loss = terms["classification"] + consistency * terms["consistency"] + decorrelation * terms["decorrelation"]
    return loss, (terms, aux) if has_aux else terms
