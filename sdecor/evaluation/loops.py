"""Metrics that need more than a call: several from one loop over the network, or arguments of their own."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdecor import metrics
from sdecor.attribution.baselines import baseline_image

Fn = Callable[[jax.Array], jax.Array]


class Context(NamedTuple):
    """A batch of n examples, explained by one method.

    Attributes:
      images: as the network takes them, `[n, H, W, C]`.
      targets: classes explained, int `[n]`.
      labels: the right classes, int `[n]`.
      maps: the attributions reduced over channels, `[n, H, W]`.
      signed: their sum over channels, `[n, H, W]`: a pixel contributes what its channels do.
      objects: bool `[n, H, W]`, or None where the data set has no masks.
      ignore: bool `[n, H, W]`, pixels that count neither as object nor as background; or None.
      keys: `[n]`, for what a measure draws.
      explanation_keys: `[n]`, those that the attributions were made with.
      chunk_size: network evaluations in flight.
      num_classes: of the network.
      params: the network's parameters.
      fn_of: the network of given parameters, `params -> (image [H, W, C] -> logits [K])`.
      features_fn: the network's features, `image -> [D]`.
      attributions: signed, `[n, H, W, C]`; None for measures that explain nothing again.
      contributions: whether the method's attributions are in score units rather than score units per input unit.
      explain_of: the method, `(fn, image, target, key) -> attribution [H, W, C]`; None for the same measures.
    """

    images: jax.Array
    targets: jax.Array
    labels: jax.Array
    maps: jax.Array
    signed: jax.Array
    objects: jax.Array | None
    ignore: jax.Array | None
    keys: jax.Array
    explanation_keys: jax.Array
    chunk_size: int
    num_classes: int
    params: Any
    fn_of: Callable[[Any], Fn]
    features_fn: Fn
    attributions: jax.Array | None
    contributions: bool
    explain_of: Callable[[Fn, jax.Array, jax.Array, jax.Array], jax.Array] | None

    @property
    def fn(self) -> Fn:
        """The network, `image -> logits`."""
        return self.fn_of(self.params)

    @property
    def explain_one(self) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
        """The explanation as a function of the image, `(image, target, key) -> attribution`."""
        return partial(self.explain_of, self.fn)

    def explain_with(self, params: Any, image: jax.Array, target: jax.Array, key: jax.Array) -> jax.Array:
        """Explain one image by the network of other parameters."""
        return self.explain_of(self.fn_of(params), image, target, key)


PARAMETER_SEED = 0  # of the random parameters, the same for every image


def replacement(
    context: Context, *, steps: int, insertion_baseline: Any, deletion_baseline: Any
) -> tuple[jax.Array, ...]:
    """Return insertion, deletion and their curves."""
    images, n = context.images, context.images.shape[0]
    start, end = (
        metrics.baseline_images(images, baseline, key=context.keys).astype(images.dtype)
        for baseline in (insertion_baseline, deletion_baseline)
    )
    # Both curves in one loop: the network is compiled once.
    curves = metrics.replacement_curve(
        context.fn,
        jnp.concatenate([start, images]),
        jnp.concatenate([images, end]),
        jnp.tile(context.maps, (2, 1, 1)),
        jnp.tile(context.targets, 2),
        key=jnp.tile(context.keys, 2),
        steps=steps,
        chunk_size=context.chunk_size,
    )
    areas = metrics.area_under(curves)
    return areas[:n], areas[n:], curves[:n], curves[n:]


def road(context: Context, **options: Any) -> tuple[jax.Array, jax.Array]:
    """Return the mean accuracy over the percentages removed, and the accuracy at each, as 1 or 0 of each example."""
    batch = (context.images, context.maps, context.labels)
    curves = metrics.road_curves(context.fn, *batch, key=context.keys, chunk_size=context.chunk_size, **options)
    return curves.correct.mean(1), curves.correct


def masked_accuracy(context: Context, **options: Any) -> tuple[jax.Array, jax.Array]:
    """Return the mean accuracy over the percentages replaced, and the accuracy at each, as 1 or 0 of each example."""
    batch = (context.images, context.maps, context.labels)
    options |= {"key": context.keys, "chunk_size": context.chunk_size}
    curve = metrics.masked_accuracy_curve(context.fn, *batch, **options)
    return curve.mean(1), curve


def top_k_intersection(context: Context, *, share: float) -> tuple[jax.Array]:
    """Return the top-k intersection for the k pixels that are `share` of the image."""
    k = max(1, round(share * context.maps[0].size))
    return (metrics.top_k_intersection(context.maps, context.objects, k=k, ignore=context.ignore),)


def completeness(context: Context, *, baseline: Any, **options: Any) -> tuple:
    """Return the size of the completeness gap."""
    batch = (context.images, context.signed, context.targets)
    options |= {"baseline": _starts(context, baseline), "chunk_size": context.chunk_size}
    return (jnp.abs(metrics.completeness(context.fn, *batch, **options)),)


def infidelity(context: Context, *, baseline: Any, **options: Any) -> tuple:
    """Return infidelity; where an attribution has fewer channels than the image, it counts for all of them alike."""
    whole = context.attributions.shape == context.images.shape
    batch = (context.images, context.attributions if whole else context.signed, context.targets)
    options |= {"key": context.keys, "contributions": context.contributions and whole}
    options |= {"baseline": _starts(context, baseline), "chunk_size": context.chunk_size}
    return (metrics.infidelity(context.fn, *batch, **options),)


def _starts(context: Context, baseline: Any) -> jax.Array:
    """Return the images that a method compares with, `[n, H, W, C]`: the same noise, too, where it draws them."""
    one = partial(baseline_image, baseline)
    return jax.vmap(lambda image, key: one(image, key=key))(context.images, context.explanation_keys)


def sensitivities(context: Context, **options: Any) -> tuple[jax.Array, ...]:
    """Return max-sensitivity, average sensitivity and the local Lipschitz estimate."""
    explained = (context.explain_one, context.images, context.targets)
    return tuple(metrics.sensitivities(*explained, **repeated(context), **options))


def stabilities(context: Context, **options: Any) -> tuple[jax.Array, ...]:
    """Return relative input, output and representation stability."""
    explained = (context.explain_one, context.fn, context.images, context.targets)
    options |= {"features_fn": context.features_fn}
    return tuple(metrics.relative_stabilities(*explained, **repeated(context), **options))


def random_logit(context: Context, **options: Any) -> tuple[jax.Array]:
    """Return the similarity to another class's explanation."""
    explained = (context.explain_one, context.images, context.targets)
    options |= {"num_classes": context.num_classes}
    return (metrics.random_logit(*explained, **repeated(context), **options),)


