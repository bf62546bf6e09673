"""Sweeping over a split on all devices of all processes: batches, compiled programs, and the sweep that predicts.

A program is compiled once for networks that compare equal, also when several runs are evaluated.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from sdecor.core import parallel
from sdecor.data import evaluation_batches
from sdecor.data.batches import evaluation_indices
from sdecor.data.splits import Subset
from sdecor.evaluation.device import Setup, make_prediction
from sdecor.evaluation.results import Results, collect

Advance = Callable[[int], Any]  # is told how many examples were done
Item = tuple[int, dict[str, np.ndarray]]  # number of examples before a batch, and the batch


class Subject(NamedTuple):
    """What is evaluated.

    Attributes:
      setup: how the network is fed and what of it is explained.
      variables: the network's, replicated over the devices.
      source: the examples of a split.
      batch_size: over all devices; it changes no result.
      seed: of everything that is drawn.
    """

    setup: Setup
    variables: Any
    source: Any
    batch_size: int
    seed: int = 0

    def key(self) -> jax.Array:
        """Return the key of everything that is drawn, on all devices."""
        return parallel.replicate(jax.random.key(self.seed))


def predict(subject: Subject, advance: Advance = lambda done: None) -> Results:
    """Predict every example of the split."""
    program, key = compiled(make_prediction, subject.setup), subject.key()

    def step(item: Item) -> Any:
        _, batch = item
        outputs = program(subject.variables, parallel.shard(batch), key)
        advance(real_examples(batch))
        return gathered(outputs)

    return collect(step, batches(subject, subject.source, np.arange(len(subject.source))))


def batches(subject: Subject, source: Any, visited: np.ndarray) -> Iterator[Item]:
    """Yield this process's part of each batch of the examples `visited`, in that order."""
    size = parallel.round_up(min(subject.batch_size, len(visited)))
    shared = evaluation_batches(
        Subset(source, visited),
        batch_size=size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    for start, batch in zip(itertools.count(0, size), shared):
        place = batch["index"]
        yield start, batch | {"index": np.where(place < 0, -1, visited[place]).astype(np.int32)}


def nested_order(n: int, sizes: Iterable[int]) -> np.ndarray:
    """Return examples in an order whose first `size` are, for each of `sizes`, the random choice of so many of `n`.

    Returns:
      int64 `[max(sizes)]`; what a size adds to the smaller ones is ascending.
    """
    order = np.empty(0, np.int64)
    for size in sorted({*sizes} - {0}):
        order = np.concatenate([order, np.setdiff1d(evaluation_indices(n, size), order)])
    return order


@functools.cache
def compiled(make: Callable[..., Callable], *arguments: Any) -> Callable:
    """Return `make(*arguments)` compiled for all devices; the same program for equal arguments."""
    return parallel.pmap_evaluation(make(*arguments))


def gathered(outputs: Any) -> Any:
    """Return the outputs of all processes; those of a single one stay on its devices."""
    return outputs if jax.process_count() == 1 else parallel.gather(parallel.to_host(outputs))


def real_examples(batch: Mapping[str, np.ndarray]) -> int:
    """Return about how many examples of all processes are in the batch, without its padding."""
    return int(batch["weight"].sum()) * jax.process_count()
