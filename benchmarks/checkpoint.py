"""Time for which a checkpoint blocks the training, beside the copy of the state to the host.

    python benchmarks/checkpoint.py [--megabytes=100,1000] [--rounds=5]

The state is that of Adam: a third of it are parameters. `first` is the first save of a folder, which is written and
read back. `blocks` is the time that each later save takes in the loop, and `copy` the copy to the host alone. `written`
is when the checkpoint is finished. `step` is a step that multiplies matrices and updates the state, alone and while a
checkpoint is written. All but `first` are medians. Needs only jax, flax, optax, orbax-checkpoint and chex.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from sdecor.core import parallel
from sdecor.training.checkpoint import Checkpoints
from sdecor.training.state import TrainState

WIDTH = 1024


def create_state(megabytes: float) -> TrainState:
    """Return a state of that size, in layers of 4 MB."""
    count = max(round(megabytes * 1e6 / (3 * 4 * WIDTH**2)), 1)
    keys = jax.random.split(jax.random.key(0), count)
    params = {f"layer{i}": {"kernel": jax.random.normal(key, (WIDTH, WIDTH))} for i, key in enumerate(keys)}
    state = TrainState.create(apply_fn=None, params=params, tx=optax.adam(1e-6), batch_stats={})
    return parallel.replicate(state.replace(step=jnp.int32(0)))


def train_step(state: TrainState, batch: jax.Array) -> TrainState:
    """Multiply the batch with each layer, and update the state by Adam."""

    def loss(params):
        y = batch
        for layer in params.values():
            y = jnp.tanh(y @ layer["kernel"] / WIDTH**0.5)
        return jnp.mean(y**2)

    return state.apply_gradients(grads=jax.grad(loss)(state.params))


def timed(call, *arguments):
    start = time.perf_counter()
    result = jax.block_until_ready(call(*arguments))
    return result, time.perf_counter() - start


def measure(megabytes: float, rounds: int, folder: str) -> dict[str, float]:
    """Return the medians in seconds, by name."""
    state, batch = create_state(megabytes), jnp.ones((64, WIDTH))
    step = jax.jit(train_step, donate_argnums=0)
    state = jax.block_until_ready(step(state, batch))
    found = {"copy": [], "blocks": [], "written": [], "step alone": [], "step beside a write": []}

    def save(checkpoints, state):
        checkpoints.save(state, position={"step": int(state.step), "seed": 0})

    with Checkpoints(folder) as checkpoints:
        _, first = timed(save, checkpoints, state)
        for _ in range(rounds):
            wait(checkpoints)
            for _ in range(2):
                state, seconds = timed(step, state, batch)
            found["step alone"].append(seconds)
            found["copy"].append(timed(lambda state: jax.tree.map(np.array, state), state)[1])
            state, _ = timed(step, state, batch)
            start = time.perf_counter()
            found["blocks"].append(timed(save, checkpoints, state)[1])
            state, seconds = timed(step, state, batch)
            found["step beside a write"].append(seconds)
            wait(checkpoints)
            found["written"].append(time.perf_counter() - start)
    return {"first": first} | {name: statistics.median(each) for name, each in found.items()}


def wait(checkpoints: Checkpoints) -> None:
    """Wait until the last checkpoint is written."""
    checkpoints.wait() if hasattr(checkpoints, "wait") else checkpoints.manager.wait_until_finished()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", default="100,1000", help="sizes of the state")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sizes = [float(text) for text in options.megabytes.split(",")]
    results = []
    for size in sizes:
        folder = tempfile.mkdtemp()
        try:
            results.append(measure(size, options.rounds, os.path.join(folder, "run")))
        finally:
            shutil.rmtree(folder)
    print("| seconds | " + " | ".join(f"{size:g} MB" for size in sizes) + " |")
    print("| --- |" + " --- |" * len(sizes))
    for name in results[0]:
        print(f"| {name} | " + " | ".join(f"{result[name]:.2f}" for result in results) + " |")


if __name__ == "__main__":
    main()
