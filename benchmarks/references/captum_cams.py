"""Store the maps of captum 0.9.0 at the layers of the reference network.

    python benchmarks/references/captum_cams.py        # writes tests/references/captum_cams.npz

Maps are stored in JAX's layout. Needs torch and captum==0.9.0.
"""

import numpy as np
import torch
from captum.attr import GuidedGradCam, LayerActivation, LayerAttribution, LayerGradCam, LayerGradientXActivation
from network import FOLDER, load, torch_images, torch_network

LAYERS = ("conv1", "conv2", "relu2")
SIZE = (16, 16)


def results() -> dict[str, np.ndarray]:
    """Return `<method>/<layer>` -> `[8, H', W', C]`, and activation and gradient of the last convolution's ReLU."""
    network, images, labels = torch_network(), torch_images(), torch.from_numpy(load()["labels"]).long()
    found = {}
    for name in LAYERS:
        layer = getattr(network, name)
        found[f"grad_cam/{name}"] = LayerGradCam(network, layer).attribute(images, labels)
        product = LayerGradientXActivation(network, layer).attribute(images, labels)
        found[f"hires_cam/{name}"] = product.sum(1, keepdim=True)
        found[f"guided_grad_cam/{name}"] = GuidedGradCam(network, layer).attribute(images, labels)  # "nearest"
    positive = LayerGradCam(network, network.relu2).attribute(images, labels, relu_attributions=True)
    found["bilinear/relu2"] = LayerAttribution.interpolate(positive, SIZE, "bilinear")

    activation = LayerActivation(network, network.relu2).attribute(images).detach().requires_grad_()
    after = network[list(dict(network.named_children())).index("relu2") + 1 :]
    scores = after(activation)[torch.arange(len(labels)), labels]
    found["activation/relu2"], found["gradient/relu2"] = activation, torch.autograd.grad(scores.sum(), activation)[0]
    return {name: value.detach().numpy().transpose(0, 2, 3, 1) for name, value in found.items()}


if __name__ == "__main__":
    np.savez_compressed(FOLDER / "captum_cams.npz", **results())
