"""Scores of an image while its pixels are replaced in an order; the faithfulness metrics are built from them.

All channels of a pixel change together. Every function takes the network for one image,
`fn: image [H, W, C] -> logits [K]`. Other inputs, such as series `[N, T, C]` with maps `[N, T]`, or features `[N, F]`
with maps `[N, F]`, are taken likewise.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sdecor.attribution.baselines import BASELINES, baseline_image
from sdecor.attribution.targets import target_score
from sdecor.core.arrays import moderate, order_keys, signed, sort_rows, unsigned
from sdecor.core.checks import check_choice, check_count, check_range
from sdecor.core.chunks import map_examples
from sdecor.core.parallel import automatic
from sdecor.core.rng import per_example
from sdecor.metrics.inputs import Fn, check_batch, check_images, class_count, in_flight, over_channels

ORDERS = ("morf", "lerf", "random")
Baseline = str | jax.Array | Callable[[jax.Array, jax.Array | None], jax.Array]


def ranks(values: jax.Array, key: jax.Array, *, order: str = "morf") -> jax.Array:
    """Return each value's place in the order of its example, from 0; equal values are in random order.

    Args:
      values: `[N, ...]`, for example maps `[N, H, W]`.
      key: one key or `[N]` keys.
      order: "morf" (most relevant first: descending), "lerf" (least relevant first) or "random" (values are ignored).

    Returns:
      Permutations of 0 … F−1, int32 in the shape of `values`.
    """
    check_choice("order", order, ORDERS)
    if order == "random":
        return random_ranks(key, values.shape)
    n = values.shape[0]
    rows = values.astype(jnp.float32).reshape(n, -1)
    keys = order_keys(-rows if order == "morf" else rows)
    return _places(keys, _random_bits(key, rows.shape)).reshape(values.shape)


def random_ranks(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return a random permutation of 0 … F−1 for each example, int32 in `shape` `[N, ...]`."""
    n, *rest = shape
    bits = _random_bits(key, (n, math.prod(rest)))
    width = max(1, (bits.shape[1] - 1).bit_length())
    # The order of random numbers is as random as their places in it, and saves a scatter.
    return _order(bits >> width, width).astype(jnp.int32).reshape(shape)


