"""Figures from arrays, with matplotlib's object-oriented interface: no global state, safe in threads and jobs.

Every function returns a `Figure`; `save_figure` writes it (PNG, PDF or SVG by the ending). `theme` is "light"
or "dark". matplotlib is imported where it is used, so that importing this module costs nothing.
"""

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdecor.checks import check_choice
from sdecor.report.table import direction, format_value, full_title, names_in_order

COLOURS = ("#4477aa", "#ee7733", "#228833", "#aa3377", "#66ccee", "#ccbb44")
_THEMES = {
    "light": {"paper": "#ffffff", "ink": "#1d2433", "faint": "#697386", "grid": "#e4e7ec"},
    "dark": {"paper": "#161a22", "ink": "#e8eaf0", "faint": "#98a2b3", "grid": "#2c3340"},
}
_OUTLINE = "#6ff2ff"
_RIGHT, _WRONG = "#2f9e58", "#d9483b"
DPI = 200


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
    """Draw the same images explained by each run, one below the other.

    A map is divided by its sum before it is drawn, so that a colour means a share of the map's saliency, and
    the maps of one image share one colour scale: the brighter map is the more concentrated one. (The
    magnitude of a gradient depends on the scale of a network's logits and says nothing between networks.)

    Args:
      images: uint8, or float in [0, 1], `[n, H, W, 3 or 1]`; not normalised.
      maps: run → maps ≥ 0, `[n, H, W]`.
      labels: the images' true classes, `[n]`.
      predictions: run → predicted classes, `[n]`.
      correct: run → whether the prediction is right, `[n]`.
      objects: bool `[n, H, W]`, outlined on every picture.
      columns: images in a row of the figure; more wrap into further blocks.
      title: above the figure.
      theme: "light" or "dark".
    """
    colour = _theme(theme)
    n, rows = len(images), 1 + len(maps)
    blocks = math.ceil(n / columns)
    columns = math.ceil(n / blocks)  # blocks of equal width: 11 images are 6 + 5, not 8 + 3
    gap, text, left, top = 0.22, 0.25, 1.25, 0.45 if title else 0.12
    cell = 1.25
    width = left + columns * cell + 0.12
    block = rows * (cell + text) + gap
    height = top + blocks * block + 0.32
    figure = _figure(width, height, colour)
    for i in range(n):
        x = left + (i % columns) * cell
        scale = _common_scale([m[i] for m in maps.values()])
        for row, run in enumerate([None, *maps]):
            y = height - top - (i // columns) * block - row * (cell + text) - text - cell
            axes = figure.add_axes((x / width, y / height, (cell - 0.06) / width, (cell - 0.06) / height))
            if run is None:
                _picture(axes, images[i])
                _caption(axes, labels[i], colour["ink"])
            else:
                axes.imshow(_share(maps[run][i]), cmap="magma", vmin=0, vmax=scale, interpolation="nearest")
                _prediction(axes, run, i, predictions, correct, colour)
            if objects is not None:
                _outline(axes, objects[i])
            if i % columns == 0:
                name = "image" if run is None else run
                figure.text(
                    (left - 0.14) / width,
                    (y + cell / 2) / height,
                    name,
                    ha="right",
                    va="center",
                    color=colour["ink"],
                    fontsize=10,
                    fontweight="bold" if run else "normal",
                    wrap=True,
                )
            axes.set_axis_off()
    note = "colour: share of the map's saliency, dark to bright on one scale for each image"
    if objects is not None:
        note += " · line: the object"
    figure.text(left / width, 0.12 / height, note, color=colour["faint"], fontsize=8, va="bottom")
    if title:
        figure.text(left / width, 1 - 0.12 / height, title, color=colour["ink"], fontsize=12, va="top")
    return figure


def figure_curves(curves: Mapping[str, Mapping[str, np.ndarray]], *, theme: str = "light") -> Any:
    """Draw mean insertion and deletion curves of each run, and of a random order of pixels on the same network.

    Args:
      curves: run → `insertion_curve`, `deletion_curve` and the same with `_random`, `[steps + 1]`, as of
        `summary.mean_curves`.
      theme: "light" or "dark".
    """
    colour = _theme(theme)
    kinds = [kind for kind in ("insertion", "deletion") if any(f"{kind}_curve" in run for run in curves.values())]
    figure = _figure(4.1 * len(kinds), 3.5, colour)
    for place, kind in enumerate(kinds):
        axes = figure.add_subplot(1, len(kinds), place + 1)
        for run, c in zip(curves, itertools.cycle(COLOURS), strict=False):
            for name, style in ((f"{kind}_curve", "-"), (f"{kind}_curve_random", (0, (2, 2)))):
                if name in curves[run]:
                    y = np.asarray(curves[run][name])
                    solid = style == "-"
                    axes.plot(
                        np.linspace(0, 100, len(y)),
                        y,
                        color=c,
                        linestyle=style,
                        linewidth=2 if solid else 1.2,
                        alpha=1 if solid else 0.8,
                        label=run if solid else f"{run}, random order",
                    )
        verb = "inserted" if kind == "insertion" else "deleted"
        _dress(axes, colour, kind.capitalize(), f"% of pixels {verb}, most salient first")
        axes.set_xlim(0, 100)
        axes.set_ylim(0, None)
        if place == 0:
            axes.set_ylabel("probability of the explained class", color=colour["faint"], fontsize=9)
    _legend(figure, colour)
    return figure


def figure_training(
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    measures: Sequence[str] = ("loss", "accuracy"),
    theme: str = "light",
) -> Any:
    """Draw how measures developed in training.

    Args:
      rows: run → rows of its `metrics.jsonl`, with `step`, `split` ("train" or "val") and named values.
      measures: names of values, a panel each.
      theme: "light" or "dark".
    """
    colour = _theme(theme)
    figure = _figure(4.1 * len(measures), 3.5, colour)
    for place, measure in enumerate(measures):
        axes = figure.add_subplot(1, len(measures), place + 1)
        for run, c in zip(rows, itertools.cycle(COLOURS), strict=False):
            for split, style, width in (("train", "-", 1.2), ("val", "--", 2)):
                points = [(r["step"], r[measure]) for r in rows[run] if r.get("split") == split and measure in r]
                if points:
                    steps, values = zip(*points, strict=True)
                    axes.plot(
                        steps,
                        values,
                        color=c,
                        linestyle=style,
                        linewidth=width,
                        label=f"{run}, {split}",
                        alpha=0.65 if split == "train" else 1,
                    )
        _dress(axes, colour, measure.replace("_", " ").capitalize(), "step")
    _legend(figure, colour)
    return figure


def figure_differences(
    comparisons: Mapping[str, Mapping[str, Mapping[str, Any]]], *, reference: str, theme: str = "light"
) -> Any:
    """Draw each measure's paired difference with its interval, better to the right.

    Measures have different units: a difference is drawn in half-widths of its interval, so that a bar which does not
    touch the middle line excludes 0; beyond ±2 the axis is logarithmic.

    Args:
      comparisons: run → measure → `mean`, `low`, `high`, `better`, as of `summary.compare`.
      reference: name of the run that the others are compared with.
      theme: "light" or "dark".
    """
    colour = _theme(theme)
    found = names_in_order({name: 0 for comparison in comparisons.values() for name in comparison})
    names = [name for name in found if direction(name) is not None]
    names = [name for name in names if any(c.get(name, {}).get("low") is not None for c in comparisons.values())]
    figure = _figure(8.2, 1.0 + 0.3 * len(names) * max(1, 0.7 * len(comparisons)), colour)
    axes = figure.add_subplot()
    for k, (run, comparison) in enumerate(comparisons.items()):
        shift = (k - (len(comparisons) - 1) / 2) * 0.7 / len(comparisons)
        for row, name in enumerate(names):
            entry = comparison.get(name)
            if entry and entry["low"] is not None:
                _bar(axes, colour, name, entry, row + shift, "oDs^vP"[k % 6])
        if len(comparisons) > 1:
            axes.plot([], [], "oDs^vP"[k % 6], color=colour["faint"], label=run)
    axes.axvline(0, color=colour["ink"], linewidth=1)
    axes.set_yticks(range(len(names)), [full_title(name) for name in names])
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=2)
    reach = max(abs(end) for end in axes.get_xlim())
    axes.set_xlim(-1.2 * reach, 1.2 * reach)  # whole markers at the ends
    _dress(axes, colour, "", f"← worse than {reference}          better than {reference} →")
    axes.xaxis.set_ticks([])
    axes.xaxis.set_ticks([], minor=True)
    axes.grid(False)
    axes.tick_params(axis="y", colors=colour["ink"], labelsize=9)
    _legend(figure, colour)
    return figure


