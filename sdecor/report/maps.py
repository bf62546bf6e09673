"""Figures of attribution maps beside their images, on a common color scale or each on its own."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sdecor.report.gallery import common_scale, relative
from sdecor.report.style import RIGHT, WRONG, axes_at, new_figure, theme_colors, verbatim
from sdecor.report.wording import method_title

SEQUENTIAL, DIVERGING = "magma", "berlin"  # perceptually uniform, and black where there is nothing
_OUTLINE = "#6ff2ff"
_CORNER = {
    "color": "white",
    "fontsize": 6,
    "zorder": 4,
    "bbox": {"facecolor": "black", "alpha": 0.6, "pad": 1, "lw": 0},
}
_UNIT = "share of the map's saliency; 1 = an even spread over the image"


def figure_side_by_side(
    images: np.ndarray,
    maps: Mapping[str, np.ndarray],
    *,
    labels: Sequence[str],
    predictions: Mapping[str, Sequence[str]] | None = None,
    correct: Mapping[str, Sequence[bool]] | None = None,
    objects: np.ndarray | None = None,
    columns: int = 8,
    title: str | None = None,
    theme: str = "light",
) -> Any:
    """Draw the maps of several runs for the same images, one run below the other.

    Each map is divided by its sum, so that a color is a share of the map's saliency. The maps of an image use the same
    color scale, so that the brighter map is the more concentrated one.

    Args:
      images: `[n, H, W, 3 or 1]`, uint8 or float in [0, 1], not normalised.
      maps: run → maps ≥ 0, `[n, H, W]`.
      labels: names of the true classes, `[n]`.
      predictions: run → names of the predicted classes, `[n]`.
      correct: run → whether the prediction is correct, `[n]`.
      objects: object masks, bool `[n, H, W]`, outlined on every picture.
      columns: number of images side by side; further images are drawn in blocks below.
      title: title above the figure.
      theme: "light" or "dark".
    """
    color = theme_colors(theme)
    n, rows = len(images), 1 + len(maps)
    blocks = math.ceil(n / columns)
    columns = math.ceil(n / blocks)  # blocks of similar width: 11 images are 6 + 5, not 8 + 3
    gap, text, top, cell = 0.22, 0.25, 0.45 if title else 0.12, 1.25
    left = _room(maps, bold=True)
    block = rows * (cell + text) + gap
    figure = new_figure(left + columns * cell + 0.12, top + blocks * block + 0.32, color)
    for i in range(n):
        shown = {run: relative(m[i]) for run, m in maps.items()}
        scale = common_scale(shown.values())
        for row, run in enumerate([None, *maps]):
            y = top + (i // columns) * block + row * (cell + text) + text
            axes = _square(figure, left + (i % columns) * cell, y, cell - 0.06)
            if run is None:
                _picture(axes, images[i])
                axes.set_title(verbatim(_shorten(labels[i])), fontsize=8, color=color["ink"], pad=2.5)
            else:
                _map(axes, shown[run], SEQUENTIAL, 0, scale)
                _prediction(axes, run, i, predictions, correct, color)
            if objects is not None:
                _outline(axes, objects[i])
            if i % columns == 0:
                _name(figure, left - 0.14, y + cell / 2, run or "image", color, bold=run is not None)
    note = "color: share of the map's saliency, dark to bright on one scale for each image"
    _note(figure, left, note + (" · line: the object" if objects is not None else ""), color)
    if title:
        width, height = figure.get_size_inches()
        figure.text(left / width, 1 - 0.12 / height, verbatim(title), color=color["ink"], fontsize=12, va="top")
    return figure


def figure_methods(
    images: np.ndarray,
    maps: Mapping[str, np.ndarray],
    *,
    signed: bool = False,
    labels: Sequence[str] | None = None,
    objects: np.ndarray | None = None,
    common: bool = True,
    colormap: str | None = None,
    theme: str = "light",
) -> Any:
    """Draw a row per image and a column per attribution method, with one color scale per row.

    Args:
      images: `[n, H, W, 3 or 1]`, uint8 or float in [0, 1], not normalised.
      maps: method → maps `[n, H, W]`, ≥ 0 unless `signed`. Each is divided by the sum of its magnitudes. The unit of
        the color bar is the value of an even spread over the image.
      signed: whether to draw signs, on a diverging scale that is symmetric about 0.
      labels: texts at the left of the rows, `[n]`.
      objects: object masks, bool `[n, H, W]`, outlined on every picture.
      common: whether all maps of a row use the same scale. Otherwise each map has its own, whose top is in its corner:
        a diffuse map, such as attention rollout, would be black beside a concentrated one.
      colormap: name of a matplotlib color map; None for "magma", or "berlin" if `signed`. "coolwarm" draws 0 in a
        light color, for white paper.
      theme: "light" or "dark".
    """
    color = theme_colors(theme)
    colormap = colormap or (DIVERGING if signed else SEQUENTIAL)
    top, cell, right = 0.42, 1.25, 0.62 if common else 0.12
    left = 0.12 if labels is None else _room(labels)
    figure = new_figure(left + (1 + len(maps)) * cell + right, top + len(images) * cell + 0.32, color)
    for i, image in enumerate(images):
        shown = {method: relative(m[i], signed=signed) for method, m in maps.items()}
        y = top + i * cell
        for column, method in enumerate([None, *maps]):
            axes = _square(figure, left + column * cell, y, cell - 0.06)
            if method is None:
                _picture(axes, image)
            else:
                scale = common_scale(shown.values() if common else [shown[method]])
                drawn = _map(axes, shown[method], colormap, -scale if signed else 0, scale)
                if not common and not np.isnan(shown[method]).any():
                    axes.text(0.97, 0.03, f"{scale:.2g}×", transform=axes.transAxes, ha="right", va="bottom", **_CORNER)
            if objects is not None:
                _outline(axes, objects[i])
            if i == 0:
                name = "image" if method is None else method_title(method)
                axes.set_title(verbatim(_wrap(name)), fontsize=8, color=color["ink"], pad=4)
        if labels is not None:
            _name(figure, left - 0.12, y + cell / 2, labels[i], color)
        if common and maps:
            _bar(figure, drawn, left + (1 + len(maps)) * cell, y, cell - 0.06, color)
    own = "share of the map's saliency, each map on its own scale, up to the value in its corner; 1 = an even spread"
    _note(figure, left, _UNIT if common else own, color)
    return figure


def _square(figure: Any, left: float, top: float, side: float, width: float | None = None) -> Any:
    """Add axes without a frame, placed in inches from the figure's upper left corner."""
    axes = axes_at(figure, left, top, width or side, side)
    axes.set_axis_off()
    return axes


