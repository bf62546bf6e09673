"""Pretrained weights: tensors in timm's and torchvision's names, converted for the networks here.

A network's conversion is a table of rules. A rule names modules of the file by a regular expression, the module here,
and what becomes of each tensor. A tensor without a place and a parameter without a tensor are errors, so that no
network is loaded in part.

    network             files that fit
    resnet18, 34, 50    timm's and torchvision's resnet18, 34, 50, which share their names; stem "imagenet"
    vgg16               vgg16_bn of both; without BatchNorm, vgg16, it is another network
    vit_ti, vit_s       timm's vit_*_patch* and deit_*_patch*; torchvision's VisionTransformer of these sizes

Equal logits need equal details. Here as there, BatchNorm's ε is 1e-5, LayerNorm's 1e-6, GELU is exact, padding is the
same on all sides, and the stride of a bottleneck is in its 3×3 convolution.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from sdecor.core import safetensors
from sdecor.models.freezing import HEAD
from sdecor.models.resnet import ResNet
from sdecor.models.tap import Tap
from sdecor.models.vgg import STAGES, VGG16
from sdecor.models.vit import ViT
from sdecor.models.whitened import STATISTICS, Whitened

Path = tuple[str, ...]  # of a variable: ("params", "stage1", "block1", "conv1", "kernel")
Tensors = Mapping[str, np.ndarray]


class _Leaf(NamedTuple):
    """Convert one tensor: the collection and names of its variables, and the function that gives their arrays."""

    collection: str
    names: tuple[str, ...]
    convert: Callable[[np.ndarray], Sequence[np.ndarray]] = lambda x: [x]


class _Rule(NamedTuple):
    """Modules of a file, as a regular expression; the module here; and its tensors.

    In `module`, `{0}` is the expression's first group, and `{next[0]}` that number plus one.
    """

    pattern: str
    module: str
    leaves: Mapping[str, _Leaf]


def _dense(kernel: np.ndarray) -> list[np.ndarray]:
    """Convert `[out, in]`, or a convolution `[out, in, 1, 1]`, to `[in, out]`."""
    return [kernel.reshape(len(kernel), -1).T]


def _after_map(kernel: np.ndarray) -> list[np.ndarray]:
    """Convert a dense layer after a map that was flattened as `[C, H, W]`, to one for `[H, W, C]`."""
    channels = STAGES[-1][-1]
    side = math.isqrt(kernel.size // (len(kernel) * channels))
    if kernel.size != len(kernel) * channels * side**2:
        return _dense(kernel)  # its shape is refused
    return [kernel.reshape(-1, channels, side, side).transpose(2, 3, 1, 0).reshape(-1, len(kernel))]


_BIAS = _Leaf("params", ("bias",))
_CONV = {"weight": _Leaf("params", ("kernel",), lambda x: [x.transpose(2, 3, 1, 0)]), "bias": _BIAS}
_DENSE = {"weight": _Leaf("params", ("kernel",), _dense), "bias": _BIAS}
_LAYER_NORM = {"weight": _Leaf("params", ("scale",)), "bias": _BIAS}
_BATCH_NORM = _LAYER_NORM | {
    "running_mean": _Leaf("batch_stats", ("mean",)),
    "running_var": _Leaf("batch_stats", ("var",)),
    "num_batches_tracked": _Leaf("batch_stats", (), lambda x: []),  # of no use with a fixed momentum
}
# Query, key and value are rows of one matrix in both libraries.
_QKV = ("query", "key", "value")
_QKV_WEIGHT = _Leaf("params", tuple(f"{each}/kernel" for each in _QKV), lambda x: [part.T for part in np.split(x, 3)])
_QKV_BIAS = _Leaf("params", tuple(f"{each}/bias" for each in _QKV), lambda x: np.split(x, 3))

_RESNET = (
    _Rule(r"conv1", "conv_stem", _CONV),
    _Rule(r"bn1", "norm_stem", _BATCH_NORM),
    _Rule(r"layer(\d+)\.(\d+)\.conv(\d)", "stage{0}/block{next[1]}/conv{2}", _CONV),
    _Rule(r"layer(\d+)\.(\d+)\.bn(\d)", "stage{0}/block{next[1]}/norm{2}", _BATCH_NORM),
    _Rule(r"layer(\d+)\.(\d+)\.downsample\.0", "stage{0}/block{next[1]}/conv_shortcut", _CONV),
    _Rule(r"layer(\d+)\.(\d+)\.downsample\.1", "stage{0}/block{next[1]}/norm_shortcut", _BATCH_NORM),
    _Rule(r"fc", HEAD, _DENSE),
)


def _vgg() -> tuple[_Rule, ...]:
    rules, place = [], 0  # in the sequence of both libraries: convolution, BatchNorm, ReLU, …, pooling
    for stage, widths in enumerate(STAGES, start=1):
        for index in range(1, len(widths) + 1):
            rules.append(_Rule(rf"features\.{place}", f"conv{stage}_{index}", _CONV))
            rules.append(_Rule(rf"features\.{place + 1}", f"norm{stage}_{index}", _BATCH_NORM))
            place += 3
        place += 1
    first = {"weight": _Leaf("params", ("kernel",), _after_map), "bias": _BIAS}
    return (
        *rules,
        _Rule(r"classifier\.0|pre_logits\.fc1", "hidden1", first),
        _Rule(r"classifier\.3|pre_logits\.fc2", "hidden2", _DENSE),
        _Rule(r"classifier\.6|head\.fc", HEAD, _DENSE),
    )


_BLOCK = r"encoder\.layers\.encoder_layer_(\d+)"  # of torchvision
_VIT = (
    _Rule(r"", "", {"cls_token": _Leaf("params", ("class_token",)), "pos_embed": _Leaf("params", ("positions",))}),
    _Rule(r"", "", {"class_token": _Leaf("params", ("class_token",))}),
    _Rule(r"encoder", "", {"pos_embedding": _Leaf("params", ("positions",))}),
    _Rule(r"patch_embed\.proj|conv_proj", "patches", _CONV),
    _Rule(r"blocks\.(\d+)\.norm([12])", "block{next[0]}/norm{1}", _LAYER_NORM),
    _Rule(rf"{_BLOCK}\.ln_([12])", "block{next[0]}/norm{1}", _LAYER_NORM),
    _Rule(r"blocks\.(\d+)\.attn\.qkv", "block{next[0]}/attention", {"weight": _QKV_WEIGHT, "bias": _QKV_BIAS}),
    _Rule(
        rf"{_BLOCK}\.self_attention",
        "block{next[0]}/attention",
        {"in_proj_weight": _QKV_WEIGHT, "in_proj_bias": _QKV_BIAS},
    ),
    _Rule(r"blocks\.(\d+)\.attn\.proj", "block{next[0]}/attention/out", _DENSE),
    _Rule(rf"{_BLOCK}\.self_attention\.out_proj", "block{next[0]}/attention/out", _DENSE),
    _Rule(r"blocks\.(\d+)\.mlp\.fc([12])", "block{next[0]}/mlp{1}", _DENSE),
    _Rule(rf"{_BLOCK}\.mlp\.(?:0|linear_1)", "block{next[0]}/mlp1", _DENSE),
    _Rule(rf"{_BLOCK}\.mlp\.(?:3|linear_2)", "block{next[0]}/mlp2", _DENSE),
    _Rule(r"norm|encoder\.ln", "norm", _LAYER_NORM),
    _Rule(r"head|heads\.head", HEAD, _DENSE),
)
RULES: Mapping[type[nn.Module], tuple[_Rule, ...]] = {ResNet: _RESNET, VGG16: _vgg(), ViT: _VIT}


def load_pretrained(
    module: nn.Module, variables: Any, path: epath.PathLike, *, image_shape: Sequence[int] | None = None
) -> tuple[Any, list[str]]:
    """Load the weights of a safetensors file in timm's or torchvision's names.

    Args:
      module: a network of `RULES`, also in a `Tap` or `Whitened`.
      variables: its variables, of which the head stays where the file's has another shape.
      path: the file, local or remote.
      image_shape: `(H, W, C)` of the images; needed only for position embeddings of a grid that is not square.

    Returns:
      The variables, and a line for each thing that is not as in the file (`fit_variables`).

    Raises:
      ValueError: for another network, or a file that does not fit it; the message names the first wrong tensor.
    """
    loaded, notes = fit_variables(module, variables, read_pretrained(module, path), image_shape, source=str(path))
    return replace_variables(variables, loaded), notes


def read_pretrained(module: nn.Module, path: epath.PathLike) -> dict[Path, np.ndarray]:
    """Read a safetensors file and convert its names and layouts to those of `module`.

    Raises:
      ValueError: for a missing file, a network without rules, a file of another format, or a tensor without a rule.
    """
    module = _network(module)
    if not epath.Path(path).exists():
        raise ValueError(f"{path}: there is no such file, or run with checkpoints")
    if type(module) not in RULES:
        raise ValueError(
            f"{path}: no network of timm or torchvision is {type(module).__name__}; weights can be loaded for "
            "resnet18, resnet34, resnet50, vgg16, vit_ti and vit_s"
        )
    if epath.Path(path).suffix != ".safetensors":
        raise ValueError(
            f"{path} is no .safetensors file: write a PyTorch model to one by safetensors.torch.save_file("
            "model.state_dict(), 'FILE.safetensors')"
        )
    tensors = safetensors.read(path)
    if isinstance(module, VGG16) and "features.0.weight" in tensors and "features.1.running_mean" not in tensors:
        raise ValueError(
            f"{path} holds a VGG-16 without BatchNorm (it has no tensor 'features.1.running_mean'), which is another "
            "network: use the weights of vgg16_bn"
        )
    converted, unknown = {}, []
    for name, tensor in tensors.items():
        found = _convert(RULES[type(module)], name, tensor)
        unknown += [name] if found is None else []
        converted |= found or {}
    if unknown:
        raise ValueError(_left_over(str(path), module, unknown[0], tensors[unknown[0]].shape, len(unknown)))
    return converted


def fit_variables(
    module: nn.Module,
    variables: Any,
    loaded: Mapping[Path, np.ndarray],
    image_shape: Sequence[int] | None = None,
    *,
    source: str,
) -> tuple[dict[Path, np.ndarray], list[str]]:
    """Fit loaded arrays to the variables of a network.

    The head is left out where its shape differs. Position embeddings of another grid are resized by bicubic
    interpolation with antialiasing, as timm does; that of the class token stays.

    Args:
      module: the network, also in a `Tap` or `Whitened`.
      variables: its variables, of which only the shapes are used.
      loaded: arrays by the paths of the variables.
      image_shape: as for `load_pretrained`.
      source: where the arrays are from, for messages.

    Returns:
      Arrays of the shapes and dtypes of the variables, and a line for each thing that is not as in the file.

    Raises:
      ValueError: for an array without a variable, a variable without an array, or another shape.
    """
    module, loaded, notes = _network(module), dict(loaded), []
    like = {path: leaf for path, leaf in flatten_dict(variables).items() if path[:2] != ("batch_stats", STATISTICS)}
    head = ("params", HEAD, "kernel")
    small_head = isinstance(module, VGG16) and module.head == "cifar"
    if small_head and any(path[1] in ("hidden1", "hidden2") for path in loaded):
        loaded = {path: array for path, array in loaded.items() if path[1] not in ("hidden1", "hidden2", HEAD)}
        notes.append("the hidden layers of the file are left out, because model.head = 'cifar' has none")
    if head not in loaded or loaded[head].shape != like[head].shape:
        there = f"has {_shown(loaded[head].shape)} there" if head in loaded else "is not there"
        notes.append(f"the head starts anew: it is {_shown(like[head].shape)} here and {there}")
        loaded = {path: array for path, array in loaded.items() if path[1] != HEAD}
        like = {path: leaf for path, leaf in like.items() if path[1] != HEAD}
    positions = ("params", "positions")
    if positions in like and positions in loaded and loaded[positions].shape != like[positions].shape:
        grid = _grid(module, like[positions].shape[1], image_shape)
        loaded[positions] = resize_positions(loaded[positions], grid)
        notes.append(f"the position embeddings are resized to {_shown(grid)} patches")
    left = [path for path in loaded if path not in like]
    if left:
        raise ValueError(_left_over(source, module, "/".join(left[0][1:]), loaded[left[0]].shape, len(left)))
    for path, leaf in like.items():
        _check_shape(source, module, path, loaded.get(path), leaf)
    return {path: _shaped(loaded[path], leaf).astype(leaf.dtype) for path, leaf in like.items()}, notes


def replace_variables(variables: Any, loaded: Mapping[Path, Any]) -> Any:
    """Return `variables` with the arrays of `loaded` at their paths."""
    return unflatten_dict({**flatten_dict(variables, keep_empty_nodes=True), **loaded})


def resize_positions(positions: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Resize position embeddings `[1, 1 + n², D]`, class token first, to `[1, 1 + H · W, D]` for a grid `(H, W)`.

    By bicubic interpolation with antialiasing (Keys' kernel, a = −½), as timm's `resample_abs_pos_embed`.

    Raises:
      ValueError: if the patches are not those of a square.
    """
    token, patches = positions[:, :1], positions[:, 1:]
    side = math.isqrt(patches.shape[1])
    if side**2 != patches.shape[1]:
        raise ValueError(
            f"position embeddings of shape {_shown(positions.shape)} are not those of a class token and a square grid: "
            "only these can be resized"
        )
    square = patches.reshape(1, side, side, -1).astype(np.float32)
    resized = jax.image.resize(square, (1, *grid, square.shape[-1]), "cubic", antialias=True)
    return np.concatenate([token, np.asarray(resized).reshape(1, math.prod(grid), -1)], axis=1)


