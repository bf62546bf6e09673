"""How the cost of a training step grows with the batch, the image, the features, the decorrelated layers and devices.

    python benchmarks/growth.py [--axes=batch,size,width,layers,devices] [--rounds=5]

Each row changes one thing of the small CNN at 32×32 with 128 images. All steps of a table are compiled first and then
timed in turn, round after round, so that a busy machine slows all of them; medians are printed. `devices` counts the
collectives that the compiler makes for 1 to 8 CPU devices, which is no measure of time. How replicas grow is in
replicas.py. Needs only jax, flax, optax, orbax-checkpoint, chex and ml_collections.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import numpy as np

from configs import default
from sdecor.core import allocator, parallel
from sdecor.training import build, compiled

METHODS = ("ce", "decor", "sdecor")
DENSITY = {"decorrelation.form": "density", "decorrelation.spatial": "positions", "decorrelation.rectify": True}
AXES: dict[str, dict[str, dict[str, Any]]] = {  # axis → row → overrides of the config
    "batch": {str(n): {"train.batch_size": n} for n in (32, 64, 128, 256, 512)},
    "size": {f"{n}×{n}": {"data.canvas": n, "train.batch_size": 64} for n in (32, 64, 128)},
    "width": {f"D = {n}": {"model.widths": (32, n)} for n in (256, 512, 1024, 2048, 4096, 8192)},
    "layers": {
        "covariance, last features": {},
        "covariance, 1 layer": {"decorrelation.layers": ("norm2",)},
        "covariance, 3 layers": {"decorrelation.layers": ("norm0", "norm1", "norm2")},
        "density, 1 layer": DENSITY | {"decorrelation.layers": ("norm2",)},
        "density, 3 layers": DENSITY | {"decorrelation.layers": ("norm0", "norm1", "norm2")},
    },
    "devices": {str(n): {} for n in (1, 2, 4, 8)},
}


class Built(NamedTuple):
    """A compiled step: a function that takes one and waits, and what the compiler counts."""

    take_step: Callable[[], None]
    found: Mapping[str, Any]


def build_step(method: str, overrides: Mapping[str, Any], devices: Sequence[jax.Device]) -> Built:
    """Compile the step of a config for some devices, with a state and random images."""
    config = default.get_config(f"method={method}")
    config.data.canvas, config.augment.crop_padding, config.augment.flip = 32, 0, False
    config.update_from_flattened_dict(overrides)
    facts, images = build.assume_facts(config, 10), config.train.batch_size
    program = build.create_program(config, facts)
    key, count = jax.random.key(0), len(devices)
    state = parallel.replicate(build.create_state(config, program.model, program.image_shape, key), devices)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (images, *facts.image_shape), dtype=np.uint8),
        "label": rng.integers(0, 10, images).astype(np.int32),
        "position": np.arange(images, dtype=np.int32),
    }
    hyper = parallel.replicate(build.create_hyper(config, program.schedule.steps_per_epoch), devices)
    arguments = parallel.shard(batch, count), hyper, parallel.replicate(key, devices)
    step = compiled.compile_timed(parallel.pmap_step(program.step, list(devices)).lower(state, *arguments))

    def take_step() -> None:
        nonlocal state
        state, terms = step.program(state, *arguments)
        jax.block_until_ready(terms)

    return Built(take_step, compiled.analyse(step, images=images, device=devices[0], devices=count))


def time_in_turn(steps: Mapping[Any, Built], rounds: int) -> dict[Any, float]:
    """Return the median seconds of each step."""
    seconds: dict[Any, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, each in steps.items():
            start = time.perf_counter()
            each.take_step()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def print_growth(axis: str, rounds: int) -> None:
    """Print the table of one axis: time, operations and temporaries as multiples of cross-entropy in the same row."""
    steps = {
        (row, method): build_step(method, overrides, jax.devices()[:1])
        for row, overrides in AXES[axis].items()
        for method in METHODS
    }
    seconds = time_in_turn(steps, rounds)
    head = [axis, "ce, ms", "decor, × ce", "sdecor, × ce"]
    head += ["operations: decor, × ce", "sdecor, × ce", "temporaries: decor, × ce", "sdecor, × ce"]
    print("\n| " + " | ".join(head) + " |\n" + "| --- " * len(head) + "|")
    for row in AXES[axis]:
        of = {method: steps[row, method].found for method in METHODS}
        cells = [row, f"{1e3 * seconds[row, 'ce']:.1f}"]
        cells += [f"{seconds[row, method] / seconds[row, 'ce']:.2f}" for method in METHODS[1:]]
        cells += [f"{of[method]['flops'] / of['ce']['flops']:.2f}" for method in METHODS[1:]]
        memory = {method: of[method]["memory"]["temporaries"] for method in METHODS}
        cells += [f"{memory[method] / memory['ce']:.2f}" for method in METHODS[1:]]
        print("| " + " | ".join(cells) + " |", flush=True)


def print_collectives() -> None:
    """Print the collectives of a step by the number of devices."""
    head = ["devices", *(f"{method}: {what}" for method in METHODS for what in ("collectives", "MB"))]
    print("\n| " + " | ".join(head) + " |\n" + "| --- " * len(head) + "|")
    for row in AXES["devices"]:
        cells = [row]
        for method in METHODS:
            found = build_step(method, {}, jax.devices()[: int(row)]).found["collectives"]
            cells += [str(sum(kind["count"] for kind in found.values()))]
            cells += [f"{sum(kind['bytes'] for kind in found.values()) / 1e6:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axes", default=",".join(AXES))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    allocator.keep_freed_memory()  # as train.py does
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    for axis in options.axes.split(","):
        print_collectives() if axis == "devices" else print_growth(axis, options.rounds)


if __name__ == "__main__":
    main()
