"""Training steps of the method in PyTorch: in the published structure of SGT, and vectorised.

Both have the same loss as sdecor's step. `published` follows the structure of SGT's code, whose mask is built on the
host, image by image. `vectorised` is the fastest step that we could write: no loop over images, no copy to the host,
one forward of the clean images for both the saliency and the loss.

References:
  Ismail, Corrada Bravo, Feizi, "Improving Deep Learning Interpretability by Saliency Guided Training", 2021,
  https://arxiv.org/abs/2111.14338; code: https://github.com/ayaabdelsalam91/saliency_guided_training.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch_networks import freeze_statistics

FRACTION = 0.5  # share of the positions that is masked


class Loss(NamedTuple):
    """The weights of the loss, and the form of the decorrelation: None, "covariance" or "density"."""

    consistency: float = 0.0
    decorrelation: float = 0.0
    form: str | None = None


def covariance(features: torch.Tensor) -> torch.Tensor:
    """Return `1/D Σ_{i≠j} C_ij²` of features `[N, D]`, from the smaller of the matrices `[D, D]` and `[N, N]`."""
    count, width = features.shape
    centred = (features - features.mean(0)) / ((count - 1) ** 0.5 * width**0.25)
    if count < width:
        return (centred @ centred.T).square().sum() - centred.square().sum(0).square().sum()
    products = centred.T @ centred
    return (products - torch.diag(products.diagonal())).square().sum()


def density(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean over ReLU outputs `[N, D, H, W]` of `1/D Σ_i (E h_i)² / E h_i²`."""
    each = [(h.mean((0, 2, 3)).square() / h.square().mean((0, 2, 3)).clamp_min(1e-30)).mean() for h in maps]
    return torch.stack(each).mean()


def consistency(logits: torch.Tensor, masked_logits: torch.Tensor) -> torch.Tensor:
    """Return the mean KL(p(x) ‖ p(masked x))."""
    options = {"log_target": True, "reduction": "batchmean"}
    return F.kl_div(masked_logits.log_softmax(-1), logits.log_softmax(-1), **options)


def total(
    loss: Loss,
    labels: torch.Tensor,
    outputs: tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]],
    masked_logits: torch.Tensor | None,
) -> torch.Tensor:
    """Return the weighted sum of the terms."""
    logits, features, activations = outputs
    value = F.cross_entropy(logits, labels)
    if masked_logits is not None:
        value = value + loss.consistency * consistency(logits, masked_logits)
    if loss.form is not None:
        term = covariance(features) if loss.form == "covariance" else density(activations)
        value = value + loss.decorrelation * term
    return value


def least_salient(gradient: torch.Tensor) -> torch.Tensor:
    """Return the mask `[N, 1, H, W]` of the positions of lowest mean |gradient|, exactly k in each image."""
    saliency = gradient.abs().mean(1).flatten(1)
    k = int(FRACTION * saliency.shape[1] + 1e-3)
    lowest = saliency.topk(k, largest=False, sorted=False).indices
    mask = torch.zeros_like(saliency, dtype=torch.bool).scatter_(1, lowest, True)
    return mask.view(gradient.shape[0], 1, *gradient.shape[2:])


def fill(images: torch.Tensor, mask: torch.Tensor, how: str = "uniform") -> torch.Tensor:
    """Replace masked positions by noise within the image's own range of each channel, or by its mean."""
    if how == "mean":
        return torch.where(mask, images.mean((2, 3), keepdim=True), images)
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(mask, torch.rand_like(images).mul_(high - low).add_(low), images)


def loss_and_saliency(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    loss: Loss,
    *,
    mask: torch.Tensor | None = None,
    how: str = "uniform",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the loss, with its graph, and the saliency's gradient if there is a mask; one clean forward serves both.

    `mask` and `how` replace the mask and the fill, to compare with another library.
    """
    if not loss.consistency:
        return total(loss, labels, model(images), None), None
    images = images.requires_grad_()
    outputs = model(images)
    # Only what leads to the images is computed: no gradient of a weight.
    (gradient,) = torch.autograd.grad(outputs[0].gather(1, labels[:, None]).sum(), images, retain_graph=True)
    masked = fill(images.detach(), least_salient(gradient) if mask is None else mask, how)
    freeze_statistics(model, True)
    masked_logits = model(masked)[0]
    freeze_statistics(model, False)
    return total(loss, labels, outputs, masked_logits), gradient


class Trainer:
    """A network with its optimizer and the preparation of uint8 images `[N, H, W, C]`.

    Attributes:
      model: the network.
      device: device of the network.
      channels_last: whether images and weights are stored with the channels last.
    """

    def __init__(self, model: nn.Module, device: torch.device, mean: float, std: float, channels_last: bool) -> None:
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model, self.device = model.to(device, memory_format=self.layout).train(), device
        self.mean, self.std = mean, std
        kernels = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": kernels, "weight_decay": 1e-4}, {"params": others, "weight_decay": 0.0}]
        self.parameters = [*kernels, *others]
        self.optimizer = torch.optim.AdamW(groups, lr=2e-3, fused=True)

    def prepare(self, images: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Copy a batch to the device and normalise its images there."""
        images = torch.from_numpy(images).to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        images = images.to(torch.float32, memory_format=self.layout).div_(255).sub_(self.mean).div_(self.std)
        return images, torch.from_numpy(labels).to(self.device, non_blocking=True).long()

    def update(self, loss: torch.Tensor) -> None:
        """Take an optimizer step."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=self.parameters)
        self.optimizer.step()

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def vectorised(trainer: Trainer, images: np.ndarray, labels: np.ndarray, loss: Loss) -> None:
    """Take a step with the whole batch at once."""
    prepared = trainer.prepare(images, labels)
    value, _ = loss_and_saliency(trainer.model, *prepared, loss)
    trainer.update(value)


def published(trainer: Trainer, images: np.ndarray, labels: np.ndarray, loss: Loss) -> None:
    """Take a step in the published structure: a forward in eval mode for the saliency, and images masked one by one.

    The gradient is copied to the host. There, in each image, the positions are ranked by the signed gradient of
    log p_y, and each channel gets its own range and draw; the masked images are copied back. The loss is that of the
    vectorised step.
    """
    model = trainer.model
    prepared, targets = trainer.prepare(images, labels)
    masked_logits = None
    if loss.consistency:
        model.eval()
        inputs = prepared.clone().requires_grad_()
        scores = model(inputs)[0].log_softmax(-1)
        # As captum's Saliency does: the gradient of the sum of the targets' scores.
        (gradient,) = torch.autograd.grad(scores.gather(1, targets[:, None]).sum(), inputs)
        saliency = gradient.mean(1).flatten(1).cpu()
        model.train()
        masked = prepared.detach().clone().cpu()
        k = int(FRACTION * saliency.shape[1])
        for image, ranking in zip(masked, saliency, strict=True):
            positions = torch.topk(ranking, k, largest=False).indices
            for channel in image:
                low, high = channel.min().item(), channel.max().item()
                noise = np.random.uniform(low, high, size=k)
                channel.view(-1)[positions] = torch.from_numpy(noise).float()
        masked = masked.to(trainer.device)
        outputs = model(prepared)
        masked_logits = model(masked)[0]
    else:
        outputs = model(prepared)
    trainer.update(total(loss, targets, outputs, masked_logits))
