"""Programs on the devices that predict, explain and measure a batch, and the batches of a split.

Each `make_…` function returns a pure function `(variables, batch, key)` of one device's part of a batch, to be
compiled. A program is compiled once for networks that compare equal, also when several runs are evaluated. A batch has

  image                   uint8 `[n, H, W, C]`, or float32 `[n, T, C]` of series, and likewise below
  label, index, weight    `[n]`
  object                  uint8 `[n, H, W]`, or `[n, T, C]` of series, if the data set has masks or boxes
  target                  `[n]`, after the prediction

and, after the explanation, the arrays of `make_explanation`.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdecor import metrics
from sdecor.attribution import explain, reduce
from sdecor.core import parallel
from sdecor.core.checks import check_choice
from sdecor.core.chunks import default_chunk_size
from sdecor.core.rng import example_keys
from sdecor.data import evaluation_batches
from sdecor.data.augment import center_crop, normalise
from sdecor.data.batches import evaluation_indices
from sdecor.data.splits import Subset
from sdecor.evaluation.choices import Method
from sdecor.evaluation.context import Context
from sdecor.evaluation.groups import Group, accepted
from sdecor.evaluation.results import Results, collect

TARGETS = ("predicted", "label")
IGNORE = 2  # code in an object mask of pixels that count neither as object nor as background
EXPLANATION, METRICS = 0, 1  # the two uses of an example's random keys

Batch = dict[str, jax.Array]
Fn = Callable[[jax.Array], jax.Array]


class Setup(NamedTuple):
    """A network, its input and the score that is explained; the same for all methods and metrics.

    Attributes:
      apply: the network in evaluation mode, `(variables, images [n, H, W, C]) -> (logits [n, K], features [n, D])`;
        networks that compare equal share compiled programs.
      mean: mean of each channel over the data set, in [0, 1].
      std: standard deviation of each channel over the data set.
      size: side of the central crop that is the network's input; None for whole images.
      target: class whose score is explained, "predicted" or "label".
      saliency_of: score, one of `attribution.SALIENCY_OF`, for methods whose own default is the logit.
      reduction: reduction over channels to a map, one of `attribution.REDUCTIONS`.
      chunk_size: number of network evaluations at once on a device; None for as many as fit in memory. It changes no
        result.
    """

    apply: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int | None = None
    target: str = "predicted"
    saliency_of: str = "logit"
    reduction: str = "abs_sum"
    chunk_size: int | None = None


def classes_of(logits: jax.Array, labels: jax.Array, target: str | int) -> Batch:
    """Return each example's `prediction` and `target`, the class whose score is explained, int32 `[n]`.

    Args:
      logits: logits `[n, K]`.
      labels: true classes, int32 `[n]`.
      target: "predicted", "label", or a class index.
    """
    prediction = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    known = {"predicted": prediction, "label": labels}
    chosen = known[target] if isinstance(target, str) else jnp.full_like(prediction, target)
    return {"prediction": prediction, "target": chosen}


def attributions_of(
    method: Method, fn: Fn, images: jax.Array, batch: Batch, key: jax.Array, *, saliency_of: str, **options: Any
) -> Any:
    """Explain a batch with a method; an example's random draws depend on its index alone.

    Args:
      method: the attribution method.
      fn: the network for one image, `image [H, W, C] -> logits [K]`.
      images: preprocessed images, the network's input, `[n, H, W, C]`.
      batch: the batch's `target` and `index`.
      key: random key of the evaluation.
      saliency_of: see `Method.settings`.
      **options: other arguments of `attribution.explain`.

    Returns:
      The result of `attribution.explain`: signed attributions.
    """
    keys = example_keys(key, EXPLANATION, batch["index"])
    settings = method.settings(saliency_of)
    return explain(fn, images, batch["target"], method=method.function, key=keys, **settings, **options)


def make_prediction(setup: Setup) -> Callable[[Any, Batch, jax.Array], tuple[Batch, Batch]]:
    """Return `predict(variables, batch, key) -> (examples, moments)`: predictions, and metrics without an explanation.

    `examples` are arrays `[n]`. `moments` are those of the features, over the examples of weight 1.
    """
    check_choice("target", setup.target, TARGETS)

    def predict(variables: Any, batch: Batch, key: jax.Array) -> tuple[Batch, Batch]:
        logits, features = setup.apply(variables, images_of(setup, batch))
        examples = {name: batch[name] for name in ("index", "label", "weight")}
        examples |= classes_of(logits, batch["label"], setup.target)
        examples |= _metrics_of("model", logits, labels=batch["label"])
        if "object" in batch:
            objects, ignore = objects_of(setup, batch)
            examples |= _metrics_of("mask", objects, ignore=ignore)
        return examples, metrics.feature_moments(features, batch["weight"])

    return predict


def make_logits(setup: Setup) -> Callable[[Any, Batch, jax.Array], tuple[Batch, Batch]]:
    """Return `logits_of(variables, batch, key) -> (examples, {})` with the `logits` `[n, K]` of a batch."""

    def logits_of(variables: Any, batch: Batch, key: jax.Array) -> tuple[Batch, Batch]:
        logits, _ = setup.apply(variables, images_of(setup, batch))
        return {name: batch[name] for name in ("index", "label", "weight")} | {"logits": logits}, {}

    return logits_of


def _metrics_of(needs: str, array: jax.Array, **offered: jax.Array) -> Batch:
    """Return the values of all metrics with these `needs`; each is called with the keywords that it takes."""
    rows = {name: metric.function for name, metric in metrics.METRICS.items() if metric.needs == needs}
    return {name: function(array, **accepted(function, offered)) for name, function in rows.items()}


def make_explanation(setup: Setup, method: Method) -> Callable[[Any, Batch, jax.Array], Batch]:
    """Return `explain_batch(variables, batch, key) -> arrays`.

    The arrays are float32: signed `attributions` `[n, H, W, C]`, their reductions `maps` `[n, H, W]`, and their sums
    over channels `signed` `[n, H, W]`.
    """

    def explain_batch(variables: Any, batch: Batch, key: jax.Array) -> Batch:
        images, fn = images_of(setup, batch), network(setup, variables)
        options = {"saliency_of": setup.saliency_of, "chunk_size": chunk_size_of(setup, fn, images)}
        attributions = attributions_of(method, fn, images, batch, key, **options)
        return {
            "attributions": attributions.astype(jnp.float32),
            "maps": reduce(attributions, how=setup.reduction),
            "signed": reduce(attributions, how="sum"),
        }

    return explain_batch


def make_measurement(
    setup: Setup, groups: tuple[Group, ...], method: Method | None = None
) -> Callable[[Any, Batch, jax.Array], Batch]:
    """Return `measure(variables, batch, key) -> examples`, the arrays of all `groups` for an explained batch.

    Without a `method` no group explains again, and the batch has no `attributions`, whose number of channels depends on
    the method. The compiled program then serves all methods.
    """

    def measure(variables: Any, batch: Batch, key: jax.Array) -> Batch:
        context = _context(setup, method, variables, batch, key)
        return {name: values for group in groups for name, values in group(context).items()}

    return measure


def _context(setup: Setup, method: Method | None, variables: Any, batch: Batch, key: jax.Array) -> Context:
    images, fn = images_of(setup, batch), network(setup, variables)
    image = jax.ShapeDtypeStruct(images.shape[1:], images.dtype)
    objects, ignore = objects_of(setup, batch) if "object" in batch else (None, None)
    return Context(
        images=images,
        targets=batch["target"],
        labels=batch["label"],
        maps=batch["maps"],
        signed=batch["signed"],
        objects=objects,
        ignore=ignore,
        keys=example_keys(key, METRICS, batch["index"]),
        explanation_keys=example_keys(key, EXPLANATION, batch["index"]),
        chunk_size=chunk_size_of(setup, fn, images),
        num_classes=jax.eval_shape(fn, image).shape[-1],
        params=variables["params"],
        fn_of=lambda params: network(setup, {**variables, "params": params}),
        features_fn=lambda image: setup.apply(variables, image[None])[1][0],
        attributions=batch.get("attributions"),
        contributions=method is not None and method.contributions,
        explain_of=None if method is None else method.bind(setup.saliency_of),
    )


def images_of(setup: Setup, batch: Batch) -> jax.Array:
    """Return a batch's images, cropped and normalised for the network."""
    return normalise(center_crop(batch["image"], setup.size), setup.mean, setup.std)


