"""Validation while training: exact accuracy and cross-entropy over a split, of a run or of all its replicas at once."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from sdecor import steps
from sdecor.core import parallel
from sdecor.core.interrupt import Interrupt
from sdecor.data import evaluation_batches
from sdecor.state import TrainState

Validate = Callable[[TrainState, Interrupt], dict[str, np.ndarray] | None]


def create_validation(
    apply_fn: Callable, prepare: Callable, source: Any, *, batch_size: int, stacked: bool = False
) -> Validate:
    """Return `(state, interrupt) -> metrics` over a split: scalars, or `[R]` for a stacked state; None if interrupted.

    Args:
      apply_fn: the model's, `(variables, images, train=False) -> (logits, features)`.
      prepare: of uint8 images.
      source: the split's examples.
      batch_size: over all devices; changes no result.
      stacked: whether states are those of several replicas.
    """

    def step(variables: Any, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        evaluate = partial(steps.evaluation_step, apply_fn)
        images = prepare(batch["image"])
        return (jax.vmap(evaluate, in_axes=(0, None, None)) if stacked else evaluate)(variables, images, batch)

    compiled = parallel.pmap_evaluation(step)
    key = parallel.replicate(jax.random.key(0))

    def validate(state: TrainState, interrupt: Interrupt) -> dict[str, np.ndarray] | None:
        batches = evaluation_batches(
            source,
            batch_size=parallel.round_up(batch_size),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        sums: dict[str, np.ndarray] = {}
        for batch in batches:
            batch = {name: batch[name] for name in ("image", "label", "weight")}
            outputs = parallel.to_host(compiled(state.variables, parallel.shard(batch), key))
            for name, value in outputs.items():
                sums[name] = sums.get(name, 0.0) + value.sum(axis=0, dtype=np.float64)
            if interrupt and jax.process_count() == 1:
                return None
        sums = {name: np.sum(parallel.gather(value[None]), axis=0) for name, value in sums.items()}
        count = sums.pop("count")
        return {"accuracy": sums["correct"] / count, "cross_entropy": sums["cross_entropy"] / count}

    return validate
