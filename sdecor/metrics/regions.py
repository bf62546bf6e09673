"""Region metrics: the score while patches or segments are replaced in the order of their relevance.

A curve begins with the unchanged image. Regions of equal relevance are ordered at random by the key. All channels of a
pixel change together. Every function takes the network for one image, `fn: image [H, W, C] -> logits [K]`.
"""

import jax
import jax.numpy as jnp

from sdecor.attribution.regions import grid
from sdecor.core.checks import check_count
from sdecor.core.parallel import automatic
from sdecor.metrics.inputs import Fn, check_batch
from sdecor.metrics.replacement import Baseline, area_under, baseline_images, defined, ranks, replaced_scores, score_of


@automatic
def region_perturbation_curve(
    fn: Fn,
    images: jax.Array,
    maps: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    patch: int = 8,
    regions: int | None = 100,
    order: str = "morf",
    baseline: Baseline = "uniform",
    saliency_of: str = "probability",
    chunk_size: int | None = None,
) -> jax.Array:
    """Return the target's score while patches are replaced one after the other, in the order of their mean relevance.

    Args:
      fn: the network for one image, `image [H, W, C] -> logits [K]`, in evaluation mode.
      images: `[N, H, W, C]`.
      maps: `[N, H, W]`.
      targets: classes whose score is used, integers `[N]`.
      key: one key or `[N]` keys, for the order of equal patches and the noise of "uniform".
      patch: side of the square patches of a regular grid, in pixels.
      regions: largest number of patches to replace; None = all.
      order: "morf" (most relevant first), "lerf" (least relevant first) or "random".
      baseline: replacement of a patch: see `baseline_images`. The default is uniform noise, as in the publication.
      saliency_of: score of the target: "probability", "log_probability" or "logit".
      chunk_size: network evaluations at once. Default: as many as the device's memory holds.

    Returns:
      `[N, L + 1]` for L replaced patches, at most `regions`. NaN for a map of zeros or one that is not finite.
    """
    targets = check_batch(images, maps, targets, fn=fn)
    segments, count = _segments(maps, None, None, patch)
    if regions is not None:
        check_count("regions", regions)
    last = count if regions is None else min(regions, count)
    # The mean, not the sum, because patches cut off at the border sum to less: a constant map would put them last
    # instead of in random order.
    places = _region_places(_means(maps, segments, count), segments, key, order)
    end = baseline_images(images, baseline, key=key)
    score, windows = score_of(saliency_of), list(range(last + 1))
    curves = replaced_scores(fn, images, end, places, windows, targets, score=score, chunk_size=chunk_size)
    return jnp.where(defined(maps)[:, None], curves, jnp.nan)


def region_perturbation(fn: Fn, images: jax.Array, maps: jax.Array, targets: jax.Array, **options) -> jax.Array:
    """Return the area over the perturbation curve (AOPC): the mean loss of score over all points, the first included.

    See `region_perturbation_curve` for the arguments.

    Returns:
      `1/(L+1) · Σ_{k=0…L} f(x_0) − f(x_k)`, `[N]`. Higher is better for "morf", lower for "lerf".

    References:
      Samek et al., "Evaluating the Visualization of What a Deep Neural Network has Learned",
      https://arxiv.org/abs/1509.06321, 2017.
    """
    curve = region_perturbation_curve(fn, images, maps, targets, **options)
    return (curve[:, :1] - curve).mean(1)


def selectivity_curve(
    fn: Fn,
    images: jax.Array,
    maps: jax.Array,
    targets: jax.Array,
    *,
    patch: int = 4,
    baseline: Baseline = "zero",
    **options,
) -> jax.Array:
    """Return the target's probability while all patches are removed, the largest mean relevance first.

    It is `region_perturbation_curve` with other defaults, `[N, patches + 1]`; see there for the other arguments.
    """
    options = {"regions": None} | options
    return region_perturbation_curve(fn, images, maps, targets, patch=patch, baseline=baseline, **options)


def selectivity(fn: Fn, images: jax.Array, maps: jax.Array, targets: jax.Array, **options) -> jax.Array:
    """Return the area under `selectivity_curve` (same arguments), `[N]`; lower is better.

    References:
      Montavon, Samek, Müller, "Methods for Interpreting and Understanding Deep Neural Networks",
      https://arxiv.org/abs/1706.07979, 2018.
    """
    return area_under(selectivity_curve(fn, images, maps, targets, **options))


