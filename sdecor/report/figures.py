"""Figures of numbers: faithfulness curves, paired differences between runs, and training curves."""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sdecor.metrics import METRICS
from sdecor.report.style import (
    COLORS,
    RIGHT,
    WRONG,
    axes_at,
    dress,
    legend_below,
    legend_height,
    new_figure,
    theme_colors,
    verbatim,
)
from sdecor.report.wording import direction, format_mean, keys_by_method, method_title, split_key, title

Curves = Mapping[str, Mapping[str, Sequence[float]]]


def figure_curves(curves: Curves, *, theme: str = "light") -> Any:
    """Draw mean insertion, deletion and ROAD curves: a row of panels per attribution method, and a line per run.

    To compare methods in one panel, pass methods in place of runs: `{"Gradient": {"deletion_curve": …}, …}`.

    Args:
      curves: run → key → values `[S]`. Keys are `insertion_curve`, `deletion_curve`, `road_curve` and
        `masked_accuracy_curve`, with the name of the method and a slash in front if there are several methods
        ("gradient/deletion_curve"). Optional, with as many values: `…_curve_random` (a random order of pixels on the
        same network, dotted), `…_curve_low` and `…_curve_high` (a band). Insertion and deletion are drawn evenly over
        0 to 100 % of the pixels; the others at `…_percentages` if given, else at the metric's default percentages.
      theme: "light" or "dark".
    """
    color = theme_colors(theme)
    found = [split_key(key) for run in curves.values() for key in run]
    methods = list(dict.fromkeys(method for method, _ in found))
    kinds = [kind for kind in METRICS if METRICS[kind].curve and any(name == f"{kind}_curve" for _, name in found)]
    width = 4.1 if len(kinds) <= 3 else 3.4
    figure = new_figure(width * max(1, len(kinds)), 3.5 * max(1, len(methods)), color)
    for place, (method, kind) in enumerate(itertools.product(methods, kinds), 1):
        axes = figure.add_subplot(len(methods), len(kinds), place)
        _lines(axes, curves, f"{method}/{kind}".lstrip("/"), color)
        name, xlabel, ylabel = METRICS[kind].curve
        dress(axes, color, f"{method_title(method)} · {name}" if len(methods) > 1 else name, xlabel)
        axes.set_xlim(0, 100)
        axes.set_ylim(0, None)
        axes.set_ylabel(ylabel, color=color["faint"], fontsize=9)
    legend_below(figure, color, lay_out=True)
    return figure


def _lines(axes: Any, curves: Curves, prefix: str, color: Mapping[str, str]) -> None:
    key, drawn = f"{prefix}_curve", {name: run for name, run in curves.items() if f"{prefix}_curve" in run}
    randoms = [np.asarray(run[f"{key}_random"]) for run in drawn.values() if f"{key}_random" in run]
    shared = len(randoms) > 1 and all(r.shape == randoms[0].shape and np.allclose(r, randoms[0]) for r in randoms)
    dotted = {"linestyle": (0, (2, 2)), "linewidth": 1.2, "alpha": 0.8}
    for name, run in drawn.items():
        shade = COLORS[list(curves).index(name) % len(COLORS)]
        x = run.get(f"{prefix}_percentages", _percentages(split_key(prefix)[1], len(run[key])))
        axes.plot(x, run[key], color=shade, linewidth=2, label=verbatim(name, legend=True))
        if f"{key}_low" in run and f"{key}_high" in run:
            axes.fill_between(x, run[f"{key}_low"], run[f"{key}_high"], color=shade, alpha=0.18, linewidth=0)
        if f"{key}_random" in run and not shared:
            axes.plot(
                x, run[f"{key}_random"], color=shade, label=verbatim(f"{name}, random order", legend=True), **dotted
            )
    if shared:
        axes.plot(x, randoms[0], color=color["faint"], label="random order", **dotted)


def _percentages(kind: str, count: int) -> Sequence[float]:
    """Return the metric's default percentages if there are `count`, else `count` even ones from 0 to 100."""
    own = METRICS[kind].keywords().get("percentages", ())
    return own if len(own) == count else np.linspace(0, 100, count)


Comparisons = Mapping[str, Mapping[str, Mapping[str, Any]]]
_MARKERS = "oDs^vP"
_PANELS = 8  # side by side; further panels begin a new line
_ABOVE, _BELOW, _GAP = 0.55, 0.35, 0.12  # inches above a panel, below it, and between two
_NARROW, _BROAD, _VALUES = 1.27, 4.4, 0.9  # inches: a panel of several with its gap, a single panel, values beside it


class _Difference(NamedTuple):
    """A line of panels, one per method, with the same metrics in their rows."""

    methods: Sequence[str]
    names: Sequence[str]