def input_invariance(context: Context, **options: Any) -> tuple[jax.Array]:
    """Return how much the explanation changes when image and network are shifted alike."""
    explained = (context.explain_of, context.fn, context.images, context.targets)
    return (metrics.input_invariance(*explained, **repeated(context), **options),)


def parameter_randomization(context: Context, **options: Any) -> tuple[jax.Array, jax.Array]:
    """Return the mean over the layers and each layer's value `[n, L]`."""
    layers = metrics.parameter_randomization(*randomized(context), **repeated(context), **options)
    return layers.mean(1), layers


def smooth_mprt(context: Context, **options: Any) -> tuple[jax.Array, jax.Array]:
    """Return the mean over the layers and each layer's value `[n, L]`."""
    # The known attributions are those of the image, not of its noisy copies.
    options |= {"key": context.explanation_keys, "chunk_size": context.chunk_size}
    layers = metrics.smooth_mprt(*randomized(context), **options)
    return layers.mean(1), layers


def sufficiency(maps: np.ndarray, predictions: np.ndarray, **options: Any) -> np.ndarray:
    """Return sufficiency of all maps, `[M]` each."""
    return np.asarray(metrics.sufficiency(jnp.asarray(maps), jnp.asarray(predictions), **options))


def consistency(maps: np.ndarray, predictions: np.ndarray, *, cells: int) -> np.ndarray:
    """Return consistency, with explanations counted the same whose most salient of `cells` × `cells` parts is."""
    rows = np.minimum(np.arange(maps.shape[1]) * cells // maps.shape[1], cells - 1)
    columns = np.minimum(np.arange(maps.shape[2]) * cells // maps.shape[2], cells - 1)
    part = rows[:, None] * cells + columns
    sums = np.stack([np.where(part == cell, maps, 0).sum((1, 2)) for cell in range(cells**2)], axis=1)
    values, defined = np.full(len(maps), np.nan, np.float32), np.isfinite(sums).all(1) & (sums > 0).any(1)
    codes = sums[defined].argmax(1)
    values[defined] = metrics.consistency(jnp.asarray(codes), jnp.asarray(predictions[defined]))
    return values


def repeated(context: Context) -> dict[str, Any]:
    """Return the keywords of metrics that explain again and compare."""
    return {
        "key": context.explanation_keys,
        "chunk_size": context.chunk_size,
        "attributions": context.attributions,
    }


def randomized(context: Context) -> tuple[Any, ...]:
    """Return the arguments of metrics that replace parameters."""
    random_params = metrics.redraw(jax.random.key(PARAMETER_SEED), context.params)
    return context.explain_with, context.params, random_params, context.images, context.targets