def objects_of(setup: Setup, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Return a batch's object masks and ignored pixels, bool `[n, H, W]` each.

    A mask of a series may have channels; a time is object if one of its channels is.
    """
    codes = center_crop(batch["object"], setup.size)
    objects, ignored = codes == 1, codes == IGNORE
    if codes.ndim == batch["image"].ndim:
        objects = objects.any(-1)
        ignored = ignored.any(-1) & ~objects
    return objects, ignored


def network(setup: Setup, variables: Any) -> Fn:
    """Return the network for one image, `image [H, W, C] -> logits [K]`."""
    return lambda image: setup.apply(variables, image[None])[0][0]


def chunk_size_of(setup: Setup, fn: Fn, images: jax.Array) -> int:
    """Return the number of network evaluations at once: the setup's, or as many as fit in memory."""
    image = jax.ShapeDtypeStruct(images.shape[1:], images.dtype)
    return default_chunk_size(fn, image) if setup.chunk_size is None else setup.chunk_size


Advance = Callable[[int], Any]  # called with the number of examples done since the last call
Item = tuple[int, dict[str, np.ndarray]]  # number of examples before a batch, and the batch


class Subject(NamedTuple):
    """A network and the examples that it is evaluated on.

    Attributes:
      setup: the network's input, and the score that is explained.
      variables: variables of the network, replicated over the devices.
      source: examples of a split.
      batch_size: number of examples over all devices; it changes no result.
      seed: seed of all random draws.
    """

    setup: Setup
    variables: Any
    source: Any
    batch_size: int
    seed: int = 0

    def key(self) -> jax.Array:
        """Return the random key of the evaluation, on all devices."""
        return parallel.replicate(jax.random.key(self.seed))


def predict(
    subject: Subject, advance: Advance = lambda done: None, *, make: Callable[[Setup], Callable] = make_prediction
) -> Results:
    """Return the predictions of all examples of the split, and the metrics without an explanation.

    With `make=make_logits` these are the logits alone.
    """
    program, key = compiled(make, subject.setup), subject.key()

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
    """Return an order of examples whose first `size` are the random choice of `size` from `n`, for each of `sizes`.

    Returns:
      Indices, int64 `[max(sizes)]`; those that a size adds to the next smaller one are ascending.
    """
    order = np.empty(0, np.int64)
    for size in sorted({*sizes} - {0}):
        order = np.concatenate([order, np.setdiff1d(evaluation_indices(n, size), order)])
    return order


@functools.cache
def compiled(make: Callable[..., Callable], *arguments: Any) -> Callable:
    """Return `make(*arguments)` compiled for all devices; equal arguments return the same program."""
    return parallel.pmap_evaluation(make(*arguments))


def gathered(outputs: Any) -> Any:
    """Return the outputs of all processes; those of a single process stay on its devices."""
    return outputs if jax.process_count() == 1 else parallel.gather(parallel.to_host(outputs))


def real_examples(batch: Mapping[str, np.ndarray]) -> int:
    """Return the approximate number of examples in the batch over all processes, without padding."""
    return int(batch["weight"].sum()) * jax.process_count()