def _network(module: nn.Module) -> nn.Module:
    while isinstance(module, Tap | Whitened):
        module = module.module
    return module


def _convert(rules: Sequence[_Rule], name: str, tensor: np.ndarray) -> dict[Path, np.ndarray] | None:
    """Return the arrays of a tensor by their paths, or None if no rule is for it."""
    stem, _, last = name.rpartition(".")
    for rule in rules:
        match = re.fullmatch(rule.pattern, stem)
        if match is None or last not in rule.leaves:
            continue
        numbers = [int(group) for group in match.groups()]
        path = rule.module.format(*numbers, next=[number + 1 for number in numbers])
        leaf = rule.leaves[last]
        paths = [(leaf.collection, *filter(None, [*path.split("/"), *each.split("/")])) for each in leaf.names]
        return dict(zip(paths, leaf.convert(tensor), strict=True))
    return None


def _grid(module: ViT, tokens: int, image_shape: Sequence[int] | None) -> tuple[int, int]:
    if image_shape is not None:
        return image_shape[0] // module.patch_size, image_shape[1] // module.patch_size
    side = math.isqrt(tokens - 1)
    if side**2 != tokens - 1:
        raise ValueError(f"{tokens - 1} patches are not those of a square grid: give image_shape")
    return side, side


def _shaped(array: np.ndarray, like: Any) -> np.ndarray:
    """Give an array the axis of attention heads, which the libraries' matrices do not have."""
    return array.reshape(like.shape) if array.ndim < len(like.shape) and array.size == math.prod(like.shape) else array


