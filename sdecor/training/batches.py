"""Training batches on the devices, and validation: exact accuracy and cross-entropy over a split."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from sdecor.core import parallel, processes, watchdog
from sdecor.core.interrupt import Interrupt, Stopped
from sdecor.data import create_loader, evaluation_batches, load_in_memory
from sdecor.data.batches import order_seed
from sdecor.data.reading import Record, Skipping
from sdecor.training import members, steps
from sdecor.training.state import TrainState

DECODED = ("memory", "device")  # kinds of loader that decode the split once


def create_loaders(source: Any, seeds: Sequence[int], **options: Any) -> list[Any]:
    """Create this process's loader for each seed, with options of `create_loader`; loaders share images in memory."""
    process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    loaders = []
    for seed in seeds:
        loaders.append(create_loader(source, seed=seed, **process, **options))
        if loaders[-1].kind in DECODED:
            source = loaders[-1].source
    return loaders


def record_left_out(dataset: Any, folder: epath.PathLike) -> None:
    """List the examples of train and val that cannot be read and are left out in `unreadable.jsonl` of the folder.

    Each process reads its own examples, so that process N > 0 writes `unreadable-N.jsonl`.
    """
    number = f"-{jax.process_index()}" if jax.process_index() else ""
    record = Record(epath.Path(folder) / f"unreadable{number}.jsonl")
    for split in ("train", "val"):
        source = dataset.source(split)
        if isinstance(source, Skipping):
            source.keep_with(record.add)


def validation_source(source: Any, loader: Any) -> Any:
    """Return the validation split, decoded into memory if the training split is."""
    return load_in_memory(source, objects=False) if loader.kind in DECODED else source


def step_batches(
    loader: Any, start: int, *, batch_size: int, accumulate: int = 1, calls: Iterable[int] | None = None
) -> Iterator[Any]:
    """Yield the micro-batches of each call from the step `start` on, split over the devices.

    `calls` is the number of steps of each call; None for calls of one step without end.
    """
    size = batch_size // accumulate
    with contextlib.closing(loader.iterate(start * accumulate)) as batches:
        for count in itertools.repeat(1) if calls is None else calls:
            micro = [next(batches) for _ in range(count * accumulate)]
            if accumulate > 1:
                for i, batch in enumerate(micro):
                    # Positions count through all micro-batches of a step, so that no two examples share random draws.
                    batch["position"] = batch["position"] + np.int32(i % accumulate * size)
            yield parallel.shard_micro_batches(micro, steps=count)


def reordered(loaders: Sequence[Any], seeds: Sequence[int], order: int) -> Sequence[Any]:
    """Return the loaders with the order of data after `order` rollbacks."""
    if order == 0:
        return loaders
    return [loader.reordered(order_seed(seed, order)) for loader, seed in zip(loaders, seeds, strict=True)]


def member_batches(
    loaders: Sequence[Any], start: int, *, replicas: int | None, calls: Iterable[int] | None = None, **sizes: int
) -> Iterator[Any]:
    """Yield all members' `step_batches` of each call; those of R replicas are joined to `[devices, R, …]`.

    A call of several steps has `[devices, steps, R, …]`.
    """
    counts, *own = itertools.tee(itertools.repeat(1) if calls is None else calls, 1 + len(loaders))
    with contextlib.ExitStack() as files:
        files.callback(_say_left_out, loaders[0])
        each = [
            files.enter_context(contextlib.closing(step_batches(loader, start, calls=calls, **sizes)))
            for loader, calls in zip(loaders, own, strict=True)
        ]
        for count, *batches in zip(counts, *each, strict=True):
            yield members.join(batches, replicas, axis=1 if count == 1 else 2)


def _say_left_out(loader: Any) -> None:
    left_out = getattr(loader, "left_out", 0)  # a loader of your own may leave out none
    if left_out:
        logging.warning(
            "%d training examples could not be read and were replaced: unreadable.jsonl lists them", left_out
        )


def batch_shapes(
    image_shape: Sequence[int],
    *,
    replicas: int | None,
    batch_size: int,
    accumulate: int = 1,
    devices: int | None = None,
    steps: int = 1,
    indices: bool = False,
    dtype: str = "uint8",
) -> Any:
    """Return the shapes and dtypes that `member_batches` yields.

    Args:
      image_shape: `(H, W, C)` of images, or `(T, C)` of series.
      replicas: number of replicas; None for a single run.
      batch_size: images of a step.
      accumulate: micro-batches of a step.
      devices: number of devices to compile for; by default the shapes are those of this process.
      steps: number of steps of the call.
      indices: whether the batch holds indices into a split on the devices.
      dtype: dtype of the stored images.
    """
    local = jax.local_device_count()
    examples = batch_size // accumulate * local // (devices or jax.device_count())
    blank = np.zeros(examples, np.int32)
    # One number in place of each image, so that no batch lies in memory; only the leading axes are arranged.
    batch = {"index": blank} if indices else {"image": blank.astype(dtype), "label": blank}
    batch["position"] = blank
    loader = SimpleNamespace(iterate=lambda start: (dict(batch) for _ in itertools.count()))
    sizes = {"batch_size": batch_size, "accumulate": accumulate, "calls": [steps]}
    with contextlib.closing(member_batches([loader] * (replicas or 1), 0, replicas=replicas, **sizes)) as batches:
        found = next(batches)
    behind = {"image": tuple(image_shape)}
    return {
        name: jax.ShapeDtypeStruct((devices or local, *array.shape[1:], *behind.get(name, ())), array.dtype)
        for name, array in found.items()
    }


Validate = Callable[[TrainState, Interrupt], list[dict[str, float]] | None]


def create_validation(
    apply_fn: Callable, prepare: Callable, source: Any, *, batch_size: int, replicas: int | None = None
) -> Validate:
    """Return `(state, interrupt) -> metrics` over a split: one row per member, or None if interrupted.

    Args:
      apply_fn: the model's `(variables, images, train=False) -> (logits, features)`.
      prepare: preparation of stored images for the model.
      source: examples of the split.
      batch_size: number of examples over all devices; it changes no result.
      replicas: number of replicas; None for a single run.
    """

    def step(variables: Any, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        evaluate = members.lift_evaluation(partial(steps.evaluation_step, apply_fn), replicas)
        return evaluate(variables, prepare(batch["image"]), batch)

    compiled = parallel.pmap_evaluation(step)
    key = parallel.replicate(jax.random.key(0))

    def validate(state: TrainState, interrupt: Interrupt) -> list[dict[str, float]] | None:
        try:
            return measure(state, interrupt)
        except Stopped:  # a signal, while the input does not answer
            return None

    def measure(state: TrainState, interrupt: Interrupt) -> list[dict[str, float]] | None:
        batches = evaluation_batches(
            source,
            batch_size=parallel.round_up(batch_size),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        sums: dict[str, np.ndarray] = {}
        for batch in batches:
            watchdog.beat("a batch of the validation")
            batch = {name: batch[name] for name in ("image", "label", "weight")}
            outputs = parallel.to_host(compiled(state.variables, parallel.shard(batch), key))
            for name, value in outputs.items():
                sums[name] = sums.get(name, 0.0) + value.sum(axis=0, dtype=np.float64)
            if processes.agree_to_stop(bool(interrupt)):
                return None
        sums = {name: np.sum(parallel.gather(value[None]), axis=0) for name, value in sums.items()}
        count = sums.pop("count")
        means = {"accuracy": sums["correct"] / count, "cross_entropy": sums["cross_entropy"] / count}
        return members.rows(means, replicas)

    return validate
