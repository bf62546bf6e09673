"""Randomisation metrics: similarity of an explanation to that of a random network or of another class.

An explanation explains neither the parameters nor the class if it stays the same when these are replaced (parameter
randomisation, random logit). The explanation takes the parameters as an argument,
`explain_with(params, image, target, key) -> attribution`, `[H, W]` or `[H, W, C]`, in evaluation mode. It closes over
what must not be randomised, such as BatchNorm's statistics. Attributions with channels are first reduced to maps
(`reduction`): "abs_sum" compares magnitudes, "sum" compares signed values.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sdecor.attribution.reduce import reduce
from sdecor.core.arrays import average_ranks, moderate
from sdecor.core.checks import check_choice, check_count, check_range
from sdecor.core.chunks import map_examples, sum_over
from sdecor.core.parallel import automatic
from sdecor.core.rng import per_example
from sdecor.metrics.inputs import check_classes, check_images, in_flight, map_shape, nan_without_class
from sdecor.metrics.parameters import layers_of, leaf_names, mixed, schedule
from sdecor.metrics.replacement import finite
from sdecor.metrics.robustness import NOISE, symmetric_uniform
from sdecor.metrics.similarity import cosine, pearson, spearman, ssim

SIMILARITIES = {"spearman": spearman, "pearson": pearson, "cosine": cosine, "ssim": ssim}


def map_maker(
    explain_with: Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array],
    images: jax.Array,
    targets: jax.Array,
    keys: jax.Array,
    *,
    reduction: str,
    chunk_size: int | None,
) -> Callable[[Any], jax.Array]:
    """Return the function from parameters to the maps `[N, H, W]` of all images; NaN for images that are not finite.

    Args:
      explain_with: `explain_with(params, image, target, key) -> attribution`, `[H, W]` or `[H, W, C]`.
      images: `[N, H, W, C]`.
      targets: targets of `explain_with`, `[N]` or `[N, …]`.
      keys: one key for each example, `[N]`.
      reduction: reduction over channels: see `sdecor.attribution.reduce`.
      chunk_size: explanations at once; None = as many as the device's memory holds.
    """
    check_images(images)

    def maps(params: Any) -> jax.Array:
        def one(*example: jax.Array) -> jax.Array:
            return explain_with(params, *example)

        examples, _ = in_flight(one, chunk_size, images, targets, keys)
        found = reduced(map_examples(one, (images, targets, keys), examples), images, reduction)
        return jnp.where(finite(images).reshape(-1, *[1] * (found.ndim - 1)), found, jnp.nan)

    return maps


def reduced(attributions: jax.Array, images: jax.Array, reduction: str) -> jax.Array:
    """Return attributions of images `[N, *positions, C]` as maps `[N, *positions]`, float32; maps stay as they are."""
    axes = len(map_shape(images.shape))
    if attributions.ndim == axes + 1:
        return reduce(attributions, how=reduction)
    if attributions.ndim != axes:
        forms = {2: "[N, T] or [N, T, C]", 3: "[N, H, W] or [N, H, W, C]"}.get(axes, "without or with channels")
        raise ValueError(f"attributions have shape {attributions.shape}: they are maps {forms}")
    return attributions.astype(jnp.float32)


def likeness(own: jax.Array, similarity: str) -> Callable[[jax.Array], jax.Array]:
    """Return the function from maps `[N, H, W]` to their similarity to `own`, `[N]`, by its name in `SIMILARITIES`."""
    check_choice("similarity", similarity, SIMILARITIES)
    if similarity != "spearman":
        return lambda other: SIMILARITIES[similarity](own, other)
    ranks = _ranks(own)  # ranked once for all comparisons, because sorting takes most of the time
    return lambda other: pearson(ranks, _ranks(other))


def _ranks(maps: jax.Array) -> jax.Array:
    """Return the pixels' ranks `[N, H·W]`; all NaN for a map that is not finite."""
    rows = maps.reshape(maps.shape[0], -1)
    return jnp.where(jnp.isfinite(rows).all(1, keepdims=True), average_ranks(rows), jnp.nan)


ExplainWith = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]


