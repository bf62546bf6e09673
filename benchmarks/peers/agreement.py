"""Equality of sdecor's and PyTorch's loss and gradients, for the same weights, images and masks."""

from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch_networks
import torch_steps
from problem import CLASSES, MEAN, SIZE, STD, STEPS, create_config, random_batch

from sdecor import masking, models
from sdecor.data.augment import normalise
from sdecor.training import build, objective

TOLERANCE = 2e-4  # of the loss, and of the gradient relative to its norm
EQUAL_MASKS = 0.998  # least share: a position may differ where its saliency is within rounding of the threshold


def check(name: str, label: str, batch_size: int) -> str:
    """Compare a step's loss, gradient and masks on random weights; return a row of a Markdown table.

    For loss and gradient the masks are given and the fill is the mean, so that nothing is random. The masks that both
    would choose are then compared.

    Args:
      name: the network, "cnn" or "resnet18".
      label: the step, one of `STEPS`.
      batch_size: number of images.

    Raises:
      ValueError: for a difference above float32's rounding.
    """
    jax.config.update("jax_default_matmul_precision", "highest")
    images, labels = random_batch(batch_size)
    rng = np.random.default_rng(1)
    mask = rng.random((batch_size, SIZE, SIZE)) < 0.5
    variables = _network(name, label).init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))

    def move(parameter: jax.Array) -> jax.Array:
        # So that no scale is at a special value: that of each residual block's last norm starts at 0.
        return parameter + 0.1 * rng.normal(size=parameter.shape).astype(np.float32) * (parameter.ndim == 1)

    variables = {**variables, "params": jax.tree.map(move, variables["params"])}
    value, grads, saliency = _sdecor(name, label, variables, images, labels, mask)

    model = torch_networks.NETWORKS[name](CLASSES)
    torch_networks.load(model, variables["params"])
    trainer = torch_steps.Trainer(model, torch.device("cpu"), MEAN, STD, channels_last=False)
    loss, prepared = torch_steps.Loss(*STEPS[label][2]), trainer.prepare(images, labels)
    theirs, gradient = torch_steps.loss_and_saliency(
        model, *prepared, loss, mask=torch.from_numpy(mask)[:, None], how="mean"
    )
    theirs.backward(inputs=trainer.parameters)

    wanted = torch_networks.from_flax(grads)
    size = sum(float(each.square().sum()) for each in wanted.values()) ** 0.5
    off = sum(float((each.grad - wanted[key]).square().sum()) for key, each in model.named_parameters()) ** 0.5 / size
    apart, same = abs(theirs.item() - value) / value, 1.0
    if gradient is not None:
        ours = masking.least_salient(jax.random.key(0), saliency, fraction=torch_steps.FRACTION)
        same = float((torch_steps.least_salient(gradient)[:, 0].numpy() == np.asarray(ours)).mean())
    if not (apart < TOLERANCE and off < TOLERANCE and same > EQUAL_MASKS):
        raise ValueError(
            f"{name}, {label}: PyTorch's step is not sdecor's. Loss {theirs.item():.6f} and {value:.6f}, relative "
            f"difference {apart:.1e}; of the gradient {off:.1e} (at most {TOLERANCE:.0e} is rounding); equal masks at "
            f"{100 * same:.2f} % of the positions"
        )
    masks = "–" if gradient is None else f"{100 * same:.2f} %"
    return f"| {name} | {label} | {value:.6f} | {apart:.1e} | {off:.1e} | {masks} |"


def _network(name: str, label: str) -> Any:
    options = {"stem": "cifar"} if name.startswith("resnet") else {}
    network = models.create_model(name, num_classes=CLASSES, **options)
    return models.Tap(network, network.activations) if STEPS[label][1] == "density" else network


def _sdecor(
    name: str, label: str, variables: Any, images: np.ndarray, labels: np.ndarray, mask: np.ndarray
) -> tuple[float, Any, jax.Array | None]:
    """Return sdecor's loss, gradients, and the saliency `[N, H, W]` that it would have ranked."""
    config = create_config(name, label, len(images))
    config.masking.fill = "mean"
    chosen, hyper = build.create_objective(config), build.create_hyper(config, 1)
    forward = partial(objective.apply_model, _network(name, label).apply, batch_stats=variables["batch_stats"])
    found = {}

    def given(key: jax.Array, saliency: jax.Array, **options: Any) -> jax.Array:
        found["saliency"] = saliency
        return jnp.asarray(mask)

    def compute(params: Any) -> tuple[jax.Array, Any, jax.Array | None]:
        keys = jax.random.split(jax.random.key(1), len(images))
        grads, _, terms = objective.loss_and_gradients(
            forward,
            params,
            normalise(jnp.asarray(images / np.float32(255)), (MEAN,) * 3, (STD,) * 3),
            jnp.asarray(labels),
            keys=objective.Keys(keys, keys, keys[:2]),
            values=hyper.at(jnp.int32(0), chosen),
            objective=chosen,
            axis_name=None,
        )
        return terms["loss"], grads, found.get("saliency")

    with mock.patch.object(masking, "least_salient", given):
        value, grads, saliency = jax.jit(compute)(variables["params"])
    return float(value), grads, saliency
