"""Faithfulness metrics: the score while pixels are replaced in the map's order, or masked softly by the map.

Curves: all channels of a pixel change together, equal values are ordered at random by the key, and a curve begins with
no pixel changed. An area is a trapezoid sum over the unit interval, so it does not depend on the number of steps.
To compare networks, use the difference from a random order, such as `insertion_vs_random`: see `relative_to_random`.

Soft masks (`average_drop`, `average_increase`): the map is scaled to [0, 1] by its own minimum and maximum. Where it is
0, the pixel is that of the baseline. Values are NaN for a map that is constant or not finite.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sdecor.core.arrays import widened
from sdecor.core.chunks import map_examples
from sdecor.core.classes import correct
from sdecor.core.parallel import automatic
from sdecor.core.rng import per_example
from sdecor.metrics.inputs import Fn, check_batch, check_images, class_count, in_flight, over_channels
from sdecor.metrics.replacement import (
    Baseline,
    area_under,
    baseline_images,
    defined,
    finite,
    map_samples,
    percentage_counts,
    ranks,
    replaced_scores,
    replacement_curve,
    score_of,
    unit_scaled,
    varies,
)


def relative_to_random(metric: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return the metric minus its value for a random order of pixels on the same network, in one compiled loop.

    A network that was trained on masked images keeps its score better when pixels are replaced, for any map. Only the
    difference compares maps across networks. 0 is chance; the better direction is that of the metric. Options that are
    arrays hold an entry for each example.
    """

    @automatic
    def relative(
        fn: Fn,
        images: jax.Array,
        maps: jax.Array,
        targets: jax.Array,
        *,
        key: jax.Array,
        chunk_size: int | None = None,
        **options: Any,
    ) -> jax.Array:
        targets, n = check_batch(images, maps, targets, fn=fn), images.shape[0]
        values = metric(
            fn,
            _twice(images),
            jnp.concatenate([maps, jnp.ones_like(maps)]),  # equal values are ordered at random
            _twice(targets),
            key=_twice(per_example(key, n)),
            chunk_size=chunk_size,
            **{name: _twice(value) if getattr(value, "ndim", 0) else value for name, value in options.items()},
        )
        return values[:n] - values[n:]

    relative.__name__ = f"{metric.__name__}_vs_random"
    relative.__doc__ = f"Return `{metric.__name__}` (same arguments) minus that of a random order, `[N]`; 0 is chance."
    return relative


def _twice(array: jax.Array) -> jax.Array:
    return jnp.concatenate([array, array])


@automatic
def insertion_curve(
    fn: Fn,
    images: jax.Array,
    maps: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    steps: int = 16,
    baseline: Baseline = "blur",
    order: str = "morf",
    saliency_of: str = "probability",
    chunk_size: int | None = None,
) -> jax.Array:
    """Return the target's probability while the most salient pixels are inserted into the baseline, `[N, steps + 1]`.

    See `deletion_curve` for the arguments.
    """
    targets = check_batch(images, maps, targets, fn=fn)
    start = baseline_images(images, baseline, key=key)
    options = {"key": key, "steps": steps, "order": order, "saliency_of": saliency_of, "chunk_size": chunk_size}
    return replacement_curve(fn, start, images, maps, targets, **options)


@automatic
def deletion_curve(
    fn: Fn,
    images: jax.Array,
    maps: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    steps: int = 16,
    baseline: Baseline = "zero",
    order: str = "morf",
    saliency_of: str = "probability",
    chunk_size: int | None = None,
) -> jax.Array:
    """Return the target's probability while the baseline replaces the most salient pixels, `[N, steps + 1]`.

    Args:
      fn: the network for one image, `image [H, W, C] -> logits [K]`, in evaluation mode.
      images: `[N, H, W, C]`.
      maps: `[N, H, W]`; the highest values are changed first. Equal values are ordered at random.
      targets: classes whose score is used, integers `[N]`, one for all, or "predicted", as in RISE.
      key: one key or `[N]` keys, for the order of equal values. With a key for each example the result does not depend
        on batching.
      steps: number of steps; (nearly) the same number of pixels changes in each.
      baseline: replacement of the pixels: "zero" (the data set's mean color, in normalised space), "mean", "blur",
        "black", "white", "uniform", images `[N, H, W, C]` or a function of images and keys: see `baseline_images`.
      order: "morf" (most relevant first), "lerf" (least relevant first) or "random".
      saliency_of: score of the target: "probability", "log_probability" or "logit".
      chunk_size: network evaluations at once; it bounds memory. Default: as many as the device's memory holds.

    Returns:
      Scores `[N, steps + 1]`; in column j, `round(j·H·W/steps)` pixels are changed. NaN for a map of zeros or one that
      is not finite.

    References:
      Petsiuk, Das, Saenko, "RISE", https://arxiv.org/abs/1806.07421, 2018.
    """
    targets = check_batch(images, maps, targets, fn=fn)
    end = baseline_images(images, baseline, key=key)
    options = {"key": key, "steps": steps, "order": order, "saliency_of": saliency_of, "chunk_size": chunk_size}
    return replacement_curve(fn, images, end, maps, targets, **options)


