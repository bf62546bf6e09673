"""Object masks: from boxes, and which pixels are object, background or neither."""

import jax
import jax.numpy as jnp


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
