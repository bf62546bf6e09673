"""Tests of the recipe of Saliency-Guided Training against its loss and backward pass written out in float64 NumPy."""

import jax
import networks
import numpy as np
import pytest

from configs import sgt_mnist
from sdecor import models
from sdecor.training import build, steps
from sdecor.training.state import create_optimizer, create_train_state

N, CLASSES, SHAPE = 6, 10, (28, 28, 1)


def test_config_is_the_published_recipe():
    config = sgt_mnist.get_config()
    build.check_config(config)
    assert (config.method, config.data.name, config.model.name) == ("sgt", "mnist", "mnist_net")
    assert (config.optim.name, config.optim.lr, config.optim.weight_decay) == ("adadelta", 1.0, 0.0)
    assert (config.optim.schedule, config.optim.warmup_epochs) == ("constant", 0.0)
    assert (config.train.batch_size, config.train.accumulate, config.train.label_smoothing) == (512, 1, 0.0)
    assert (config.consistency.weight, config.consistency.ramp_epochs) == (1.0, 0.0)
    assert (config.masking.fraction, config.masking.ramp_epochs) == (0.5, 0.0)
    assert not any((config.augment.crop_padding, config.augment.flip, config.augment.resized_crop))
    objective = build.create_objective(config)
    assert list(objective.terms) == ["consistency"]
    options = {"direction": "clean_masked", "stop_gradient": False, "loss": "cross_entropy"}
    assert objective.terms["consistency"].keywords == options
    how = objective.masking
    assert (how.rank_by, how.saliency_of, how.order) == ("signed", "log_probability", "lowest")
    assert (how.fill, how.forward) == ("uniform", "eval")
    assert build.create_model(config, CLASSES, SHAPE).dropout == (0.25, 0.5)
    assert sgt_mnist.get_config("") == config


def windows(x: np.ndarray) -> np.ndarray:
    """Return the 3×3 windows of `x [N, H, W, C]`, `[N, H − 2, W − 2, C, 3, 3]`."""
    return np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))


def convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return np.einsum("nhwcij,ijcd->nhwd", windows(x), kernel, optimize=True)


