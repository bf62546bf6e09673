"""Robustness metrics: change of an explanation under small changes of its image; and `consistency` over a data set.

Conventions, except for `consistency`:

- A function takes the explanation of one image, `explain_one(image [H, W, C], target, key) -> attribution`, of any
  shape and in evaluation mode. An image and its neighbours are explained with the same key, so that a method that
  draws, such as SmoothGrad, has equal draws and only the image differs.
- Neighbours are drawn uniformly and independently for every pixel and channel, within a radius in input units (those of
  the normalised image, if the network takes it). Only those that are evaluated at once exist at a time.
- Lower is better; 0 means that the explanation does not change. Values are NaN for an attribution of zeros and for one
  that is not finite.

Relative stability divides the explanation's change by that of the image, the features or the logits. An explanation
that changes although the logits hardly do is a bad one; if the features change much, it has a reason to change. Changes
of explanation, image and features are relative, entry by entry.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdecor.core.checks import check_count, check_range
from sdecor.core.chunks import map_examples
from sdecor.core.parallel import automatic
from sdecor.core.rng import per_example
from sdecor.metrics.inputs import Fn, check_classes, check_images, class_count, in_flight, nan_without_class
from sdecor.metrics.replacement import Baseline, baseline_images, finite, map_samples

ExplainOne = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
NOISE = 0x6E6F6973  # folded in before a sample's number, to share no draw with a method that folds in small numbers


def over_examples(
    one: Callable[..., Any],
    explain_one: ExplainOne,
    images: jax.Array,
    targets: jax.Array,
    key: jax.Array,
    attributions: jax.Array | None,
    chunk_size: int | None,
    more: tuple[jax.Array, ...] = (),
    count: int | None = None,
) -> Any:
    """Map `one(image, target, key, attribution, at_once, *more)` over examples; compute attributions if not given.

    `one` returns scalars. They become NaN for an image that is not finite and for a target that is no class. The number
    of classes is `count`, if known.
    """
    check_images(images)
    targets, keys = check_classes(images, targets, count=count), per_example(key, images.shape[0])
    known = () if attributions is None else (attributions,)
    if any(array.shape[:1] != images.shape[:1] for array in known):
        shapes = f"images {images.shape} and attributions {known[0].shape}"
        raise ValueError(f"{shapes} do not belong together: pass [N, H, W, C] and [N, …]")
    examples, at_once = in_flight(explain_one, chunk_size, images, targets, keys)

    def example(image: jax.Array, target: jax.Array, key: jax.Array, more: tuple, *own: jax.Array) -> Any:
        own = own[0] if own else explain_one(image, target, key)
        return one(image, target, key, own.astype(jnp.float32), at_once, *more)

    values = map_examples(example, (images, targets, keys, more, *known), examples)
    return nan_without_class(targets, jax.tree.map(lambda each: jnp.where(finite(images), each, jnp.nan), values))


def over_neighbours(
    evaluate: Callable[[jax.Array], Any], image: jax.Array, key: jax.Array, *, samples: int, radius: float, at_once: int
) -> Any:
    """Return `evaluate` of `samples` random images that differ from `image` by at most `radius`, stacked."""
    check_count("samples", samples)
    check_range("radius", radius, 0, low_open=True)
    key = jax.random.fold_in(key, NOISE)

    def neighbour(i: jax.Array) -> Any:
        draw = radius * symmetric_uniform(jax.random.fold_in(key, i), image.shape)
        return evaluate(image + draw.astype(image.dtype))

    return map_samples(neighbour, jnp.arange(samples), at_once)


def symmetric_uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return draws from 2¹⁶ equally spaced values in (−1, 1), symmetric about 0, float32 in `shape`.

    One random word gives two draws, and the words are drawn in one dimension. On a CPU, `jax.random.uniform` in an
    image's shape takes four times as long, a quarter of the time of a small network's gradient.
    """
    size = math.prod(shape)
    words = jax.random.bits(key, ((size + 1) // 2,))
    halves = jnp.concatenate([words >> 16, words & 0xFFFF])[:size]
    return ((halves.astype(jnp.float32) + 0.5) / 2**15 - 1).reshape(shape)


def norm(x: jax.Array) -> jax.Array:
    """Return the Euclidean norm of all entries, which are scaled first so that squares stay in float32's range."""
    peak = jnp.abs(x).max()
    scale = jnp.where(peak > 0, peak, 1)
    return scale * jnp.sqrt(((x / scale) ** 2).sum())


def defined_for(attribution: jax.Array, values: jax.Array) -> jax.Array:
    """Return the values; NaN where they are not finite, and everywhere for an attribution of zeros."""
    return jnp.where(jnp.isfinite(values) & (attribution != 0).any(), values, jnp.nan)


class Sensitivities(NamedTuple):
    """Results of one pass over the neighbours, `[N]` each."""

    maximum: jax.Array
    average: jax.Array
    lipschitz: jax.Array


@automatic
def sensitivities(
    explain_one: ExplainOne,
    images: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    samples: int = 10,
    radius: float = 0.02,
    relative: bool = True,
    chunk_size: int | None = None,
    attributions: jax.Array | None = None,
) -> Sensitivities:
    """Return max-sensitivity, average sensitivity and the local Lipschitz estimate over the same neighbours.

    Args:
      explain_one: explanation of one image, `explain_one(image, target, key) -> attribution` of any shape.
      images: floating point, `[N, H, W, C]`.
      targets: classes to explain, integers `[N]`, for an image and all its neighbours.
      key: one key or `[N]` keys. With a key for each example the result does not depend on batching.
      samples: number of neighbours of each image.
      radius: largest change of a pixel's channel, in input units.
      relative: whether to divide `lipschitz` by the norm of the image's explanation, as is always done for the
        sensitivities. Networks with different scales of scores can then be compared. The paper does not divide.
      chunk_size: explanations at once; it bounds memory. Default: as many as the device's memory holds.
      attributions: explanations of `images`, `[N, ...]`, if already computed with the same keys.

    Returns:
      `maximum` and `average` of `‖φ(x + u) − φ(x)‖ / ‖φ(x)‖`, and `lipschitz`, the maximum of
      `‖φ(x + u) − φ(x)‖ / ‖u‖`, over the neighbours `x + u` (Euclidean norms of all entries).

    References:
      Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", https://arxiv.org/abs/1901.09392, 2019.
      Alvarez-Melis, Jaakkola, "On the Robustness of Interpretability Methods", https://arxiv.org/abs/1806.08049, 2018.
    """

    def one(image: jax.Array, target: jax.Array, key: jax.Array, own: jax.Array, at_once: int) -> Sensitivities:
        # Divided by the largest value, so that squares stay in float32's range.
        peak = jnp.abs(own).max()
        unit = jnp.where(peak > 0, peak, 1)
        size = norm(own) / unit

        def neighbour(near: jax.Array) -> tuple[jax.Array, jax.Array]:
            change = (explain_one(near, target, key).astype(jnp.float32) - own) / unit
            step = (near - image).astype(jnp.float32)
            return jnp.sqrt((change**2).sum()), jnp.sqrt((step**2).sum())

        changes, steps = over_neighbours(neighbour, image, key, samples=samples, radius=radius, at_once=at_once)
        changes = defined_for(own, changes)
        slopes = changes / steps * (1 / size if relative else unit)
        return Sensitivities((changes / size).max(), (changes / size).mean(), slopes.max())

    return over_examples(one, explain_one, images, targets, key, attributions, chunk_size)


def max_sensitivity(explain_one: ExplainOne, images: jax.Array, targets: jax.Array, **options: Any) -> jax.Array:
    """Return the largest relative change of the explanation near the image, `[N]` ≥ 0; see `sensitivities`."""
    return sensitivities(explain_one, images, targets, **options).maximum


def avg_sensitivity(explain_one: ExplainOne, images: jax.Array, targets: jax.Array, **options: Any) -> jax.Array:
    """Return the mean relative change of the explanation near the image, `[N]` ≥ 0; see `sensitivities`."""
    return sensitivities(explain_one, images, targets, **options).average


def local_lipschitz(explain_one: ExplainOne, images: jax.Array, targets: jax.Array, **options: Any) -> jax.Array:
    """Return the largest change of the explanation per change of the image, `[N]` ≥ 0; see `sensitivities`.

    The unit is 1 / input unit, or attribution unit / input unit with `relative=False`.
    """
    return sensitivities(explain_one, images, targets, **options).lipschitz


@automatic
def continuity(
    explain_one: ExplainOne,
    images: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    shifts: Sequence[int] = (-4, -3, -2, -1, 1, 2, 3, 4),
    baseline: Baseline = "zero",
    relative: bool = True,
    chunk_size: int | None = None,
    attributions: jax.Array | None = None,
) -> jax.Array:
    """Return the largest change of the explanation per change of the image, as the image moves sideways.

    A series `[T, C]` moves in time.

    Args:
      shifts: distances in pixels, or time steps, other than 0; to the right, or later, if positive.
      baseline: replacement of the pixels that move in at the other side: see `baseline_images`.
      relative: whether to divide the change by the sum of the explanation's absolute values; the paper does not.

    The other arguments are those of `sensitivities`.

    Returns:
      The maximum of `‖φ(x') − φ(x)‖₁ / ‖x' − x‖₂` over the moved images x', `[N]` ≥ 0; NaN if one of them equals x.

    References:
      Montavon, Samek, Müller, "Methods for Interpreting and Understanding Deep Neural Networks",
      https://arxiv.org/abs/1706.07979, 2018.
    """
    if not len(shifts) or 0 in shifts:
        raise ValueError(f"shifts = {shifts!r}: pass distances in pixels other than 0, at least one")
    fills = baseline_images(images, baseline, key=key)
    if images.ndim < 3:
        raise ValueError(f"images has shape {images.shape}: features have no positions to move along")

    def one(image, target, key, own, at_once, fill):
        columns = jnp.arange(image.shape[-2])

        def moved(shift: jax.Array) -> jax.Array:
            source = columns - shift
            inside = ((source >= 0) & (source < columns.size)).reshape(*[1] * (image.ndim - 2), -1, 1)
            near = jnp.where(inside, jnp.take(image, jnp.clip(source, 0, columns.size - 1), axis=-2), fill)
            change = jnp.abs(explain_one(near, target, key).astype(jnp.float32) - own).sum()
            return change / norm((near - image).astype(jnp.float32))

        slopes = map_samples(moved, jnp.asarray(shifts, jnp.int32), at_once)
        return defined_for(own, slopes / (jnp.abs(own).sum() if relative else 1)).max()

    return over_examples(one, explain_one, images, targets, key, attributions, chunk_size, (fills,))


@automatic
def consistency(codes: jax.Array, predictions: jax.Array, *, chunk_size: int = 64) -> jax.Array:
    """Return, for each example, the share of examples with its prediction among the others with its explanation.

    It is a metric of the whole data set: pass all examples at once.

    Args:
      codes: discrete explanations, `[N]` or `[N, D]`. Equal codes count as the same explanation; the user chooses the
        code (the most salient pixel, a class of segments, …).
      predictions: predicted classes, integers `[N]`.
      chunk_size: examples to compare with all others at once.

    Returns:
      `[N]` in [0, 1], higher is better; NaN where no other example has the same explanation.

    References:
      Dasgupta, Frost, Moshkovitz, "Framework for Evaluating Faithfulness of Local Explanations",
      https://arxiv.org/abs/2202.00734, 2022.
    """
    check_count("chunk_size", chunk_size)
    n = codes.shape[0]
    if jnp.shape(predictions) != (n,):
        raise ValueError(f"predictions has shape {jnp.shape(predictions)}: pass ({n},), one for each explanation")
    codes = codes.reshape(n, -1)

    def one(place: jax.Array) -> jax.Array:
        same = (codes == codes[place][None]).all(1) & (jnp.arange(n) != place)
        agreeing = same & (predictions == predictions[place])
        return jnp.where(same.any(), agreeing.sum() / jnp.maximum(same.sum(), 1), jnp.nan)

    return map_examples(one, (jnp.arange(n),), chunk_size).astype(jnp.float32)


class Stabilities(NamedTuple):
    """Results of one pass over the neighbours, `[N]` each; `representation` is None without a `features_fn`."""

    input: jax.Array
    output: jax.Array
    representation: jax.Array | None


@automatic
def relative_stabilities(
    explain_one: ExplainOne,
    fn: Fn,
    images: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    features_fn: Fn | None = None,
    samples: int = 10,
    radius: float = 0.02,
    epsilon: float = 1e-6,
    chunk_size: int | None = None,
    attributions: jax.Array | None = None,
) -> Stabilities:
    """Return relative input, output and representation stability over the same neighbours.

    Args:
      explain_one: explanation of one image, `explain_one(image, target, key) -> attribution` of any shape.
      fn: the network, `image [H, W, C] -> logits [K]`, in evaluation mode.
      images: floating point, `[N, H, W, C]`.
      targets: classes to explain, integers `[N]`.
      key: one key or `[N]` keys. With a key for each example the result does not depend on batching.
      features_fn: features of the network, `image -> features` of any shape, for representation stability.
      samples: number of neighbours of each image.
      radius: largest change of a pixel's channel, in input units.
      epsilon: replacement of entries that are exactly 0 where a change is divided by the entry, and smallest
        denominator. Explanations with exact zeros (after dead units, in cropped maps) give huge values by definition.
      chunk_size: neighbours at once, each with its explanation and its forward pass. Default: as many as the device's
        memory holds.
      attributions: explanations of `images`, `[N, ...]`, if already computed with the same keys.

    Returns:
      The maxima of `‖δφ‖ / ‖δx‖`, `‖δφ‖ / ‖logits(x) − logits(x')‖` and `‖δφ‖ / ‖δfeatures‖` over the neighbours x'
      with the same prediction as x. Relative changes are `δφ = (φ(x) − φ(x')) / φ(x)`. NaN where no neighbour keeps the
      prediction, for an attribution of zeros, and for an attribution that is not finite.

    References:
      Agarwal et al., "Rethinking Stability for Attribution-based Explanations", https://arxiv.org/abs/2203.06877, 2022.
    """

    def one(image: jax.Array, target: jax.Array, key: jax.Array, own: jax.Array, at_once: int) -> tuple:
        def outputs(x: jax.Array) -> tuple[jax.Array, ...]:
            features = () if features_fn is None else (features_fn(x).astype(jnp.float32),)
            return x.astype(jnp.float32), fn(x).astype(jnp.float32), *features

        def relative(near: jax.Array, here: jax.Array) -> jax.Array:
            return norm((here - near) / jnp.where(here == 0, epsilon, here))

        here = outputs(image)

        def neighbour(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            near = outputs(x)
            change = relative(explain_one(x, target, key).astype(jnp.float32), own)
            # Equal logits have no gap, even if both are −inf to exclude a class.
            gap = jnp.where(near[1] == here[1], 0, near[1] - here[1])
            below = (relative(near[0], here[0]), norm(gap), *map(relative, near[2:], here[2:]))
            kept = (near[1].argmax() == here[1].argmax()) & jnp.isfinite(here[1].max())
            return kept, tuple(change / jnp.maximum(size, epsilon) for size in below)

        kept, ratios = over_neighbours(neighbour, image, key, samples=samples, radius=radius, at_once=at_once)
        # Without such a neighbour the maximum is −inf, which `defined_for` turns into NaN.
        return tuple(defined_for(own, jnp.where(kept, ratio, -jnp.inf).max()) for ratio in ratios)

    check_images(images)
    classes = class_count(fn, images)
    values = over_examples(one, explain_one, images, targets, key, attributions, chunk_size, count=classes)
    return Stabilities(values[0], values[1], values[2] if features_fn is not None else None)


def relative_input_stability(
    explain_one: ExplainOne, fn: Fn, images: jax.Array, targets: jax.Array, **options: Any
) -> jax.Array:
    """Return the largest ratio of the explanation's to the image's change, `[N]`; see `relative_stabilities`."""
    return relative_stabilities(explain_one, fn, images, targets, **options).input


def relative_output_stability(
    explain_one: ExplainOne, fn: Fn, images: jax.Array, targets: jax.Array, **options: Any
) -> jax.Array:
    """Return the largest ratio of the explanation's to the logits' change, `[N]`; see `relative_stabilities`."""
    return relative_stabilities(explain_one, fn, images, targets, **options).output


def relative_representation_stability(
    explain_one: ExplainOne, fn: Fn, features_fn: Fn, images: jax.Array, targets: jax.Array, **options: Any
) -> jax.Array:
    """Return the largest ratio of the explanation's to the features' change, `[N]`; see `relative_stabilities`."""
    return relative_stabilities(explain_one, fn, images, targets, features_fn=features_fn, **options).representation
