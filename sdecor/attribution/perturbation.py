"""Attribution by what happens to the score when parts of the image are hidden; no gradients."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.attribution.baselines import Baseline, baseline_image
from sdecor.attribution.targets import Target, target_score
from sdecor.core.arrays import widened
from sdecor.core.checks import check_count, check_range
from sdecor.core.chunks import sum_over


def occlusion(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    window: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    baseline: Baseline = "zero",
    saliency_of: str = "logit",
    key: jax.Array | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Return by how much the score drops when a window that covers the pixel is hidden, on average over such windows.

    Cost: one evaluation for each window, `(⌈(H − h) / s⌉ + 1) (⌈(W − w) / s⌉ + 1)` of them, and one more.

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, `[H, W, C]`.
      target: what is explained: a class, a `Contrast` of two, or a function of the logits.
      window: height and width of the window in pixels, or one number for both. Default: an eighth of each side.
      stride: by how much the window moves, at most its size. Default: half the window. The last one in a row or a
        column is cut off at the border.
      baseline: what is seen in the window, in all channels: see `baseline_image`.
      saliency_of: "logit", "log_probability" or "probability".
      key: for a baseline that is drawn, such as "uniform".
      chunk_size: windows in flight.

    Returns:
      Signed drops `[H, W, 1]` in score units.

    References:
      Zeiler, Fergus, "Visualizing and Understanding Convolutional Networks", https://arxiv.org/abs/1311.2901, 2014.
    """
    sides = image.shape[:2]
    window = tuple(math.ceil(side / 8) for side in sides) if window is None else checked_pair("window", window)
    stride = tuple(math.ceil(size / 2) for size in window) if stride is None else checked_pair("stride", stride)
    rows, columns = (window_starts(*each) for each in zip(("height", "width"), sides, window, stride, strict=True))

    def score(x: jax.Array) -> jax.Array:
        return target_score(fn(x), target, saliency_of=saliency_of)

    hidden, unhidden = baseline_image(baseline, image, key=key), score(image)

    def drop(i: jax.Array) -> jax.Array:
        top, left = jnp.asarray(rows)[i // len(columns)], jnp.asarray(columns)[i % len(columns)]
        covered = _inside(sides[0], top, window[0])[:, None] & _inside(sides[1], left, window[1])[None, :]
        seen = jnp.where(covered[..., None], hidden, image)
        return jnp.where(covered, unhidden - score(seen), 0)

    total = sum_over(drop, len(rows) * len(columns), at_once=chunk_size)
    times = [
        sum(_inside(side, start, size).astype(int) for start in starts)
        for side, starts, size in zip(sides, (rows, columns), window, strict=True)
    ]
    return (total / np.outer(*times).astype(np.float32))[..., None]


def rise(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    key: jax.Array,
    samples: int = 4000,
    cells: int | tuple[int, int] = 7,
    probability: float = 0.5,
    baseline: Baseline = "zero",
    saliency_of: str = "probability",
    chunk_size: int | None = None,
) -> jax.Array:
    """Return the expected score of the randomly masked image given that the pixel is seen ("RISE").

    Masks are grids of cells, each seen with `probability`, enlarged bilinearly and shifted at random by up to a cell.
    Cost: `samples` evaluations.

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, `[H, W, C]`.
      target: what is explained: a class, a `Contrast` of two, or a function of the logits.
      key: of the masks.
      samples: number of masks.
      cells: rows and columns of the grid, or one number for both.
      probability: with which a cell is seen, in (0, 1].
      baseline: what is seen where the mask is 0: see `baseline_image`.
      saliency_of: "logit", "log_probability" or "probability".
      chunk_size: masks in flight.

    Returns:
      Expected scores `[H, W, 1]`, in [0, 1] for probabilities up to sampling error; large where the pixel matters.

    References:
      Petsiuk, Das, Saenko, "RISE: Randomized Input Sampling for Explanation", https://arxiv.org/abs/1806.07421, 2018.
    """
    check_range("probability", probability, 0, 1, low_open=True)
    check_count("samples", samples)
    cells = checked_pair("cells", cells)
    hidden = widened(baseline_image(baseline, image, key=jax.random.fold_in(key, samples)))  # those before: the masks'

    def weighted(i: jax.Array) -> jax.Array:
        mask = _mask(jax.random.fold_in(key, i), image.shape[:2], cells, probability)[..., None].astype(hidden.dtype)
        seen = (hidden + mask * (widened(image) - hidden)).astype(image.dtype)
        return mask * target_score(fn(seen), target, saliency_of=saliency_of).astype(mask.dtype)

    return sum_over(weighted, samples, at_once=chunk_size) / (samples * probability)


def _mask(key: jax.Array, sides: tuple[int, int], cells: tuple[int, int], probability: float) -> jax.Array:
    """Return a mask `[H, W]` in [0, 1]: a draw for each cell and one for the shift along each side."""
    draws = jax.random.uniform(key, (cells[0] * cells[1] + 2,))
    grid = (draws[:-2] < probability).reshape(cells).astype(jnp.float32)
    rows, columns = (_enlargement(*each) for each in zip(draws[-2:], sides, cells, strict=True))
    return jnp.einsum("yi,ij,xj->yx", rows, grid, columns, precision="highest")


def _enlargement(draw: jax.Array, side: int, cells: int) -> jax.Array:
    """Return the bilinear weights `[side, cells]` of the grid's cells in each pixel; `draw` in [0, 1) tells the shift.

    The grid spans one cell more than the side, so that every shift by less than a cell leaves the image inside it.
    """
    size = math.ceil(side / cells)
    shift = jnp.floor(draw * size)
    place = (jnp.arange(side, dtype=draw.dtype) + shift + 0.5) * (cells / ((cells + 1) * size)) - 0.5
    place = jnp.clip(place, 0, cells - 1)
    return jnp.maximum(1 - jnp.abs(place[:, None] - jnp.arange(cells, dtype=draw.dtype)[None]), 0)


def checked_pair(name: str, sizes: int | tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of a size that may be one number for both, as positive integers."""
    pair = (sizes, sizes) if np.ndim(sizes) == 0 else tuple(sizes)
    if len(pair) != 2:
        raise ValueError(f"{name} = {sizes!r}: pass a positive integer, or two for rows and columns")
    for size in pair:
        check_count(name, size)
    return int(pair[0]), int(pair[1])


def window_starts(name: str, side: int, size: int, stride: int) -> np.ndarray:
    """Return where windows begin along a side."""
    check_range(f"{name} of window", size, 1, side)
    check_range(f"{name} of stride", stride, 1, size)
    return np.arange(math.ceil((side - size) / stride) + 1) * stride


def _inside(side: int, start: jax.Array, size: int) -> jax.Array:
    """Return which places of a side a window covers, bool `[side]`."""
    place = np.arange(side)
    return (place >= start) & (place < start + size)
