"""Speed of R replicas in one program, against R runs in turn, in the same process.

    python benchmarks/replicas.py [--replicas=1,4,16,64] [--models=cnn,dense] [--batch_size=128] [--rounds=5 --steps=10]

`together` is one compiled step of R replicas (`jax.vmap` inside the pmap). `in turn` is the compiled step of one run,
taken by R states one after the other. Both are compiled first, and the time of compiling is printed apart. Then they
are timed in turn, round after round, so that a busy machine slows both; the medians over the rounds are printed.

`dense` has no convolution: under vmap a convolution with R kernels becomes one of R groups, which is slow on a CPU. The
images are random bytes. Needs only jax, flax, optax, orbax-checkpoint and chex.
"""

import argparse
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from sdecor import models
from sdecor.core import allocator, parallel
from sdecor.data.augment import normalise
from sdecor.training import members, steps, terms
from sdecor.training.objective import Masking, Objective, Ramp
from sdecor.training.state import create_optimizer, create_train_state

CLASSES = 10
METHODS = {
    "ce": Objective(),
    "sgt": Objective({"consistency": terms.consistency}, masking=Masking()),
    "decor": Objective({"decorrelation": terms.decorrelation}),
    "sdecor": Objective({"consistency": terms.consistency, "decorrelation": terms.decorrelation}, masking=Masking()),
    "gradpen": Objective({"gradient_penalty": terms.gradient_penalty}, penalty_of="cross_entropy"),
}
WEIGHTS = {"consistency": 1.0, "decorrelation": 0.1, "gradient_penalty": 0.1}
HYPER = steps.Hyper(
    learning_rate=np.float32(1e-3),
    weight_decay=np.float32(0),
    mask_fraction=Ramp(np.float32(0.5), np.float32(0)),
    weights={name: Ramp(np.float32(weight), np.float32(0)) for name, weight in WEIGHTS.items()},
)


class Dense(nn.Module):
    """A network without convolutions."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        features = images.reshape(images.shape[0], -1)
        for _ in range(3):
            features = nn.relu(nn.Dense(256)(features))
        return nn.Dense(CLASSES)(features), features


def create_model(name: str) -> nn.Module:
    """Return the network called `name`."""
    if name == "dense":
        return Dense()
    return models.create_model(name, num_classes=CLASSES, axis_name=parallel.AXIS)


def create_batch(seed: int, batch_size: int, size: int) -> dict[str, np.ndarray]:
    """Return a random batch on the host."""
    generator = np.random.default_rng(seed)
    return {
        "image": generator.integers(0, 256, (batch_size, size, size, 3), dtype=np.uint8),
        "label": generator.integers(0, CLASSES, batch_size).astype(np.int32),
        "position": np.arange(batch_size, dtype=np.int32),
    }


def prepare(keys: jax.Array, images: jax.Array) -> jax.Array:
    """Normalise images, as training does without augmentation."""
    return normalise(images, (0.5,) * 3, (0.25,) * 3)


def build(name: str, replicas: int | None, options: argparse.Namespace) -> tuple[Callable, float]:
    """Compile a step of a single run, or of `replicas` replicas.

    Returns:
      A function that makes a `Stepping` from a number of states, and the seconds to compile.
    """
    step = partial(
        steps.train_step,
        objective=METHODS[options.method],
        prepare=prepare,
        schedule=lambda step: 1.0,
        axis_name=parallel.AXIS,
    )
    model, tx, shape = create_model(name), create_optimizer("adamw"), (options.size, options.size, 3)
    batches = [create_batch(seed, options.batch_size, options.size) for seed in range(replicas or 1)]
    sharded = [parallel.shard(batch) for batch in batches]
    count = replicas or 1
    step, batch = members.lift(step, replicas), members.join(sharded, replicas, axis=1)
    hyper = members.join([HYPER] * count, replicas)
    first, key = (members.run_key(range(count), use, replicas) for use in (0, 1))
    state = parallel.replicate(create_train_state(model, tx, key=first, image_shape=shape))
    arguments = jax.device_put(batch), parallel.replicate(hyper), parallel.replicate(key)
    start = time.perf_counter()
    compiled = parallel.pmap_step(step).lower(state, *arguments).compile()
    seconds = time.perf_counter() - start

    return partial(Stepping, lambda state: compiled(state, *arguments)[0], state), seconds


class Stepping:
    """Copies of a state that take steps in turn."""

    def __init__(self, take_step: Callable, state: Any, count: int = 1):
        self._take_step = take_step
        self._states = [parallel.replicate(state) for _ in range(count)]

    def seconds(self, steps: int) -> float:
        """Return the mean seconds of one step of all copies."""
        start = time.perf_counter()
        for _ in range(steps):
            self._states = [self._take_step(state) for state in self._states]
        jax.block_until_ready(self._states)
        return (time.perf_counter() - start) / steps


def measure(name: str, options: argparse.Namespace) -> None:
    """Print the table of one network."""
    single, single_compile = build(name, None, options)
    device = f"{jax.device_count()} × {jax.devices()[0].device_kind}, jax {jax.__version__}"
    images = f"{options.batch_size} images of {options.size}×{options.size} per replica"
    print(f"\n{name}, {options.method}, {images}, {device}")
    print(f"compiling the step of a single run: {single_compile:.1f} s\n")
    print("| replicas | together, ms | in turn, ms | together, images/s | in turn | times faster | compiling, s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for count in map(int, options.replicas.split(",")):
        lifted, compile_seconds = build(name, count, options)
        together, in_turn = lifted(), single(count)
        pairs = [(together.seconds(options.steps), in_turn.seconds(options.steps)) for _ in range(options.rounds + 1)]
        a, b = (statistics.median(times) for times in zip(*pairs[1:], strict=True))
        images = count * options.batch_size
        print(
            f"| {count} | {1e3 * a:.1f} | {1e3 * b:.1f} | {images / a:,.0f} | {images / b:,.0f} | {b / a:.2f} "
            f"| {compile_seconds:.1f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", default="1,4,16,64")
    parser.add_argument("--models", default="cnn,dense")
    parser.add_argument("--method", default="sdecor", choices=list(METHODS))
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10, help="steps of all replicas that a round times")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    allocator.keep_freed_memory()  # as train.py does
    for name in options.models.split(","):
        measure(name, options)


if __name__ == "__main__":
    main()