@automatic
def parameter_randomization(
    explain_with: ExplainWith,
    params: Any,
    random_params: Any,
    images: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    layers: Mapping[str, Sequence[str]] | None = None,
    mode: str = "cascading",
    similarity: str = "spearman",
    reduction: str = "abs_sum",
    chunk_size: int | None = None,
    attributions: jax.Array | None = None,
) -> jax.Array:
    """Return the similarity of the explanation to itself after parameters are replaced layer by layer.

    Args:
      explain_with: explanation of one image with given parameters, `explain_with(params, image, target, key) ->
        attribution`, `[H, W]` or `[H, W, C]`.
      params: the network's parameters, any tree of arrays.
      random_params: replacement of `params` with the same structure, from `redraw` or a newly initialised network.
      images: floating point, `[N, H, W, C]`.
      targets: classes to explain, integers `[N]`.
      key: one key or `[N]` keys, for an explanation that draws; an image has the same key under all parameters.
      layers: name → names of leaves, from the output to the input. Default: `layers_of(explain_with, params, …)`.
      mode: layers that are replaced in column l: "cascading", layers 0 … l, from the output down; "independent", layer
        l alone; "bottom_up", the last l + 1 layers, from the input up.
      similarity: "spearman", "pearson" or "cosine" of the pixels, or "ssim".
      reduction: reduction over channels: see `sdecor.attribution.reduce`.
      chunk_size: explanations at once; it bounds memory. Default: as many as the device's memory holds.
      attributions: explanations under `params`, `[N, H, W]` or `[N, H, W, C]`, if already computed.

    Returns:
      `[N, L]` in [−1, 1], in the order of replacement; lower is better. NaN where a map is constant or not finite.

    References:
      Adebayo et al., "Sanity Checks for Saliency Maps", https://arxiv.org/abs/1810.03292, 2018.
    """
    check_images(images)
    targets, keys = check_classes(images, targets), per_example(key, images.shape[0])
    if layers is None:
        layers = layers_of(explain_with, params, images[0], targets[0], keys[0])
    maps = map_maker(explain_with, images, targets, keys, reduction=reduction, chunk_size=chunk_size)
    own = maps(params) if attributions is None else reduced(attributions, images, reduction)
    compare = likeness(own, similarity)

    def column(replaced: jax.Array) -> jax.Array:
        return nan_without_class(targets, compare(maps(mixed(params, random_params, replaced))))

    return jax.lax.map(column, jnp.asarray(schedule(leaf_names(params), layers, mode))).T


@automatic
def smooth_mprt(
    explain_with: ExplainWith,
    params: Any,
    random_params: Any,
    images: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    samples: int = 50,
    noise: float = 0.1,
    chunk_size: int | None = None,
    **options: Any,
) -> jax.Array:
    """Return `parameter_randomization` of explanations averaged over noisy images, so that noise hides no change.

    Args:
      samples: number of noisy images for each image.
      noise: standard deviation of the normal noise, as a share of the image's range of values.
      chunk_size: explanations at once, first over examples, then over noisy images of each. Default: as many as the
        device's memory holds.

    The other arguments and the result are those of `parameter_randomization`. Signed attributions are averaged first
    and then reduced to a map.

    References:
      Hedström et al., "A Fresh Look at Sanity Checks for Saliency Maps", https://arxiv.org/abs/2405.02383, 2024.
    """
    check_count("samples", samples)
    check_range("noise", noise, 0)
    check_images(images)
    targets, keys = check_classes(images, targets), per_example(key, images.shape[0])
    examples, at_once = in_flight(partial(explain_with, params), chunk_size, images, targets, keys)

    def smooth(params: Any, image: jax.Array, target: jax.Array, key: jax.Array) -> jax.Array:
        spread = noise * (image.max() - image.min()).astype(jnp.float32)

        def sample(i: jax.Array) -> jax.Array:
            near = image + (spread * _standard_normal(key, i, image.shape)).astype(image.dtype)
            return explain_with(params, near, target, jax.random.fold_in(key, i)).astype(jnp.float32)

        return sum_over(sample, samples, at_once=at_once) / samples

    return parameter_randomization(
        smooth, params, random_params, images, targets, key=keys, chunk_size=examples * at_once, **options
    )


