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
    features: int, kernel: int, *, stride: int = 1, padding: int | None = None, use_bias: bool = False, **fields: Any
) -> nn.Conv:
    """Return a square convolution with the same padding on every side, as in the published networks.

    Flax's own "SAME" pads a strided convolution on one side only, which shifts the map by half a pixel.
    """
    pad = (kernel - 1) // 2 if padding is None else padding
    fields.setdefault("kernel_init", he_fan_out)
    return nn.Conv(
        features, (kernel, kernel), (stride, stride), padding=((pad, pad), (pad, pad)), use_bias=use_bias, **fields
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


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Halve height and width of `x [N, H, W, C]` by the maximum of 2×2 windows; an odd last row or column is cut.

    The values equal those of `nn.max_pool`, but come from a reshape and a maximum. The gradient of `nn.max_pool`, XLA's
    select-and-scatter, would halve the training speed of a small network on CPU.
    """
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


def check_image_size(images: jax.Array, *, least: int) -> None:
    """Raise `ValueError` unless `images` is `[N, H, W, C]` with `H` and `W` at least `least` pixels."""
    if images.ndim != 4:
        raise ValueError(f"images has shape {images.shape}: it must be [N, H, W, C]")
    if min(images.shape[1:3]) < least:
        raise ValueError(
            f"images has shape {images.shape}: this model halves its maps so often that height and width must be "
            f"at least {least}"
        )


def check_positive(field: str, values: Sequence[int]) -> None:
    """Raise `ValueError` unless `values` is a non-empty sequence of positive integers."""
    if len(values) and all(isinstance(value, int) and value > 0 for value in values):
        return
    raise ValueError(f"{field} = {values!r} must hold one or more positive integers")


def classifier(features: jax.Array, num_classes: int) -> jax.Array:
    """Apply the last linear layer in float32, for any dtype of the network: `[N, D] -> logits [N, K]`."""
    return nn.Dense(num_classes, dtype=jnp.float32, name="head")(features)
