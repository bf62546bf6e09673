"""Two small networks with the same weights in JAX and in PyTorch, for comparisons with PyTorch libraries."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Network(NamedTuple):
    """A network as a sequence of layers: ("conv", channels), ("dense", units), "max" or "mean".

    Convolutions are 3×3 with a ReLU. Dense layers have a ReLU too, except the last. Pooling is over 2×2.
    """

    shape: tuple[int, int, int]
    layers: tuple[Any, ...]


NETWORKS = {
    # The size of the network in tests/references.
    "reference": Network((16, 16, 3), (("conv", 8), "max", ("conv", 12), "mean", ("dense", 24), ("dense", 5))),
    "small": Network((32, 32, 3), (("conv", 32), "max", ("conv", 64), "max", ("conv", 64), "max", ("dense", 10))),
}


def draw(network: Network) -> list[dict[str, np.ndarray]]:
    """Return the drawn kernel (in JAX's layout) and bias of each layer that has them."""
    rng = np.random.default_rng(0)
    height, width, channels = network.shape
    drawn = []
    for layer in network.layers:
        if layer in ("max", "mean"):
            height, width = height // 2, width // 2
            continue
        kind, units = layer
        shape = (3, 3, channels, units) if kind == "conv" else (height * width * channels, units)
        scale = np.sqrt(2 / np.prod(shape[:-1]))
        drawn.append({"kernel": rng.normal(size=shape) * scale, "bias": rng.normal(size=units) * 0.1})
        height, width, channels = (height, width, units) if kind == "conv" else (1, 1, units)
    return [{name: value.astype(np.float32) for name, value in layer.items()} for layer in drawn]


def jax_network(network: Network, first: int = 0, stop: int | None = None) -> Callable[[jax.Array], jax.Array]:
    """Return the layers `first … stop − 1` for one example, by default `image [H, W, C] -> logits [K]`.

    Pooling is written as in `sdecor.models`.
    """
    drawn = [jax.tree.map(jnp.asarray, layer) for layer in draw(network)]
    last = len(drawn) - 1
    before = sum(layer not in ("max", "mean") for layer in network.layers[:first])  # layers with parameters

    def fn(image: jax.Array) -> jax.Array:
        x, index = image[None], before
        for layer in network.layers[first:stop]:
            if layer in ("max", "mean"):
                n, height, width, channels = x.shape
                windows = x.reshape(n, height // 2, 2, width // 2, 2, channels)
                x = windows.max((2, 4)) if layer == "max" else windows.mean((2, 4))
                continue
            kernel, bias = drawn[index]["kernel"], drawn[index]["bias"]
            if layer[0] == "conv":
                x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
                x = x + bias[None, None, None]
            else:
                x = x.reshape(1, -1) @ kernel + bias[None]
            x = x if index == last else jax.nn.relu(x)
            index += 1
        return x[0]

    return fn


def torch_network(network: Network) -> Any:
    """Return a `torch.nn.Sequential` of NCHW images in evaluation mode."""
    import torch
    from torch import nn

    modules, drawn, flat = [], iter(draw(network)), False
    height, width, _ = network.shape
    last = network.layers[-1]
    for position, layer in enumerate(network.layers):
        if layer in ("max", "mean"):
            modules.append(nn.MaxPool2d(2) if layer == "max" else nn.AvgPool2d(2))
            height, width = height // 2, width // 2
            continue
        values = next(drawn)
        kernel = values["kernel"]
        if layer[0] == "conv":
            module = nn.Conv2d(*kernel.shape[2:], 3, padding=1)
            kernel = kernel.transpose(3, 2, 0, 1)
        else:
            if not flat:  # PyTorch flattens channels first
                modules.append(nn.Flatten())
                kernel = kernel.reshape(height, width, -1, kernel.shape[-1]).transpose(2, 0, 1, 3)
                kernel, flat = kernel.reshape(-1, kernel.shape[-1]), True
            module = nn.Linear(*kernel.shape)
            kernel = kernel.T
        module.weight.data = torch.from_numpy(np.ascontiguousarray(kernel))
        module.bias.data = torch.from_numpy(values["bias"])
        modules += [module] if layer is last and position == len(network.layers) - 1 else [module, nn.ReLU()]
    return nn.Sequential(*modules).eval()