def _bar(axes: Any, colour: Mapping[str, str], name: str, entry: Mapping[str, Any], y: float, marker: str) -> None:
    half = (entry["high"] - entry["low"]) / 2 or 1.0
    sign = 1 if direction(name) else -1
    mean, low, high = (sign * entry[end] / half for end in ("mean", "low", "high"))
    shade = colour["faint"] if entry["better"] is None else _RIGHT if entry["better"] else _WRONG
    axes.plot([low, high], [y, y], color=shade, linewidth=2.2, solid_capstyle="round")
    axes.plot(mean, y, marker, color=shade, markersize=6)
    text = format_value(name, entry["mean"], signed=True)
    axes.annotate(
        text,
        (1.0, y),
        xycoords=("axes fraction", "data"),
        xytext=(52, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=8.5,
        color=shade,
    )


def save_figure(figure: Any, path: Any) -> None:
    """Write a figure; the ending of `path` (.png, .pdf, .svg) is the format, and a reader never sees half a file."""
    from etils import epath

    path = epath.Path(path)
    temporary = path.parent / f".{path.name}.tmp"
    temporary.write_bytes(figure_bytes(figure, path.suffix[1:] or "png"))
    temporary.replace(path)


def figure_bytes(figure: Any, kind: str = "png") -> bytes:
    """Return the encoded figure."""
    check_choice("format of the figure", kind, ("png", "pdf", "svg"))
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=DPI, facecolor=figure.get_facecolor())
    return buffer.getvalue()