def insertion(fn: Fn, images: jax.Array, maps: jax.Array, targets: jax.Array, **options) -> jax.Array:
    """Return the area under `insertion_curve` (same arguments), `[N]`; higher is better."""
    return area_under(insertion_curve(fn, images, maps, targets, **options))


def deletion(fn: Fn, images: jax.Array, maps: jax.Array, targets: jax.Array, **options) -> jax.Array:
    """Return the area under `deletion_curve` (same arguments), `[N]`; lower is better."""
    return area_under(deletion_curve(fn, images, maps, targets, **options))


insertion_vs_random = relative_to_random(insertion)
deletion_vs_random = relative_to_random(deletion)


def pixel_flipping_curve(
    fn: Fn,
    images: jax.Array,
    maps: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    steps: int | None = 32,
    baseline: Baseline = "black",
    **options,
) -> jax.Array:
    """Return the target's probability while pixels are flipped to the baseline, highest relevance first.

    It is `deletion_curve` with the defaults of pixel flipping; see there for the other arguments.

    Args:
      steps: number of steps; None flips one pixel per step, as published: `H·W + 1` evaluations per image.
      baseline: value of a flipped pixel.

    Returns:
      `[N, steps + 1]`.

    References:
      Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance
      Propagation", https://doi.org/10.1371/journal.pone.0130140, 2015.
    """
    steps = math.prod(maps.shape[1:]) if steps is None else steps
    return deletion_curve(fn, images, maps, targets, key=key, steps=steps, baseline=baseline, **options)


def pixel_flipping(fn: Fn, images: jax.Array, maps: jax.Array, targets: jax.Array, **options) -> jax.Array:
    """Return the area under `pixel_flipping_curve` (same arguments), `[N]`; lower is better."""
    return area_under(pixel_flipping_curve(fn, images, maps, targets, **options))


def monotonicity(
    fn: Fn,
    images: jax.Array,
    maps: jax.Array,
    targets: jax.Array,
    *,
    steps: int = 32,
    baseline: Baseline = "black",
    **options,
) -> jax.Array:
    """Return 1 if the probability never falls while pixels enter the baseline, least relevant first; else 0.

    Args:
      steps: number of (nearly) equal groups of pixels to insert. The first comparison is of groups 1 and 2.
      baseline: image into which pixels are inserted.
      **options: `key` and other options of `insertion_curve`.

    Returns:
      `[N]`; higher is better, NaN for a map of zeros or one that is not finite.

    References:
      Arya et al., "One Explanation Does Not Fit All", https://arxiv.org/abs/1909.03012, 2019.
    """
    curve = insertion_curve(fn, images, maps, targets, steps=steps, baseline=baseline, order="lerf", **options)
    rises = (jnp.diff(curve[:, 1:], axis=1) >= 0).all(1).astype(jnp.float32)
    return jnp.where(jnp.isfinite(curve).all(1), rises, jnp.nan)


