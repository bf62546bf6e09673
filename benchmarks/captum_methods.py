"""captum's counterparts of our attribution methods, with the same options."""

from collections.abc import Callable
from typing import Any

import torch
from captum import attr
from captum.attr._utils import lrp_rules
from torch import nn

Explain = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def counterparts(network: nn.Sequential, batch: int, options: dict[str, dict[str, Any]]) -> dict[str, Explain]:
    """Return `explain(images, labels)` of captum by name of our method.

    Args:
      network: the network in PyTorch.
      batch: evaluations in flight, where captum has a setting for them.
      options: all options by name of the method, with our names.
    """
    last_relu = [m for i, m in enumerate(network) if i and isinstance(network[i - 1], nn.Conv2d)][-1]

    def noisy(kind: str, method: str) -> Explain:
        tunnel, samples = attr.NoiseTunnel(attr.Saliency(network)), options[method]["samples"]
        return lambda x, y: tunnel.attribute(
            x, nt_type=kind, nt_samples=samples, nt_samples_batch_size=1, stdevs=0.15, target=y, abs=False
        )

    def path(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        steps = options["integrated_gradients"]["steps"]
        return attr.IntegratedGradients(network).attribute(x, target=y, n_steps=steps, internal_batch_size=batch)

    def shap(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        samples = options["expected_gradients"]["samples"]
        return attr.GradientShap(network).attribute(x, torch.rand_like(x), target=y, n_samples=samples)

    def occlusion(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        height, width = (-(-side // 8) for side in x.shape[2:])
        strides = (x.shape[1], -(-height // 2), -(-width // 2))
        return attr.Occlusion(network).attribute(x, (x.shape[1], height, width), strides, target=y)

    def lrp(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return LRP maps of the composite: gamma in convolutions, epsilon in dense layers."""
        for module in network:
            if isinstance(module, nn.Conv2d):
                module.rule = lrp_rules.GammaRule(0.25)  # as in sdecor
            elif isinstance(module, nn.Linear | nn.Flatten):
                module.rule = lrp_rules.EpsilonRule(options["lrp"]["epsilon"])
        return attr.LRP(network).attribute(x, y)

    def grad_cam(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        cam = attr.LayerGradCam(network, last_relu).attribute(x, y, relu_attributions=True)
        return attr.LayerAttribution.interpolate(cam, x.shape[2:], "bilinear")

    def hires_cam(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        product = attr.LayerGradientXActivation(network, last_relu).attribute(x, y)
        return attr.LayerAttribution.interpolate(product.sum(1, keepdim=True), x.shape[2:], "bilinear")

    return {
        "gradient": lambda x, y: attr.Saliency(network).attribute(x, y, abs=False),
        "input_x_gradient": lambda x, y: attr.InputXGradient(network).attribute(x, y),
        "smoothgrad": noisy("smoothgrad", "smoothgrad"),
        "squaregrad": noisy("smoothgrad_sq", "squaregrad"),
        "vargrad": noisy("vargrad", "vargrad"),
        "integrated_gradients": path,
        "expected_gradients": shap,
        "grad_cam": grad_cam,
        "hires_cam": hires_cam,
        "guided_backpropagation": lambda x, y: attr.GuidedBackprop(network).attribute(x, y),
        "deconvnet": lambda x, y: attr.Deconvolution(network).attribute(x, y),
        "guided_grad_cam": lambda x, y: attr.GuidedGradCam(network, last_relu).attribute(
            x, y, interpolate_mode="bilinear"
        ),
        "deeplift": lambda x, y: attr.DeepLift(network).attribute(x, target=y),
        "lrp": lrp,
        "occlusion": occlusion,
    }