def _random_bits(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    return jax.vmap(lambda k: jax.random.bits(k, shape[1:]))(per_example(key, shape[0]))


def _places(keys: jax.Array, bits: jax.Array) -> jax.Array:
    """Return places in ascending order of int32 keys `[N, F]`; random bits break ties."""
    count = keys.shape[1]
    if count > 2**16:
        order = jnp.lexsort((bits, keys), axis=1)
    else:
        # Radix sort, least significant digit first: sorting single integers is several times faster than sorting
        # pairs, so each pass sorts 16 bits and keeps the index in the other 16.
        number = unsigned(keys)
        digits = jnp.stack([bits >> 16, number & 0xFFFF, number >> 16])

        def sort_by(order: jax.Array, digit: jax.Array) -> tuple[jax.Array, None]:
            moved = _order(jnp.take_along_axis(digit, order, axis=1), 16)
            return jnp.take_along_axis(order, moved, axis=1), None

        start = jnp.broadcast_to(jnp.arange(count, dtype=jnp.uint32), keys.shape)
        order, _ = jax.lax.scan(sort_by, start, digits)
    places = jnp.arange(count, dtype=jnp.int32)
    return jax.vmap(lambda row: jnp.zeros_like(places).at[row].set(places))(order)


def _order(digits: jax.Array, width: int) -> jax.Array:
    """Return the stable ascending order of each row of digits, uint32; digits leave `width` bits free for an index."""
    packed = digits << width | jnp.arange(digits.shape[1], dtype=jnp.uint32)[None]
    return unsigned(sort_rows(signed(packed))) & jnp.uint32(2**width - 1)


Score = Callable[[jax.Array, jax.Array], jax.Array]


def baseline_images(images: jax.Array, baseline: Baseline, *, key: jax.Array | None = None) -> jax.Array:
    """Return the images `[N, H, W, C]` whose pixels replace removed pixels.

    Args:
      images: `[N, H, W, C]`.
      baseline: "zero" (the data set's mean color, in normalised space), "mean" (the image's own mean color), "blur"
        (the image blurred by a Gaussian of 5 pixels), "black" and "white" (the minimum and maximum of each channel in
        the image), "uniform" (noise between these two); images `[N, H, W, C]`; or a function `(images, keys) ->
        images`, such as `functools.partial(blurred, sigma=2.0)`. `keys` are `[N]`, or None without a `key`.
      key: one key or `[N]` keys, for "uniform" and for functions that draw.
    """
    check_images(images)
    if not isinstance(baseline, str):
        given = baseline(images, _baseline_keys(key, images)) if callable(baseline) else baseline
        given = jnp.asarray(given, images.dtype)
        if given.shape != images.shape:
            known = f"{images.shape}, a function, or one of {BASELINES}"
            raise ValueError(f"baseline has shape {given.shape}: pass {known}")
        return given
    check_choice("baseline", baseline, BASELINES)
    if baseline == "uniform" and key is not None:
        keys = _baseline_keys(key, images)
        return jax.vmap(lambda image, k: baseline_image(baseline, image, key=k))(images, keys)
    return jax.vmap(lambda image: baseline_image(baseline, image))(images)


def _baseline_keys(key: jax.Array | None, images: jax.Array) -> jax.Array | None:
    """Return keys `[N]` that are independent of those for the order of equal values."""
    return None if key is None else jax.vmap(lambda k: jax.random.fold_in(k, 1))(per_example(key, images.shape[0]))


@automatic
def replacement_curve(
    fn: Fn,
    start: jax.Array,
    end: jax.Array,
    maps: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    steps: int = 16,
    order: str = "morf",
    saliency_of: str = "probability",
    chunk_size: int | None = None,
) -> jax.Array:
    """Return the target's score while `end` replaces the most salient pixels of `start`, `[N, steps + 1]`.

    Insertion and deletion are built from this curve. `start` and `end` are images `[N, H, W, C]`; see `deletion_curve`
    for the other arguments and the result.
    """
    check_images(start)
    targets = check_batch(start, maps, targets, count=class_count(fn, start))
    if end.shape != start.shape:
        raise ValueError(f"start {start.shape} and end {end.shape} do not belong together: pass [N, H, W, C] twice")
    counts = step_counts(maps[0].size, steps)
    score = score_of(saliency_of)
    places = ranks(maps, key, order=order)
    curves = replaced_scores(fn, start, end, places, counts, targets, score=score, chunk_size=chunk_size)
    return jnp.where(defined(maps)[:, None], curves, jnp.nan)


def replaced_scores(
    fn: Fn,
    start: jax.Array,
    end: jax.Array,
    places: jax.Array,
    windows: Sequence[int | tuple[int, int]],
    targets: jax.Array,
    *,
    score: Score,
    chunk_size: int | None = None,
) -> jax.Array:
    """Return `score(logits, target)` of images with some pixels replaced, `[N, len(windows)]`.

    NaN for images that are not finite. The network may hide a NaN, for example by a ReLU after a maximum that ignores
    it.

    Args:
      fn: the network for one image.
      start: images `[N, H, W, C]`.
      end: images with the replacing pixels, `[N, H, W, C]`.
      places: places of the pixels in an order, int `[N, H, W]`.
      windows: places to replace: an integer for all places before it, or a pair for those from the first number up to
        the second (exclusive).
      targets: target classes, int `[N]`.
      score: function from the logits of one image and its target to a scalar.
      chunk_size: network evaluations at once; None = as many as the device's memory holds.
    """
    examples, samples = in_flight(fn, chunk_size, start)
    known = finite(start) & finite(end)

    def one(first: jax.Array, last: jax.Array, place: jax.Array, target: jax.Array) -> jax.Array:
        def scored(window: jax.Array) -> jax.Array:
            return score(fn(jnp.where(over_channels(inside(place, window), first), last, first)), target)

        # Under vmap, the loop evaluates all examples at each window: this fills the device in constant memory.
        return map_samples(scored, window_array(windows), samples)

    return jnp.where(known[:, None], map_examples(one, (start, end, places, targets), examples), jnp.nan)


def window_array(windows: Sequence[int | tuple[int, int]]) -> jax.Array:
    """Return the first place and the end (exclusive) of each window, int32 `[W, 2]`."""
    return jnp.asarray([(0, window) if isinstance(window, int) else window for window in windows], jnp.int32)


def inside(places: jax.Array, window: jax.Array) -> jax.Array:
    """Return whether places are in a window `[2]`."""
    return (places >= window[0]) & (places < window[1])


def map_samples(evaluate: Callable[[Any], Any], samples: Any, at_once: int = 1) -> Any:
    """Return `evaluate` of each sample, `at_once` samples at a time; `samples` and result are trees of `[S, ...]`."""
    if at_once == 1:
        return jax.lax.map(evaluate, samples)
    count = jax.tree.leaves(samples)[0].shape[0]
    groups = math.ceil(count / at_once)
    # Copies of the last sample pad the groups, so that the network is compiled for one size only.
    filled = jnp.minimum(jnp.arange(groups * math.ceil(count / groups)), count - 1).reshape(groups, -1)
    values = jax.lax.map(jax.vmap(evaluate), jax.tree.map(lambda x: x[filled], samples))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], values)


