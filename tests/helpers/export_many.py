"""Export of many tiny images; prints the peak memory in MB and the images exported per second.

PYTHONPATH=. python tests/helpers/export_many.py PATH COUNT source|batches
"""

import resource
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from sdecor import export

SIDE, POOL, CLASSES = 8, 128, 10
OPTIONS = {"methods": ("gradient", "integrated_gradients:steps=4"), "dtype": "float16", "chunk_rows": 1024}


class Source:
    """A split of `count` examples, made of a few images."""

    def __init__(self, count: int):
        self.images = np.random.default_rng(0).normal(size=(POOL, SIDE, SIDE, 3)).astype(np.float32)
        self.labels = np.arange(count, dtype=np.int32) % CLASSES

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return {"image": self.images[index % POOL], "label": self.labels[index]}

    def name(self, index: int) -> str:
        return f"some/folder/with/a/name/{index}.png"


def network(image: jax.Array) -> jax.Array:
    weights = np.random.default_rng(1).normal(size=(SIDE * SIDE * 3, CLASSES)).astype(np.float32)
    return jnp.tanh(image.reshape(-1) / 8) @ weights


def batches(source: Source) -> Iterator[dict]:
    """Yield the examples in batches, without a known length."""
    for start in range(0, len(source), 100):
        index = np.arange(start, min(start + 100, len(source)))
        yield {"image": source.images[index % POOL], "label": source.labels[index], "id": index}


def main(path: str, count: str, kind: str) -> None:
    data = Source(int(count)) if kind == "source" else batches(Source(int(count)))
    done = export.export(network, data, path, **OPTIONS, progress=False)
    assert done.complete and done.computed == int(count)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak_mb {peak:.1f} rate {done.computed / done.seconds:.0f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
