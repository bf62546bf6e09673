"""Attribution by the change of the score when parts of the image are hidden; no gradients are needed."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.attribution.baselines import Baseline, baseline_image
from sdecor.attribution.inputs import positions_of
from sdecor.attribution.targets import Target, target_score
from sdecor.core.arrays import widened
from sdecor.core.checks import check_count, check_range
from sdecor.core.chunks import sum_over


def occlusion(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    window: int | tuple[int, ...] | None = None,
    stride: int | tuple[int, ...] | None = None,
    baseline: Baseline = "zero",
    saliency_of: str = "logit",
    key: jax.Array | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Return each pixel's mean drop of the score over the windows that cover the pixel, when each window is hidden.

    Cost: one evaluation for each of the `(⌈(H − h) / s⌉ + 1) (⌈(W − w) / s⌉ + 1)` windows, and one more.

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, `[H, W, C]`.
      target: the class to explain, a `Contrast` of two classes, or a function of the logits.
      window: height and width of the window in pixels, or one number for both. Default: an eighth of each side. Of a
        series or a volume, one number for each axis of positions; likewise `stride`.
      stride: distance from window to window in pixels, at most the window's size. Default: half the window. The last
        window of a row or a column is cut off at the border.
      baseline: replacement of the window's pixels, in all channels: see `baseline_image`.
      saliency_of: score of the target: "logit", "log_probability" or "probability".
      key: random key, for a baseline that draws, such as "uniform".
      chunk_size: windows evaluated at once.

    Returns:
      Signed drops `[H, W, 1]` in score units.

    Raises:
      ValueError: for a window or a stride out of range, and for an input without positions.

    References:
      Zeiler, Fergus, "Visualizing and Understanding Convolutional Networks", https://arxiv.org/abs/1311.2901, 2014.
    """
    sides = positions_of(image, "occlusion")
    window, starts = windows_of(sides, window, stride)

    def score(x: jax.Array) -> jax.Array:
        return target_score(fn(x), target, saliency_of=saliency_of)

    hidden, unhidden = baseline_image(baseline, image, key=key), score(image)

    def drop(i: jax.Array) -> jax.Array:
        places = jnp.unravel_index(i, tuple(map(len, starts)))
        own = [jnp.asarray(each)[place] for each, place in zip(starts, places, strict=True)]
        covered = functools.reduce(_crossed, map(_inside, sides, own, window))
        seen = jnp.where(covered[..., None], hidden, image)
        return jnp.where(covered, unhidden - score(seen), 0)

    total = sum_over(drop, math.prod(map(len, starts)), at_once=chunk_size)
    times = [
        sum(_inside(side, start, size).astype(int) for start in own)
        for side, own, size in zip(sides, starts, window, strict=True)
    ]
    return (total / functools.reduce(np.multiply.outer, times).astype(np.float32))[..., None]


def rise(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    key: jax.Array,
    samples: int = 4000,
    cells: int | tuple[int, ...] = 7,
    probability: float = 0.5,
    baseline: Baseline = "zero",
    saliency_of: str = "probability",
    chunk_size: int | None = None,
) -> jax.Array:
    """Return each pixel's expected score of the randomly masked image, given that the pixel is visible ("RISE").

    Masks are grids of cells, enlarged bilinearly and shifted at random by up to a cell. Each cell is visible with
    `probability`. Cost: `samples` evaluations.

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, `[H, W, C]`.
      target: the class to explain, a `Contrast` of two classes, or a function of the logits.
      key: random key for the masks.
      samples: number of masks.
      cells: rows and columns of the grid, or one number for both; of a series or a volume, one for each axis.
      probability: probability that a cell is visible, in (0, 1].
      baseline: replacement of pixels where the mask is 0: see `baseline_image`.
      saliency_of: score of the target: "logit", "log_probability" or "probability".
      chunk_size: masks evaluated at once.

    Returns:
      Expected scores `[H, W, 1]`, for probabilities in [0, 1] up to sampling error; large where the pixel matters.

    References:
      Petsiuk, Das, Saenko, "RISE: Randomized Input Sampling for Explanation", https://arxiv.org/abs/1806.07421, 2018.
    """
    check_range("probability", probability, 0, 1, low_open=True)
    check_count("samples", samples)
    sides = positions_of(image, "rise")
    cells = checked_sizes("cells", cells, len(sides))
    hidden = widened(baseline_image(baseline, image, key=jax.random.fold_in(key, samples)))  # masks use 0 … samples − 1

    def weighted(i: jax.Array) -> jax.Array:
        mask = _mask(jax.random.fold_in(key, i), sides, cells, probability)[..., None].astype(hidden.dtype)
        seen = (hidden + mask * (widened(image) - hidden)).astype(image.dtype)
        return mask * target_score(fn(seen), target, saliency_of=saliency_of).astype(mask.dtype)

    return sum_over(weighted, samples, at_once=chunk_size) / (samples * probability)


