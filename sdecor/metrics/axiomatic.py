"""Axiomatic metrics: how far an attribution is from properties that it should have by definition."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sdecor.attribution import target_score
from sdecor.core.arrays import widened
from sdecor.core.checks import check_count
from sdecor.core.chunks import map_examples
from sdecor.core.parallel import automatic
from sdecor.core.rng import per_example
from sdecor.metrics.inputs import (
    Fn,
    check_batch,
    check_classes,
    check_images,
    class_count,
    in_flight,
    map_shape,
    over_channels,
)
from sdecor.metrics.replacement import Baseline, baseline_images, finite, map_samples
from sdecor.metrics.robustness import defined_for, over_examples


@automatic
def completeness(
    fn: Fn,
    images: jax.Array,
    attributions: jax.Array,
    targets: jax.Array,
    *,
    baseline: Baseline = "zero",
    saliency_of: str = "logit",
    relative: bool = False,
    chunk_size: int | None = None,
) -> jax.Array:
    """Return the attribution's sum minus the rise of the score from the baseline to the image.

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`, in evaluation mode.
      images: `[N, H, W, C]`.
      attributions: signed attributions `[N, …]`; all entries are summed.
      targets: explained classes, integers `[N]`.
      baseline: baseline of the attribution method: see `baseline_images`.
      saliency_of: score that the method explained: "logit", "log_probability" or "probability".
      relative: whether to divide the result by the absolute value of the rise.
      chunk_size: network evaluations at once; it bounds memory. Default: as many as the device's memory holds.

    Returns:
      `Σ φ − (f(x) − f(baseline))`, `[N]` in score units or relative to the rise; 0 is complete. NaN for an attribution
      that is not finite and, if relative, where the score does not change.

    References:
      Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", https://arxiv.org/abs/1703.01365, 2017.
    """
    check_images(images)
    targets, n = check_classes(images, targets, fn=fn), images.shape[0]
    if attributions.shape[:1] != (n,):
        raise ValueError(
            f"images {images.shape} and attributions {attributions.shape} do not belong together: "
            "pass [N, H, W, C] and [N, …]"
        )
    examples, _ = in_flight(fn, chunk_size, images)

    def score(image: jax.Array, target: jax.Array) -> jax.Array:
        return target_score(fn(image).astype(jnp.float32), target, saliency_of=saliency_of)

    # One after the other, because both together would double the number of evaluations at once.
    pairs = jnp.stack([images, baseline_images(images, baseline)])
    here, there = jax.lax.map(lambda x: map_examples(score, (x, targets), examples), pairs)
    gap = attributions.astype(jnp.float32).reshape(n, -1).sum(1) - (here - there)
    gap = gap / jnp.abs(here - there) if relative else gap
    return jnp.where(jnp.isfinite(gap) & finite(images), gap, jnp.nan)


@automatic
def non_sensitivity(
    fn: Fn,
    images: jax.Array,
    maps: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    baseline: Baseline = "uniform",
    samples: int = 1,
    pixels: int | None = None,
    tolerance: float = 1e-5,
    score_tolerance: float = 1e-5,
    saliency_of: str = "probability",
    chunk_size: int | None = None,
) -> jax.Array:
    """Return the share of pixels where exactly one of these holds: the map is 0; the score ignores the pixel.

    Cost: one network evaluation for each visited pixel and sample.

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`, in evaluation mode.
      images: `[N, H, W, C]`.
      maps: `[N, H, W]`.
      targets: explained classes, integers `[N]`.
      key: one key or `[N]` keys. With a key for each example the result does not depend on batching.
      baseline: replacement of a pixel: "uniform", drawn for each sample between the minimum and the maximum of the
        channel in the image; or another of the `baseline_images`, which gives the pixel at the same position.
      samples: number of replacements of each pixel. One is enough unless the network is flat around the drawn value.
      pixels: number of pixels to visit, chosen at random. Default: all.
      tolerance: largest value that counts as 0, as a share of the map's largest absolute value.
      score_tolerance: largest root mean square change of the score, in score units, that counts as no change.
      saliency_of: score of the target: "probability", "logit" or "log_probability".
      chunk_size: network evaluations at once; it bounds memory. Default: as many as the device's memory holds.

    Returns:
      `[N]` in [0, 1], lower is better. NaN for a map of zeros and for a map that is not finite.

    References:
      Nguyen, Rodríguez Martínez, "On Quantitative Aspects of Model Interpretability",
      https://arxiv.org/abs/2007.07584, 2020.
    """
    check_count("samples", samples)
    targets = check_batch(images, maps, targets, fn=fn)
    sides = map_shape(images.shape)[1:]
    n, count = images.shape[0], math.prod(sides)
    visited = count if pixels is None else pixels
    check_count("pixels", visited, 1, count)
    drawn = isinstance(baseline, str) and baseline == "uniform"
    others = images if drawn else baseline_images(images, baseline, key=key)
    examples, at_once = in_flight(fn, chunk_size, images)

    def one(image, other, saliency, target, key):
        strength = jnp.abs(saliency.astype(jnp.float32)).ravel()
        key, order_key = jax.random.split(key)
        order = jnp.arange(count)
        order = order if pixels is None else jax.random.permutation(order_key, order)[:visited]
        low, high = (widened(extreme(image, axis=tuple(range(image.ndim - 1)))) for extreme in (jnp.min, jnp.max))

        def score(x: jax.Array) -> jax.Array:
            return target_score(fn(x).astype(jnp.float32), target, saliency_of=saliency_of)

        here = score(image)

        def ignored(place: jax.Array) -> jax.Array:
            def change(sample: jax.Array) -> jax.Array:
                value = other.reshape(count, *image.shape[len(sides) :])[place]
                if drawn:
                    own_key = jax.random.fold_in(jax.random.fold_in(key, place), sample)
                    draw = jax.random.uniform(own_key, low.shape, low.dtype)
                    value = (low + (high - low) * draw).astype(image.dtype)
                mask = over_channels((jnp.arange(count) == place).reshape(sides), image)
                return (score(jnp.where(mask, value, image)) - here) ** 2

            return jnp.sqrt(jax.lax.map(change, jnp.arange(samples)).mean()) <= score_tolerance

        mismatch = map_samples(ignored, order, at_once) ^ (strength[order] <= tolerance * strength.max())
        known = jnp.isfinite(strength).all() & jnp.isfinite(here) & jnp.isfinite(image).all()
        defined = known & (strength > 0).any()
        return jnp.where(defined, mismatch.mean(), jnp.nan)

    return map_examples(one, (images, others, maps, targets, per_example(key, n)), examples)


@automatic
def input_invariance(
    explain_of: Callable[[Fn, jax.Array, jax.Array, jax.Array], jax.Array],
    fn: Fn,
    images: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    shift: float | jax.Array = 1.0,
    chunk_size: int | None = None,
    attributions: jax.Array | None = None,
) -> jax.Array:
    """Return the relative change of the explanation when image and network are shifted so that no output changes.

    Args:
      explain_of: explanation of one image for a given network, `explain_of(fn, image, target, key) -> attribution`.
      fn: the network, `image [H, W, C] -> logits [K]`, in evaluation mode.
      images: `[N, H, W, C]`.
      targets: classes to explain, integers `[N]`.
      key: one key or `[N]` keys, for an explanation that draws; both explanations use the same key.
      shift: shift of the image, in input units: a number, or an array that broadcasts to `[H, W, C]`.
      chunk_size: explanations at once; it bounds memory. Default: as many as the device's memory holds.
      attributions: explanations of `fn` at `images`, `[N, …]`, if already computed.

    Returns:
      `Σ |φ(f, x) − φ(f(· − shift), x + shift)| / Σ |φ(f, x)|`, `[N]` ≥ 0; 0 is invariant. NaN for an attribution of
      zeros and for an attribution that is not finite.

    References:
      Kindermans et al., "The (Un)reliability of Saliency Methods", https://arxiv.org/abs/1711.00867, 2017.
    """

    def shifted(x: jax.Array) -> jax.Array:
        return fn(x - shift)

    def one(image: jax.Array, target: jax.Array, key: jax.Array, own: jax.Array, at_once: int) -> jax.Array:
        other = explain_of(shifted, image + shift, target, key).astype(jnp.float32)
        return defined_for(own, jnp.abs(own - other).sum() / jnp.abs(own).sum())

    def explain_one(image: jax.Array, target: jax.Array, key: jax.Array) -> jax.Array:
        return explain_of(fn, image, target, key)

    check_images(images)
    classes = class_count(fn, images)
    return over_examples(one, explain_one, images, targets, key, attributions, chunk_size, count=classes)
