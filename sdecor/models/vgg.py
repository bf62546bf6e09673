"""VGG-16 with BatchNorm, and with the small head for CIFAR or the two wide layers of the ImageNet original."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdecor.core.checks import check_choice, check_range
from sdecor.models.layers import batch_norm, check_image_size, classifier, conv, halve_by_maximum

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """VGG-16: 13 convolutions (3×3, bias, BatchNorm, ReLU) in five stages, each followed by max-pooling.

    Attributes:
      num_classes: K.
      head: "cifar" averages the last map and classifies its 512 channels (14,728,266 parameters for 10 classes);
        "imagenet" flattens it (7×7 for 224×224 images) into two layers of 4096 with dropout (138,365,992 for 1000).
      dropout: rate of both dropouts of the "imagenet" head; the "cifar" head has none.
      dtype: compute dtype; parameters, statistics and logits are float32.
      axis_name: device axis over which BatchNorm combines its statistics.

    Called with images `[N, H, W, C]`, it returns `(logits float32 [N, K], features [N, 512 or 4096])`, with the
    features before dropout.

    Raises:
      ValueError: for an invalid attribute, or images below 32×32.

    References:
      Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
      https://arxiv.org/abs/1409.1556, 2014.
    """

    num_classes: int
    head: str = "cifar"
    dropout: float = 0.5
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def __post_init__(self) -> None:
        check_choice("head", self.head, ("cifar", "imagenet"))
        check_range("dropout", self.dropout, 0, 1, high_open=True)
        super().__post_init__()

    @property
    def activations(self) -> tuple[str, ...]:
        """The layers whose outputs go through a ReLU, in order."""
        norms = [f"norm{stage}_{n}" for stage, widths in enumerate(STAGES, 1) for n in range(1, len(widths) + 1)]
        return (*norms, *(("hidden1", "hidden2") if self.head == "imagenet" else ()))

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        check_image_size(images, least=32)
        norm = batch_norm(train=train, dtype=self.dtype, axis_name=self.axis_name)
        x = images.astype(self.dtype)
        for stage, widths in enumerate(STAGES, start=1):
            for index, width in enumerate(widths, start=1):
                x = conv(width, 3, use_bias=True, dtype=self.dtype, name=f"conv{stage}_{index}")(x)
                x = nn.relu(norm(name=f"norm{stage}_{index}")(x))
            x = halve_by_maximum(x)
        if self.head == "cifar":
            features = x.mean(axis=(1, 2))
            return classifier(features, self.num_classes), features
        x = x.reshape(x.shape[0], -1)
        for name in ("hidden1", "hidden2"):
            features = nn.relu(nn.Dense(4096, dtype=self.dtype, name=name)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(features)
        return classifier(x, self.num_classes), features
