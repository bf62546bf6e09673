"""Evaluating one network on a split: measures of each example, on the devices.

A measure belongs to its example, so results depend neither on the batch size nor on the number of devices.
The pieces: `make_example_metrics` is the device part (compile it with `parallel.pmap_evaluation`), `collect` the loop
over padded batches; `sdecor.summary` makes numbers with intervals of what they return.
"""

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from sdecor import metrics
from sdecor.attribution import explain, reduce
from sdecor.checks import check_choice, check_range
from sdecor.data.augment import center_crop, normalise
from sdecor.rng import example_keys

TARGETS = ("predicted", "label")
IGNORE = 2  # code of an object mask's pixels that count neither as object nor as background


class Results(NamedTuple):
    """One network on one split.

    `examples` maps a name to an array `[N, …]`, ordered by `index`; `moments` are the features' (see
    `metrics.feature_moments`).
    """

    examples: dict[str, np.ndarray]
    moments: dict[str, np.ndarray]


def make_explain(
    apply: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    size: int | None = None,
    method: str = "gradient",
    saliency_of: str = "logit",
    reduction: str = "abs_sum",
    target: str = "predicted",
    chunk_size: int | None = None,
) -> Callable[[Any, dict[str, jax.Array], jax.Array], dict[str, jax.Array]]:
    """Return `explain_batch(variables, batch, key)`, which predicts and explains a batch.

    Args:
      apply: the network in evaluation mode, `(variables, images [n, H, W, C]) -> (logits [n, K], features [n, D])`.
      mean: the data set's mean of each channel, in [0, 1].
      std: its standard deviation of each channel.
      size: side of the central crop that the network sees; None = the images as they are.
      method: a name in `attribution.METHODS`.
      saliency_of: what is explained: "logit", "log_probability" or "probability".
      reduction: from channels to a map, a name in `attribution.REDUCTIONS`.
      target: whose score is explained: the "predicted" class or the "label".
      chunk_size: images explained at a time on a device; None = all of the batch.

    Returns:
      A pure function that returns `images` (normalised), `logits`, `features`, `prediction`, `target` and
      `maps` `[n, H, W]` float32.
    """
    check_choice("target", target, TARGETS)

    def explain_batch(variables: Any, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        images = normalise(center_crop(batch["image"], size), mean, std)
        logits, features = apply(variables, images)
        prediction = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        chosen = prediction if target == "predicted" else batch["label"]
        attribution = explain(
            lambda image: apply(variables, image[None])[0][0],
            images,
            chosen,
            method=method,
            saliency_of=saliency_of,
            chunk_size=chunk_size,
            key=example_keys(key, 0, batch["index"]),
        )
        maps = reduce(attribution, how=reduction)
        return {
            "images": images,
            "logits": logits,
            "features": features,
            "prediction": prediction,
            "target": chosen,
            "maps": maps,
        }

    return explain_batch


def make_example_metrics(
    apply: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]],
    *,
    steps: int = 16,
    insertion_baseline: str = "blur",
    deletion_baseline: str = "zero",
    blur_sigma: float = 5.0,
    tolerance: float = 0.0,
    chunk_size: int | None = None,
    **explanation: Any,
) -> Callable[[Any, dict[str, jax.Array], jax.Array], tuple[dict[str, jax.Array], dict[str, jax.Array]]]:
    """Return `example_metrics(variables, batch, key) -> (examples, moments)`, a pure function for one device's batch.

    Args:
      apply: see `make_explain`.
      steps: of the insertion and deletion curves; 0 leaves both out (they cost `4·(steps + 1)` forwards an image).
      insertion_baseline: what insertion starts from, see `metrics.deletion_curve`.
      deletion_baseline: what deletion puts in.
      blur_sigma: of the baseline "blur", in pixels.
      tolerance: of the pointing game, in pixels.
      chunk_size: network evaluations in flight on a device; None = the batch.
      **explanation: `mean`, `std`, `size`, `method`, `saliency_of`, `reduction`, `target`: see `make_explain`.

    Returns:
      The function takes a batch of `image` uint8 `[n, H, W, C]`, `label`, `index`, `weight` `[n]` and, where
      there is one, `object` uint8 `[n, H, W]`. `examples` has one value (curves: a row) for each example;
      `moments` are of the features of the examples with weight 1.
    """
    check_range("steps", steps, 0)
    explain_batch = make_explain(apply, chunk_size=chunk_size, **explanation)
    curve_options = {"steps": steps, "blur_sigma": blur_sigma, "chunk_size": chunk_size}
    baselines = {"insertion": insertion_baseline, "deletion": deletion_baseline}

    def example_metrics(variables: Any, batch: dict[str, jax.Array], key: jax.Array):
        found = explain_batch(variables, batch, key)
        examples = {name: batch[name] for name in ("index", "label", "weight")}
        examples |= {"prediction": found["prediction"], "target": found["target"]}
        examples |= {
            "accuracy": metrics.accuracy(found["logits"], batch["label"]),
            "cross_entropy": metrics.cross_entropy(found["logits"], batch["label"]),
            "confidence": metrics.confidence(found["logits"]),
            "gini": metrics.gini(found["maps"]),
        }
        if "object" in batch:
            size = explanation.get("size")
            examples |= _localization(found["maps"], center_crop(batch["object"], size), tolerance)
        if steps:
            keys = example_keys(key, 1, batch["index"])
            fn = lambda image: apply(variables, image[None])[0][0]  # noqa: E731
            examples |= _faithfulness(fn, found, keys, baselines, curve_options)
        return examples, metrics.feature_moments(found["features"], batch["weight"])

    return example_metrics


