"""The page's gallery, packed so that a browser can draw every map of an image on one common color scale."""

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sdecor.report.style import COLORS
from sdecor.report.wording import method_title

_BRIGHTEST = 99.5  # percentile of a map from which its color is saturated: single pixels do not darken all others


def relative(saliency: np.ndarray, *, signed: bool = False) -> np.ndarray:
    """Return a map over the mean of its magnitudes.

    Args:
      saliency: `[H, W]`; negative values count as 0 unless `signed`.
      signed: keep signs; the mean is then that of the absolute values.

    Returns:
      float64 `[H, W]` with mean magnitude 1; NaN everywhere where the map has a value that is not finite, or no
      saliency at all.
    """
    values = np.asarray(saliency, np.float64)
    values = values if signed else np.maximum(values, 0)
    total = np.abs(values).mean()
    return values / total if np.isfinite(total) and total > 0 else np.full(values.shape, np.nan)


def brightest(map_: np.ndarray) -> float:
    """Return the magnitude from which a map's color is saturated; NaN for an undefined map."""
    return float(np.percentile(np.abs(map_), _BRIGHTEST))


def common_scale(maps: Iterable[np.ndarray]) -> float:
    """Return the top of the scale on which all the maps of an image are drawn; undefined maps do not count."""
    return max((top for top in map(brightest, maps) if top > 0), default=1.0)


def shrink(values: np.ndarray, longest: int) -> np.ndarray:
    """Average an array `[H, W]` over areas, so that neither side is longer than `longest`; smaller ones stay."""
    factor = min(1.0, longest / max(values.shape))
    for axis, length in enumerate(values.shape):
        size = max(1, round(length * factor))
        starts = np.arange(size) * length // size
        counts = np.diff(np.append(starts, length))
        sums = np.add.reduceat(values, starts, axis=axis)
        values = sums / np.expand_dims(counts, 1 - axis)
    return values


LONGEST_MAP, LONGEST_IMAGE = 112, 448  # pixels; larger ones are averaged down for display
SEQUENTIAL_MAPS = ("magma", "inferno", "viridis", "cividis")
DIVERGING_MAPS = ("berlin", "vanimo", "coolwarm")

Pictures = Mapping[str, Mapping[str, Any]]


def gallery_data(pictures: Pictures, class_names: Sequence[str]) -> dict[str, Any]:
    """Return what the gallery shows, as plain data for JSON.

    Args:
      pictures: run → `image` uint8 `[n, H, W, 3 or 1]`, `label`, `prediction` int `[n]`, `confidence` `[n]`, `maps`:
        method → `[n, H, W]` ≥ 0, and where known `signed`: method → `[n, H, W]`, and `object` bool `[n, H, W]`; of the
        same images in every run.
      class_names: of the labels.

    Raises:
      ValueError: when the runs do not show the same images.
    """
    first, *others = pictures.values()
    for name, picture in pictures.items():
        if not np.array_equal(picture["label"], first["label"]):
            raise ValueError(f"pictures of {name!r} show other images than those of the first run: explain the same")
    methods = list(dict.fromkeys(method for picture in pictures.values() for method in picture["maps"]))
    height, width = first["image"].shape[1:3]
    used = sorted({int(c) for picture in pictures.values() for c in (*picture["label"], *picture["prediction"])})
    return {
        "runs": [{"name": run, "color": COLORS[k % len(COLORS)]} for k, run in enumerate(pictures)],
        "methods": [{"name": method, "title": method_title(method)} for method in methods],
        "classes": {c: str(class_names[c]) for c in used},
        "size": [height, width],
        "mapSize": list(shrink(np.zeros((height, width)), LONGEST_MAP).shape),
        "images": [_image(pictures, i) for i in range(len(first["image"]))],
        "colormaps": {name: color_table(name) for name in SEQUENTIAL_MAPS + DIVERGING_MAPS},
        "sequential": SEQUENTIAL_MAPS,
        "diverging": DIVERGING_MAPS,
    }


def _image(pictures: Pictures, i: int) -> dict[str, Any]:
    """One image: its picture, its class, and by run the prediction and the maps `{method: packed map}`."""
    first = next(iter(pictures.values()))
    outline = first.get("object")
    return {
        "picture": _png(first["image"][i]),
        "label": int(first["label"][i]),
        "object": None if outline is None else _base64(np.packbits(np.asarray(outline[i], bool)).tobytes()),
        "runs": [
            {"prediction": int(picture["prediction"][i]), "confidence": _share(picture["confidence"][i])}
            for picture in pictures.values()
        ],
        "maps": _packed([_of_image(picture["maps"], i) for picture in pictures.values()], signed=False),
        "signed": _packed([_of_image(picture.get("signed", {}), i) for picture in pictures.values()], signed=True),
    }


def _share(value: float) -> float | None:
    """Round a share; None where a network answers no number, which JSON does not know."""
    return round(float(value), 4) if np.isfinite(value) else None


def _of_image(maps: Mapping[str, np.ndarray], i: int) -> dict[str, np.ndarray]:
    return {method: values[i] for method, values in maps.items()}


def _packed(runs: Sequence[Mapping[str, np.ndarray]], *, signed: bool) -> list[dict[str, Any]]:
    """Pack all maps of an image, run → method → map, cut at their common scale."""
    drawn = [{m: shrink(relative(v, signed=signed), LONGEST_MAP) for m, v in run.items()} for run in runs]
    scale = common_scale(v for run in drawn for v in run.values())
    return [{m: _pack(v, scale, signed=signed) for m, v in run.items()} for run in drawn]


def _pack(values: np.ndarray, scale: float, *, signed: bool) -> list[Any] | None:
    if np.isnan(values).any():
        return None
    peak = min(float(np.abs(values).max()), scale) or 1.0
    part = np.clip(values / peak, -1, 1)
    levels = np.rint(128 + 127 * part) if signed else np.rint(255 * part)
    return [_base64(levels.astype(np.uint8).tobytes()), float(f"{peak:.5g}"), float(f"{brightest(values):.5g}")]


def color_table(name: str) -> str:
    """Return a color map's 256 colors as `rrggbbrrggbb…`."""
    from matplotlib import colormaps

    return (colormaps[name](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8).tobytes().hex()


def _png(image: np.ndarray) -> str:
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.thumbnail((LONGEST_IMAGE, LONGEST_IMAGE), Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    return "data:image/png;base64," + _base64(buffer.getvalue())


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def script_json(value: Any) -> str:
    """Return JSON that cannot end the script element that it stands in, whatever its strings hold."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