def _mask(key: jax.Array, sides: tuple[int, ...], cells: tuple[int, ...], probability: float) -> jax.Array:
    """Return a mask `[H, W]` in [0, 1], from one draw for each cell and one for the shift along each side."""
    axes = len(sides)
    draws = jax.random.uniform(key, (math.prod(cells) + axes,))
    mask = (draws[:-axes] < probability).reshape(cells).astype(jnp.float32)
    for shift, side, count in zip(draws[-axes:], sides, cells, strict=True):
        # The first axis is enlarged and becomes the last one.
        mask = jnp.tensordot(mask, _enlargement(shift, side, count), (0, 1), precision="highest")
    return mask


def _enlargement(draw: jax.Array, side: int, cells: int) -> jax.Array:
    """Return the bilinear weights `[side, cells]` of the grid's cells in each pixel; `draw` in [0, 1) sets the shift.

    The grid spans one cell more than the side, so that it covers the image after any shift by less than a cell.
    """
    size = math.ceil(side / cells)
    shift = jnp.floor(draw * size)
    place = (jnp.arange(side, dtype=draw.dtype) + shift + 0.5) * (cells / ((cells + 1) * size)) - 0.5
    place = jnp.clip(place, 0, cells - 1)
    return jnp.maximum(1 - jnp.abs(place[:, None] - jnp.arange(cells, dtype=draw.dtype)[None]), 0)


def checked_sizes(name: str, sizes: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    """Return a size as one positive integer for each axis of positions; one number stands for all."""
    each = (sizes,) * axes if np.ndim(sizes) == 0 else tuple(sizes)
    if len(each) != axes:
        several = "two for rows and columns" if axes == 2 else f"one for each of the {axes} axes of positions"
        raise ValueError(f"{name} = {sizes!r}: pass a positive integer, or {several}")
    for size in each:
        check_count(name, size)
    return tuple(map(int, each))


def windows_of(
    sides: tuple[int, ...], window: int | tuple[int, ...] | None, stride: int | tuple[int, ...] | None
) -> tuple[tuple[int, ...], list[np.ndarray]]:
    """Return the size of a window, and the first positions of all windows along each axis."""
    axes = len(sides)
    window = tuple(math.ceil(side / 8) for side in sides) if window is None else checked_sizes("window", window, axes)
    stride = tuple(math.ceil(size / 2) for size in window) if stride is None else checked_sizes("stride", stride, axes)
    names = ("height", "width") if axes == 2 else [f"axis {axis}" for axis in range(axes)]
    return window, [window_starts(*each) for each in zip(names, sides, window, stride, strict=True)]


def window_starts(name: str, side: int, size: int, stride: int) -> np.ndarray:
    """Return the first pixel of each window along a side."""
    check_range(f"{name} of window", size, 1, side)
    check_range(f"{name} of stride", stride, 1, size)
    return np.arange(math.ceil((side - size) / stride) + 1) * stride


def _crossed(first: jax.Array, second: jax.Array) -> jax.Array:
    """Return where both of two masks of different axes hold, bool with the axes of both."""
    return first[..., None] & second.reshape(*[1] * first.ndim, -1)


def _inside(side: int, start: jax.Array, size: int) -> jax.Array:
    """Return which pixels of a side a window covers, bool `[side]`."""
    place = np.arange(side)
    return (place >= start) & (place < start + size)