def _theme(theme: str) -> dict[str, str]:
    check_choice("theme", theme, _THEMES)
    return _THEMES[theme]


def _figure(width: float, height: float, colour: Mapping[str, str]) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor=colour["paper"])


def _share(saliency: np.ndarray) -> np.ndarray:
    saliency = np.maximum(np.nan_to_num(np.asarray(saliency, np.float64), posinf=0), 0)
    total = saliency.sum()
    return saliency / total if total > 0 else saliency


def _common_scale(maps: Sequence[np.ndarray]) -> float:
    """Return the brightest colour of an image's maps: the largest of their 99.5th percentiles."""
    return max([float(np.percentile(_share(m), 99.5)) for m in maps] + [1e-12])


def _picture(axes: Any, image: np.ndarray) -> None:
    image = np.asarray(image)
    image = image if image.dtype == np.uint8 else np.clip(image, 0, 1)
    if image.shape[-1] == 1:
        axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=255 if image.dtype == np.uint8 else 1)
    else:
        axes.imshow(image, interpolation="nearest")


def _outline(axes: Any, mask: np.ndarray) -> None:
    """Draw the exact border between object pixels and others, on the edges of the pixels."""
    from matplotlib.collections import LineCollection

    padded = np.pad(np.asarray(mask, bool), 1)
    rows, columns = np.nonzero(padded[1:] != padded[:-1])
    lines = [[(x - 1.5, y - 0.5), (x - 0.5, y - 0.5)] for y, x in zip(rows, columns, strict=True)]
    rows, columns = np.nonzero(padded[:, 1:] != padded[:, :-1])
    lines += [[(x - 0.5, y - 1.5), (x - 0.5, y - 0.5)] for y, x in zip(rows, columns, strict=True)]
    axes.add_collection(LineCollection(lines, colors=_OUTLINE, linewidths=0.8, capstyle="projecting"))


def _caption(axes: Any, text: str, colour: str) -> None:
    axes.set_title(_shorten(text), fontsize=8, color=colour, pad=2.5)


def _shorten(text: Any, most: int = 18) -> str:
    text = str(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def _prediction(axes, run, i, predictions, correct, colour) -> None:
    words, shade = [], colour["ink"]
    if correct is not None:
        right = bool(correct[run][i])
        words.append("✓" if right else "✗")
        shade = _RIGHT if right else _WRONG
    if predictions is not None:
        words.append(_shorten(predictions[run][i], 16))
    if words:
        axes.set_title(" ".join(words), fontsize=8, color=shade, pad=2.5, family=["DejaVu Sans"])


def _dress(axes: Any, colour: Mapping[str, str], title: str, xlabel: str) -> None:
    axes.set_facecolor(colour["paper"])
    axes.set_title(title, color=colour["ink"], fontsize=11, loc="left", pad=8)
    axes.set_xlabel(xlabel, color=colour["faint"], fontsize=9)
    axes.tick_params(colors=colour["faint"], labelsize=8, length=0)
    axes.grid(True, color=colour["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def _legend(figure: Any, colour: Mapping[str, str]) -> None:
    """One legend below all panels, in which a name appears once."""
    found = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    height = figure.get_size_inches()[1]
    if found:
        rows = math.ceil(len(found) / 4)
        figure.tight_layout(rect=(0, (0.12 + 0.2 * rows) / height, 1, 1), w_pad=2.5)
        figure.legend(
            found.values(),
            found.keys(),
            loc="lower center",
            ncols=min(4, len(found)),
            frameon=False,
            fontsize=8.5,
            labelcolor=colour["ink"],
        )
    else:
        figure.tight_layout()
