"""Small convolutional networks: one for quick experiments on small images or series, and SGT's MNIST net."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdecor.core.checks import check_choice, check_range
from sdecor.models.layers import batch_norm, check_image_size, check_positive, classifier, conv, halve_by_maximum

NORMS = ("batch", "layer", "group", "none")


def _normalise(x: jax.Array, norm: str, *, index: int, train: bool, dtype: Any, axis_name: str | None) -> jax.Array:
    if norm == "batch":
        return batch_norm(train=train, dtype=dtype, axis_name=axis_name)(name=f"norm{index}")(x)
    if norm == "layer":  # over the channels of each position, as ConvNeXt does
        return nn.LayerNorm(dtype=dtype, name=f"norm{index}")(x)
    if norm == "group":
        return nn.GroupNorm(num_groups=math.gcd(8, x.shape[-1]), dtype=dtype, name=f"norm{index}")(x)
    return x


class SmallCNN(nn.Module):
    """A classifier of small images or series: a convolution, normalisation and ReLU per width, max-pooling between.

    The first convolution has stride 2 by default. It then runs several times faster, and its 4×4 kernel covers every
    pixel equally often, so that input gradients show no checkerboard unless training makes one (docs/method.md).
    `stem_stride=1` is a 3×3 convolution at full resolution.

    Attributes:
      num_classes: K.
      widths: channels of each convolution; the last one is D.
      norm: "batch", "layer", "group" (at most 8 groups) or "none" (the convolutions then have a bias).
      dropout: rate of dropout before the last linear layer.
      stem_stride: 1 or 2.
      axes: axes of positions: 2 for images, 1 for series, whose convolutions and pooling run over time.
      dtype: compute dtype; parameters, statistics and logits are float32.
      axis_name: device axis over which BatchNorm combines its statistics.

    Called with images `[N, H, W, C]`, or series `[N, T, C]`, it returns `(logits float32 [N, K], features [N, D])`. The
    features are the global average before dropout, because dropout's noise is no property of the representation.

    Raises:
      ValueError: for an invalid attribute, or images that are too small.
    """

    num_classes: int
    widths: tuple[int, ...] = (32, 64, 128)
    norm: str = "batch"
    dropout: float = 0.0
    stem_stride: int = 2
    axes: int = 2
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def __post_init__(self) -> None:
        check_positive("widths", self.widths)
        check_choice("norm", self.norm, NORMS)
        check_range("dropout", self.dropout, 0, 1, high_open=True)
        check_choice("stem_stride", self.stem_stride, (1, 2))
        check_choice("axes", self.axes, (1, 2))
        super().__post_init__()

    @property
    def activations(self) -> tuple[str, ...]:
        """The layers whose outputs go through a ReLU, in order."""
        layer = "conv" if self.norm == "none" else "norm"
        return tuple(f"{layer}{index}" for index in range(len(self.widths)))

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        check_image_size(images, least=self.stem_stride * 2 ** (len(self.widths) - 1), axes=self.axes)
        x = images.astype(self.dtype)
        for index, width in enumerate(self.widths):
            stride = self.stem_stride if index == 0 else 1
            layer = conv(
                width,
                4 if stride == 2 else 3,
                stride=stride,
                use_bias=self.norm == "none",
                axes=self.axes,
                dtype=self.dtype,
                name=f"conv{index}",
            )
            x = halve_by_maximum(x) if index else x
            x = _normalise(layer(x), self.norm, index=index, train=train, dtype=self.dtype, axis_name=self.axis_name)
            x = nn.relu(x)
        features = x.mean(axis=tuple(range(1, 1 + self.axes)))
        dropped = nn.Dropout(self.dropout, deterministic=not train)(features)
        return classifier(dropped, self.num_classes), features


def _torch_uniform(fan_in: int) -> nn.initializers.Initializer:
    """Return PyTorch's default initialiser of kernels and biases: uniform in ±1/√fan_in."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class MnistNet(nn.Module):
    """The MNIST network of Saliency-Guided Training, with the same layers and PyTorch's initialisation.

    Two 3×3 convolutions (32 and 64 channels, no padding), max-pooling, dropout 0.25, a layer of 128, dropout 0.5
    and the classifier; ReLU after the first three. 1,199,882 parameters for `[N, 28, 28, 1]` and 10 classes.

    Attributes:
      num_classes: K.
      dropout: the two dropout rates.
      dtype: compute dtype; parameters and logits are float32.

    Called with images `[N, H, W, C]`, it returns `(logits float32 [N, K], features [N, 128])`, with the features before
    dropout.

    Raises:
      ValueError: for an invalid attribute, or images below 6×6.

    References:
      Ismail, Corrada Bravo, Feizi, "Improving Deep Learning Interpretability by Saliency Guided Training",
      https://arxiv.org/abs/2111.14338, 2021.
    """

    num_classes: int
    dropout: tuple[float, float] = (0.25, 0.5)
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if len(self.dropout) != 2:
            raise ValueError(f"dropout = {self.dropout!r} must hold two rates, one for each of the two dropouts")
        for rate in self.dropout:
            check_range("dropout", rate, 0, 1, high_open=True)
        super().__post_init__()

    @property
    def activations(self) -> tuple[str, ...]:
        """The layers whose outputs go through a ReLU, in order."""
        return ("conv0", "conv1", "hidden")

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        check_image_size(images, least=6)
        x = images.astype(self.dtype)
        for index, width in enumerate((32, 64)):
            init = _torch_uniform(9 * x.shape[-1])
            layer = conv(
                width,
                3,
                padding=0,
                use_bias=True,
                dtype=self.dtype,
                kernel_init=init,
                bias_init=init,
                name=f"conv{index}",
            )
            x = nn.relu(layer(x))
        x = nn.Dropout(self.dropout[0], deterministic=not train)(halve_by_maximum(x))
        x = x.reshape(x.shape[0], -1)
        init = _torch_uniform(x.shape[-1])
        features = nn.relu(nn.Dense(128, dtype=self.dtype, kernel_init=init, bias_init=init, name="hidden")(x))
        dropped = nn.Dropout(self.dropout[1], deterministic=not train)(features)
        init = _torch_uniform(128)
        head = nn.Dense(self.num_classes, dtype=jnp.float32, kernel_init=init, bias_init=init, name="head")
        return head(dropped), features
