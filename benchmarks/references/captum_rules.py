"""Store the maps of captum 0.9.0 from methods that change the backward pass, on the reference network.

    python benchmarks/references/captum_rules.py        # writes tests/references/captum_rules.npz

captum's gamma and z⁺ rules split weights by sign, not contributions, and treat biases in their own way. Therefore these
two explain the absolute values of the images for the predicted classes, with biases 0 (gamma) or not negative (z⁺).
DeepLIFT explains the network with average pooling instead of max pooling: behind max pooling captum's contributions do
not sum to the difference of the scores. Maps are NHWC.
"""

import copy

import numpy as np
import torch
from captum.attr import LRP, Deconvolution, DeepLift, GuidedBackprop
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule
from network import FOLDER, load, torch_images, torch_network
from torch import nn

EPSILON, GAMMA = 0.1, 0.5
WITH_KERNEL = (nn.Conv2d, nn.Linear)


def changed(network: nn.Sequential, change) -> nn.Sequential:
    """Return a copy of the network with each bias replaced by `change(bias)`."""
    network = copy.deepcopy(network)
    for module in network:
        if isinstance(module, WITH_KERNEL):
            module.bias.data = change(module.bias.data)
    return network


def relevance(network: nn.Sequential, images: torch.Tensor, targets: torch.Tensor, rule, rule_of_means) -> torch.Tensor:
    """Return LRP maps with `rule()` in convolutions and dense layers and `rule_of_means()` in average pooling."""
    for module in network:
        if isinstance(module, (*WITH_KERNEL, nn.AvgPool2d)):
            module.rule = rule() if isinstance(module, WITH_KERNEL) else rule_of_means()
        elif not isinstance(module, nn.ReLU):
            module.rule = EpsilonRule()  # max pooling and flattening, which absorb no relevance
    return LRP(network).attribute(images.clone().requires_grad_(), target=targets)


def results() -> dict[str, np.ndarray]:
    """Return maps `[8, 16, 16, 3]` by name, `<method>` or `<method>/<option>`."""
    network, images, labels = torch_network(), torch_images(), torch.from_numpy(load()["labels"]).long()
    averaging = copy.deepcopy(network)
    averaging.pool1 = nn.AvgPool2d(2)
    found = {
        "guided_backpropagation": GuidedBackprop(network).attribute(images.clone().requires_grad_(), labels),
        "deconvnet": Deconvolution(network).attribute(images.clone().requires_grad_(), labels),
        "deeplift/zero": DeepLift(averaging).attribute(images, target=labels),
        "deeplift/own": DeepLift(averaging).attribute(images, baselines=images.flip(0), target=labels),
        "lrp/epsilon": relevance(
            copy.deepcopy(network), images, labels, lambda: EpsilonRule(EPSILON), lambda: EpsilonRule(EPSILON)
        ),
    }
    for name, rule, change in (
        ("gamma", lambda: GammaRule(GAMMA), torch.zeros_like),
        ("z_plus", Alpha1_Beta0_Rule, torch.abs),
    ):
        simple = changed(network, change)
        predicted = simple(images.abs()).argmax(1)
        found[f"lrp/{name}"] = relevance(simple, images.abs(), predicted, rule, EpsilonRule)
    return {name: value.detach().numpy().transpose(0, 2, 3, 1) for name, value in found.items()}


if __name__ == "__main__":
    np.savez_compressed(FOLDER / "captum_rules.npz", **results())
