"""Does saliency lie on the object? One value per image, beside the value that a meaningless map would get.

Maps are `[N, H, W]`; object and ignore masks are boolean `[N, H, W]` (ignored pixels, such as the rim of a trimap,
count neither as object nor as background). Values are NaN where the question has no answer: an empty object, an object
that is the whole image, a map without any positive value, a map that is not finite. A NaN is never counted as a hit.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.core.arrays import moderate
from sdecor.metrics.inputs import check_maps
from sdecor.metrics.masks import split, two_sided


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
