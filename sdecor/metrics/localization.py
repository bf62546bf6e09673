"""Localization metrics: how much saliency lies on the object, by its sum or by the ranks of the pixels.

Maps are `[N, H, W]`, or `[N, T]` of series. Object and ignore masks are bool of the same shape. Ignored pixels, such as
the rim of a trimap, count neither as object nor as background. Results are one value per image, beside the chance level
of a map without information. NaN is never counted as a hit. A value is NaN

- for an empty object, and for an object that is the whole image;
- for a map that is not finite;
- for a map without any positive value; in metrics of ranks, for a map of zeros instead, because they rank values with
  their sign, and a map that is nowhere positive still ranks its pixels.

Equal values are treated alike, wherever they are: by rank, a constant map scores exactly the chance level.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.core.arrays import LAST, ends_of_runs, kth_largest, moderate, order_keys, sort_rows
from sdecor.core.checks import check_count
from sdecor.core.parallel import automatic
from sdecor.metrics.inputs import check_maps


def boxes_to_masks(boxes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Return the union of each image's boxes as a mask.

    Args:
      boxes: `[N, 4]`, or `[N, B, 4]` for up to B boxes per image, as `[y0, x0, y1, x1)` in pixels. A box without area
        (zeros, an end before its start) and a box with a NaN add nothing, so they can pad a list.
      size: height and width of the images.

    Returns:
      bool `[N, height, width]`, True where the pixel's center is in a box. Parts of a box outside the image are cut
      off.

    Raises:
      ValueError: for any other shape of boxes.
    """
    boxes = jnp.asarray(boxes)
    if boxes.ndim not in (2, 3) or boxes.shape[-1] != 4:
        raise ValueError(f"boxes have shape {boxes.shape}: pass [N, 4] or [N, B, 4]")
    height, width = size
    edges = boxes.reshape(boxes.shape[0], -1, 4, 1).astype(jnp.float32)
    top, left, bottom, right = (edges[:, :, i] for i in range(4))
    y, x = (jnp.arange(side, dtype=jnp.float32)[None, None] + 0.5 for side in (height, width))
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    # A product of rows and columns, summed over the boxes, never holds a mask for each of them.
    covered = jnp.einsum("nbh,nbw->nhw", rows.astype(jnp.float32), columns.astype(jnp.float32))
    return covered > 0


def positions(array: jax.Array) -> tuple[int, ...]:
    """Return the axes of an array `[N, *positions]` without the first one."""
    return tuple(range(1, array.ndim))


