"""Regions of an input as features: label maps, which number the region of each position."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.core.checks import check_count, check_range

# A label map, integers of the positions' shape from 0; the side of a grid's cells; or None for the default.
Regions = jax.Array | np.ndarray | int | None


def labels_of(regions: Regions, count: int | None, image: jax.Array) -> tuple[jax.Array, int]:
    """Return the label map of one input, int32, and the number of regions.

    Args:
      regions: see `Regions`. The default is cells of an eighth of the longest side, or each feature of `[F]`.
      count: number of regions, if it is known; some may have no position.
      image: `[*positions, C]`, or features `[F]`.

    Raises:
      ValueError: for labels of another shape or type, a label outside [0, count), and traced labels without `count`.
    """
    sides = image.shape[:-1] if image.ndim > 1 else image.shape
    if regions is None or np.ndim(regions) == 0:
        size = (math.ceil(max(sides) / 8) if image.ndim > 1 else 1) if regions is None else regions
        regions = grid(sides, size)
    regions = np.asarray(regions) if isinstance(regions, list) else regions
    if np.shape(regions) != sides or not jnp.issubdtype(regions.dtype, jnp.integer):
        raise ValueError(
            f"regions has shape {np.shape(regions)} and dtype {regions.dtype}: pass a label map, integers {sides} from "
            "0, one for each position, or the side of a grid's cells"
        )
    if isinstance(regions, jax.core.Tracer):
        if count is None:
            raise ValueError("count = None: the number of regions must be given where regions are traced, as under jit")
        return jnp.clip(regions.astype(jnp.int32), 0, count - 1), count
    values = np.asarray(regions)
    count = int(values.max()) + 1 if count is None else count
    if values.min() < 0 or values.max() >= count:
        raise ValueError(f"regions has labels from {values.min()} to {values.max()}: pass labels in [0, {count})")
    return jnp.asarray(values.astype(np.int32)), count


def grid(sides: tuple[int, ...], size: int) -> np.ndarray:
    """Return the label map of a regular grid of cells.

    Args:
      sides: number of positions along each axis, such as `(H, W)`.
      size: side of a cell; cells at the end of an axis may be cut off.

    Returns:
      Labels int32 of shape `sides`, from 0, in the order of rows.
    """
    check_count("size", size, 1, max(sides))
    labels = np.zeros((), np.int32)
    for side in sides:
        labels = labels[..., None] * -(-side // size) + np.arange(side, dtype=np.int32) // size
    return labels


def superpixels(images: Any, *, segments: int = 50, compactness: float = 10.0, sigma: float = 0.0) -> np.ndarray:
    """Return label maps of superpixels (SLIC), computed on the host by scikit-image.

    Args:
      images: `[N, H, W, C]`; each is scaled to [0, 1] by its own minimum and maximum first.
      segments: approximate number of superpixels of an image, at least 1.
      compactness: weight of the distance of positions against that of colors, positive.
      sigma: standard deviation, in pixels, of a Gaussian blur before the segmentation.

    Returns:
      Labels int32 `[N, H, W]`, from 0.

    Raises:
      ValueError: if scikit-image is not installed, for images that are not finite or not `[N, H, W, C]`, and for
        options out of range.

    References:
      Achanta et al., "SLIC Superpixels Compared to State-of-the-Art Superpixel Methods",
      https://doi.org/10.1109/TPAMI.2012.120, 2012.
    """
    check_count("segments", segments)
    check_range("compactness", compactness, 0, low_open=True)
    check_range("sigma", sigma, 0)
    try:
        from skimage.segmentation import slic
    except ImportError as error:
        raise ValueError("superpixels needs scikit-image: pip install scikit-image; or use a grid") from error
    images = np.asarray(images, np.float32)
    if images.ndim != 4:
        raise ValueError(f"images has shape {images.shape}: pass [N, H, W, C]")
    finite = np.isfinite(images).all((1, 2, 3))
    if not finite.all():
        raise ValueError(f"images[{np.argmin(finite)}] is not finite: it has no superpixels")
    low, high = (extreme(images, axis=(1, 2, 3), keepdims=True) for extreme in (np.min, np.max))
    scaled = (images - low) / np.where(high > low, high - low, 1)
    options = {"n_segments": segments, "compactness": compactness, "sigma": sigma, "start_label": 0}
    options |= {"convert2lab": images.shape[-1] == 3, "channel_axis": -1}
    return np.stack([slic(image, **options) for image in scaled]).astype(np.int32)
