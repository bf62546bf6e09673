"""What the steps of a run take, or of all its replicas at once: batches spread over the devices."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sdecor import stacked
from sdecor.core import parallel
from sdecor.data import create_loader, load_in_memory


def create_loaders(source: Any, seeds: Sequence[int], **options: Any) -> list[Any]:
    """Create a loader for each seed, with the options of `create_loader`; what lies in memory they share."""
    loaders = []
    for seed in seeds:
        loaders.append(create_loader(source, seed=seed, **options))
        if loaders[-1].kind == "memory":
            source = loaders[-1].source
    return loaders


def validation_source(source: Any, loader: Any) -> Any:
    """Return the validation split, decoded once where the training split is."""
    return load_in_memory(source, objects=False) if loader.kind == "memory" else source


def step_batches(loader: Any, start: int, *, batch_size: int, accumulate: int = 1) -> Iterator[Any]:
    """Yield what each step from `start` on takes: its micro-batches, spread over the devices."""
    size = batch_size // accumulate
    with contextlib.closing(loader.iterate(start * accumulate)) as batches:
        while True:
            micro = [next(batches) for _ in range(accumulate)]
            for i, batch in enumerate(micro):
                # Positions count through the step's micro-batches, so that no two examples draw alike.
                batch["position"] = batch["position"] + np.int32(i * size)
            yield parallel.shard_micro_batches(micro)


def stacked_batches(loaders: Sequence[Any], start: int, **sizes: int) -> Iterator[Any]:
    """Yield what each step of all replicas takes: `[devices, R, …]`, of each replica its own `step_batches`."""
    with contextlib.ExitStack() as files:
        each = [files.enter_context(contextlib.closing(step_batches(loader, start, **sizes))) for loader in loaders]
        for batches in zip(*each, strict=True):
            yield stacked.stack(batches, axis=1)
