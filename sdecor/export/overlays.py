"""Pictures of an export: attribution maps in color over their images in gray."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from sdecor.core.files import write_file
from sdecor.export.convert import pictures
from sdecor.export.reader import Export
from sdecor.report.gallery import brightest, color_table, relative
from sdecor.report.heatmaps import series_maps

LONGEST = 256  # pixels: smaller pictures are enlarged by an integer factor
STRONGEST = 0.85  # opacity of the most salient pixels


def overlays(
    export: Export,
    source: Any,
    directory: epath.PathLike,
    *,
    examples: Sequence[int],
    methods: Sequence[str] | None = None,
) -> list[epath.Path]:
    """Write a PNG for each example and method; see `overlay`.

    Args:
      export: the export to draw.
      source: the exported data, for the images.
      directory: folder of the files `<place>_<method's array>.png`, local or remote; created if missing.
      examples: places in the export.
      methods: method keys or array names; None = all.

    Returns:
      The files written. A map of zeros, or one that is not finite, has no file.

    Raises:
      ValueError: for an unknown method or place, or images that differ from the exported ones.
    """
    directory, written = epath.Path(directory), []
    names = {method: export.name_of(method) for method in methods or export.methods}
    directory.mkdir(parents=True, exist_ok=True)
    for place in export.places(examples):
        (image,) = pictures(export, source, [place]).images
        for method, name in names.items():
            drawn = overlay(*_drawable(image, export.attribution(method, int(place))))
            if drawn is not None:
                written.append(directory / f"{place:06d}_{name}.png")
                write_file(written[-1], _png(drawn))
    return written


def _drawable(image: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an image `[H, W, C]` and a map `[H, W]`; a series `[T, C]` becomes a picture of channels and times."""
    if image.ndim == 2:
        return image.T[..., None], series_maps(values[None], image.shape[1])[0]
    if image.ndim != 3:
        raise ValueError(f"inputs of shape {image.shape} cannot be drawn: images [H, W, C] and series [T, C] can")
    return image, values.sum(-1) if values.ndim == 3 else values


def overlay(image: np.ndarray, values: np.ndarray) -> np.ndarray | None:
    """Draw a map over its image; more salient pixels are more opaque.

    Args:
      image: uint8 `[H, W, C]`, or floats of any range.
      values: map `[H, W]`. A map ≥ 0 goes from dark to bright. A signed map is red where it supports the explained
        class and blue where it opposes it. The brightest pixels are saturated, as in reports.

    Returns:
      uint8 `[h, w, 3]`, enlarged by an integer factor if small; None for a map of zeros, or one that is not finite.
    """
    signed = bool((values < 0).any())
    share = relative(values, signed=signed)
    if np.isnan(share).any():
        return None
    level = np.clip(share / (brightest(share) or np.abs(share).max()), -1, 1)
    colors = color_table("coolwarm" if signed else "magma")
    table = np.frombuffer(bytes.fromhex(colors), np.uint8).reshape(256, 3)
    color = table[np.rint(127.5 + 127.5 * level if signed else 255 * level).astype(int)]
    opacity = STRONGEST * np.abs(level)[..., None]
    mixed = (1 - opacity) * _gray(image) + opacity * color
    factor = max(1, LONGEST // max(values.shape))
    return np.rint(mixed).astype(np.uint8).repeat(factor, 0).repeat(factor, 1)


def _gray(image: np.ndarray) -> np.ndarray:
    """Return the mean over channels, 0 … 255, `[H, W, 1]`; floats are stretched to that range."""
    pixels = np.asarray(image, np.float64)
    if image.dtype != np.uint8:
        low, high = pixels.min(), pixels.max()
        pixels = 255 * (pixels - low) / (high - low or 1)
    return pixels.mean(-1, keepdims=True)


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", optimize=True)
    return buffer.getvalue()