@automatic
def masked_accuracy_curve(
    fn: Fn,
    images: jax.Array,
    maps: jax.Array,
    labels: jax.Array,
    *,
    key: jax.Array,
    percentages: tuple[int, ...] = tuple(range(0, 100, 10)),
    baseline: Baseline = "black",
    chunk_size: int | None = None,
) -> jax.Array:
    """Return whether the label is still predicted without the pixels of largest absolute saliency.

    The paper evaluates saliency-guided training by this curve. Nothing is retrained, and the accuracy falls early for a
    faithful map. The paper replaces pixels by the image's corner pixel, which in MNIST has the darkest value, "black"
    here.

    Args:
      fn, images, maps, key, chunk_size: see `deletion_curve`; the order is that of `abs(maps)`.
      labels: true classes, integers `[N]`.
      percentages: percentages of the pixels to replace, integers in [0, 100].
      baseline: replacement of these pixels.

    Returns:
      1 or 0, `[N, len(percentages)]`; its mean over examples is the accuracy at each percentage. Lower is better.

    References:
      Ismail, Corrada Bravo, Feizi, "Improving Deep Learning Interpretability by Saliency Guided Training",
      https://arxiv.org/abs/2111.14338, 2021.
    """
    check_images(images)
    labels = check_batch(images, maps, labels, count=class_count(fn, images), field="labels")
    end = baseline_images(images, baseline, key=key)
    counts = percentage_counts(maps[0].size, percentages)
    places = ranks(jnp.abs(maps), key)
    curve = replaced_scores(fn, images, end, places, counts, labels, score=correct, chunk_size=chunk_size)
    return jnp.where(defined(maps)[:, None], curve, jnp.nan)


@automatic
def average_drop(fn: Fn, images: jax.Array, maps: jax.Array, targets: jax.Array, **options) -> jax.Array:
    """Return the share of the target's probability that is lost when the map masks the image; a gain counts as 0.

    Args:
      fn: the network for one image, `image [H, W, C] -> logits [K]`, in evaluation mode.
      images: `[N, H, W, C]`.
      maps: `[N, H, W]`.
      targets: classes whose score is used, integers `[N]`.
      **options: `baseline` ("zero"; see `baseline_images`), `saliency_of` ("probability"), `chunk_size` and, for a
        baseline that draws, `key`.

    Returns:
      `max(0, Y − O)/Y`, `[N]` in [0, 1], with the probability Y of the image and O of the masked image; lower is
      better. The papers give its mean in per cent.

    References:
      Chattopadhay et al., "Grad-CAM++", https://arxiv.org/abs/1710.11063, 2018.
      Wang et al., "Score-CAM", https://arxiv.org/abs/1910.01279, 2020.
    """
    whole, masked = _scores(fn, images, maps, targets, **options)
    lost = jnp.maximum(whole - masked, 0) / jnp.where(whole != 0, whole, jnp.nan)
    return jnp.where(varies(maps), lost, jnp.nan)


@automatic
def average_increase(fn: Fn, images: jax.Array, maps: jax.Array, targets: jax.Array, **options) -> jax.Array:
    """Return 1 if the target's probability is larger for the masked image than for the image, else 0.

    See `average_drop` for the arguments.

    Returns:
      `[N]`; higher is better. The paper gives its mean in per cent, as "increase in confidence".

    References:
      Chattopadhay et al., "Grad-CAM++", https://arxiv.org/abs/1710.11063, 2018.
    """
    whole, masked = _scores(fn, images, maps, targets, **options)
    return jnp.where(varies(maps) & jnp.isfinite(whole - masked), (masked > whole).astype(jnp.float32), jnp.nan)


def _scores(
    fn: Fn,
    images: jax.Array,
    maps: jax.Array,
    targets: jax.Array,
    *,
    baseline: Baseline = "zero",
    saliency_of: str = "probability",
    chunk_size: int | None = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return the target's score of the image and of the masked image, `[N]` each."""
    targets = check_batch(images, maps, targets, fn=fn)
    end = baseline_images(images, baseline, key=key)
    weights = over_channels(unit_scaled(maps), images)
    score = score_of(saliency_of)
    examples, at_once = in_flight(fn, chunk_size, images)

    def one(image: jax.Array, base: jax.Array, weight: jax.Array, target: jax.Array) -> jax.Array:
        masked = (widened(base) + weight * (widened(image) - widened(base))).astype(image.dtype)
        return map_samples(lambda hide: score(fn(jnp.where(hide, masked, image)), target), jnp.arange(2) > 0, at_once)

    scores = map_examples(one, (images, end, weights, targets), examples)
    scores = jnp.where(finite(images)[:, None], scores, jnp.nan)
    return scores[:, 0], scores[:, 1]
