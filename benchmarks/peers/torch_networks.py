"""The small CNN and the ResNet-18 of sdecor.models in PyTorch: the same layers, names, weights and outputs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

Outputs = tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm whose running statistics stay as they are while `frozen`, as for the forward of masked images."""

    frozen = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and self.frozen:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        return super().forward(x)


class SmallCNN(nn.Module):
    """`sdecor.models.SmallCNN` with its default attributes."""

    def __init__(self, num_classes: int, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        self.depth, channels = len(widths), 3
        for index, width in enumerate(widths):
            kernel, stride = (3, 1) if index else (4, 2)
            self.add_module(f"conv{index}", nn.Conv2d(channels, width, kernel, stride, padding=1, bias=False))
            self.add_module(f"norm{index}", BatchNorm(width))
            channels = width
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> Outputs:
        """Return the logits `[N, K]`, the features `[N, D]` and the outputs of all ReLUs."""
        activations = []
        for index in range(self.depth):
            x = F.max_pool2d(x, 2) if index else x
            x = F.relu(getattr(self, f"norm{index}")(getattr(self, f"conv{index}")(x)))
            activations.append(x)
        features = x.mean(dim=(2, 3))
        return self.head(features), features, activations


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = BatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = BatchNorm(width)
        self.changes = stride != 1 or channels != width
        if self.changes:
            self.conv_shortcut = nn.Conv2d(channels, width, 1, stride, bias=False)
            self.norm_shortcut = BatchNorm(width)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shortcut = self.norm_shortcut(self.conv_shortcut(x)) if self.changes else x
        inner = F.relu(self.norm1(self.conv1(x)))
        return inner, F.relu(shortcut + self.norm2(self.conv2(inner)))


class ResNet18(nn.Module):
    """`sdecor.models.ResNet` of 18 layers with the stem for CIFAR."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.norm_stem = BatchNorm(64)
        channels, self.stages = 64, []
        for stage, width in enumerate((64, 128, 256, 512), start=1):
            blocks = nn.Module()
            for block in (1, 2):
                stride = 2 if stage > 1 and block == 1 else 1
                blocks.add_module(f"block{block}", ResidualBlock(channels, width, stride))
                channels = width
            self.add_module(f"stage{stage}", blocks)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> Outputs:
        """Return the logits `[N, K]`, the features `[N, D]` and the outputs of all ReLUs."""
        x = F.relu(self.norm_stem(self.conv_stem(x)))
        activations = [x]
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            for block in (stage.block1, stage.block2):
                inner, x = block(x)
                activations += [inner, x]
        features = x.mean(dim=(2, 3))
        return self.head(features), features, activations


NETWORKS = {"cnn": SmallCNN, "resnet18": ResNet18}


def freeze_statistics(model: nn.Module, frozen: bool) -> None:
    """Choose whether a forward in train mode leaves BatchNorm's running statistics as they are."""
    for layer in model.modules():
        if isinstance(layer, BatchNorm):
            layer.frozen = frozen


def from_flax(params: Mapping[str, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    """Convert a tree of Flax parameters, or of their gradients, to tensors by PyTorch's names and in its layout."""
    found = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            found |= from_flax(value, f"{prefix}{name}.")
            continue
        value = np.asarray(value)
        axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim]  # HWIO to OIHW, and [in, out] to [out, in]
        name = "bias" if name == "bias" else "weight"
        found[prefix + name] = torch.from_numpy(value.transpose(axes).copy())
    return found


def load(model: nn.Module, params: Mapping[str, Any]) -> None:
    """Copy a tree of Flax parameters into a network of the same layers.

    Raises:
      ValueError: if a parameter is missing on either side.
    """
    tensors, own = from_flax(params), dict(model.named_parameters())
    if tensors.keys() != own.keys():
        raise ValueError(f"the networks differ in the parameters {sorted(tensors.keys() ^ own.keys())}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])