@automatic
def irof_curve(
    fn: Fn,
    images: jax.Array,
    maps: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    segments: jax.Array | None = None,
    count: int | None = None,
    patch: int = 4,
    baseline: Baseline = "mean",
    saliency_of: str = "probability",
    chunk_size: int | None = None,
) -> jax.Array:
    """Return the share of the target's score that remains while segments are replaced, largest mean relevance first.

    Args:
      fn, images, maps, targets, key, saliency_of, chunk_size: see `region_perturbation_curve`.
      segments: number of each pixel's segment, int `[N, H, W]` in [0, count); some numbers may be unused. None = the
        patches of a regular grid.
      count: bound of the segments' numbers (exclusive); required under `jit`.
      patch: side of the grid's patches, in pixels.
      baseline: replacement of a segment: see `baseline_images`. The default is the image's mean color, as in the
        publication.

    Returns:
      `f(x_k) / f(x_0)`, `[N, count + 1]`: 1 at first, and constant after an image's last segment. NaN for a map of
      zeros or one that is not finite.
    """
    targets = check_batch(images, maps, targets, fn=fn)
    segments, count = _segments(maps, segments, count, patch)
    places = _region_places(_means(maps, segments, count), segments, key, "morf")
    end = baseline_images(images, baseline, key=key)
    score, windows = score_of(saliency_of), list(range(count + 1))
    curves = replaced_scores(fn, images, end, places, windows, targets, score=score, chunk_size=chunk_size)
    left = jnp.where(curves[:, :1] != 0, curves / curves[:, :1], jnp.nan)
    return jnp.where(defined(maps)[:, None], left, jnp.nan)


@automatic
def irof(
    fn: Fn,
    images: jax.Array,
    maps: jax.Array,
    targets: jax.Array,
    *,
    segments: jax.Array | None = None,
    count: int | None = None,
    patch: int = 4,
    **options,
) -> jax.Array:
    """Return the area over `irof_curve` (same arguments) up to the image's last segment; higher is better.

    Returns:
      `[N]`, at most 1. Images may have different numbers of segments, because each area is divided by this number.

    References:
      Rieger, Hansen, "IROF: a low resource evaluation metric for explanation methods",
      https://arxiv.org/abs/2003.08747, 2020.
    """
    segments, count = _segments(maps, segments, count, patch)
    curve = irof_curve(fn, images, maps, targets, segments=segments, count=count, **options)
    own = (_sums(jnp.ones_like(maps), segments, count) > 0).sum(1)[:, None]
    lost = 1 - (curve[:, 1:] + curve[:, :-1]) / 2
    return jnp.where(jnp.arange(count)[None] < own, lost, 0).sum(1) / own[:, 0].astype(lost.dtype)


def _segments(maps: jax.Array, segments: jax.Array | None, count: int | None, patch: int) -> tuple[jax.Array, int]:
    if segments is None:
        check_count("patch", patch, 1, max(maps.shape[1:]))
        regular = grid(maps.shape[1:], patch)
        count = int(regular.max()) + 1
        if count == 1:
            sides = "×".join(map(str, maps.shape[1:]))
            raise ValueError(f"patch = {patch}: one patch covers the whole image of {sides}; pass a smaller patch")
        return jnp.broadcast_to(regular[None], maps.shape), count
    if segments.shape != maps.shape:
        raise ValueError(f"segments have shape {segments.shape}: pass int {maps.shape}, one number for each pixel")
    if count is None:
        if isinstance(segments, jax.core.Tracer):
            raise ValueError("count = None: under jit the number of segments must be given")
        count = int(segments.max()) + 1
    return segments.astype(jnp.int32), count  # a narrow integer would wrap around as index


def _sums(values: jax.Array, segments: jax.Array, count: int) -> jax.Array:
    """Return the sum of `[N, H, W]` over each segment, `[N, count]`."""
    return jax.vmap(lambda v, s: jax.ops.segment_sum(v.ravel(), s.ravel(), count))(values, segments)


def _means(maps: jax.Array, segments: jax.Array, count: int) -> jax.Array:
    """Return the mean over each segment, `[N, count]`; −inf for an unused number, so that it comes last."""
    sizes = _sums(jnp.ones_like(maps), segments, count)
    return jnp.where(sizes > 0, _sums(maps, segments, count) / jnp.maximum(sizes, 1), -jnp.inf)


def _region_places(relevance: jax.Array, segments: jax.Array, key: jax.Array, order: str) -> jax.Array:
    """Return the place of each pixel's segment in the order of relevance `[N, count]`, int32 `[N, H, W]`."""
    places = ranks(relevance, key, order=order)
    return jax.vmap(lambda place, segment: place[segment])(places, segments)
