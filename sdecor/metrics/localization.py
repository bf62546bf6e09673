"""Does saliency lie on the object? By its sum, and by the order of the pixels. Each value beside its chance level."""

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
      boxes: `[N, 4]`, or `[N, B, 4]` for up to B boxes an image, as `[y0, x0, y1, x1)` in pixels. A box without area
        (zeros, an end before its start) and one with a NaN contribute nothing, so they may fill up a list.
      size: height and width of the images.

    Returns:
      bool `[N, height, width]`, True where the pixel's center is in a box; what lies outside the image is cut off.

    Raises:
      ValueError: when the shape is another one.
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


def split(objects: jax.Array, ignore: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Return the object without ignored pixels, and the pixels that count at all, bool `[N, H, W]` each."""
    counted = jnp.ones_like(objects) if ignore is None else ~jnp.asarray(ignore)
    return objects & counted, counted


def two_sided(inside: jax.Array, counted: jax.Array) -> jax.Array:
    """Return where there are both object and background to tell apart, bool `[N]`."""
    return inside.any((-2, -1)) & (counted & ~inside).any((-2, -1))


def energy_inside(maps: jax.Array, objects: jax.Array, *, ignore: jax.Array | None = None) -> jax.Array:
    """Return the share of saliency that falls on the object ("energy pointing game", "relevance mass").

    Args:
      maps: `[N, H, W]`; negative values count as 0. Reduce with absolute values to count evidence of both signs.
      objects: bool `[N, H, W]`.
      ignore: bool `[N, H, W]`, pixels left out of both sums.

    Returns:
      `[N]` in [0, 1], NaN where undefined; its chance level is `area_share`.

    References:
      Wang et al., "Score-CAM", https://arxiv.org/abs/1910.01279, 2020.
      Arras et al., "CLEVR-XAI", https://arxiv.org/abs/2003.07258, 2022.
    """
    check_maps(maps=maps, objects=objects, ignore=ignore)
    inside, counted = split(objects, ignore)
    maps = moderate(_positive(maps, counted), (-2, -1))
    peak = maps.max((-2, -1), keepdims=True)
    # Shares do not depend on scale; dividing by the peak keeps sums of tiny or huge gradients in float32's range.
    maps = maps / jnp.where(peak > 0, peak, 1)
    share = jnp.where(inside, maps, 0).sum((-2, -1)) / jnp.maximum(maps.sum((-2, -1)), 1e-30)
    return jnp.where(two_sided(inside, counted) & _has_saliency(maps), share, jnp.nan)


def attribution_localization(
    maps: jax.Array, objects: jax.Array, *, weighted: bool = False, ignore: jax.Array | None = None
) -> jax.Array:
    """Return the share of positive attribution that falls on the object, optionally for the object's size.

    Args:
      maps: `[N, H, W]`; negative values count as 0.
      objects: bool `[N, H, W]`.
      weighted: divide by the object's share of the area, so that objects of different size compare.
      ignore: bool `[N, H, W]`, pixels left out of all sums.

    Returns:
      `[N]`, NaN where undefined. Unweighted it is `energy_inside`, in [0, 1], and its chance level `area_share`;
      weighted it is at least 0, and its chance level 1.

    References:
      Kohlbrenner et al., "Towards Best Practice in Explaining Neural Network Decisions with LRP",
      https://arxiv.org/abs/1910.09840, 2020.
    """
    share = energy_inside(maps, objects, ignore=ignore)
    return share / area_share(objects, ignore=ignore) if weighted else share


def area_share(objects: jax.Array, *, ignore: jax.Array | None = None) -> jax.Array:
    """Return the object's share of the counted area, `[N]` in (0, 1): what a uniform or random map scores.

    NaN where the object is empty or covers everything.
    """
    check_maps(objects=objects, ignore=ignore)
    inside, counted = split(objects, ignore)
    share = inside.sum((-2, -1)) / jnp.maximum(counted.sum((-2, -1)), 1)
    return jnp.where(two_sided(inside, counted), share.astype(jnp.float32), jnp.nan)


def pointing_game(
    maps: jax.Array, objects: jax.Array, *, tolerance: float = 0.0, ignore: jax.Array | None = None
) -> jax.Array:
    """Return whether the map's maximum hits the object: 1 or 0, and a share when several pixels tie.

    A tie is scored by the share of the tied pixels that hit, the expectation of a random choice among them:
    no favour to the top-left corner, and a constant map scores exactly chance.

    Args:
      maps: `[N, H, W]`.
      objects: bool `[N, H, W]`.
      tolerance: a pixel at most this far (Euclidean, in pixels) from the object is a hit. (The published 15 px
        are exclusive: `tolerance=14.99`.)
      ignore: bool `[N, H, W]`, pixels that cannot be the maximum.

    Returns:
      `[N]` in [0, 1], NaN where undefined. The chance level is the game on a constant map.

    References:
      Zhang et al., "Top-down Neural Attention by Excitation Backprop", https://arxiv.org/abs/1608.00507, 2018.
    """
    check_maps(maps=maps, objects=objects, ignore=ignore)
    inside, counted = split(objects, ignore)
    hits = _dilate(inside, tolerance) & counted
    positive = _positive(maps, counted)
    peak = positive.max((-2, -1), keepdims=True)
    tied = counted & (positive == peak)
    share = (tied & hits).sum((-2, -1)) / jnp.maximum(tied.sum((-2, -1)), 1)
    return jnp.where(two_sided(inside, counted) & _has_saliency(positive), share.astype(jnp.float32), jnp.nan)


def _positive(maps: jax.Array, counted: jax.Array) -> jax.Array:
    # A sign would turn NaN and −inf into 0: they stay NaN, and `_has_saliency` then rejects the map.
    maps = maps.astype(jnp.float32)
    return jnp.where(counted, jnp.where(jnp.isfinite(maps), jnp.maximum(maps, 0), jnp.nan), 0)


def _has_saliency(positive: jax.Array) -> jax.Array:
    peak = positive.max((-2, -1))
    return (peak > 0) & jnp.isfinite(positive).all((-2, -1))


def _dilate(mask: jax.Array, radius: float) -> jax.Array:
    """Add the pixels at most `radius` away from the mask."""
    reach = int(radius)
    if radius < 0:
        raise ValueError(f"tolerance = {radius!r}: pass a distance in pixels, 0 or more")
    if reach == 0:
        return mask
    offset = np.arange(-reach, reach + 1)
    disc = (offset[:, None] ** 2 + offset[None, :] ** 2 <= radius**2).astype(np.float32)[:, :, None, None]
    near = jax.lax.conv_general_dilated(
        mask.astype(jnp.float32)[..., None], disc, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return near[..., 0] > 0.5


def relevance_rank_accuracy(maps: jax.Array, objects: jax.Array, *, ignore: jax.Array | None = None) -> jax.Array:
    """Return the share of the K most salient pixels that lie on the object, with K the object's number of pixels.

    Args:
      maps: `[N, H, W]`.
      objects: bool `[N, H, W]`.
      ignore: bool `[N, H, W]`, pixels that are not ranked.

    Returns:
      `[N]` in [0, 1], NaN where undefined. Of pixels that tie for the last places, a random choice is expected to be
      taken. The chance level is `area_share`.

    References:
      Arras et al., "CLEVR-XAI", https://arxiv.org/abs/2003.07258, 2022.
    """
    check_maps(maps=maps, objects=objects, ignore=ignore)
    inside, _ = split(objects, ignore)
    return _share_of_top(maps, objects, ignore, inside.sum((-2, -1)))


def top_k_intersection(
    maps: jax.Array, objects: jax.Array, *, k: int = 1000, ignore: jax.Array | None = None
) -> jax.Array:
    """Return the share of the k most salient pixels that lie on the object, `[N]` in [0, 1].

    `k` is at most the number of counted pixels. For the other arguments, ties and chance see `relevance_rank_accuracy`.
    Where the object has fewer than k pixels, the best value is their number over k.

    References:
      Theiner et al., "Interpretable Semantic Photo Geolocation", https://arxiv.org/abs/2104.14995, 2021.
    """
    check_count("k", k)
    check_maps(maps=maps, objects=objects, ignore=ignore)
    _, counted = split(objects, ignore)
    return _share_of_top(maps, objects, ignore, jnp.minimum(k, counted.sum((-2, -1))))


def roc_auc(maps: jax.Array, objects: jax.Array, *, ignore: jax.Array | None = None) -> jax.Array:
    """Return the probability that a pixel of the object is ranked above one of the background; a tie counts half.

    It is the area under the ROC curve of the map as a detector of the object's pixels, computed exactly from ranks.

    Args:
      maps: `[N, H, W]`.
      objects: bool `[N, H, W]`.
      ignore: bool `[N, H, W]`, pixels that are not ranked.

    Returns:
      `[N]` in [0, 1], NaN where undefined. The chance level is 0.5.
    """
    check_maps(maps=maps, objects=objects, ignore=ignore)
    inside, counted = split(objects, ignore)
    # A tie counts half in the mean of the two orders that put the object's pixels first and last among equal values.
    first, last = (sort_rows(_keys(maps, counted, bit)) for bit in (~inside, inside))
    best, worst = _area_under_roc(first & 1 == 0, counted), _area_under_roc((last & 1 == 1) & (last < LAST), counted)
    return jnp.where(two_sided(inside, counted) & _ranks(maps, counted), (best + worst) / 2, jnp.nan)


@automatic
def best_iou(maps: jax.Array, objects: jax.Array, *, ignore: jax.Array | None = None) -> jax.Array:
    """Return the intersection over union of the object and the pixels above a threshold, the best one for each map.

    Args:
      maps: `[N, H, W]`.
      objects: bool `[N, H, W]`.
      ignore: bool `[N, H, W]`, pixels left out of both.

    Returns:
      `[N]` in (0, 1], NaN where undefined. Every value of the map is tried as the threshold; the lowest keeps all
      pixels, so no map scores less than `area_share`, and a constant one scores just that.
    """
    check_maps(maps=maps, objects=objects, ignore=ignore)
    inside, counted = split(objects, ignore)
    keys = sort_rows(_keys(maps, counted, ~inside))
    labels = keys & 1 == 0
    found = jnp.cumsum(labels, axis=1)
    union = jnp.arange(1, labels.shape[1] + 1)[None] - found + found[:, -1:]
    # Equal values pass a threshold together: only the end of a run is a set of pixels that one can select.
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
    """Return int32 keys `[N, H·W]` that ascend as the map descends; `bit` is the lowest, `LAST` stands for ignored."""
    keys = order_keys(jnp.where(counted, -maps.astype(jnp.float32), 0))  # integers without a sign would wrap around
    size = jnp.where(keys < 0, ~keys, keys)
    # Moving all sizes down together makes room for the bit, which is then sorted with the value and settles ties. Only
    # values 2¹²⁶ times smaller than the largest one become equal.
    size = jnp.maximum(size - jnp.maximum(size.max((-2, -1), keepdims=True) - (2**30 - 2), 0), 0)
    return _rows(jnp.where(counted, jnp.where(keys < 0, ~size, size) * 2 + bit.astype(jnp.int32), LAST))


def _area_under_roc(labels: jax.Array, counted: jax.Array) -> jax.Array:
    """Return it from the labels `[N, F]` in descending order of the values."""
    if labels.shape[1] > 2**24:
        raise ValueError(f"maps of {labels.shape[1]} pixels: roc_auc takes at most {2**24}, shrink them")
    place = jnp.arange(labels.shape[1], dtype=jnp.uint32)[None]
    positives = labels.sum(1)
    negatives = counted.sum((-2, -1)) - positives
    # The mean of the positives' places from exact sums of their digits: a sum in float32 would round every term, and
    # one of 2²⁴ digits of 8 bits is the largest that 32 bits hold.
    digits = [jnp.where(labels, place >> shift & 0xFF, 0).sum(1, dtype=jnp.uint32) for shift in (16, 8, 0)]
    high, middle, low = (_float(digit) / _float(jnp.maximum(positives, 1)) for digit in digits)
    mean_place = 2**16 * high + 2**8 * middle + low
    negatives_above = mean_place - _float(positives - 1) / 2
    return 1 - negatives_above / _float(jnp.maximum(negatives, 1))


def _ranks(maps: jax.Array, counted: jax.Array) -> jax.Array:
    finite = (jnp.isfinite(maps) | ~counted).all((-2, -1))
    return finite & ((maps != 0) & counted).any((-2, -1))


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1)


def _float(counts: jax.Array) -> jax.Array:
    return counts.astype(jnp.float32)
