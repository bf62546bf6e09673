"""Export of a small network as a program of its own, in a job of any number of devices and processes.

PYTHONPATH=. python tests/helpers/export_job.py PATH [host:port PROCESSES PROCESS]
"""

import sys
import time

import jax
import numpy as np

from sdecor import export
from sdecor.models import create_model

COUNT, SIDE = 45, 12
METHODS = ("gradient", "smoothgrad:samples=3", "integrated_gradients:steps=3", "grad_cam")
OPTIONS = {"methods": METHODS, "dtype": "float16", "device_batch": 2, "chunk_rows": 4, "progress": False}


def network():
    model = create_model("cnn", num_classes=5, widths=(8, 16))
    variables = model.init(jax.random.key(0), np.zeros((1, SIDE, SIDE, 3), np.float32))
    return lambda image: model.apply(variables, image[None])[0][0]


class Source:
    """Images of noise; reading one takes `pause` seconds."""

    def __init__(self, pause: float = 0.0):
        rng = np.random.default_rng(0)
        self.images = rng.normal(size=(COUNT, SIDE, SIDE, 3)).astype(np.float32)
        self.labels = rng.integers(0, 5, COUNT).astype(np.int32)
        self.pause = pause

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict:
        time.sleep(self.pause)
        return {"image": self.images[index], "label": self.labels[index]}

    def name(self, index: int) -> str:
        return f"noise {index}"


def main(path: str, *job: str) -> None:
    if job:
        jax.distributed.initialize(job[0], int(job[1]), int(job[2]))  # as a program of the user does
    print(export.export(network(), Source(), path, **OPTIONS))


if __name__ == "__main__":
    main(*sys.argv[1:])