def _localization(maps: jax.Array, codes: jax.Array, tolerance: float) -> dict[str, jax.Array]:
    objects, ignore = codes == 1, codes == IGNORE
    return {
        "energy_inside": metrics.energy_inside(maps, objects, ignore=ignore),
        "area_share": metrics.area_share(objects, ignore=ignore),
        "pointing_game": metrics.pointing_game(maps, objects, tolerance=tolerance, ignore=ignore),
        "chance_pointing": metrics.pointing_game(jnp.ones_like(maps), objects, tolerance=tolerance, ignore=ignore),
    }


def _faithfulness(fn, found, keys, baselines, options) -> dict[str, jax.Array]:
    """Curves and areas of the maps, and of a random order of pixels on the same network."""
    images, maps = found["images"], found["maps"]
    n, sigma = images.shape[0], options["blur_sigma"]
    blank = {
        name: metrics.baseline_images(images, how, blur_sigma=sigma).astype(images.dtype)
        for name, how in baselines.items()
    }
    shuffled = jnp.ones_like(maps)  # equal values are ordered at random
    # All four curves in one loop: the network is compiled once, and a device still holds `chunk_size` evaluations.
    curves = metrics.replacement_curve(
        fn,
        jnp.concatenate([blank["insertion"], blank["insertion"], images, images]),
        jnp.concatenate([images, images, blank["deletion"], blank["deletion"]]),
        jnp.concatenate([maps, shuffled, maps, shuffled]),
        jnp.tile(found["target"], 4),
        key=jnp.tile(keys, 4),
        steps=options["steps"],
        chunk_size=options["chunk_size"] or n,
    )
    examples = {}
    for name, pair in zip(baselines, (curves[: 2 * n], curves[2 * n :]), strict=True):
        examples |= {f"{name}_curve": pair[:n], f"{name}_curve_random": pair[n:]}
        areas = metrics.area_under(pair)
        examples |= {name: areas[:n], f"{name}_random": areas[n:], f"{name}_vs_random": areas[:n] - areas[n:]}
    return examples