@automatic
def efficient_mprt(
    explain_with: ExplainWith,
    params: Any,
    random_params: Any,
    images: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    bins: int = 100,
    reduction: str = "abs_sum",
    chunk_size: int | None = None,
    attributions: jax.Array | None = None,
) -> jax.Array:
    """Return the relative rise of the explanation's complexity when all parameters are replaced at once.

    Complexity is `histogram_entropy` with `bins` bins; the other arguments are those of `parameter_randomization`.

    Returns:
      `(entropy after − entropy before) / entropy before`, `[N]` ≥ −1; higher is better, because the explanation of a
      random network should look like noise. NaN where a map is constant or not finite.

    References:
      Hedström et al., "A Fresh Look at Sanity Checks for Saliency Maps", https://arxiv.org/abs/2405.02383, 2024.
    """
    check_images(images)
    targets, keys = check_classes(images, targets), per_example(key, images.shape[0])
    maps = map_maker(explain_with, images, targets, keys, reduction=reduction, chunk_size=chunk_size)
    if attributions is None:
        states = jax.tree.map(lambda *pair: jnp.stack(pair), params, random_params)
        before, after = jax.lax.map(maps, states)  # a loop, so that it is compiled once
    else:
        before, after = reduced(attributions, images, reduction), maps(random_params)
    before, after = histogram_entropy(before, bins=bins), histogram_entropy(after, bins=bins)
    return nan_without_class(targets, jnp.where((before > 0) & (after > 0), (after - before) / before, jnp.nan))


@automatic
def random_logit(
    explain_one: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    images: jax.Array,
    targets: jax.Array,
    *,
    num_classes: int,
    key: jax.Array,
    similarity: str = "ssim",
    reduction: str = "abs_sum",
    chunk_size: int | None = None,
    attributions: jax.Array | None = None,
) -> jax.Array:
    """Return the similarity of the target's explanation to that of another class, which is drawn for each image.

    Args:
      explain_one: explanation of one image, `explain_one(image, target, key) -> attribution`, `[H, W]` or `[H, W, C]`.
      num_classes: number of classes, at least 2; all classes but the target are equally likely.
      key: one key or `[N]` keys, to draw the other class. Both explanations use the same key.

    The other arguments are those of `parameter_randomization`.

    Returns:
      `[N]` in [−1, 1], lower is better; NaN where a map is constant or not finite.

    References:
      Sixt, Granz, Landgraf, "When Explanations Lie", https://arxiv.org/abs/1912.09818, 2020.
    """
    check_count("num_classes", num_classes, 2)
    check_images(images)
    targets, keys = check_classes(images, targets, count=num_classes), per_example(key, images.shape[0])
    steps = jax.vmap(lambda k: jax.random.randint(jax.random.fold_in(k, NOISE), (), 1, num_classes))(keys)
    others = (targets + steps) % num_classes

    pairs = jnp.stack([targets, others], axis=1)

    def explain_either(which: jax.Array, image: jax.Array, pair: jax.Array, key: jax.Array) -> jax.Array:
        return explain_one(image, pair[which], key)

    maps = map_maker(explain_either, images, pairs, keys, reduction=reduction, chunk_size=chunk_size)
    if attributions is None:
        own, other = jax.lax.map(maps, jnp.arange(2))  # a loop, so that it is compiled once
    else:
        own, other = reduced(attributions, images, reduction), maps(1)
    return nan_without_class(targets, likeness(own, similarity)(other))


def histogram_entropy(maps: jax.Array, *, bins: int = 100) -> jax.Array:
    """Return the entropy of each map's histogram in nats, `[N]` in [0, ln bins]; NaN for a map that is not finite.

    The bins are equally wide, from the map's smallest to its largest value; a constant map has entropy 0.
    """
    check_count("bins", bins)
    rows = moderate(maps.astype(jnp.float32).reshape(maps.shape[0], -1), (1,))
    low, high = rows.min(1, keepdims=True), rows.max(1, keepdims=True)
    places = ((rows - low) / jnp.where(high > low, high - low, 1) * bins).astype(jnp.int32)
    places = jnp.clip(places, 0, bins - 1)
    shares = jax.vmap(lambda row: jnp.bincount(row, length=bins))(places) / rows.shape[1]
    return jnp.where(jnp.isfinite(rows).all(1), jax.scipy.special.entr(shares).sum(1), jnp.nan)


def _standard_normal(key: jax.Array, i: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return the normal noise of sample i, independent of the explanation's own draws."""
    uniform = symmetric_uniform(jax.random.fold_in(jax.random.fold_in(key, NOISE), i), shape)
    return jnp.sqrt(2.0) * jax.lax.erf_inv(uniform)