def convolve_backward(gradient: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Return the gradient to the inputs: each output's goes to its nine inputs."""
    padded = np.pad(gradient, ((0, 0), (2, 2), (2, 2), (0, 0)))
    return np.einsum("nhwdij,ijcd->nhwc", windows(padded), kernel[::-1, ::-1], optimize=True)


def blocks(x: np.ndarray) -> np.ndarray:
    """Return the 2×2 blocks of `x [N, H, W, C]`, `[N, H / 2, W / 2, C, 4]`."""
    n, height, width, channels = x.shape
    split = x.reshape(n, height // 2, 2, width // 2, 2, channels)
    return split.transpose(0, 1, 3, 5, 2, 4).reshape(n, height // 2, width // 2, channels, 4)


def unblock(x: np.ndarray) -> np.ndarray:
    n, height, width, channels, _ = x.shape
    split = x.reshape(n, height, width, channels, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return split.reshape(n, 2 * height, 2 * width, channels)


def network(params: dict, x: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the log-probabilities and the activations that the backward pass needs."""
    first = np.maximum(convolve(x, params["conv0"]["kernel"]) + params["conv0"]["bias"], 0.0)
    second = np.maximum(convolve(first, params["conv1"]["kernel"]) + params["conv1"]["bias"], 0.0)
    flat = blocks(second).max(axis=-1).reshape(len(x), -1)
    hidden = np.maximum(flat @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0.0)
    logits = hidden @ params["head"]["kernel"] + params["head"]["bias"]
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_p, {"first": first, "second": second, "hidden": hidden}


def true_class_gradient(params: dict, log_p: np.ndarray, seen: dict, labels: np.ndarray) -> np.ndarray:
    """Return `∂ log p_y / ∂x`, computed layer by layer from the last."""
    gradient = np.eye(CLASSES)[labels] - np.exp(log_p)
    gradient = gradient @ params["head"]["kernel"].T * (seen["hidden"] > 0)
    gradient = gradient @ params["hidden"]["kernel"].T
    blocked = blocks(seen["second"])
    gradient = gradient.reshape(blocked.shape[:-1])[..., None]
    largest = np.arange(4) == blocked.argmax(axis=-1)[..., None]
    gradient = unblock(gradient * largest) * (seen["second"] > 0)
    gradient = convolve_backward(gradient, params["conv1"]["kernel"]) * (seen["first"] > 0)
    return convolve_backward(gradient, params["conv0"]["kernel"])


@pytest.fixture(scope="module")
def ours():
    """Return state, batch, terms of the config's loss without dropout, and the values that passed through masking."""
    config = sgt_mnist.get_config()
    model = models.create_model(config.model.name, num_classes=CLASSES, dropout=(0.0, 0.0))
    tx = create_optimizer(config.optim.name)
    state = create_train_state(model, tx, key=jax.random.key(1), image_shape=SHAPE)
    # Initial weights predict nearly the same for any image; with a larger head, masking matters.
    head = {**state.params["head"], "kernel": 30.0 * state.params["head"]["kernel"]}
    state = state.replace(params={**state.params, "head": head})
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (N, *SHAPE), dtype=np.uint8),
        "label": rng.integers(0, CLASSES, N).astype(np.int32),
        "position": np.arange(N, dtype=np.int32),
    }
    prepare, _ = build.create_preparation(config, config.data.mean, config.data.std)
    schedule = build.create_schedule(config, 100)
    rate = build.create_learning_rate(config, schedule)

    @jax.jit
    @networks.recorded
    def find(state, batch, hyper, key):
        objective = build.create_objective(config)
        values = hyper.at(state.step, objective)
        options = {"values": values, "key": key, "objective": objective, "prepare": prepare, "axis_name": None}
        _, _, terms = steps.micro_gradients(state, state.batch_stats, batch, **options)
        numbers = {"learning_rate": hyper.learning_rate * rate(state.step), "mask_fraction": values.mask_fraction}
        return {**numbers, **terms}  # gradients are not returned, and therefore not compiled

    terms, seen = find(state, batch, build.create_hyper(config, schedule.steps_per_epoch), jax.random.key(2))
    return state, batch, jax.device_get(terms), jax.device_get(seen)


def test_loss_equals_the_float64_computation(ours):
    state, batch, terms, seen = ours
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), state.params)
    images, labels = (batch["image"] / 255.0 - 0.1307) / 0.3081, batch["label"]
    log_p, activations = network(params, images)

    saliency = true_class_gradient(params, log_p, activations, labels).mean(axis=-1)  # signed
    rounding = 1e-4 * np.abs(saliency).max()
    np.testing.assert_allclose(seen["ranking"], saliency, rtol=0, atol=rounding)

    masked_count = int(0.5 * 784 + 1e-3)
    order = np.argsort(saliency.reshape(N, -1), axis=1)[:, :masked_count]
    mask = np.zeros((N, 784), bool)
    np.put_along_axis(mask, order, True, axis=1)
    threshold = np.take_along_axis(saliency.reshape(N, -1), order[:, -1:], axis=1)[..., None]
    differs = mask.reshape(saliency.shape) != seen["mask"]
    assert (seen["mask"].sum(axis=(1, 2)) == masked_count).all()
    assert differs.sum() <= 4 and (np.abs(saliency - threshold)[differs] <= rounding).all()

    low, high = images.min(axis=(1, 2), keepdims=True), images.max(axis=(1, 2), keepdims=True)
    assert (seen["filler"] >= low - 1e-6).all() and (seen["filler"] <= high + 1e-6).all()
    masked = np.where(seen["mask"][..., None], np.asarray(seen["filler"], np.float64), images)
    log_q, _ = network(params, masked)
    classification = -log_p[np.arange(N), labels].mean()
    consistency = (np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()
    assert consistency > 0.1
    np.testing.assert_allclose(terms["classification"], classification, rtol=1e-5)
    np.testing.assert_allclose(terms["consistency"], consistency, rtol=2e-5)
    np.testing.assert_allclose(terms["loss"], classification + 1.0 * consistency, rtol=1e-5)
    assert terms["learning_rate"] == 1.0 and terms["mask_fraction"] == 0.5
    assert "decorrelation" not in terms
