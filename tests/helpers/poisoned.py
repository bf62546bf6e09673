"""Training whose batches hold labels that are no class at chosen steps, so that their loss is NaN.

    python tests/helpers/poisoned.py '[[8], [11]]' --config=… --workdir=…

runs train.py with such batches at step 8, and after a rollback, which changes the order, at step 11.
"""

import json
import runpy
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sdecor.data.batches import order_seed


class Loader:
    """A loader whose batches have a label that is no class at some steps of some orders, by the order's seed."""

    def __init__(self, loader: Any, seed: int, steps: Mapping[int, Collection[int]]):
        self.loader, self.seed, self.steps = loader, seed, steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def iterate(self, start: int) -> Iterator[dict[str, np.ndarray]]:
        for step, batch in enumerate(self.loader.iterate(start), start + 1):
            bad = step in self.steps.get(self.seed, ())
            yield batch | {"label": np.full_like(batch["label"], -1)} if bad else batch

    def reordered(self, seed: int) -> "Loader":
        return Loader(self.loader.reordered(seed), seed, self.steps)


def poisoning(create: Callable, steps: Mapping[int, Collection[int]]) -> Callable:
    """Return `create_loaders` with the bad steps of each order, by the order's seed."""

    def create_loaders(source: Any, seeds: Sequence[int], **options: Any) -> list[Loader]:
        return [Loader(each, seed, steps) for each, seed in zip(create(source, seeds, **options), seeds, strict=True)]

    return create_loaders


if __name__ == "__main__":
    from sdecor.training import batches

    by_order = json.loads(sys.argv.pop(1))
    by_seed = {order_seed(0, order): bad for order, bad in enumerate(by_order)}
    batches.create_loaders = poisoning(batches.create_loaders, by_seed)
    sys.argv[0] = "train.py"
    runpy.run_path("train.py", run_name="__main__")
