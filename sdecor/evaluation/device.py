"""The device part of an evaluation: predicting a batch, explaining it, measuring the explanations.

Each `make_…` returns a pure function `(variables, batch, key)` of one device's part of a batch, to be compiled. A batch
has `image` uint8 `[n, H, W, C]`, `label`, `index` and `weight` `[n]` and, where the data set has masks, `object` uint8
`[n, H, W]`; after the prediction also `target` `[n]`, and after the explanation what that returns.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdecor import metrics
from sdecor.attribution import explain, reduce
from sdecor.core.checks import check_choice
from sdecor.core.chunks import default_chunk_size
from sdecor.core.rng import example_keys
from sdecor.data.augment import center_crop, normalise
from sdecor.evaluation.choices import Method
from sdecor.evaluation.context import Context
from sdecor.evaluation.measures import Measure

TARGETS = ("predicted", "label")
IGNORE = 2  # code of an object mask's pixels that count neither as object nor as background
EXPLANATION, MEASURES = 0, 1  # steps of an example's randomness

Batch = dict[str, jax.Array]


class Setup(NamedTuple):
    """How a network is fed and what of it is explained; the same for all methods and measures.

    Attributes:
      apply: the network in evaluation mode, `(variables, images [n, H, W, C]) -> (logits [n, K], features [n, D])`;
        networks that compare equal share compiled programs.
      mean: the data set's mean of each channel, in [0, 1].
      std: its standard deviation of each channel.
      size: side of the central crop that the network sees; None = the images as they are.
      target: whose score is explained: the "predicted" class or the "label".
      saliency_of: what is explained by methods whose own choice is the logit: see `attribution.SALIENCY_OF`.
      reduction: from channels to a map, see `attribution.REDUCTIONS`.
      chunk_size: network evaluations in flight on a device; None = what its memory holds. It changes no result.
    """

    apply: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int | None = None
    target: str = "predicted"
    saliency_of: str = "logit"
    reduction: str = "abs_sum"
    chunk_size: int | None = None


def make_prediction(setup: Setup) -> Callable[[Any, Batch, jax.Array], tuple[Batch, Batch]]:
    """Return `predict(variables, batch, key) -> (examples, moments)`: what is measured without an explanation.

    `examples` has an entry for each example; `moments` are of the features of the examples with weight 1.
    """
    check_choice("target", setup.target, TARGETS)

    def predict(variables: Any, batch: Batch, key: jax.Array) -> tuple[Batch, Batch]:
        logits, features = setup.apply(variables, images_of(setup, batch))
        prediction = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        examples = {name: batch[name] for name in ("index", "label", "weight")}
        examples |= {
            "prediction": prediction,
            "target": prediction if setup.target == "predicted" else batch["label"],
            "accuracy": metrics.accuracy(logits, batch["label"]),
            "cross_entropy": metrics.cross_entropy(logits, batch["label"]),
            "confidence": metrics.confidence(logits),
        }
        if "object" in batch:
            objects, ignore = objects_of(setup, batch)
            examples["area_share"] = metrics.area_share(objects, ignore=ignore)
        return examples, metrics.feature_moments(features, batch["weight"])

    return predict


def make_explanation(setup: Setup, method: Method) -> Callable[[Any, Batch, jax.Array], Batch]:
    """Return `explain_batch(variables, batch, key) -> arrays`, float32.

    These are signed `attributions` `[n, H, W, C]`, their reduction `maps` `[n, H, W]` and their sum over channels,
    `signed` `[n, H, W]`.
    """

    def explain_batch(variables: Any, batch: Batch, key: jax.Array) -> Batch:
        images, fn = images_of(setup, batch), network(setup, variables)
        attributions = explain(
            fn,
            images,
            batch["target"],
            method=method.function,
            chunk_size=chunk_size_of(setup, fn, images),
            key=example_keys(key, EXPLANATION, batch["index"]),
            **method.settings(setup.saliency_of),
        )
        return {
            "attributions": attributions.astype(jnp.float32),
            "maps": reduce(attributions, how=setup.reduction),
            "signed": reduce(attributions, how="sum"),
        }

    return explain_batch


def make_measurement(
    setup: Setup, measures: tuple[Measure, ...], method: Method | None = None
) -> Callable[[Any, Batch, jax.Array], Batch]:
    """Return `measure(variables, batch, key) -> examples`, the arrays of all `measures` of an explained batch.

    Without a `method` no measure explains anything again, and the batch has no `attributions`: their number of channels
    depends on the method, and what is compiled then serves all methods.
    """

    def measure(variables: Any, batch: Batch, key: jax.Array) -> Batch:
        context = _context(setup, method, variables, batch, key)
        return {name: values for measure in measures for name, values in measure(context).items()}

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
        keys=example_keys(key, MEASURES, batch["index"]),
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
    """Return a batch's images as the network takes them."""
    return normalise(center_crop(batch["image"], setup.size), setup.mean, setup.std)


def objects_of(setup: Setup, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Return a batch's object masks and ignored pixels, bool `[n, H, W]` each."""
    codes = center_crop(batch["object"], setup.size)
    return codes == 1, codes == IGNORE


def network(setup: Setup, variables: Any) -> Callable[[jax.Array], jax.Array]:
    """Return the network for one image, `image [H, W, C] -> logits [K]`."""
    return lambda image: setup.apply(variables, image[None])[0][0]


def chunk_size_of(setup: Setup, fn: Callable[[jax.Array], jax.Array], images: jax.Array) -> int:
    """Return the evaluations in flight: the setup's, or as many as fit."""
    image = jax.ShapeDtypeStruct(images.shape[1:], images.dtype)
    return default_chunk_size(fn, image) if setup.chunk_size is None else setup.chunk_size
