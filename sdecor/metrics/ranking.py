"""Are the object's pixels ranked above the others? Localization by the order of the pixels alone.

Maps, masks, ignored pixels and NaN are as in `sdecor.metrics.localization`, with one difference: values are ranked with
their sign, so a map that is nowhere positive still ranks its pixels, and only a map of zeros says nothing.
Equal values are treated alike, never by their place: a constant map scores exactly the chance level.
"""

import jax
import jax.numpy as jnp

from sdecor.core.arrays import LAST, ends_of_runs, kth_largest, order_keys, sort_rows
from sdecor.core.checks import check_count
from sdecor.core.parallel import automatic
from sdecor.metrics.inputs import check_maps
from sdecor.metrics.masks import split, two_sided


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
