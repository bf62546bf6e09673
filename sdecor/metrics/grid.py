"""Grid pointing game: localization without object masks.

A mosaic combines images of different classes that the network classifies confidently. The explanation of one class
should lie in the cell of this class. Cells are numbered row by row from the top left. The steps are:

1. `choose_mosaics` returns the `members` of each mosaic, from the network's predictions for single images.
2. `make_mosaics` combines the images.
3. A method explains the class `labels[members[m, cell]]` on mosaic m, for each cell.
4. `grid_pointing_game` evaluates the maps.

References:
  Böhle, Fritz, Schiele, "Convolutional Dynamic Alignment Networks", https://arxiv.org/abs/2104.00032, 2021.
  Arias-Duart et al., "Focus! Rating XAI Methods and Finding Biases", https://arxiv.org/abs/2109.15035, 2022.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.core.checks import check_count
from sdecor.core.parallel import automatic
from sdecor.metrics.inputs import check_maps
from sdecor.metrics.localization import energy_inside


def choose_mosaics(
    labels: np.ndarray, confidences: np.ndarray, correct: np.ndarray, *, size: int = 2, count: int, seed: int
) -> np.ndarray:
    """Choose the images of mosaics: the most confidently classified ones, with different classes in each mosaic.

    Args:
      labels: classes, integers `[N]`; an image of unknown class (negative) is not chosen.
      confidences: probability of the predicted class, `[N]`; an image without one (NaN) is not chosen.
      correct: whether the prediction is right, `[N]`; only such images are chosen.
      size: cells along a side.
      count: number of mosaics M.
      seed: seed of the random placement; the choice of images does not depend on it.

    Returns:
      Indices in the data set, int `[M, size²]`. No image is used twice.

    Raises:
      ValueError: for fewer classes than cells, or too few images.
    """
    check_count("size", size, 2)
    check_count("count", count)
    labels, confidences = np.asarray(labels, np.int64), np.asarray(confidences, np.float64)
    usable = np.flatnonzero((np.asarray(correct) > 0) & (labels >= 0) & ~np.isnan(confidences))
    ranked = usable[np.argsort(-confidences[usable], kind="stable")]
    _check_supply(labels[ranked], size**2, count)
    # A class is in a mosaic at most once, so at most `count` of its images are needed.
    candidates = ranked[_earlier_of_class(labels[ranked]) < count]
    chosen = candidates[: count * size**2]
    # Dealing images class by class puts the images of a class, at most `count`, into different mosaics.
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(chosen)
    order_of_classes = rng.permutation(labels.max() + 1)
    dealt = chosen[np.argsort(order_of_classes[labels[chosen]], kind="stable")].reshape(size**2, count).T
    return rng.permuted(dealt, axis=1)


@automatic
def make_mosaics(images: jax.Array, size: int = 2, *, resize: bool = False) -> jax.Array:
    """Combine images into mosaics, cell by cell.

    Args:
      images: `[M, size², H, W, C]`.
      size: cells along a side.
      resize: False keeps the size of the images: a mosaic is `size` times larger, for networks that take any size. True
        shrinks the images (linear interpolation, antialiased): a mosaic has the size of one image, for networks with a
        fixed input size.

    Returns:
      `[M, size·H, size·W, C]`, or `[M, H, W, C]` with `resize`.

    Raises:
      ValueError: unless each mosaic has size² images, and if `resize` would split pixels.
    """
    if images.ndim != 5:
        raise ValueError(f"images have shape {images.shape}: mosaics are of images, pass [M, {size**2}, H, W, C]")
    count, cells, height, width, channels = images.shape
    if cells != size**2:
        raise ValueError(f"images have shape {images.shape}: a mosaic of {size}×{size} cells takes [M, {size**2}, …]")
    if resize:
        height, width = _cell(height, width, size)
        images = jax.image.resize(images, (count, cells, height, width, channels), "linear", antialias=True)
    grid = images.reshape(count, size, size, height, width, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(count, size * height, size * width, channels)


def grid_pointing_game(maps: jax.Array, cells: jax.Array, *, size: int = 2) -> jax.Array:
    """Return the share of positive attribution that falls into the cell of the explained class.

    Args:
      maps: attribution of one class on each mosaic, `[N, H, W]`; negative values count as 0.
      cells: cell of this class, int `[N]` in [0, size²).
      size: cells along a side.

    Returns:
      `[N]` in [0, 1]; the chance level is 1/size². NaN for a map without positive values, a map that is not finite, and
      a cell outside [0, size²).

    Raises:
      ValueError: if the maps do not divide into equal cells.
    """
    check_maps(maps=maps, only_for="the grid pointing game")
    _, height, width = maps.shape
    cell_height, cell_width = _cell(height, width, size)
    row, column = jnp.arange(height) // cell_height, jnp.arange(width) // cell_width
    cell_of_pixel = row[:, None] * size + column[None, :]
    return energy_inside(maps, cell_of_pixel[None] == cells[:, None, None])


def _cell(height: int, width: int, size: int) -> tuple[int, int]:
    if height % size or width % size:
        raise ValueError(f"{height}×{width} pixels do not divide into {size}×{size} cells: pass a multiple of {size}")
    return height // size, width // size


def _check_supply(labels: np.ndarray, cells: int, count: int) -> None:
    supply = np.unique(labels, return_counts=True)[1]
    if supply.size < cells:
        raise ValueError(
            f"{supply.size} classes have a correctly classified image: a mosaic of {cells} cells needs {cells} classes"
        )
    mosaics = np.arange(1, labels.size // cells + 1)
    possible = mosaics[np.minimum(supply[None], mosaics[:, None]).sum(1) >= cells * mosaics]
    if count not in possible:
        raise ValueError(
            f"count = {count} mosaics of {cells} different classes: the {labels.size} correctly classified images of "
            f"{supply.size} classes make at most {possible.max()}"
        )


def _earlier_of_class(labels: np.ndarray) -> np.ndarray:
    """Return how many earlier entries have the same label, `[N]`."""
    order = np.argsort(labels, kind="stable")
    _, first, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    earlier = np.empty(labels.size, int)
    earlier[order] = np.arange(labels.size) - np.repeat(first, sizes)
    return earlier