def _check_shape(source: str, module: nn.Module, path: Path, array: np.ndarray | None, like: Any) -> None:
    """Raise ValueError unless there is an array for a variable, of its shape."""
    name = "/".join(path[1:])
    if array is None:
        raise ValueError(
            f"{source} does not fit {_named(module)}: it has nothing for {name} of shape {_shown(like.shape)}. "
            "Choose the network that the file was trained for"
        )
    array = _shaped(array, like)
    if array.shape == tuple(like.shape):
        return
    hint = "choose the network and the options that the file was trained with"
    if name == "conv_stem/kernel" and array.shape[:2] != like.shape[:2]:
        hint = "use model.stem = 'imagenet'" if array.shape[0] == 7 else "use model.stem = 'cifar'"
    elif name.startswith(("conv_stem", "conv1_1", "patches")) and array.shape[2] != like.shape[2]:
        hint = f"use images of {array.shape[2]} channels (data.channels)"
    elif name == "patches/kernel":
        hint = f"use model.patch_size = {array.shape[0]}"
    elif name == "hidden1/kernel":
        hint = "use images of 224×224, whose last map is 7×7, or model.head = 'cifar'"
    raise ValueError(
        f"{source} does not fit {_named(module)}: {name} has shape {_shown(array.shape)} in the file, "
        f"{_shown(like.shape)} here; {hint}"
    )


def _left_over(source: str, module: nn.Module, name: str, shape: Sequence[int], count: int) -> str:
    more = f" and {count - 1} more" if count > 1 else ""
    return (
        f"{source} does not fit {_named(module)}: tensor {name!r} of shape {_shown(shape)}{more} has no place in it. "
        "Choose the network that the file was trained for, in timm's or torchvision's names"
    )


def _named(module: nn.Module) -> str:
    if isinstance(module, ResNet):
        kind = "bottleneck" if module.bottleneck else "basic"
        return f"a ResNet of {'-'.join(map(str, module.blocks))} {kind} blocks"
    if isinstance(module, ViT):
        return f"a ViT of width {module.width}, depth {module.depth} and patches of {module.patch_size}"
    return f"a {type(module).__name__}"


def _shown(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"
