"""The two figures of docs/theory.md."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdecor.evaluation.statistics import mean_interval
from sdecor.report.style import COLORS, dress, legend_below, new_figure, save_figure, theme_colors

Row = Mapping[str, Any]

CURVES = (
    ("covariance", "pooled", "covariance, pooled"),
    ("correlation", "pooled", "correlation, pooled"),
    ("correlation", "before", "correlation, before the ReLU"),
    ("correlation", "after", "correlation, after the ReLU"),
    ("cosine", "after", "cosine, after the ReLU"),
    ("cosine", "pooled", "cosine, pooled"),
    ("density", "after", "density, after the ReLU"),
)
PANELS = (
    ("active", "Active features, of 16"),
    ("gini", "Gini index"),
    ("energy", "Energy on object, chance 0.25"),
    ("accuracy", "Accuracy"),
)
DPI = 88


def draw_ridge(ridge: Sequence[Row], networks: Sequence[Row], path: Any) -> None:
    """Draw the gradient's spread over fixed detectors and its Gini index for learned features, against correlation."""
    color = theme_colors("light")
    figure = new_figure(9.5, 4.2, color)
    left, right = figure.subplots(1, 2)
    for number, value in enumerate(sorted({row["ridge"] for row in ridge})):
        _line(
            left, _select(ridge, white=False, ridge=value), "correlation", "spread", COLORS[number], f"ridge {value:g}"
        )
        rows = _select(ridge, white=False, ridge=value, seed=0)
        left.plot(*zip(*((row["correlation"], row["predicted"]) for row in rows), strict=True), color=COLORS[number])
    _line(left, _select(ridge, white=True, ridge=3.0), "correlation", "spread", color["ink"], "ridge 3, whitened", "x")
    dress(left, color, "Detectors over which the gradient is spread, of 8", "correlation of two detectors")
    linear = _select(networks, data="groups", consistency=False)
    for number, penalty in enumerate(("none", "covariance", "correlation", "whitening")):
        rows = _select(linear, penalty=penalty)
        label = "learned, no penalty" if penalty == "none" else f"learned, {penalty}"
        right.plot(
            *([row[key] for row in rows] for key in ("correlation", "gini")),
            "oDs^"[number], color=COLORS[number + 5], alpha=0.6, markersize=4, label=label, linestyle="none",
        )  # fmt: skip
    right.set_ylim(0.3, 0.5)
    dress(right, color, "Gini index of the gradient, learned linear features", "their correlation (rms over pairs)")
    legend_below(figure, color, lay_out=True)
    save_figure(figure, path, dpi=DPI)


def draw_layers(networks: Sequence[Row], path: Any) -> None:
    """Draw metrics of the networks with a ReLU against each penalty's weight, after short and long training."""
    color = theme_colors("light")
    figure = new_figure(12, 6.2, color)
    parts = _select(networks, data="parts", width=16)
    lengths = sorted({row["steps"] for row in parts})
    for across, steps in zip(figure.subplots(2, len(PANELS), sharey="col"), lengths, strict=True):
        rows = _select(parts, steps=steps)
        for axes, (measure, title) in zip(across, PANELS, strict=True):
            for (penalty, layer, label), shade in zip(CURVES, COLORS, strict=False):
                chosen = _select(rows, penalty=penalty, layer=layer, consistency=False)
                _line(axes, chosen, "weight", measure, shade, label, join=True)
            for consistency, name, style in ((False, "cross-entropy", "-"), (True, "masked consistency (SGT)", "--")):
                plain = _select(rows, penalty="none", consistency=consistency)
                level = np.mean([row[measure] for row in plain])
                axes.axhline(level, color=color["ink"], linewidth=1, linestyle=style, label=name)
            axes.set_xscale("log")
            axes.minorticks_off()
            weights = sorted({row["weight"] for row in chosen})
            axes.set_xticks(weights, [f"{weight:g}" for weight in weights])
            dress(axes, color, f"{title}, {steps} steps", "weight of the penalty", small=True)
    legend_below(figure, color, lay_out=True)
    save_figure(figure, path, dpi=DPI)


def _select(rows: Sequence[Row], **fields: Any) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in fields.items())]


def _line(
    axes: Any, rows: Sequence[Row], x: str, y: str, color: str, label: str, marker: str = "o", *, join: bool = False
) -> None:
    """Draw means of `y` with 95 % intervals over seeds against `x`."""
    places = sorted({row[x] for row in rows})
    means = [mean_interval([row[y] for row in rows if row[x] == place]) for place in places]
    middle, errors = [each.mean for each in means], [each.high - each.mean for each in means]
    style = {"color": color, "label": label, "markersize": 4, "linewidth": 1.4, "elinewidth": 1}
    axes.errorbar(places, middle, errors, fmt=f"{marker}-" if join else marker, **style)
