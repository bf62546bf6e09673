"""Time of the host for each step of the training loop, and images per second, by the number of steps of a call.

    python benchmarks/loop.py [--steps=1,8,32] [--taken=3200] [--network=1,8] [--rounds=5]

The first table is of a whole run of train.py with the small CNN's state and terms, 128 images of 32×32 a step and the
default log, whose compiled step computes nothing: what is left is the time of the host. It is the mean over all steps
but the first call, without validation and checkpoints. The second table is of the small CNN with the real step
(sdecor), without the loop around it: calls of different lengths take turns, and the medians over the rounds are
printed. Images are random; data.loader is `device` unless a column says otherwise.
"""

import argparse
import contextlib
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import train
from configs import default
from sdecor.core import parallel
from sdecor.training import clock, logbook, steps
from sdecor.training.run import build_run, compile_step

BATCH, SIZE, CLASSES = 128, 32, 10
# The terms of an sdecor step.
TERMS = (
    "loss", "classification", "consistency", "decorrelation", "accuracy", "consistency_weight", "decorrelation_weight",
    "decorrelation_samples", "feature_scale", "gradient_norm", "learning_rate", "mask_fraction",
)  # fmt: skip


def empty_step(state: Any, batch: Any, hyper: Any, key: jax.Array, **options: Any) -> tuple[Any, dict[str, jax.Array]]:
    """Return the state with its step counted, and terms: a step that computes nothing."""
    return state.replace(step=state.step + 1), {name: jnp.float32(1) for name in TERMS}


def draw_images(root: pathlib.Path) -> pathlib.Path:
    """Write a folder of random images, nine steps an epoch."""
    generator = np.random.default_rng(0)
    for label in range(CLASSES):
        folder = root / "train" / f"class{label}"
        folder.mkdir(parents=True)
        for i in range(BATCH):
            pixels = generator.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def create_config(images: pathlib.Path, per_call: int, loader: str, taken: int) -> Any:
    """Return the config of a run of `taken` steps, with one validation at the end."""
    config = default.get_config("method=sdecor")
    epochs = taken / (CLASSES * BATCH * 9 // 10 // BATCH)
    fields = {
        "data.name": "folder", "data.path": str(images), "data.loader": loader, "data.mean": (0.5,) * 3,
        "data.std": (0.25,) * 3, "train.steps_per_call": per_call, "train.epochs": epochs,
        "train.eval_every_epochs": epochs, "train.batch_size": BATCH, "log.progress": False,
    }  # fmt: skip
    with config.ignore_type():
        config.update_from_flattened_dict(fields)
    return config


def host_seconds(config: Any, folder: pathlib.Path) -> float:
    """Train a run whose step computes nothing; return the mean seconds of a step."""
    with mock.patch.object(steps, "train_step", empty_step), contextlib.redirect_stdout(None):
        assert train.train(config, str(folder))
    (*_, row) = [row for row in logbook.read_rows(folder) if row["split"] == clock.SPLIT]
    return BATCH / row["images_per_step_second"]


def measure_host(images: pathlib.Path, folder: pathlib.Path, counts: list[int], taken: int) -> None:
    """Print the table of the host's time."""
    print(f"\ntime of the host, a step that computes nothing, {describe_devices()}\n")
    print("| steps a call | ms of a step, data.loader=device | ms of a step, data.loader=memory |")
    print("| --- | --- | --- |")
    for count in counts:
        found = []
        for loader in ("device", "memory"):
            config = create_config(images, count, loader, taken // count * count)
            found.append(1e3 * host_seconds(config, folder / f"{loader}{count}"))
        print(f"| {count} | {found[0]:.3f} | {found[1]:.3f} |", flush=True)


class Calls:
    """A run whose calls are timed."""

    def __init__(self, images: pathlib.Path, folder: pathlib.Path, count: int):
        self.count = count
        self.run, self.state = build_run(create_config(images, count, "device", 1000 * count), str(folder))
        start = time.perf_counter()
        with contextlib.redirect_stdout(None):
            compile_step(self.run, self.state)
        self.compiling = time.perf_counter() - start
        self.batches = self.run.batches(0, 0)

    def rate(self, taken: int) -> float:
        """Return images per second over `taken` steps."""
        start = time.perf_counter()
        for _ in range(taken // self.count):
            self.state, terms = self.run.train_step(self.state, next(self.batches), self.count)
            parallel.to_host(terms)
        return taken * BATCH / (time.perf_counter() - start)


def measure_network(images: pathlib.Path, folder: pathlib.Path, counts: list[int], rounds: int) -> None:
    """Print the table of the small CNN."""
    each = [Calls(images, folder / f"network{count}", count) for count in counts]
    rates = [[calls.rate(max(counts)) for calls in each] for _ in range(rounds + 1)][1:]
    print(f"\nsmall CNN, sdecor, {BATCH} images of {SIZE}×{SIZE}, {describe_devices()}\n")
    print("| steps a call | images/s | × one step a call | compiling, s |")
    print("| --- | --- | --- | --- |")
    for i, calls in enumerate(each):
        own, ratio = (statistics.median(values) for values in ([r[i] for r in rates], [r[i] / r[0] for r in rates]))
        print(f"| {calls.count} | {own:,.0f} | {ratio:.2f} | {calls.compiling:.1f} |", flush=True)


def describe_devices() -> str:
    """Return the devices and JAX's version as text."""
    return f"{jax.device_count()} × {jax.devices()[0].device_kind}, jax {jax.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", default="1,8,32", help="steps a call, for the time of the host")
    parser.add_argument("--taken", type=int, default=3200, help="steps of each run without cost")
    parser.add_argument("--network", default="1,8", help="steps a call of the small CNN; empty for none")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    counts, network = ([int(word) for word in text.split(",") if word] for text in (options.steps, options.network))
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        images = draw_images(folder / "images")
        measure_host(images, folder, counts, options.taken)
        if network:
            measure_network(images, folder, network, options.rounds)


if __name__ == "__main__":
    main()
