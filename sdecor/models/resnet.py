"""Residual networks of 18, 34 and 50 layers, with the stem for large images or the one for CIFAR."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdecor.core.checks import check_choice, check_count
from sdecor.models.layers import (
    REMATS,
    batch_norm,
    check_image_size,
    check_positive,
    classifier,
    conv,
    rematerialised,
)


class ResidualBlock(nn.Module):
    """A residual block: two 3×3 convolutions, or a 1×1, 3×3, 1×1 bottleneck with four times the channels."""

    width: int
    stride: int
    bottleneck: bool
    zero_init_residual: bool
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = batch_norm(train=train, dtype=self.dtype, axis_name=self.axis_name)
        channels = self.width * (4 if self.bottleneck else 1)
        if self.bottleneck:  # the stride is in the 3×3 convolution, as in torchvision
            layers = ((self.width, 1, 1), (self.width, 3, self.stride), (channels, 1, 1))
        else:
            layers = ((self.width, 3, self.stride), (channels, 3, 1))

        shortcut = x
        if self.stride != 1 or x.shape[-1] != channels:
            shortcut = conv(channels, 1, stride=self.stride, dtype=self.dtype, name="conv_shortcut")(x)
            shortcut = norm(name="norm_shortcut")(shortcut)
        for index, (width, kernel, stride) in enumerate(layers, start=1):
            last = index == len(layers)
            gamma = nn.initializers.zeros if last and self.zero_init_residual else nn.initializers.ones
            x = conv(width, kernel, stride=stride, dtype=self.dtype, name=f"conv{index}")(x)
            x = norm(name=f"norm{index}", scale_init=gamma)(x)
            x = x if last else nn.relu(x)
        return nn.relu(shortcut + x)


class Stage(nn.Module):
    """A sequence of residual blocks of one width; the first may halve the map."""

    blocks: int
    stride: int
    remat: str
    block: dict[str, Any]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        block = rematerialised(ResidualBlock, self.remat, train=train)
        for index in range(1, self.blocks + 1):
            stride = self.stride if index == 1 else 1
            x = block(**self.block, stride=stride, name=f"block{index}")(x, train)
        return x


class ResNet(nn.Module):
    """A residual network: a stem and stages of residual blocks, named `stage1/block1` and so on.

    Attributes:
      num_classes: K.
      blocks: residual blocks of each stage.
      bottleneck: whether blocks are bottlenecks (ResNet-50) or pairs of 3×3 convolutions (18, 34).
      stem: "imagenet" is a 7×7 convolution and 3×3 max-pooling, each of stride 2; "cifar" is one 3×3 convolution.
      width: channels of the stem and the first stage; each later stage has twice those of the one before.
      zero_init_residual: start every block as the identity (the last BatchNorm's scale is 0).
      remat: what the backward of a block computes again to save memory: "none" or "blocks".
      dtype: compute dtype; parameters, statistics and logits are float32.
      axis_name: device axis over which BatchNorm combines its statistics.

    Called with images `[N, H, W, C]`, it returns `(logits float32 [N, K], features [N, D])`. D is 8 · `width`, or
    32 · `width` with bottlenecks: 512 or 2048.

    Raises:
      ValueError: for an invalid attribute, or images that are not `[N, H, W, C]`.

    References:
      He et al., "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385, 2015.
    """

    num_classes: int
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    bottleneck: bool = False
    stem: str = "imagenet"
    width: int = 64
    zero_init_residual: bool = True
    remat: str = "none"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def __post_init__(self) -> None:
        check_positive("blocks", self.blocks)
        check_count("width", self.width)
        check_choice("stem", self.stem, ("imagenet", "cifar"))
        check_choice("remat", self.remat, REMATS)
        super().__post_init__()

    @property
    def activations(self) -> tuple[str, ...]:
        """The layers whose outputs go through a ReLU, in order; a block's own output already has."""
        inner = ("norm1", "norm2") if self.bottleneck else ("norm1",)
        names = ["norm_stem"]
        for stage, blocks in enumerate(self.blocks, start=1):
            for block in range(1, blocks + 1):
                path = f"stage{stage}/block{block}"
                names += [*(f"{path}/{norm}" for norm in inner), path]
        return tuple(names)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        check_image_size(images, least=1)
        norm = batch_norm(train=train, dtype=self.dtype, axis_name=self.axis_name)
        large = self.stem == "imagenet"
        x = images.astype(self.dtype)
        x = conv(self.width, 7 if large else 3, stride=2 if large else 1, dtype=self.dtype, name="conv_stem")(x)
        x = nn.relu(norm(name="norm_stem")(x))
        if large:
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for index, blocks in enumerate(self.blocks):
            block = {
                "width": self.width * 2**index,
                "bottleneck": self.bottleneck,
                "zero_init_residual": self.zero_init_residual,
                "dtype": self.dtype,
                "axis_name": self.axis_name,
            }
            stride = 1 if index == 0 else 2
            x = Stage(blocks, stride=stride, remat=self.remat, block=block, name=f"stage{index + 1}")(x, train)
        features = x.mean(axis=(1, 2))
        return classifier(features, self.num_classes), features
