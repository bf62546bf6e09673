"""The reference network: its weights and images, drawn once, and the network in PyTorch.

    python benchmarks/references/network.py        # writes tests/references/network.npz

The scripts beside this one load it, run captum or Quantus on it and store the results for the tests. They need torch,
captum==0.9.0 and quantus==0.6.0 in an environment of their own. The library and its tests do not.
"""

import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).parents[2] / "tests" / "references"


def draw() -> dict[str, np.ndarray]:
    """Return weights, images, labels and object masks, drawn with a fixed seed."""
    rng = np.random.default_rng(9)
    arrays = {}
    for layer, shape in (
        ("conv1", (3, 3, 3, 8)),
        ("conv2", (3, 3, 8, 12)),
        ("dense1", (192, 24)),
        ("dense2", (24, 5)),
    ):
        scale = np.sqrt(2.0 / np.prod(shape[:-1]))
        arrays[f"{layer}/kernel"] = rng.normal(size=shape) * scale
        arrays[f"{layer}/bias"] = rng.normal(size=shape[-1]) * 0.1
    coarse = rng.normal(size=(8, 4, 4, 3)).repeat(4, 1).repeat(4, 2)
    arrays["images"] = coarse + 0.5 * rng.normal(size=(8, 16, 16, 3))
    objects = np.zeros((8, 16, 16), bool)
    for i, (y, x) in enumerate(rng.integers(0, 9, size=(8, 2))):
        objects[i, y : y + 5 + i % 3, x : x + 6] = True
    arrays = {name: value.astype(np.float32) for name, value in arrays.items()}
    labels = rng.integers(0, 5, size=8).astype(np.int32)
    return arrays | {"objects": objects, "labels": labels}


def load() -> dict[str, np.ndarray]:
    """Return the stored arrays of `draw`."""
    with np.load(FOLDER / "network.npz") as arrays:
        return dict(arrays)


def torch_network():
    """Return the network with the stored weights, a `torch.nn.Sequential` of NCHW images, in evaluation mode."""
    import torch
    from torch import nn

    arrays = load()
    layers = {
        "conv1": nn.Conv2d(3, 8, 3, padding=1),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(8, 12, 3, padding=1),
        "relu2": nn.ReLU(),
        "pool2": nn.AvgPool2d(2),
        "flatten": nn.Flatten(),
        "dense1": nn.Linear(192, 24),
        "relu3": nn.ReLU(),
        "dense2": nn.Linear(24, 5),
    }
    network = nn.Sequential()
    for name, layer in layers.items():
        network.add_module(name, layer)
        if f"{name}/kernel" in arrays:
            kernel = arrays[f"{name}/kernel"]
            order = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
            layer.weight.data = torch.from_numpy(kernel.transpose(order).copy())
            layer.bias.data = torch.from_numpy(arrays[f"{name}/bias"].copy())
    return network.eval()


def torch_images():
    """Return the images in PyTorch's layout, `[8, 3, 16, 16]`."""
    import torch

    return torch.from_numpy(load()["images"].transpose(0, 3, 1, 2).copy())


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(FOLDER / "network.npz", **draw())