def split(objects: jax.Array, ignore: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Return the object without ignored pixels, and all pixels that are not ignored, bool `[N, H, W]` each."""
    counted = jnp.ones_like(objects) if ignore is None else ~jnp.asarray(ignore)
    return objects & counted, counted


def two_sided(inside: jax.Array, counted: jax.Array) -> jax.Array:
    """Return whether an image has pixels of both object and background, bool `[N]`."""
    return inside.any(positions(inside)) & (counted & ~inside).any(positions(inside))


def energy_inside(maps: jax.Array, objects: jax.Array, *, ignore: jax.Array | None = None) -> jax.Array:
    """Return the share of saliency that falls on the object ("energy pointing game", "relevance mass").

    Args:
      maps: `[N, H, W]`; negative values count as 0. Reduce with absolute values to count evidence of both signs.
      objects: object masks, bool `[N, H, W]`.
      ignore: pixels to leave out of both sums, bool `[N, H, W]`.

    Returns:
      `[N]` in [0, 1]; the chance level is `area_share`. NaN where undefined: without object, background or positive
      saliency, and for a map that is not finite.

    References:
      Wang et al., "Score-CAM", https://arxiv.org/abs/1910.01279, 2020.
      Arras et al., "CLEVR-XAI", https://arxiv.org/abs/2003.07258, 2022.
    """
    check_maps(maps=maps, objects=objects, ignore=ignore)
    inside, counted = split(objects, ignore)
    maps = moderate(_positive(maps, counted), positions(maps))
    peak = maps.max(positions(maps), keepdims=True)
    # Shares do not depend on scale; dividing by the peak keeps sums of tiny or huge gradients in float32's range.
    maps = maps / jnp.where(peak > 0, peak, 1)
    share = jnp.where(inside, maps, 0).sum(positions(maps)) / jnp.maximum(maps.sum(positions(maps)), 1e-30)
    return jnp.where(two_sided(inside, counted) & _has_saliency(maps), share, jnp.nan)


def attribution_localization(
    maps: jax.Array, objects: jax.Array, *, weighted: bool = False, ignore: jax.Array | None = None
) -> jax.Array:
    """Return the share of positive attribution on the object, optionally divided by the object's share of the area.

    Args:
      maps: `[N, H, W]`; negative values count as 0.
      objects: object masks, bool `[N, H, W]`.
      weighted: whether to divide by the object's share of the area, so that objects of different size can be compared.
      ignore: pixels to leave out of all sums, bool `[N, H, W]`.

    Returns:
      `[N]`, NaN where undefined. If not weighted, it equals `energy_inside`, in [0, 1] with chance level `area_share`.
      If weighted, it is at least 0, with chance level 1.

    References:
      Kohlbrenner et al., "Towards Best Practice in Explaining Neural Network Decisions with LRP",
      https://arxiv.org/abs/1910.09840, 2020.
    """
    share = energy_inside(maps, objects, ignore=ignore)
    return share / area_share(objects, ignore=ignore) if weighted else share


def area_share(objects: jax.Array, *, ignore: jax.Array | None = None) -> jax.Array:
    """Return the object's share of the area that is not ignored, `[N]` in (0, 1): the value of a uniform map.

    NaN where the object is empty or covers everything.
    """
    check_maps(objects=objects, ignore=ignore)
    inside, counted = split(objects, ignore)
    share = inside.sum(positions(inside)) / jnp.maximum(counted.sum(positions(counted)), 1)
    return jnp.where(two_sided(inside, counted), share.astype(jnp.float32), jnp.nan)


def pointing_game(
    maps: jax.Array, objects: jax.Array, *, tolerance: float = 0.0, ignore: jax.Array | None = None
) -> jax.Array:
    """Return whether the map's maximum hits the object: 1 or 0, or a share if several pixels tie.

    A tie gives the share of the tied pixels that hit, the expectation of a random choice among them. The top-left
    corner is not preferred, and a constant map scores exactly the chance level.

    Args:
      maps: `[N, H, W]`.
      objects: object masks, bool `[N, H, W]`.
      tolerance: largest Euclidean distance from the object that counts as a hit, in pixels. (The published 15 px are
        exclusive: `tolerance=14.99`.)
      ignore: pixels that cannot be the maximum, bool `[N, H, W]`.

    Returns:
      `[N]` in [0, 1], NaN where undefined. The chance level is the value of a constant map.

    References:
      Zhang et al., "Top-down Neural Attention by Excitation Backprop", https://arxiv.org/abs/1608.00507, 2018.
    """
    check_maps(maps=maps, objects=objects, ignore=ignore)
    inside, counted = split(objects, ignore)
    hits = _dilate(inside, tolerance) & counted
    positive = _positive(maps, counted)
    peak = positive.max(positions(positive), keepdims=True)
    tied = counted & (positive == peak)
    share = (tied & hits).sum(positions(tied)) / jnp.maximum(tied.sum(positions(tied)), 1)
    return jnp.where(two_sided(inside, counted) & _has_saliency(positive), share.astype(jnp.float32), jnp.nan)


def _positive(maps: jax.Array, counted: jax.Array) -> jax.Array:
    # Values that are not finite become NaN, not 0, so that `_has_saliency` rejects the map.
    maps = maps.astype(jnp.float32)
    return jnp.where(counted, jnp.where(jnp.isfinite(maps), jnp.maximum(maps, 0), jnp.nan), 0)


def _has_saliency(positive: jax.Array) -> jax.Array:
    peak = positive.max(positions(positive))
    return (peak > 0) & jnp.isfinite(positive).all(positions(positive))


def _dilate(mask: jax.Array, radius: float) -> jax.Array:
    """Return the mask with the pixels at most `radius` away from it added."""
    reach = int(radius)
    if radius < 0:
        raise ValueError(f"tolerance = {radius!r}: pass a distance in pixels, 0 or more")
    if reach == 0:
        return mask
    offset, axes = np.arange(-reach, reach + 1), mask.ndim - 1
    squared = sum(each**2 for each in np.meshgrid(*[offset] * axes, indexing="ij"))
    ball = (squared <= radius**2).astype(np.float32)[..., None, None]
    # Channels are the last axis of mask and result, and the last two of the ball.
    sides = "HW"[:axes]
    numbers = (f"N{sides}C", f"{sides}IO", f"N{sides}C")
    near = jax.lax.conv_general_dilated(
        mask.astype(jnp.float32)[..., None], ball, (1,) * axes, "SAME", dimension_numbers=numbers
    )
    return near[..., 0] > 0.5


def relevance_rank_accuracy(maps: jax.Array, objects: jax.Array, *, ignore: jax.Array | None = None) -> jax.Array:
    """Return the share of the K most salient pixels that lie on the object, with K the object's number of pixels.

    Args:
      maps: `[N, H, W]`.
      objects: object masks, bool `[N, H, W]`.
      ignore: pixels that are not ranked, bool `[N, H, W]`.

    Returns:
      `[N]` in [0, 1], NaN where undefined. Pixels that tie for the last places count by the expectation of a random
      choice. The chance level is `area_share`.

    References:
      Arras et al., "CLEVR-XAI", https://arxiv.org/abs/2003.07258, 2022.
    """
    check_maps(maps=maps, objects=objects, ignore=ignore)
    inside, _ = split(objects, ignore)
    return _share_of_top(maps, objects, ignore, inside.sum(positions(inside)))


def top_k_intersection(
    maps: jax.Array, objects: jax.Array, *, k: int = 1000, ignore: jax.Array | None = None
) -> jax.Array:
    """Return the share of the k most salient pixels that lie on the object, `[N]` in [0, 1].

    A larger `k` is reduced to the number of pixels that are not ignored. If the object has fewer than k pixels, the
    best value is their number over k. See `relevance_rank_accuracy` for the other arguments, ties and chance.

    References:
      Theiner et al., "Interpretable Semantic Photo Geolocation", https://arxiv.org/abs/2104.14995, 2021.
    """
    check_count("k", k)
    check_maps(maps=maps, objects=objects, ignore=ignore)
    _, counted = split(objects, ignore)
    return _share_of_top(maps, objects, ignore, jnp.minimum(k, counted.sum(positions(counted))))


def roc_auc(maps: jax.Array, objects: jax.Array, *, ignore: jax.Array | None = None) -> jax.Array:
    """Return the probability that a pixel of the object is ranked above one of the background; a tie counts half.

    It is the area under the ROC curve of the map as a detector of the object's pixels, computed exactly from ranks.

    Args:
      maps: `[N, H, W]`.
      objects: object masks, bool `[N, H, W]`.
      ignore: pixels that are not ranked, bool `[N, H, W]`.

    Returns:
      `[N]` in [0, 1], NaN where undefined. The chance level is 0.5.
    """
    check_maps(maps=maps, objects=objects, ignore=ignore)
    inside, counted = split(objects, ignore)
    # The mean over two orders counts a tie half: among equal values, the object's pixels come first, then last.
    first, last = (sort_rows(_keys(maps, counted, bit)) for bit in (~inside, inside))
    best, worst = _area_under_roc(first & 1 == 0, counted), _area_under_roc((last & 1 == 1) & (last < LAST), counted)
    return jnp.where(two_sided(inside, counted) & _ranks(maps, counted), (best + worst) / 2, jnp.nan)


@automatic
def best_iou(maps: jax.Array, objects: jax.Array, *, ignore: jax.Array | None = None) -> jax.Array:
    """Return each map's best intersection over union of the object and the pixels above a threshold.

    Args:
      maps: `[N, H, W]`.
      objects: object masks, bool `[N, H, W]`.
      ignore: pixels to leave out of both sets, bool `[N, H, W]`.

    Returns:
      `[N]` in (0, 1], NaN where undefined. Every value of the map is tried as the threshold. The lowest one keeps all
      pixels, so every map scores at least `area_share`, and a constant map scores exactly `area_share`.
    """
    check_maps(maps=maps, objects=objects, ignore=ignore)
    inside, counted = split(objects, ignore)
    keys = sort_rows(_keys(maps, counted, ~inside))
    labels = keys & 1 == 0
    found = jnp.cumsum(labels, axis=1)
    union = jnp.arange(1, labels.shape[1] + 1)[None] - found + found[:, -1:]
    # A threshold keeps all or none of the pixels with equal values, so only the end of a run is a possible set.
    overlap = jnp.where(ends_of_runs(keys >> 1) & (keys < LAST), _float(found) / _float(union), 0)
    return jnp.where(two_sided(inside, counted) & _ranks(maps, counted), overlap.max(1), jnp.nan)


def _share_of_top(maps: jax.Array, objects: jax.Array, ignore: jax.Array | None, k: jax.Array) -> jax.Array:
    """Return the share of the `k` `[N]` most salient pixels that lie on the object."""
    inside, counted = split(objects, ignore)
    lowest = jnp.iinfo(jnp.int32).min
    keys = _rows(jnp.where(counted, order_keys(maps), lowest))
    threshold = kth_largest(keys, k)[:, None]
    above, tied, on_object = keys > threshold, keys == threshold, _rows(inside)
    hit_by_tie = _float((tied & on_object).sum(1)) / _float(jnp.maximum(tied.sum(1), 1))
    hits = _float((above & on_object).sum(1)) + _float(k - above.sum(1)) * hit_by_tie
    defined = two_sided(inside, counted) & _ranks(maps, counted)
    return jnp.where(defined, hits / _float(jnp.maximum(k, 1)), jnp.nan)


def _keys(maps: jax.Array, counted: jax.Array, bit: jax.Array) -> jax.Array:
    """Return int32 keys `[N, H·W]` that ascend as the map descends, `bit` as the lowest bit; `LAST` where ignored."""
    keys = order_keys(jnp.where(counted, -maps.astype(jnp.float32), 0))  # −maps of unsigned integers would wrap around
    size = jnp.where(keys < 0, ~keys, keys)
    # All sizes move down together to make room for the bit, which breaks ties when keys are sorted. Only values 2¹²⁶
    # times smaller than the largest one become equal.
    size = jnp.maximum(size - jnp.maximum(size.max(positions(size), keepdims=True) - (2**30 - 2), 0), 0)
    return _rows(jnp.where(counted, jnp.where(keys < 0, ~size, size) * 2 + bit.astype(jnp.int32), LAST))


def _area_under_roc(labels: jax.Array, counted: jax.Array) -> jax.Array:
    """Return the area under the ROC curve from labels `[N, F]` in descending order of the map's values."""
    if labels.shape[1] > 2**24:
        raise ValueError(f"maps of {labels.shape[1]} pixels: roc_auc takes at most {2**24}, shrink them")
    place = jnp.arange(labels.shape[1], dtype=jnp.uint32)[None]
    positives = labels.sum(1)
    negatives = counted.sum(positions(counted)) - positives
    # The mean place of the positives is computed from exact sums of 8-bit digits, because a float32 sum would round
    # every term. 32 bits hold the sum of at most 2²⁴ digits.
    digits = [jnp.where(labels, place >> shift & 0xFF, 0).sum(1, dtype=jnp.uint32) for shift in (16, 8, 0)]
    high, middle, low = (_float(digit) / _float(jnp.maximum(positives, 1)) for digit in digits)
    mean_place = 2**16 * high + 2**8 * middle + low
    negatives_above = mean_place - _float(positives - 1) / 2
    return 1 - negatives_above / _float(jnp.maximum(negatives, 1))


def _ranks(maps: jax.Array, counted: jax.Array) -> jax.Array:
    finite = (jnp.isfinite(maps) | ~counted).all(positions(maps))
    return finite & ((maps != 0) & counted).any(positions(maps))


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1)


def _float(counts: jax.Array) -> jax.Array:
    return counts.astype(jnp.float32)
