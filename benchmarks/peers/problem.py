"""The training problem that both libraries get: the batch, the config and the steps by name."""

from typing import Any

import numpy as np

MEAN, STD, CLASSES, SIZE = 0.5, 0.25, 10, 32
# Name of the step -> training method and form of the config, and the arguments of `torch_steps.Loss`.
STEPS = {
    "ce": ("ce", "covariance", ()),
    "sgt": ("sgt", "covariance", (1.0,)),
    "sdecor": ("sdecor", "covariance", (1.0, 0.1, "covariance")),
    "sdecor (density)": ("sdecor", "density", (1.0, 3.0, "density")),
}


def random_batch(batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 images and labels of random classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, SIZE, SIZE, 3), dtype=np.uint8)
    return images, rng.integers(0, CLASSES, batch_size).astype(np.int32)


def create_config(name: str, label: str, batch_size: int) -> Any:
    """Return the config of a step of `STEPS`, as a user's command line gives it."""
    from configs import default  # not for PyTorch's process

    method, form, _ = STEPS[label]
    config = default.get_config(f"method={method},form={form},model={name}")
    config.data.mean, config.data.std, config.data.canvas = (MEAN,) * 3, (STD,) * 3, SIZE
    config.train.batch_size = batch_size
    config.consistency.ramp_epochs = 0.0
    if name.startswith("resnet"):
        config.model.stem = "cifar"
    return config
