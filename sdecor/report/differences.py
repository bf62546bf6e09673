"""Figure of paired differences between runs."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sdecor.report.measures import direction, format_mean, keys_by_method, method_title, split_key, title
from sdecor.report.style import RIGHT, WRONG, axes_at, dress, legend_below, new_figure, theme_colors, verbatim

Comparisons = Mapping[str, Mapping[str, Mapping[str, Any]]]
_MARKERS = "oDs^vP"
_PANELS = 8  # side by side; more begin a new line
_ABOVE, _BELOW, _GAP = 0.55, 0.35, 0.12  # inches above a panel, below it, and between two
_NARROW, _BROAD, _VALUES = 1.27, 4.4, 0.9  # inches: a panel among others with its gap, one alone, values beside it


class _Line(NamedTuple):
    """Panels side by side, with the same measures in their rows."""

    methods: Sequence[str]
    measures: Sequence[str]


def figure_differences(comparisons: Comparisons, *, reference: str, theme: str = "light") -> Any:
    """Draw each measure's paired difference with its interval, better to the right; methods side by side.

    Measures have different units: a difference is drawn in half-widths of its interval, so that a bar which does not
    touch the middle line excludes 0; beyond ±2 the axis is logarithmic.

    Args:
      comparisons: run → key → `mean`, `low`, `high`, `better`, as of `summary.compare`.
      reference: name of the run that the others are compared with.
      theme: "light" or "dark".
    """
    color = theme_colors(theme)
    lines = _lines(comparisons)
    heights = [0.3 * max(1, 0.7 * len(comparisons)) * max(1, len(line.measures)) for line in lines]
    left = 0.3 + 0.073 * max((len(title(measure)) for line in lines for measure in line.measures), default=0)
    panels = max(len(line.methods) for line in lines)
    pitch = max(_NARROW, min(2.4, (_BROAD + _VALUES) / panels))
    legend = 0.3 if len(comparisons) > 1 else 0.0
    width = left + max(_BROAD + _VALUES, panels * pitch) + 0.1
    figure = new_figure(width, sum(heights) + len(lines) * (_ABOVE + _BELOW) + legend, color)
    top = _ABOVE
    for line, height in zip(lines, heights, strict=True):
        alone = len(line.methods) == 1
        across = _BROAD if alone else pitch - _GAP
        shown = [axes_at(figure, left + k * pitch, top, across, height) for k in range(len(line.methods))]
        for axes, method in zip(shown, line.methods, strict=True):
            _panel(axes, [f"{method}/{measure}".lstrip("/") for measure in line.measures], comparisons, color, alone)
            name = "" if alone and len(lines) == 1 else method_title(method) if method else "Model"
            _label(axes, color, name, [title(m) for m in line.measures], reference, alone)
            axes.tick_params(labelleft=axes is shown[0])
        _equal_reach(shown)
        top += height + _BELOW + _ABOVE
    if legend:
        legend_below(figure, color)
    return figure


def _lines(comparisons: Comparisons) -> list[_Line]:
    """Arrange what can be drawn: measures with a better direction that have an interval somewhere."""
    keys = {key: None for comparison in comparisons.values() for key in comparison if direction(key) is not None}
    groups = keys_by_method(k for k in keys if any(c.get(k, {}).get("low") is not None for c in comparisons.values()))
    model = groups.pop("", [])
    methods = list(groups)
    measures = keys_by_method(split_key(key)[1] for keys in groups.values() for key in keys).get("", [])
    lines = [_Line(methods[k : k + _PANELS], measures) for k in range(0, len(methods), _PANELS)]
    return [_Line([""], model), *lines] if model or not lines else lines


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


def _label(
    axes: Any, color: Mapping[str, str], name: str, measures: Sequence[str], reference: str, alone: bool
) -> None:
    """Title a panel, name its rows and say which side is better; differences of different units have no numbers."""
    axes.set_xscale("symlog", linthresh=2)
    ends = f"← worse than {reference}          better than {reference} →" if alone else "← worse · better →"
    dress(axes, color, name if alone else textwrap.fill(name, 15), ends, small=not alone)
    axes.grid(False, axis="x")
    axes.set_xticks([])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(measures)), measures)
    axes.tick_params(axis="y", colors=color["ink"], labelsize=9)


def _equal_reach(panels: Sequence[Any]) -> None:
    """Give panels the same symmetric range, with whole markers at the ends."""
    reach = 1.2 * max(abs(end) for axes in panels for end in axes.get_xlim())
    for axes in panels:
        axes.set_xlim(-reach, reach)
