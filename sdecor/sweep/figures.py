"""Figures of a sweep: accuracy against saliency measures, and measures against each field that varies."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sdecor.evaluation.statistics import Mean
from sdecor.report.style import COLORS, dress, legend_below, new_figure, theme_colors
from sdecor.report.wording import direction, keys_by_method, method_title, split_key
from sdecor.sweep import collect
from sdecor.sweep.collect import TIME, Result
from sdecor.sweep.tables import Means, heading, is_percent
from sdecor.training import run_folder

QUALITY = "accuracy"
_ACROSS, _PANELS = 4, 12  # panels side by side; panels of a figure
_MARKERS = "oDs^vPXd"
# The method follows from its weights; the other fields change no parameter of the network.
_IGNORED = ("seed", "method", *run_folder.FREE)


class Curve(NamedTuple):
    """Cells that differ in one field alone.

    Attributes:
      label: the fields that the cells share, where curves differ in them.
      values: value of the field → cell.
    """

    label: str
    values: dict[float, str]


def pareto(means: Means, *, theme: str = "light") -> dict[str, Any]:
    """Draw accuracy against each saliency measure, with intervals and the Pareto front; return method → figure."""
    found = dict.fromkeys(key for entries in means.values() for key, entry in entries.items() if entry.n)
    if QUALITY not in found:
        return {}
    figures = {}
    for method, keys in keys_by_method(key for key in found if direction(key) is not None).items():
        if method:
            figures[method] = _panels(keys[:_PANELS], means, theme, method)
    return figures


def front(points: Mapping[str, tuple[float, float]], *, higher: bool) -> list[str]:
    """Return the names of the points on the Pareto front, from left to right.

    Args:
      points: name → (measure, accuracy).
      higher: whether more of the measure is better.
    """
    sign = 1 if higher else -1

    def beaten(name: str) -> bool:
        x, y = points[name]
        at_least = [(sign * (a - x), b - y) for a, b in points.values() if sign * (a - x) >= 0 and b >= y]
        return any(dx > 0 or dy > 0 for dx, dy in at_least)

    return sorted((name for name in points if not beaten(name)), key=lambda name: points[name])


def curves(results: Sequence[Result]) -> dict[str, list[Curve]]:
    """Return numeric field → its curves, each of the cells that differ in this field alone."""
    configs = {
        cell: {name: value for name, value in group[0].items() if not name.startswith(_IGNORED)}
        for cell, results_of in collect.cells(results).items()
        if (group := [result.config for result in results_of if result.config])
    }
    fields = dict.fromkeys(name for config in configs.values() for name in config)
    varying = [name for name in fields if len({json.dumps(config.get(name)) for config in configs.values()}) > 1]
    found = {}
    for field in varying:
        groups: dict[str, dict[float, str]] = {}
        for cell, config in configs.items():
            if _is_number(config.get(field)):
                rest = {name: config.get(name) for name in varying if name != field}
                groups.setdefault(json.dumps(rest), {}).setdefault(config[field], cell)
        groups = {rest: values for rest, values in groups.items() if len(values) > 1}
        if groups:
            rests = [json.loads(rest) for rest in groups]
            found[field] = [
                Curve(_label(rest, rests), dict(sorted(values.items())))
                for rest, values in zip(rests, groups.values(), strict=True)
            ]
    return found


def sensitivity(field: str, found: Sequence[Curve], means: Means, measures: Sequence[str], *, theme: str) -> Any:
    """Draw measures against the value of a field, with intervals over seeds; one line for each curve."""
    color, keys = theme_colors(theme), [key for key in measures if key != TIME][:_PANELS]
    figure, places = _grid(len(keys), color)
    for axes, key in zip(places, keys, strict=True):
        for k, curve in enumerate(found):
            points = [(x, means[cell][key]) for x, cell in curve.values.items() if means[cell][key].n]
            style = {"color": COLORS[k % len(COLORS)], "marker": _MARKERS[k % len(_MARKERS)], "linewidth": 1.6}
            _errorbar(axes, [x for x, _ in points], [entry for _, entry in points], curve.label, style)
        _scale(axes, [x for curve in found for x in curve.values])
        method, _ = split_key(key)
        dress(axes, color, heading(key), f"{field}{f' · {method_title(method)}' if method else ''}", small=True)
        _percent(axes.yaxis, key)
    legend_below(figure, color, lay_out=True)
    return figure


def _panels(keys: Sequence[str], means: Means, theme: str, method: str) -> Any:
    color = theme_colors(theme)
    figure, places = _grid(len(keys), color)
    for axes, key in zip(places, keys, strict=True):
        points = {}
        for k, (cell, entries) in enumerate(means.items()):
            x, y = entries[key], entries[QUALITY]
            if not (x.n and y.n):
                continue
            points[cell] = (x.mean, y.mean)
            errors = {"xerr": _half(x), "yerr": _half(y)}
            style = {"color": COLORS[k % len(COLORS)], "elinewidth": 1.1, "markersize": 5.5}
            axes.errorbar(x.mean, y.mean, **errors, fmt=_MARKERS[k // len(COLORS) % len(_MARKERS)], label=cell, **style)
        best = front(points, higher=bool(direction(key)))
        line = {"color": color["faint"], "linewidth": 1.2, "linestyle": (0, (4, 2)), "zorder": 0}
        if len(best) > 1:
            axes.plot(*zip(*(points[name] for name in best), strict=True), label="Pareto front", **line)
        dress(axes, color, method_title(method), heading(key), small=True)
        axes.set_ylabel(heading(QUALITY), color=color["faint"], fontsize=8)
        _percent(axes.xaxis, key)
        _percent(axes.yaxis, QUALITY)
    legend_below(figure, color, lay_out=True)
    return figure


def _grid(count: int, color: Mapping[str, str]) -> tuple[Any, list[Any]]:
    down = max(1, -(-count // _ACROSS))
    across = max(1, -(-count // down))
    figure = new_figure(3.1 * across, 2.9 * down + 0.3, color)
    return figure, [figure.add_subplot(down, across, place + 1) for place in range(count)]


def _errorbar(axes: Any, x: Sequence[float], entries: Sequence[Mean], label: str, style: Mapping[str, Any]) -> None:
    errors = [_half(entry) or 0.0 for entry in entries]
    axes.errorbar(x, [entry.mean for entry in entries], yerr=errors, label=label, capsize=2.5, markersize=4.5, **style)


def _half(entry: Mean) -> float | None:
    return None if entry.low is None else (entry.high - entry.low) / 2


def _scale(axes: Any, values: Sequence[float]) -> None:
    """Make the axis logarithmic where the values span a factor of 10, and linear around a value of 0."""
    positive = sorted({value for value in values if value > 0})
    if min(values) < 0 or not positive:
        return
    if min(values) == 0 and len(positive) > 1 and positive[-1] >= 10 * positive[0]:
        axes.set_xscale("symlog", linthresh=positive[0])
    elif min(values) > 0 and positive[-1] >= 10 * positive[0]:
        axes.set_xscale("log")
    else:
        return
    ticks = sorted(set(values))
    axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axes.set_xticks([], minor=True)


def _percent(axis: Any, key: str) -> None:
    if is_percent(key):
        from matplotlib.ticker import FuncFormatter

        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))


def _label(rest: Mapping[str, Any], rests: Sequence[Mapping[str, Any]]) -> str:
    """Return a curve's label: its values of the fields in which the curves differ."""
    differing = [name for name in rest if any(other[name] != rest[name] for other in rests)]
    return ", ".join(f"{name} = {rest[name]}" for name in differing) or "mean, 95 % interval"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
