"""Decoding of images and object masks, and resizing of images, masks and boxes together. Errors name the file.

Images are uint8 `[H, W, C]`; masks are uint8 `[H, W]` with 0 = background, 1 = object, 2 = ignore; boxes are int32
`[y0, x0, y1, x1)` in pixels. The orientation flag of a photograph is not applied, because masks and boxes refer to the
stored pixels.
"""

import dataclasses
import io
from typing import Any

import numpy as np

from sdecor.core.checks import check_choice

MODES = {1: "L", 3: "RGB"}
FITS = ("stretch", "crop")
MASK_ENCODINGS = ("binary", "trimap")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoder:
    """A decoder that brings all images of a data set into one form.

    Attributes:
      channels: 1 (grayscale) or 3 (RGB); images are converted.
      canvas: `(height, width)` in pixels to which images are resized; None keeps their size.
      fit: "stretch" resizes the whole image to the canvas; "crop" keeps its proportions and cuts off its borders.
      shape: `(H, W, C)` that every decoded image must have; None accepts any.
    """

    channels: int = 3
    canvas: tuple[int, int] | None = None
    fit: str = "stretch"
    shape: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        check_choice("data.channels", self.channels, MODES)
        check_choice("data.canvas_fit", self.fit, FITS)

    def __call__(
        self, data: bytes, *, name: str, mask: np.ndarray | None = None, box: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Return a dict of `image` uint8 `[H, W, C]` and, if given, `object` uint8 `[H, W]` and `box` int32 `[4]`.

        Args:
          data: the encoded image.
          name: name of the file or record, for errors.
          mask: object mask uint8 `[H, W]` in the stored image's pixels.
          box: `[y0, x0, y1, x1)` in the stored image's pixels, integers or fractions.

        Raises:
          ValueError: for data that are no image or damaged, a mask of another size than the image, or another shape
            than `shape`; the error names the file.
        """
        image, size = _decoded(data, name=name, channels=self.channels, canvas=self.canvas, fit=self.fit)
        if mask is not None and mask.shape != size:
            raise ValueError(
                f"{name}: the object mask is {_size(mask)}, the image {size[0]}×{size[1]} (height × width)"
            )
        if mask is not None and self.canvas is not None and size != self.canvas:
            mask = resize_mask(mask, self.canvas, fit=self.fit)
        if self.shape is not None and image.shape != self.shape:
            raise ValueError(
                f"{name}: the image is {_size(image)} (height × width), the data set's first one {_size(self)}: "
                "set data.canvas to resize all to one size"
            )
        example: dict[str, Any] = {"image": image}
        if mask is not None:
            example["object"] = mask
        if box is not None:
            example["box"] = place_box(box, size, self.canvas or size, fit=self.fit)
        return example


def _decoded(
    data: bytes, *, name: str, channels: int, canvas: tuple[int, int] | None, fit: str
) -> tuple[np.ndarray, tuple[int, int]]:
    """Return an image uint8 `[H, W, channels]` on the canvas, and its stored size `(height, width)`.

    Palette, CMYK, 16-bit grayscale and bilevel images are converted; an alpha channel is dropped.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode.startswith("I;16"):  # Pillow would clip at 255 instead of scaling
                image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
            elif image.mode in ("I", "F"):
                raise ValueError(f"pixels of 32 bits (mode {image.mode}) have no known range")
            image = image if image.mode == MODES[channels] else image.convert(MODES[channels])
            size = (image.height, image.width)
            # Resized as Pillow holds it: only the pixels of the canvas are copied to NumPy.
            resized = canvas is not None and size != canvas
            pixels = _resized(image, canvas, fit, Image.Resampling.BILINEAR) if resized else np.asarray(image)
    except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes
        raise ValueError(f"{name}: cannot be decoded as an image ({error})") from error
    return (pixels[:, :, None] if channels == 1 else pixels), size


def decode_mask(data: bytes, *, name: str, encoding: str = "binary") -> np.ndarray:
    """Decode a one-channel object mask to uint8 `[H, W]`: 0 = background, 1 = object, 2 = ignore.

    Args:
      data: the encoded mask.
      name: name of the file or record, for errors.
      encoding: "binary": values of 128 and above are object; if the largest value is 1 (0/1 instead of 0/255), 1 is
        object. "trimap": 1 is object, 2 background, 3 ignore.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            codes = _mask_codes(image)
    except Exception as error:
        raise ValueError(f"{name}: its object mask cannot be decoded ({error})") from error
    if encoding == "binary":
        threshold = 1 if codes.max(initial=0) == 1 else 128
        return (codes >= threshold).astype(np.uint8)
    if codes.size and (codes.min() < 1 or codes.max() > 3):
        raise ValueError(f"{name}: its trimap holds {codes.min()} … {codes.max()}, 1, 2 and 3 are known")
    return np.array([0, 1, 0, 2], np.uint8)[codes]


def _mask_codes(image: Any) -> np.ndarray:
    """Return a mask's values as uint8 `[H, W]`; 16-bit values are scaled if any is above 255."""
    if image.mode.startswith("I"):  # Pillow would clip at 255 instead of scaling
        values = np.asarray(image).astype(np.int64)
        return np.clip(values >> 8 if values.max(initial=0) > 255 else values, 0, 255).astype(np.uint8)
    # A palette image holds the codes as indices; converting it would give the colors' brightness.
    return np.asarray(image if image.mode in ("L", "P", "1") else image.convert("L")).astype(np.uint8)


def resize_mask(mask: np.ndarray, canvas: tuple[int, int], *, fit: str) -> np.ndarray:
    """Resize a mask uint8 `[H, W]` to the canvas by the nearest pixel."""
    from PIL import Image

    return _resized(Image.fromarray(mask), canvas, fit, Image.Resampling.NEAREST)


def _resized(image: Any, canvas: tuple[int, int], fit: str, method: int) -> np.ndarray:
    """Return the pixels of a Pillow image on the canvas; its bilinear method is antialiased."""
    (height, width), (top, left) = _placement((image.height, image.width), canvas, fit)
    pixels = np.asarray(image.resize((width, height), method))
    return np.ascontiguousarray(pixels[top : top + canvas[0], left : left + canvas[1]])


def place_box(box: np.ndarray, size: tuple[int, int], canvas: tuple[int, int], *, fit: str) -> np.ndarray:
    """Move a box `[y0, x0, y1, x1)` with its image onto the canvas; return int32 `[4]`, within the canvas.

    A box that touches the canvas keeps at least one pixel. A box outside the canvas becomes `[0, 0, 0, 0]`.
    """
    (height, width), (top, left) = _placement(size, canvas, fit)
    y, x = np.asarray(box, np.float64)[[0, 2]], np.asarray(box, np.float64)[[1, 3]]
    sides = []
    for (low, high), scale, offset, limit in (
        (y, height / size[0], top, canvas[0]),
        (x, width / size[1], left, canvas[1]),
    ):
        low, high = low * scale - offset, high * scale - offset
        if high <= 0 or low >= limit or high <= low:
            return np.zeros(4, np.int32)
        first = min(max(int(np.floor(low + 0.5)), 0), limit - 1)
        last = min(max(int(np.floor(high + 0.5)), first + 1), limit)
        sides.append((first, last))
    (y0, y1), (x0, x1) = sides
    return np.array([y0, x0, y1, x1], np.int32)


def _placement(size: tuple[int, int], canvas: tuple[int, int], fit: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the size to which an image is scaled, and the canvas's top left corner in it."""
    if fit == "stretch" or size == canvas:
        return canvas, (0, 0)
    scale = max(canvas[0] / size[0], canvas[1] / size[1])
    scaled = tuple(max(round(length * scale), side) for length, side in zip(size, canvas, strict=True))
    return scaled, tuple((length - side) // 2 for length, side in zip(scaled, canvas, strict=True))


def _size(array: Any) -> str:
    return f"{array.shape[0]}×{array.shape[1]}"
