"""Export of a tiny network, slow enough to be stopped in the middle.

PYTHONPATH=. python tests/helpers/export_program.py PATH plain|sharded [host:port PROCESSES PROCESS]
"""

import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from sdecor import export

COUNT, SIDE, STOPPED = 150, 6, 130
LAYOUTS = {"plain": {"chunk_rows": 4}, "sharded": {"chunk_rows": 2, "shard_rows": 8}}
OPTIONS = {"methods": ("gradient", "smoothgrad:samples=2"), "dtype": "float16", "device_batch": 2, "progress": False}


class Source:
    """Images of noise; reading one takes `pause` seconds."""

    def __init__(self, pause: float):
        rng = np.random.default_rng(0)
        self.images, self.pause = rng.normal(size=(COUNT, SIDE, SIDE, 3)).astype(np.float32), pause

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict:
        time.sleep(self.pause)
        return {"image": self.images[index], "label": index % 5}

    def name(self, index: int) -> str:
        return f"noise {index}"


def network(image: jax.Array) -> jax.Array:
    weights = np.random.default_rng(1).normal(size=(SIDE * SIDE * 3, 5)).astype(np.float32)
    return jnp.tanh(image.reshape(-1)) @ weights


def run(path: str, layout: str, pause: float = 0.02, cache: str | None = None) -> export.Summary:
    """Export on all devices, or with `cache` on one, with compiled programs from there."""
    if cache is not None:  # in a process whose environment does not set these
        jax.config.update("jax_num_cpu_devices", 1)
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return export.export(network, Source(pause), path, **OPTIONS | LAYOUTS[layout])


def main(path: str, layout: str, *job: str) -> None:
    if job:
        jax.distributed.initialize(job[0], int(job[1]), int(job[2]))  # as a program of the user does
    done = run(path, layout, float(os.environ.get("PAUSE", "0.02")))
    print(f"{done}\ncomputed: {done.computed}", flush=True)
    if not done.complete:
        sys.exit(STOPPED)


if __name__ == "__main__":
    main(*sys.argv[1:])
