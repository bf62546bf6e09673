"""The data of the page's gallery: images and maps, packed for a browser, on one color scale per image.

Maps are compared by shares: a map is divided by its sum and counted in multiples of an even spread, so that a uniform
map is 1 everywhere (see `relative`). The magnitude of a gradient depends on the scale of the network's logits, so it
cannot be compared between networks; shares can. The unit does not depend on the number of pixels.
"""

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sdecor.report.style import COLORS
from sdecor.report.wording import method_title

_BRIGHTEST = 99.5  # percentile of a map above which colors are saturated, so that single pixels do not darken the rest


def relative(saliency: np.ndarray, *, signed: bool = False) -> np.ndarray:
    """Return a map divided by the mean of its magnitudes.

    Args:
      saliency: map `[H, W]`; negative values count as 0 unless `signed`.
      signed: whether signs are kept; the mean is then that of the absolute values.

    Returns:
      float64 `[H, W]` with mean magnitude 1; NaN everywhere if the map has a value that is not finite, or is all 0.
    """
    values = np.asarray(saliency, np.float64)
    values = values if signed else np.maximum(values, 0)
    total = np.abs(values).mean()
    return values / total if np.isfinite(total) and total > 0 else np.full(values.shape, np.nan)


def brightest(map_: np.ndarray) -> float:
    """Return the magnitude above which a map's color is saturated; NaN for an undefined map."""
    return float(np.percentile(np.abs(map_), _BRIGHTEST))


def common_scale(maps: Iterable[np.ndarray]) -> float:
    """Return the top of the common color scale of an image's maps; undefined maps do not count."""
    return max((top for top in map(brightest, maps) if top > 0), default=1.0)


def shrink(values: np.ndarray, longest: int) -> np.ndarray:
    """Average an array `[H, W]` over areas until no side is longer than `longest`; smaller arrays are unchanged."""
    factor = min(1.0, longest / max(values.shape))
    for axis, length in enumerate(values.shape):
        size = max(1, round(length * factor))
        starts = np.arange(size) * length // size
        counts = np.diff(np.append(starts, length))
        sums = np.add.reduceat(values, starts, axis=axis)
        values = sums / np.expand_dims(counts, 1 - axis)
    return values


LONGEST_MAP, LONGEST_IMAGE = 112, 448  # pixels of the longer side; larger maps and images are averaged down for display
SEQUENTIAL_MAPS = ("magma", "inferno", "viridis", "cividis")
DIVERGING_MAPS = ("berlin", "vanimo", "coolwarm")

Pictures = Mapping[str, Mapping[str, Any]]


def gallery_data(pictures: Pictures, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the content of the gallery, as plain data for JSON.

    Args:
      pictures: run → `image` uint8 `[n, H, W, 3 or 1]`, `label` and `prediction` int `[n]`, `confidence` `[n]`, and
        `maps`: method → `[n, H, W]` ≥ 0. Optional: `signed`: method → `[n, H, W]`, and `object` bool `[n, H, W]`. The
        images are the same in every run.
      class_names: names of the classes, by label.

    Raises:
      ValueError: if the runs do not show the same images.
    """
    first, *others = pictures.values()
    for name, picture in pictures.items():
        if not np.array_equal(picture["label"], first["label"]):
            raise ValueError(f"pictures of {name!r} show other images than those of the first run: pass the same")
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
    """Return one image: its picture, its class, and for each run the prediction and `{method: packed map}`."""
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
    """Round a share; return None for values that are not finite, which JSON cannot hold."""
    return round(float(value), 4) if np.isfinite(value) else None


def _of_image(maps: Mapping[str, np.ndarray], i: int) -> dict[str, np.ndarray]:
    return {method: values[i] for method, values in maps.items()}


def _packed(runs: Sequence[Mapping[str, np.ndarray]], *, signed: bool) -> list[dict[str, Any]]:
    """Pack all maps of an image, run → method → map, clipped at their common scale."""
    drawn = [{m: shrink(relative(v, signed=signed), LONGEST_MAP) for m, v in run.items()} for run in runs]
    scale = common_scale(v for run in drawn for v in run.values())
    return [{m: _pack(v, scale, signed=signed) for m, v in run.items()} for run in drawn]


def _pack(values: np.ndarray, scale: float, *, signed: bool) -> list[Any] | None:
    """Return a map as `[bytes, peak, top]`, with the bytes in base 64; None for an undefined map.

    Byte b stands for `peak · b / 255`, or for `peak · (b − 128) / 127` with signs. A map on its own scale is saturated
    from `top` on. Values above `scale` are cut, because their color is saturated in any case.
    """
    if np.isnan(values).any():
        return None
    peak = min(float(np.abs(values).max()), scale) or 1.0
    part = np.clip(values / peak, -1, 1)
    levels = np.rint(128 + 127 * part) if signed else np.rint(255 * part)
    return [_base64(levels.astype(np.uint8).tobytes()), float(f"{peak:.5g}"), float(f"{brightest(values):.5g}")]


def color_table(name: str) -> str:
    """Return the 256 colors of a color map as `rrggbbrrggbb…`."""
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
    """Return JSON that is safe inside a script element: no string in it can end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
