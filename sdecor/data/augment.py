"""Augmentation on the device: pure functions of keys and images, with one key per example.

Images are NHWC, float in [0, 1]. They are augmented before `normalise`, so that black padding is 0. All crops are
gathers of rows and columns, which cost a fraction of the equivalent matrix products on a CPU.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.core.checks import check_range
from sdecor.core.rng import per_example

_LOG_ASPECT = (math.log(3 / 4), math.log(4 / 3))  # of width / height, as in Inception's and torchvision's crops


def augment(
    key: jax.Array,
    images: jax.Array,
    *,
    crop_padding: int = 0,
    flip: bool = False,
    resized_crop: tuple[float, float] | None = None,
    size: int | None = None,
) -> jax.Array:
    """Crop and flip every image at random, by its own key and independently of the rest of the batch.

    A random crop takes `size` rows and columns from the image with `crop_padding` black pixels on each side; all
    offsets are equally likely (He et al., 2016, for CIFAR). A random resized crop takes a box of random area and aspect
    ratio and resizes it to `size` (Szegedy et al., 2015); see `crop_box`.

    Args:
      key: one key, or keys `[N]`; they determine all random draws.
      images: float `[N, H, W, C]` in [0, 1]. Inputs of another rank are returned unchanged if no option is set.
      crop_padding: black pixels on each side of the image before a random crop, at least 0.
      flip: whether to mirror left and right with probability 1/2.
      resized_crop: the smallest and largest share of the image's area, in (0, 1]; None = no resized crop.
      size: height and width of the result; None = those of `images`.

    Returns:
      Images `[N, size, size, C]` in the dtype and the range of `images`.

    Raises:
      ValueError: for images that are not float `[N, H, W, C]`, both kinds of crop at once, or a crop larger than
        the padded image.
    """
    if images.ndim != 4 and not (crop_padding or flip or resized_crop is not None or size is not None):
        return images  # series, for example
    _check_images(images)
    n, height, width, _ = images.shape
    check_range("crop_padding", crop_padding, 0)
    if size is not None:
        check_range("size", size, 1)
    out = (height, width) if size is None else (size, size)
    if resized_crop is not None:
        if crop_padding:
            raise ValueError(
                f"crop_padding = {crop_padding} and resized_crop = {resized_crop} are two kinds of random crop: "
                "choose one, and set crop_padding = 0 or resized_crop = None"
            )
        transform = functools.partial(_resized_crop, out=out, flip=flip, area_range=_area_range(resized_crop))
    else:
        if out[0] > height + 2 * crop_padding or out[1] > width + 2 * crop_padding:
            raise ValueError(
                f"size = {size} is larger than the image of {height}×{width} with crop_padding = {crop_padding}: "
                "choose a smaller size, or resized_crop, which enlarges"
            )
        transform = functools.partial(_padded_crop, out=out, flip=flip, padding=crop_padding)
    return jax.vmap(transform)(per_example(key, n), images)


def _check_images(images: jax.Array) -> None:
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images is {images.dtype} {tuple(images.shape)}: it should be float [N, H, W, C] in [0, 1] "
            "(to_float converts uint8). Crops and flips are of images: leave them off for other inputs"
        )


def _area_range(resized_crop: Sequence[float]) -> tuple[float, float]:
    if len(resized_crop) != 2:
        raise ValueError(f"resized_crop = {resized_crop!r} should be a pair (smallest area, largest area)")
    low, high = (float(value) for value in resized_crop)
    check_range("resized_crop[1]", high, 0, 1, low_open=True)
    check_range("resized_crop[0]", low, 0, high, low_open=True)
    return low, high


def _draws(key: jax.Array) -> jax.Array:
    """Draw flip, y, x, area and aspect, uniform on [0, 1); an unused draw does not change the others."""
    return jax.random.uniform(key, (5,))


def _padded_crop(key: jax.Array, image: jax.Array, *, out: tuple[int, int], flip: bool, padding: int) -> jax.Array:
    mirror, y, x, _, _ = _draws(key)
    rows = _offset(y, image.shape[0], out[0], padding) + jnp.arange(out[0])
    columns = _offset(x, image.shape[1], out[1], padding) + jnp.arange(out[1])
    if flip:
        columns = jnp.where(mirror < 0.5, columns[::-1], columns)
    inside = [(index >= 0) & (index < length) for index, length in zip((rows, columns), image.shape[:2], strict=True)]
    crop = image[jnp.clip(rows, 0, image.shape[0] - 1)][:, jnp.clip(columns, 0, image.shape[1] - 1)]
    return jnp.where((inside[0][:, None] & inside[1][None, :])[:, :, None], crop, jnp.zeros((), image.dtype))


def _offset(draw: jax.Array, length: int, out: int, padding: int) -> jax.Array:
    """Map a uniform draw to one of the `length + 2·padding − out + 1` offsets of a crop; the first is −padding."""
    places = length + 2 * padding - out + 1
    return jnp.minimum(jnp.floor(draw * places).astype(jnp.int32), places - 1) - padding


def crop_box(key: jax.Array, height: int, width: int, area_range: tuple[float, float]) -> jax.Array:
    """Draw the box of a random resized crop; it always lies inside the image.

    The area is uniform on `area_range` (as a share of the image). The logarithm of width/height is uniform on
    [log 3/4, log 4/3], cut to the ratios that fit into the image at that area. Inception's and torchvision's crops
    draw area and ratio together, up to ten times, until they fit. Given the area, the distribution is the same, but
    their rejection makes large areas rarer. If no such ratio fits (a very elongated image), the nearest ratio that
    fits is used.

    Returns:
      Float32 `[y0, x0, height, width]` in pixels.
    """
    _, y, x, area, aspect = _draws(key)
    pixels = height * width * (area_range[0] + (area_range[1] - area_range[0]) * area)
    fitting = jnp.log(pixels / height**2), jnp.log(width**2 / pixels)
    low, high = (jnp.clip(bound, *fitting) for bound in _LOG_ASPECT)
    ratio = jnp.exp(low + (high - low) * aspect)
    box_height = jnp.minimum(jnp.sqrt(pixels / ratio), height)
    box_width = jnp.minimum(jnp.sqrt(pixels * ratio), width)
    return jnp.stack([y * (height - box_height), x * (width - box_width), box_height, box_width])


def _resized_crop(
    key: jax.Array, image: jax.Array, *, out: tuple[int, int], flip: bool, area_range: tuple[float, float]
) -> jax.Array:
    y0, x0, box_height, box_width = crop_box(key, *image.shape[:2], area_range)
    rows, row_weights = _taps(y0, box_height, image.shape[0], out[0])
    columns, column_weights = _taps(x0, box_width, image.shape[1], out[1])
    if flip:
        mirror = _draws(key)[0] < 0.5
        columns = jnp.where(mirror, columns[::-1], columns)
        column_weights = jnp.where(mirror, column_weights[::-1], column_weights)
    tall = sum(
        image[rows[:, tap]] * row_weights[:, tap, None, None].astype(image.dtype) for tap in range(rows.shape[1])
    )
    return sum(
        tall[:, columns[:, tap]] * column_weights[None, :, tap, None].astype(image.dtype)
        for tap in range(columns.shape[1])
    )


def _taps(start: jax.Array, length: jax.Array, size: int, out: int) -> tuple[jax.Array, jax.Array]:
    """Return the pixels that each of `out` samples of `[start, start + length)` reads, and their weights.

    The weights are bilinear with antialiasing, as in `jax.image.resize`: a triangle that reaches as far as the step
    between samples, at least one pixel. Samples at the crop's border also read pixels outside the crop. At the image's
    border the weights are renormalised.

    Returns:
      `(indices, weights)`, both `[out, K]`. K depends only on the shapes, and is enough for the largest possible crop.
    """
    step = length / out
    reach = jnp.maximum(step, 1.0)
    centre = start + (jnp.arange(out, dtype=jnp.float32) + 0.5) * step - 0.5
    first = jnp.floor(centre - reach).astype(jnp.int32) + 1
    indices = first[:, None] + jnp.arange(max(2, math.ceil(2 * size / out)))[None, :]
    weights = jnp.maximum(1 - jnp.abs(indices.astype(jnp.float32) - centre[:, None]) / reach, 0)
    weights = jnp.where((indices >= 0) & (indices < size), weights, 0)
    return jnp.clip(indices, 0, size - 1), weights / weights.sum(axis=1, keepdims=True)


def center_crop(images: Any, size: int | None) -> Any:
    """Crop images or object masks to their central `size × size` pixels, for evaluation.

    Args:
      images: `[N, H, W, C]` or `[N, H, W]`, a JAX or NumPy array.
      size: height and width of the result, at most H and W; None = `images` unchanged.

    Returns:
      `[N, size, size, C]` or `[N, size, size]`. The larger part of an odd margin is below and right.
    """
    if size is None:
        return images
    check_range("size", size, 1)
    if images.ndim < 3:
        raise ValueError(f"size = {size}: crops are of images, and these are {tuple(images.shape)}; pass None")
    height, width = images.shape[1:3]
    if size > height or size > width:
        raise ValueError(f"size = {size} is larger than the images of {height}×{width}: choose at most their size")
    y, x = (height - size) // 2, (width - size) // 2
    return images[:, y : y + size, x : x + size]


def to_float(images: jax.Array) -> jax.Array:
    """Convert uint8 0 … 255 to float32 in [0, 1]; float images are returned unchanged."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images has dtype {images.dtype}: it should be uint8, or float")
    return images


def normalise(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Return `(images − mean) / std` for uint8 images, or float images in [0, 1].

    Args:
      images: `[…, C]`.
      mean: the data set's mean of each channel, in [0, 1].
      std: the data set's standard deviation of each channel, above 0.
    """
    images = to_float(images)
    mean, std = (_channels(name, value, images) for name, value in (("mean", mean), ("std", std)))
    return (images - mean) / std


def denormalise(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Invert `normalise`; return float images in [0, 1], not clipped."""
    mean, std = (_channels(name, value, images) for name, value in (("mean", mean), ("std", std)))
    return images * std + mean


def _channels(name: str, values: Sequence[float], images: jax.Array) -> jax.Array:
    values = np.asarray(values, np.float32)
    if values.shape != images.shape[-1:]:
        raise ValueError(f"{name} has {values.size} values: the images have {images.shape[-1]} channels, give one each")
    if name == "std" and not (values > 0).all():
        raise ValueError(f"std = {values.tolist()}: every channel's standard deviation should be above 0")
    return jnp.asarray(values, images.dtype).reshape((1,) * (images.ndim - 1) + (-1,))
