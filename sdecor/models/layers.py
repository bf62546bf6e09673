"""Parts that the networks share: initialisation, BatchNorm's settings, pooling and size checks."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdecor.core import rng

REMATS = ("none", "blocks")


def he_fan_out(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Draw a kernel `[…, in, out]`: normal, of variance 2 / fan-out (He et al., 2015, arXiv:1502.01852).

    The draws are bit for bit those of `nn.initializers.variance_scaling(2.0, "fan_out", "normal")`. That one draws in
    the kernel's shape, which takes XLA three times as long to compile for a CPU.
    """
    fan_out = math.prod(shape) // shape[-2]
    return rng.normal(key, tuple(shape), dtype) * jnp.sqrt(jnp.array(2.0 / fan_out, dtype))


def conv(
    features: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: int | None = None,
    use_bias: bool = False,
    axes: int = 2,
    **fields: Any,
) -> nn.Conv:
    """Return a convolution over `axes` axes, with the same padding on every side, as in the published networks.

    Flax's own "SAME" pads a strided convolution on one side only, which shifts the map by half a pixel.
    """
    pad = (kernel - 1) // 2 if padding is None else padding
    fields.setdefault("kernel_init", he_fan_out)
    return nn.Conv(
        features, (kernel,) * axes, (stride,) * axes, padding=((pad, pad),) * axes, use_bias=use_bias, **fields
    )


def batch_norm(*, train: bool, dtype: Any, axis_name: str | None) -> partial:
    """Return `nn.BatchNorm` with the settings of all networks here; its statistics stay float32 in any `dtype`."""
    return partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        axis_name=axis_name,
    )


def rematerialised(block: type[nn.Module], remat: str, *, train: bool) -> type[nn.Module]:
    """Return a class of blocks that are called with `(x, train)`, changed so that a training step stores less of them.

    Values, gradients, parameters and their names stay the same. In eval mode nothing changes.

    Args:
      block: the class.
      remat: one of `REMATS`. With "blocks" the backward computes all of a block but its input again, which costs one
        more forward in each pull-back.
      train: whether the block is called in train mode.
    """
    if remat == "none" or not train:
        return block
    return nn.remat(block, static_argnums=(2,))  # `train`, after the module and x


def halve_by_maximum(x: jax.Array) -> jax.Array:
    """Halve every axis of positions of `x [N, *positions, C]` by the maximum of windows of 2; an odd last place is cut.

    The values equal those of `nn.max_pool`, but come from a reshape and a maximum. The gradient of `nn.max_pool`, XLA's
    select-and-scatter, would halve the training speed of a small network on CPU.
    """
    n, *sides, channels = x.shape
    x = x[(slice(None), *(slice(side // 2 * 2) for side in sides))]
    pairs = [length for side in sides for length in (side // 2, 2)]
    return x.reshape(n, *pairs, channels).max(axis=tuple(range(2, 2 + 2 * len(sides), 2)))


_FORMS = {1: ("[N, T, C]", "length"), 2: ("[N, H, W, C]", "height and width")}


def check_image_size(images: jax.Array, *, least: int, axes: int = 2) -> None:
    """Raise `ValueError` unless `images` is `[N, *positions, C]` with `axes` positions, each of at least `least`."""
    form, sides = _FORMS[axes]
    if images.ndim != axes + 2:
        raise ValueError(f"images has shape {images.shape}: it must be {form}{_HINTS.get((axes, images.ndim), '')}")
    if min(images.shape[1:-1]) < least:
        raise ValueError(
            f"images has shape {images.shape}: this model halves its maps so often that {sides} must be "
            f"at least {least}"
        )


_HINTS = {(2, 3): "; the model for series [N, T, C] is cnn1d", (1, 4): "; the model for images is cnn"}


def check_positive(field: str, values: Sequence[int]) -> None:
    """Raise `ValueError` unless `values` is a non-empty sequence of positive integers."""
    if len(values) and all(isinstance(value, int) and value > 0 for value in values):
        return
    raise ValueError(f"{field} = {values!r} must hold one or more positive integers")


def classifier(features: jax.Array, num_classes: int) -> jax.Array:
    """Apply the last linear layer in float32, for any dtype of the network: `[N, D] -> logits [N, K]`."""
    return nn.Dense(num_classes, dtype=jnp.float32, name="head")(features)
