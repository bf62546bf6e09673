"""Class activation maps whose weights are scores of the network with one channel alone, or without one channel.

Each method evaluates the network, or the part of it after the layer, once for each of the layer's channels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sdecor.attribution.baselines import Baseline, baseline_image
from sdecor.attribution.cams import UPSAMPLING, Reshape, finished, mapped, of_several_layers, weighted_sum
from sdecor.attribution.inputs import positions_of
from sdecor.attribution.layers import Layer, split_at
from sdecor.attribution.targets import Target, target_score
from sdecor.core.arrays import widened
from sdecor.core.chunks import sum_over


@of_several_layers
def score_cam(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    layer: Layer = None,
    baseline: Baseline = "zero",
    saliency_of: str = "logit",
    relu: bool = True,
    upsample: str | None = "bilinear",
    reshape: Reshape | None = None,
    key: jax.Array | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Return Score-CAM: `Σ_d w_d A_d`, where `w` is the softmax over channels of the score of the masked image.

    The mask of channel d is `A_d`, enlarged to the image's size and scaled to [0, 1] by its own minimum and maximum
    (0 for a constant channel). Cost: one evaluation for each channel, and one more. See `grad_cam` for the other
    arguments.

    Args:
      layer: see `grad_cam`; with a pair `(features_fn, head_fn)`, masked images still pass through `fn`.
      baseline: replacement of the image where a mask is 0: see `baseline_image`.
      key: random key, for a baseline that draws.
      chunk_size: channels evaluated at once.

    Returns:
      Map `[H, W, 1]` in units of the activation, at least float32.

    References:
      Wang et al., "Score-CAM", https://arxiv.org/abs/1910.01279, 2020. The score of the baseline, which the paper
      subtracts, cancels in the softmax.
    """
    split, sides = split_at(fn, image, target, layer), positions_of(image, "score_cam")
    activation = mapped(split, image.shape, layer, reshape)(widened(split.activation))
    hidden, places = widened(baseline_image(baseline, image, key=key)), jnp.arange(activation.shape[-1])
    how = UPSAMPLING[upsample or "bilinear"]

    def score(channel: jax.Array) -> jax.Array:
        mask = jax.image.resize(jnp.take(activation, channel, axis=-1), sides, how)
        low, high = mask.min(), mask.max()
        mask = ((mask - low) / jnp.where(high > low, high - low, 1))[..., None]
        seen = (hidden + mask * (widened(image) - hidden)).astype(image.dtype)
        value = target_score(fn(seen), target, saliency_of=saliency_of).astype(mask.dtype)
        return jnp.where(places == channel, value, 0)

    weights = jax.nn.softmax(sum_over(score, len(places), at_once=chunk_size))
    return finished(weighted_sum(activation, weights.astype(activation.dtype)), relu, upsample, image)


@of_several_layers
def ablation_cam(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    layer: Layer = None,
    saliency_of: str = "logit",
    relu: bool = True,
    upsample: str | None = "bilinear",
    reshape: Reshape | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Return Ablation-CAM: `Σ_d w_d A_d`, where `w_d` is the drop of the score when channel d is set to 0.

    The paper divides by the score, which scales all weights alike and, where it is negative, turns the map's sign; this
    is left out. Cost: one evaluation, and one of the part after the layer for each channel. See `grad_cam` for the
    other arguments. Channels are the layer's last axis, or the one before the positions of a channels-first network.

    Args:
      chunk_size: channels evaluated at once.

    Returns:
      Map `[H, W, 1]` in score units times those of the activation, at least float32.

    References:
      Desai, Ramaswamy, "Ablation-CAM", https://doi.org/10.1109/WACV45572.2020.9093360, 2020.
    """
    split, sides = split_at(fn, image, target, layer), positions_of(image, "ablation_cam")
    activation = mapped(split, image.shape, layer, reshape)(widened(split.activation))
    places = jnp.arange(activation.shape[-1])
    first = split.patches is not None and split.patches.channels_first and split.activation.ndim > len(sides)
    axis = split.activation.ndim - len(sides) - 1 if first else split.activation.ndim - 1

    def score(values: jax.Array) -> jax.Array:
        return widened(target_score(split.head(values), target, saliency_of=saliency_of))

    whole = score(split.activation)

    def drop(channel: jax.Array) -> jax.Array:
        shape = [1] * split.activation.ndim
        shape[axis] = len(places)
        kept = (places != channel).reshape(shape)
        return jnp.where(places == channel, whole - score(jnp.where(kept, split.activation, 0)), 0)

    weights = sum_over(drop, len(places), at_once=chunk_size)
    return finished(weighted_sum(activation, weights.astype(activation.dtype)), relu, upsample, image)