def score_of(saliency_of: str) -> Score:
    """Return `(logits, target) -> scalar`, the float32 "probability", "log_probability" or "logit" of the target."""
    return lambda logits, target: target_score(logits.astype(jnp.float32), target, saliency_of=saliency_of)


def step_counts(features: int, steps: int) -> list[int]:
    """Return the number of changed features after 0, 1, …, `steps` nearly equal steps."""
    check_count("steps", steps)
    return [round(j * features / steps) for j in range(steps + 1)]


def percentage_counts(features: int, percentages: Sequence[int]) -> list[int]:
    """Return the number of features for each percentage, rounded down."""
    for percentage in percentages:
        check_range("percentages", percentage, 0, 100)
    return [int(percentage * features // 100) for percentage in percentages]


def area_under(curves: jax.Array) -> jax.Array:
    """Return the trapezoid area under curves `[N, S + 1]` over the unit interval, `[N]`."""
    ends = (curves[:, 0] + curves[:, -1]) / 2
    return (curves[:, 1:-1].sum(-1) + ends) / (curves.shape[-1] - 1)


def finite(images: jax.Array) -> jax.Array:
    """Return whether all entries of an example are finite, bool `[N]`."""
    return jnp.isfinite(images).all(tuple(range(1, images.ndim)))


def defined(maps: jax.Array) -> jax.Array:
    """Return whether a map is finite and not all zero, bool `[N]`."""
    return finite(maps) & (maps != 0).any(tuple(range(1, maps.ndim)))


def varies(maps: jax.Array) -> jax.Array:
    """Return whether a map is finite and not constant, bool `[N]`."""
    axes = tuple(range(1, maps.ndim))
    return finite(maps) & (maps.max(axes) > maps.min(axes))


def unit_scaled(maps: jax.Array) -> jax.Array:
    """Return maps scaled to [0, 1] by their own minimum and maximum, float32; 0 where constant."""
    axes = tuple(range(1, maps.ndim))
    maps = moderate(maps.astype(jnp.float32), axes)
    low, high = maps.min(axes, keepdims=True), maps.max(axes, keepdims=True)
    return (maps - low) / jnp.where(high > low, high - low, 1)


def window_sums(maps: jax.Array, places: jax.Array, windows: Sequence[int | tuple[int, int]]) -> jax.Array:
    """Return the map's sum over each window of places (see `replaced_scores`), `[N, W]`; huge maps are scaled down."""
    axes = tuple(range(1, maps.ndim))
    maps = moderate(maps.astype(jnp.float32), axes)
    sums = jax.lax.map(lambda w: jnp.where(inside(places, w), maps, 0).sum(axes), window_array(windows))
    return sums.T


def fold_sample(key: jax.Array, n: int, i: jax.Array) -> jax.Array:
    """Return the examples' keys for sample i, independent of those for the order of equal values and for baselines."""
    return jax.vmap(lambda k: jax.random.fold_in(k, i + 2))(per_example(key, n))