def figure_differences(comparisons: Comparisons, *, reference: str, theme: str = "light") -> Any:
    """Draw each metric's paired difference with its interval, better to the right, with methods side by side.

    Metrics have different units, so a difference is drawn in half-widths of its interval. A bar that does not touch the
    middle line excludes 0. Beyond ±2 the axis is logarithmic.

    Args:
      comparisons: run → key → `mean`, `low`, `high`, `better`, from `summary.compare`.
      reference: name of the run that the others are compared with.
      theme: "light" or "dark".
    """
    color = theme_colors(theme)
    lines = _differences(comparisons)
    heights = [0.3 * max(1, 0.7 * len(comparisons)) * max(1, len(line.names)) for line in lines]
    left = 0.3 + 0.073 * max((len(title(name)) for line in lines for name in line.names), default=0)
    panels = max(len(line.methods) for line in lines)
    pitch = max(_NARROW, min(2.4, (_BROAD + _VALUES) / panels))
    width = left + max(_BROAD + _VALUES, panels * pitch) + 0.1
    legend = legend_height(comparisons, width) if len(comparisons) > 1 else 0.0
    figure = new_figure(width, sum(heights) + len(lines) * (_ABOVE + _BELOW) + legend, color)
    top = _ABOVE
    for line, height in zip(lines, heights, strict=True):
        alone = len(line.methods) == 1
        across = _BROAD if alone else pitch - _GAP
        shown = [axes_at(figure, left + k * pitch, top, across, height) for k in range(len(line.methods))]
        for axes, method in zip(shown, line.methods, strict=True):
            _panel(axes, [f"{method}/{name}".lstrip("/") for name in line.names], comparisons, color, alone)
            heading = "" if alone and len(lines) == 1 else method_title(method) if method else "Model"
            _label(axes, color, heading, [title(name) for name in line.names], reference, alone)
            axes.tick_params(labelleft=axes is shown[0])
        _equal_reach(shown)
        top += height + _BELOW + _ABOVE
    if legend:
        legend_below(figure, color)
    return figure


def _differences(comparisons: Comparisons) -> list[_Difference]:
    """Return the lines of panels, for the metrics that have a better direction and an interval in some run."""
    keys = {key: None for comparison in comparisons.values() for key in comparison if direction(key) is not None}
    groups = keys_by_method(k for k in keys if any(c.get(k, {}).get("low") is not None for c in comparisons.values()))
    model = groups.pop("", [])
    methods = list(groups)
    names = keys_by_method(split_key(key)[1] for keys in groups.values() for key in keys).get("", [])
    lines = [_Difference(methods[k : k + _PANELS], names) for k in range(0, len(methods), _PANELS)]
    return [_Difference([""], model), *lines] if model or not lines else lines


def _panel(
    axes: Any, keys: Sequence[str], comparisons: Comparisons, color: Mapping[str, str], with_values: bool
) -> None:
    for k, (run, comparison) in enumerate(comparisons.items()):
        shift = (k - (len(comparisons) - 1) / 2) * 0.7 / len(comparisons)
        marker = _MARKERS[k % len(_MARKERS)]
        for row, key in enumerate(keys):
            entry = comparison.get(key)
            if entry and entry["low"] is not None:
                _interval(axes, color, key, entry, row + shift, marker, with_values)
        if len(comparisons) > 1:
            axes.plot([], [], marker, color=color["faint"], label=verbatim(run, legend=True))
    axes.axvline(0, color=color["ink"], linewidth=1)
    axes.set_ylim(max(1, len(keys)) - 0.5, -0.5)


def _interval(
    axes: Any, color: Mapping[str, str], key: str, entry: Mapping[str, Any], y: float, marker: str, with_value: bool
) -> None:
    half = (entry["high"] - entry["low"]) / 2 or 1.0
    sign = 1 if direction(key) else -1
    mean, low, high = (sign * entry[end] / half for end in ("mean", "low", "high"))
    shade = color["faint"] if entry["better"] is None else RIGHT if entry["better"] else WRONG
    axes.plot([low, high], [y, y], color=shade, linewidth=2.2, solid_capstyle="round")
    axes.plot(mean, y, marker, color=shade, markersize=6 if with_value else 4.5)
    if with_value:
        place = {"xycoords": ("axes fraction", "data"), "xytext": (58, 0), "textcoords": "offset points"}
        style = {"ha": "right", "va": "center", "fontsize": 8.5, "color": shade}
        axes.annotate(format_mean(key, entry, signed=True), (1.0, y), **place, **style)


def _label(axes: Any, color: Mapping[str, str], heading: str, rows: Sequence[str], reference: str, alone: bool) -> None:
    """Set a panel's title, row names and better side; the axis has no numbers, since the units differ."""
    axes.set_xscale("symlog", linthresh=2)
    ends = f"← worse than {reference}          better than {reference} →" if alone else "← worse · better →"
    dress(axes, color, heading if alone else textwrap.fill(heading, 15), ends, small=not alone)
    axes.grid(False, axis="x")
    axes.set_xticks([])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(axis="y", colors=color["ink"], labelsize=9)


def _equal_reach(panels: Sequence[Any]) -> None:
    """Set the same symmetric range for all panels, with room for the markers at the ends."""
    reach = 1.2 * max(abs(end) for axes in panels for end in axes.get_xlim())
    for axes in panels:
        axes.set_xlim(-reach, reach)


def figure_training(
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    names: Sequence[str] = ("loss", "accuracy"),
    theme: str = "light",
) -> Any:
    """Draw the loss and metrics over the steps of training.

    Args:
      rows: run → rows of its `metrics.jsonl`, with `step`, `split` ("train" or "val") and named values.
      names: names of the values to draw, one panel each.
      theme: "light" or "dark".
    """
    color = theme_colors(theme)
    figure = new_figure(4.1 * len(names), 3.5, color)
    for place, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), place + 1)
        for run, shade in zip(rows, itertools.cycle(COLORS), strict=False):
            for split, style, width, alpha in (("train", "-", 1.2, 0.65), ("val", "--", 2, 1)):
                points = [(r["step"], r[name]) for r in rows[run] if r.get("split") == split and name in r]
                if points:
                    line = {"color": shade, "linestyle": style, "linewidth": width, "alpha": alpha}
                    axes.plot(*zip(*points, strict=True), label=verbatim(f"{run}, {split}", legend=True), **line)
        dress(axes, color, name.replace("_", " ").capitalize(), "step")
    legend_below(figure, color, lay_out=True)
    return figure
