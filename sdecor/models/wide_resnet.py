"""Wide residual networks with pre-activation, for small images."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdecor.core.checks import check_choice, check_range
from sdecor.models.layers import REMATS, batch_norm, check_image_size, classifier, conv, he_fan_out, rematerialised


class WideBlock(nn.Module):
    """A pre-activation residual block: two 3×3 convolutions, each after BatchNorm and ReLU."""

    width: int
    stride: int
    dropout: float
    zero_init_residual: bool
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = batch_norm(train=train, dtype=self.dtype, axis_name=self.axis_name)
        active = nn.relu(norm(name="norm1")(x))
        shortcut = x
        if x.shape[-1] != self.width or self.stride != 1:
            shortcut = conv(self.width, 1, stride=self.stride, dtype=self.dtype, name="conv_shortcut")(active)
        x = conv(self.width, 3, stride=self.stride, dtype=self.dtype, name="conv1")(active)
        x = nn.relu(norm(name="norm2")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        # A norm2 scale of 0 instead would keep the block at the identity: the ReLU after it has no gradient at 0.
        init = nn.initializers.zeros if self.zero_init_residual else he_fan_out
        return shortcut + conv(self.width, 3, dtype=self.dtype, kernel_init=init, name="conv2")(x)


class WideStage(nn.Module):
    """A sequence of wide blocks of one width; the first may halve the map."""

    blocks: int
    stride: int
    remat: str
    block: dict[str, Any]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        block = rematerialised(WideBlock, self.remat, train=train)
        for index in range(1, self.blocks + 1):
            x = block(**self.block, stride=self.stride if index == 1 else 1, name=f"block{index}")(x, train)
        return x


class WideResNet(nn.Module):
    """A wide residual network for small images: three stages of pre-activation blocks.

    It has 36,479,194 parameters for 10 classes.

    Attributes:
      num_classes: K.
      depth: number of layers, 6n + 4 for n blocks per stage.
      widen: factor on the widths 16, 32 and 64 of the stages.
      dropout: rate of dropout between the two convolutions of a block.
      zero_init_residual: start every block as the identity (the last convolution is 0, because with pre-activation no
        BatchNorm comes after it).
      remat: what the backward of a block computes again to save memory: "none" or "blocks".
      dtype: compute dtype; parameters, statistics and logits are float32.
      axis_name: device axis over which BatchNorm combines its statistics.

    Called with images `[N, H, W, C]`, it returns `(logits float32 [N, K], features [N, 64 · widen])`.

    Raises:
      ValueError: for an invalid attribute, or images that are not `[N, H, W, C]`.

    References:
      Zagoruyko, Komodakis, "Wide Residual Networks", https://arxiv.org/abs/1605.07146, 2016.
    """

    num_classes: int
    depth: int = 28
    widen: int = 10
    dropout: float = 0.0
    zero_init_residual: bool = True
    remat: str = "none"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def __post_init__(self) -> None:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"depth = {self.depth!r} must be 6n + 4 with n ≥ 1: 10, 16, 22, 28, 34, 40, …")
        check_range("widen", self.widen, 1)
        check_range("dropout", self.dropout, 0, 1, high_open=True)
        check_choice("remat", self.remat, REMATS)
        super().__post_init__()

    @property
    def activations(self) -> tuple[str, ...]:
        """The layers whose outputs go through a ReLU, in order."""
        blocks = [f"stage{stage}/block{n}" for stage in (1, 2, 3) for n in range(1, (self.depth - 4) // 6 + 1)]
        return (*(f"{block}/{norm}" for block in blocks for norm in ("norm1", "norm2")), "norm")

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        check_image_size(images, least=1)
        x = conv(16, 3, dtype=self.dtype, name="conv_stem")(images.astype(self.dtype))
        for index in range(3):
            block = {
                "width": 16 * 2**index * self.widen,
                "dropout": self.dropout,
                "zero_init_residual": self.zero_init_residual,
                "dtype": self.dtype,
                "axis_name": self.axis_name,
            }
            blocks, stride = (self.depth - 4) // 6, 1 if index == 0 else 2
            x = WideStage(blocks, stride=stride, remat=self.remat, block=block, name=f"stage{index + 1}")(x, train)
        norm = batch_norm(train=train, dtype=self.dtype, axis_name=self.axis_name)
        features = nn.relu(norm(name="norm")(x)).mean(axis=(1, 2))
        return classifier(features, self.num_classes), features