def collect(step: Callable[[Any], tuple[Any, Any]], batches: Iterable[Any]) -> Results:
    """Run `step(batch) -> (examples, moments)` over all batches and gather what it returns on the host.

    Args:
      step: `example_metrics`, compiled and with variables and key bound; outputs may have a leading device axis.
      batches: padded batches, as `step` takes them.

    Returns:
      Results without the padding (weight 0), ordered by index.

    Raises:
      ValueError: when no example has weight 1.
    """
    parts, pending = [], None
    for batch in batches:
        # The next batch is dispatched before the previous one is fetched, so that the devices do not wait.
        current = step(batch)
        if pending is not None:
            parts.append(_fetch(*pending))
        pending = current
    if pending is not None:
        parts.append(_fetch(*pending))
    return merge(parts)


def merge(parts: Sequence[Results]) -> Results:
    """Join the results of batches or of processes: examples in order of their index, moments added exactly.

    Raises:
      ValueError: when there is no example, or one occurs twice.
    """
    parts = [part for part in parts if part.examples["index"].size]
    if not parts:
        raise ValueError("nothing was evaluated: the split has no examples")
    names = parts[0].examples
    examples = {name: np.concatenate([part.examples[name] for part in parts]) for name in names}
    order = np.argsort(examples["index"], kind="stable")
    examples = {name: values[order] for name, values in examples.items()}
    index = examples["index"]
    twice = index[1:][index[1:] == index[:-1]]
    if twice.size:
        raise ValueError(f"example {twice[0]} was evaluated twice: every example must be in one batch only")
    moments = parts[0].moments
    for part in parts[1:]:
        moments = metrics.merge_moments(moments, part.moments)
    return Results(examples, moments)


def _fetch(examples: Mapping[str, Any], moments: Mapping[str, Any]) -> Results:
    examples, moments = ({k: np.asarray(v) for k, v in tree.items()} for tree in (examples, moments))
    lead = examples["index"].ndim
    examples = {name: x.reshape(-1, *x.shape[lead:]) for name, x in examples.items()}
    real = examples["weight"] > 0
    examples = {name: x[real] for name, x in examples.items() if name != "weight"}
    lead = moments["count"].ndim
    devices = {name: x.reshape(-1, *x.shape[lead:]) for name, x in moments.items()}
    total = {name: x[0].astype(np.float64) for name, x in devices.items()}
    for i in range(1, devices["count"].size):
        total = metrics.merge_moments(total, {name: x[i] for name, x in devices.items()})
    return Results(examples, total)


def extend(everything: Results, part: Results) -> Results:
    """Add measures that only some examples have to the results of all: the other examples get NaN.

    Args:
      everything: results without those measures.
      part: results of some of the same examples, with them.
    """
    place = np.searchsorted(everything.examples["index"], part.examples["index"])
    examples = dict(everything.examples)
    for name, values in part.examples.items():
        if name not in examples:
            examples[name] = np.full((everything.examples["index"].size, *values.shape[1:]), np.nan, values.dtype)
            examples[name][place] = values
    return Results(examples, everything.moments)


def save(path: Any, results: Results, settings: Mapping[str, Any]) -> None:
    """Write results to an `.npz` file together with the settings they depend on; a reader never sees half a file."""
    path = epath.Path(path)
    buffer = io.BytesIO()
    moments = {f"moments/{name}": value for name, value in results.moments.items()}
    np.savez(buffer, settings=json.dumps(settings, sort_keys=True), **results.examples, **moments)
    temporary = path.parent / f".{path.name}.tmp"
    temporary.write_bytes(buffer.getvalue())
    temporary.replace(path)


def load(path: Any, settings: Mapping[str, Any]) -> Results | None:
    """Read what `save` wrote with the same settings; None where there is nothing, or results of other settings."""
    path = epath.Path(path)
    if not path.exists():
        return None
    with np.load(io.BytesIO(path.read_bytes())) as arrays:
        if "settings" not in arrays or str(arrays["settings"]) != json.dumps(settings, sort_keys=True):
            return None
        names = [name for name in arrays if name != "settings"]
        moments = {name.removeprefix("moments/"): arrays[name] for name in names if name.startswith("moments/")}
        examples = {name: arrays[name] for name in names if not name.startswith("moments/")}
    return Results(examples, moments)
