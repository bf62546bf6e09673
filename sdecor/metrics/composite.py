"""Composite metrics of saliency maps: harmonic means of coherency, simplicity and faithfulness.

Each part is in [0, 1] and higher is better, so that a map must be good by all three. Maps are scaled to [0, 1] by their
own minimum and maximum. A map masks its image softly: where it is 0, the pixel is that of the baseline.

- Coherency: `(1 + r)/2`, with r the correlation of an image's map and the map of the image that is masked by it.
- Simplicity: 1 − complexity, with the complexity the mean of the scaled map.
- Faithfulness: 1 − average drop in ADCC, the combined ROAD score in ARCC.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from sdecor.core.arrays import widened
from sdecor.core.parallel import automatic
from sdecor.core.rng import per_example
from sdecor.metrics.faithfulness import average_drop
from sdecor.metrics.inputs import Fn, check_classes, check_images, nan_without_class, over_channels
from sdecor.metrics.randomization import map_maker, reduced
from sdecor.metrics.replacement import Baseline, baseline_images, unit_scaled, varies
from sdecor.metrics.road import road_curves
from sdecor.metrics.similarity import pearson

ExplainOne = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@automatic
def coherency(
    explain_one: ExplainOne,
    images: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    baseline: Baseline = "zero",
    reduction: str = "abs_sum",
    chunk_size: int | None = None,
    attributions: jax.Array | None = None,
) -> jax.Array:
    """Return the correlation of each map with the map of the image that it masks, scaled to [0, 1].

    Args:
      explain_one: explanation of one image, `explain_one(image, target, key) -> attribution`, `[H, W]` or `[H, W, C]`.
      images: `[N, H, W, C]`.
      targets: classes to explain, integers `[N]`.
      key: one key or `[N]` keys. Both explanations use the same key.
      baseline: pixels where the map is 0: see `baseline_images`.
      reduction: reduction over channels: see `sdecor.attribution.reduce`.
      chunk_size: explanations at once; it bounds memory. Default: as many as the device's memory holds.
      attributions: explanations of `images`, `[N, …]`, if already computed with the same keys.

    Returns:
      `[N]` in [0, 1], higher is better; NaN where one of the maps is constant or not finite.

    References:
      Poppi et al., "Revisiting the Evaluation of Class Activation Mapping for Explainability",
      https://arxiv.org/abs/2104.10252, 2021.
    """
    check_images(images)
    targets, keys = check_classes(images, targets), per_example(key, images.shape[0])
    explain, maps = _explained(explain_one, images, targets, keys, reduction, chunk_size, attributions)
    return nan_without_class(targets, _coherency(explain, images, maps, baseline, keys))


@automatic
def adcc(
    explain_one: ExplainOne,
    fn: Fn,
    images: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    baseline: Baseline = "zero",
    reduction: str = "abs_sum",
    chunk_size: int | None = None,
    attributions: jax.Array | None = None,
) -> jax.Array:
    """Return ADCC: the harmonic mean of coherency, 1 − complexity and 1 − average drop.

    Args:
      fn: the network for one image, `image [H, W, C] -> logits [K]`, in evaluation mode.

    The other arguments are those of `coherency`.

    Returns:
      `[N]` in [0, 1], higher is better; NaN where a map is constant or not finite.

    References:
      Poppi et al., "Revisiting the Evaluation of Class Activation Mapping for Explainability",
      https://arxiv.org/abs/2104.10252, 2021.
    """
    check_images(images)
    targets, keys = check_classes(images, targets, fn=fn), per_example(key, images.shape[0])
    explain, maps = _explained(explain_one, images, targets, keys, reduction, chunk_size, attributions)
    drop = average_drop(fn, images, maps, targets, baseline=baseline, chunk_size=chunk_size, key=keys)
    coherent = _coherency(explain, images, maps, baseline, keys)
    return nan_without_class(targets, _harmonic_mean(coherent, _simplicity(maps), 1 - drop))


@automatic
def arcc(
    explain_one: ExplainOne,
    fn: Fn,
    images: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    baseline: Baseline = "zero",
    percentages: Sequence[int] = (20, 40, 60, 80),
    reduction: str = "abs_sum",
    chunk_size: int | None = None,
    attributions: jax.Array | None = None,
) -> jax.Array:
    """Return ARCC: the harmonic mean of coherency, 1 − complexity and the combined ROAD score.

    The combined ROAD score is the target's probability without the least relevant pixels minus that without the most
    relevant ones, the mean over the percentages. It is 0 where negative, and so is ARCC: a map that finds nothing.

    Args:
      fn: the network for one image, `image [H, W, C] -> logits [K]`, in evaluation mode.
      percentages: percentages of the pixels that ROAD removes, in [0, 100).

    The other arguments are those of `coherency`.

    Returns:
      `[N]` in [0, 1], higher is better; NaN where a map is constant or not finite.

    References:
      Domeniconi et al., "How to Evaluate and Refine your CAM", https://arxiv.org/abs/2605.14641, 2026. The formula is
      that of the first author's implementation in pytorch-grad-cam, whose comment says geometric mean.
    """
    check_images(images, only_for="ARCC")
    targets, keys = check_classes(images, targets, fn=fn), per_example(key, images.shape[0])
    explain, maps = _explained(explain_one, images, targets, keys, reduction, chunk_size, attributions)
    options = {"key": keys, "percentages": percentages, "chunk_size": chunk_size}
    least, most = (
        road_curves(fn, images, maps, targets, order=order, **options).probability.mean(1) for order in ("lerf", "morf")
    )
    coherent = _coherency(explain, images, maps, baseline, keys)
    return nan_without_class(targets, _harmonic_mean(coherent, _simplicity(maps), jnp.maximum(least - most, 0)))


def _explained(
    explain_one: ExplainOne,
    images: jax.Array,
    targets: jax.Array,
    keys: jax.Array,
    reduction: str,
    chunk_size: int | None,
    attributions: jax.Array | None,
) -> tuple[Callable[[jax.Array], jax.Array], jax.Array]:
    """Return the function from images to their maps, and the maps of `images`, reduced from `attributions` if given."""

    def explain(images: jax.Array) -> jax.Array:
        def one(_: None, image: jax.Array, target: jax.Array, key: jax.Array) -> jax.Array:
            return explain_one(image, target, key)

        return map_maker(one, images, targets, keys, reduction=reduction, chunk_size=chunk_size)(None)

    return explain, explain(images) if attributions is None else reduced(attributions, images, reduction)


def _coherency(
    explain: Callable[[jax.Array], jax.Array], images: jax.Array, maps: jax.Array, baseline: Baseline, keys: jax.Array
) -> jax.Array:
    """Return the coherency of maps with the maps of the images that they mask, `[N]`."""
    start, weights = widened(baseline_images(images, baseline, key=keys)), over_channels(unit_scaled(maps), images)
    masked = (start + weights * (widened(images) - start)).astype(images.dtype)
    return (1 + pearson(maps, explain(masked))) / 2


def _simplicity(maps: jax.Array) -> jax.Array:
    """Return 1 − the mean of the scaled map, `[N]`; NaN for a map that is constant or not finite."""
    return jnp.where(varies(maps), 1 - unit_scaled(maps).reshape(maps.shape[0], -1).mean(1), jnp.nan)


def _harmonic_mean(*parts: jax.Array) -> jax.Array:
    """Return the harmonic mean of parts `[N]` in [0, 1]; 0 if one is 0, NaN if one is NaN."""
    some = jnp.stack(parts)
    positive = jnp.where(some > 0, some, 1)
    mean = len(parts) / (1 / positive).sum(0)
    return jnp.where(jnp.isnan(some).any(0), jnp.nan, jnp.where((some > 0).all(0), mean, 0))
