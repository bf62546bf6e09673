"""Store the FullGrad maps of its authors' code for the reference network, and for one with BatchNorm.

    git clone https://github.com/idiap/fullgrad-saliency          # commit 7c106b3
    PYTHONPATH=fullgrad-saliency python benchmarks/references/fullgrad_maps.py    # writes tests/references/fullgrad.npz

The second network has the same convolutions without biases, and a BatchNorm behind each. Its parameters and statistics
are stored with the maps, `[8, 16, 16, 1]`. The sum of all terms is stored as `<network>/total`. Needs torch.
"""

import numpy as np
import torch
from network import FOLDER, load, torch_images, torch_network
from saliency.fullgrad import FullGrad
from torch import nn


def with_batch_norm(stored: dict[str, np.ndarray]) -> nn.Sequential:
    """Return the reference network without biases of convolutions and with a BatchNorm behind each."""
    network = nn.Sequential()
    for name, layer in torch_network().named_children():
        network.add_module(name, layer)
        if isinstance(layer, nn.Conv2d):
            layer.bias = None
            norm = nn.BatchNorm2d(layer.out_channels, eps=1e-3)
            for field, value in (
                ("weight", "scale"),
                ("bias", "bias"),
                ("running_mean", "mean"),
                ("running_var", "var"),
            ):
                getattr(norm, field).data = torch.from_numpy(stored[f"{name}/{value}"])
            network.add_module(f"norm_{name}", norm)
    return network.eval()


def main() -> None:
    rng, stored = np.random.default_rng(21), {}
    for name, count in (("conv1", 8), ("conv2", 12)):
        for field, low, high in (("scale", 0.5, 1.5), ("bias", -0.3, 0.3), ("mean", -0.5, 0.5), ("var", 0.5, 2.0)):
            stored[f"{name}/{field}"] = rng.uniform(low, high, count).astype(np.float32)
    targets = torch.from_numpy(load()["labels"]).long()
    for name, network in (("reference", torch_network()), ("batch_norm", with_batch_norm(stored))):
        fullgrad = FullGrad(network, im_size=(3, 16, 16))
        stored[f"{name}/maps"] = fullgrad.saliency(torch_images(), targets).detach().numpy().transpose(0, 2, 3, 1)
        images = torch_images()
        of_input, of_biases = fullgrad.fullGradientDecompose(images, targets)
        terms = [of_input * images, *of_biases]
        stored[f"{name}/total"] = sum(term.flatten(1).sum(1) for term in terms).detach().numpy()
    np.savez_compressed(FOLDER / "fullgrad.npz", **stored)


if __name__ == "__main__":
    main()
