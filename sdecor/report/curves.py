"""Figures of faithfulness curves: what a network says while pixels enter or leave."""

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sdecor import metrics
from sdecor.report.measures import method_title, split_key
from sdecor.report.style import COLORS, dress, legend_below, new_figure, theme_colors, verbatim

Curves = Mapping[str, Mapping[str, Sequence[float]]]


class _Kind(NamedTuple):
    """What a curve says, and the function whose default percentages it is drawn at; None = evenly over all pixels."""

    title: str
    xlabel: str
    ylabel: str
    function: Callable | None = None


_PROBABILITY = "probability of the explained class"
KINDS = {
    "insertion": _Kind("Insertion", "% of pixels inserted, most salient first", _PROBABILITY),
    "deletion": _Kind("Deletion", "% of pixels deleted, most salient first", _PROBABILITY),
    "road": _Kind("ROAD", "% of pixels imputed, most salient first", "accuracy", metrics.road_curves),
    "masked_accuracy": _Kind(
        "Masked accuracy", "% of pixels replaced, most salient first", "accuracy", metrics.masked_accuracy_curve
    ),
}


def figure_curves(curves: Curves, *, theme: str = "light") -> Any:
    """Draw mean insertion, deletion and ROAD curves: a row of panels for each attribution method, a line for each run.

    To compare methods in one panel, give them in place of the runs: `{"Gradient": {"deletion_curve": …}, …}`.

    Args:
      curves: run → key → values `[S]`. Keys are `insertion_curve`, `deletion_curve`, `road_curve` and
        `masked_accuracy_curve`, after the name of a method and a slash where there are several
        ("gradient/deletion_curve"). Beside each may stand, with the same number of values, `…_curve_random` (a random
        order of pixels on the same network, dotted), `…_curve_low` and `…_curve_high` (a band). Insertion and deletion
        are drawn evenly over 0 to 100 % of the pixels; the others at `…_percentages` where given, else at the
        metric's own.
      theme: "light" or "dark".
    """
    color = theme_colors(theme)
    found = [split_key(key) for run in curves.values() for key in run]
    methods = list(dict.fromkeys(method for method, _ in found))
    kinds = [kind for kind in KINDS if any(measure == f"{kind}_curve" for _, measure in found)]
    width = 4.1 if len(kinds) <= 3 else 3.4
    figure = new_figure(width * max(1, len(kinds)), 3.5 * max(1, len(methods)), color)
    for place, (method, kind) in enumerate(itertools.product(methods, kinds), 1):
        axes = figure.add_subplot(len(methods), len(kinds), place)
        _lines(axes, curves, f"{method}/{kind}".lstrip("/"), color)
        name, xlabel, ylabel, _ = KINDS[kind]
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
    function = KINDS[kind].function
    own = inspect.signature(function).parameters["percentages"].default if function else ()
    return own if len(own) == count else np.linspace(0, 100, count)
