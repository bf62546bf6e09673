"""Figure of how training went."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from sdecor.report.style import COLORS, dress, legend_below, new_figure, theme_colors, verbatim


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
    color = theme_colors(theme)
    figure = new_figure(4.1 * len(measures), 3.5, color)
    for place, measure in enumerate(measures):
        axes = figure.add_subplot(1, len(measures), place + 1)
        for run, shade in zip(rows, itertools.cycle(COLORS), strict=False):
            for split, style, width, alpha in (("train", "-", 1.2, 0.65), ("val", "--", 2, 1)):
                points = [(r["step"], r[measure]) for r in rows[run] if r.get("split") == split and measure in r]
                if points:
                    line = {"color": shade, "linestyle": style, "linewidth": width, "alpha": alpha}
                    axes.plot(*zip(*points, strict=True), label=verbatim(f"{run}, {split}", legend=True), **line)
        dress(axes, color, measure.replace("_", " ").capitalize(), "step")
    legend_below(figure, color, lay_out=True)
    return figure
