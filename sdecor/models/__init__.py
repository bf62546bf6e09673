"""Image classifiers in Flax Linen, all `module(images [N, H, W, C], train=False) -> (logits [N, K], features [N, D])`.

One of them takes series `[N, T, C]` instead. `features` are the input of the last linear layer, before any dropout.
`module.activations` names the layers whose outputs go through a ReLU (in a transformer: a GELU). `create_model` builds
a classifier by name.

Files:
  cnn, vgg, vit        small convolutional networks; VGG-16; vision transformers
  resnet, wide_resnet  residual networks
  layers               common parts of the networks
  tap                  outputs of named layers of any Linen module
  frozen               BatchNorm's batch statistics as constants of the pull-back
  freezing             modules whose parameters and BatchNorm statistics stay in training
  pretrained           weights in timm's and torchvision's names
  whitened             ZCA whitening in the forward pass, and its folding into the weights
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from sdecor.core.checks import check_choice
from sdecor.models.cnn import MnistNet as MnistNet, SmallCNN as SmallCNN
from sdecor.models.freezing import freeze as freeze, is_frozen as is_frozen
from sdecor.models.frozen import frozen_statistics as frozen_statistics, record_statistics as record_statistics
from sdecor.models.layers import check_positive
from sdecor.models.pretrained import load_pretrained as load_pretrained
from sdecor.models.resnet import ResNet as ResNet
from sdecor.models.tap import Tap as Tap, layer_names as layer_names
from sdecor.models.vgg import VGG16 as VGG16
from sdecor.models.vit import ViT as ViT
from sdecor.models.whitened import Whitened as Whitened, fold_whitening as fold_whitening
from sdecor.models.wide_resnet import WideResNet as WideResNet

# name -> (module class, its preset attributes)
MODELS: Mapping[str, tuple[type[nn.Module], dict[str, Any]]] = MappingProxyType(
    {
        "cnn": (SmallCNN, {}),
        "cnn1d": (SmallCNN, {"axes": 1}),  # series
        "mnist_net": (MnistNet, {}),
        "vgg16": (VGG16, {}),
        "resnet18": (ResNet, {"blocks": (2, 2, 2, 2), "bottleneck": False}),
        "resnet34": (ResNet, {"blocks": (3, 4, 6, 3), "bottleneck": False}),
        "resnet50": (ResNet, {"blocks": (3, 4, 6, 3), "bottleneck": True}),
        "wide_resnet28_10": (WideResNet, {"depth": 28, "widen": 10}),
        "vit_ti": (ViT, {"width": 192, "depth": 12, "heads": 3}),
        "vit_s": (ViT, {"width": 384, "depth": 12, "heads": 6}),
    }
)
DTYPES = ("float32", "bfloat16")


def create_model(
    name: str, *, num_classes: int, dtype: str = "float32", axis_name: str | None = None, **options: Any
) -> nn.Module:
    """Build a classifier by name.

    Args:
      name: a key of `MODELS`.
      num_classes: K, at least 1.
      dtype: compute dtype; parameters, BatchNorm's statistics and logits are always float32.
      axis_name: device axis over which BatchNorm combines its statistics; ignored by models without BatchNorm.
      **options: more attributes of the module, such as `norm="layer"` of "cnn" or `stem="cifar"` of "resnet18".

    Returns:
      An unbound module: images `[N, H, W, C]`, or series `[N, T, C]` for "cnn1d", to `(logits float32 [N, K], features
      [N, D])`.

    Raises:
      ValueError: for an unknown name, dtype or option, or an invalid value; the message names valid ones.
    """
    check_choice("model", name, MODELS)
    check_positive("num_classes", (num_classes,))
    check_choice("dtype", dtype, DTYPES)
    module, preset = MODELS[name]
    fields = {field.name for field in dataclasses.fields(module)}
    reserved = {"num_classes", "dtype", "axis_name", "axes", "parent", "name", *preset}
    for option in options:
        check_choice(f"option of model {name!r}", option, sorted(fields - reserved))
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    if "axis_name" in fields:
        values["axis_name"] = axis_name
    return module(num_classes=num_classes, dtype=jnp.dtype(dtype), **preset, **values)