def _picture(axes: Any, image: np.ndarray) -> None:
    image = np.asarray(image)
    image = image if image.dtype == np.uint8 else np.clip(image, 0, 1)
    if image.shape[-1] == 1:
        axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=255 if image.dtype == np.uint8 else 1)
    else:
        axes.imshow(image, interpolation="nearest")


def _map(axes: Any, values: np.ndarray, colormap: str, low: float, high: float) -> Any:
    drawn = axes.imshow(np.nan_to_num(values), cmap=colormap, vmin=low, vmax=high, interpolation="nearest")
    if np.isnan(values).any():
        middle = {"ha": "center", "va": "center", "transform": axes.transAxes}
        axes.text(0.5, 0.5, "undefined", color="#98a2b3", fontsize=8, zorder=4, backgroundcolor="black", **middle)
    return drawn


def _bar(figure: Any, drawn: Any, left: float, top: float, side: float, color: Mapping[str, str]) -> None:
    axes = _square(figure, left + 0.04, top, side, width=0.09)
    axes.set_axis_on()
    low, high = drawn.get_clim()
    bar = figure.colorbar(drawn, cax=axes, ticks=[low, 0, high] if low else [low, high])
    bar.ax.set_yticklabels([f"{tick:.2g}×".replace("-", "−") if tick else "0" for tick in bar.get_ticks()])
    bar.ax.tick_params(colors=color["faint"], labelsize=7, length=0, pad=2)
    labels = bar.ax.get_yticklabels()
    labels[0].set_va("bottom")  # inside the bar, so that they do not touch the labels of the next row
    labels[-1].set_va("top")
    bar.outline.set_visible(False)


def _outline(axes: Any, mask: np.ndarray) -> None:
    """Draw the exact border between object pixels and other pixels, on the pixels' edges."""
    from matplotlib.collections import LineCollection

    padded = np.pad(np.asarray(mask, bool), 1)
    rows, columns = np.nonzero(padded[1:] != padded[:-1])
    lines = [[(x - 1.5, y - 0.5), (x - 0.5, y - 0.5)] for y, x in zip(rows, columns, strict=True)]
    rows, columns = np.nonzero(padded[:, 1:] != padded[:, :-1])
    lines += [[(x - 0.5, y - 1.5), (x - 0.5, y - 0.5)] for y, x in zip(rows, columns, strict=True)]
    axes.add_collection(LineCollection(lines, colors=_OUTLINE, linewidths=0.8, capstyle="projecting"))


def _room(names: Iterable[Any], *, bold: bool = False) -> float:
    """Return the width at the left of a figure for the names of its rows, in inches."""
    from matplotlib.textpath import TextPath

    lines = [line for name in names for line in _lines(name).split("\n") if line.strip()]
    font = {"size": 10 if bold else 9, "prop": {"weight": "bold" if bold else "normal"}}
    widths = [TextPath((0, 0), verbatim(line), **font).get_extents().width for line in lines]
    return max(1.25, 0.24 + max(widths, default=0) / 72)


def _lines(name: Any) -> str:
    return _wrap(_shorten(name, 36), 15)


def _name(figure: Any, x: float, y: float, text: Any, color: Mapping[str, str], *, bold: bool = False) -> None:
    width, height = figure.get_size_inches()
    style = {"ha": "right", "va": "center", "fontsize": 10 if bold else 9, "fontweight": "bold" if bold else "normal"}
    figure.text(x / width, 1 - y / height, verbatim(_lines(text)), color=color["ink"], **style)


def _note(figure: Any, left: float, text: str, color: Mapping[str, str]) -> None:
    width, height = figure.get_size_inches()
    figure.text(left / width, 0.12 / height, text, color=color["faint"], fontsize=8, va="bottom")


def _wrap(text: str, width: int = 18) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width)) or text


def _shorten(text: Any, most: int = 18) -> str:
    text = str(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def _prediction(axes, run, i, predictions, correct, color) -> None:
    words, shade = [], color["ink"]
    if correct is not None:
        right = bool(correct[run][i])
        words.append("✓" if right else "✗")
        shade = RIGHT if right else WRONG
    if predictions is not None:
        words.append(_shorten(predictions[run][i], 16))
    if words:
        axes.set_title(verbatim(" ".join(words)), fontsize=8, color=shade, pad=2.5, family=["DejaVu Sans"])
