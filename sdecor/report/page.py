"""The page of an evaluation: one run's report, or several runs compared."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from sdecor.report.figures import (
    figure_curves,
    figure_differences,
    figure_side_by_side,
    figure_training,
    save_figure,
)
from sdecor.report.html import html_report


def run_report(
    output: Any,
    *,
    summaries: Mapping[str, Mapping[str, Any]],
    comparisons: Mapping[str, Mapping[str, Any]],
    pictures: Mapping[str, Mapping[str, np.ndarray]],
    curves: Mapping[str, Mapping[str, np.ndarray]],
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    configs: Mapping[str, Mapping[str, Any]],
    class_names: Sequence[str],
    facts: Mapping[str, Any],
) -> None:
    """Write report.html of one run, or comparison.html of several, and every figure as a PNG file.

    Args:
      output: the folder, an `epath.Path`.
      summaries: run → measure → numbers, as of `summary.summarise`; the first run is the reference.
      comparisons: run → measure → paired difference to the reference, as of `summary.compare`; empty for one run.
      pictures: run → `image` uint8 `[n, H, W, C]`, `label`, `prediction` `[n]`, `maps` `[n, H, W]` and, where known,
        `object` bool `[n, H, W]`, of the same images.
      curves: run → mean curves, as of `summary.mean_curves`.
      rows: run → rows of its metrics.jsonl.
      configs: run → config.
      class_names: of the labels.
      facts: what holds for all runs, name → value.
    """
    names = list(summaries)
    figures = _figures(names[0], comparisons, pictures, curves, rows, class_names)
    html_report(
        output / ("comparison.html" if comparisons else "report.html"),
        title=" against ".join(names[::-1]) if comparisons else f"{names[0]} on {facts['data set']}",
        summaries=summaries,
        comparisons=comparisons,
        configs=configs,
        facts=facts,
        figures=list(figures.values()),
    )
    for name, (_, _, themes) in figures.items():
        save_figure(themes["light"], output / f"{name}.png")


def _figures(
    reference: str,
    comparisons: Mapping[str, Any],
    pictures: Mapping[str, Any],
    curves: Mapping[str, Any],
    rows: Mapping[str, Any],
    class_names: Sequence[str],
) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Return the page's figures in order: name → (heading, caption, figure by theme)."""
    drawn = {
        "saliency": (
            "Gradient saliency of the same images",
            "Each map is divided by its sum, so a colour is a share of the map's saliency; the maps of one image share "
            "one scale. The outline is the object, where the data set has it.",
            partial(_side_by_side, pictures, class_names),
        ),
        "differences": (
            "Paired differences",
            f"To {reference}, on the same images; better is to the right.",
            partial(figure_differences, comparisons, reference=reference),
        ),
        "curves": (
            "Insertion and deletion",
            "Mean over the images; dotted, a random order of pixels on the same network.",
            partial(figure_curves, curves),
        ),
        "training": (
            "Training",
            "The loss is that of each run's own objective, so only accuracies compare.",
            partial(figure_training, rows),
        ),
    }
    if not comparisons:
        del drawn["differences"]
    return {
        name: (heading, caption, {theme: draw(theme=theme) for theme in ("light", "dark")})
        for name, (heading, caption, draw) in drawn.items()
    }


def _side_by_side(pictures: Mapping[str, Any], class_names: Sequence[str], *, theme: str) -> Any:
    first, *_ = pictures.values()
    return figure_side_by_side(
        first["image"],
        {run: picture["maps"] for run, picture in pictures.items()},
        labels=[class_names[label] for label in first["label"]],
        predictions={run: [class_names[p] for p in picture["prediction"]] for run, picture in pictures.items()},
        correct={run: picture["prediction"] == picture["label"] for run, picture in pictures.items()},
        objects=first.get("object"),
        theme=theme,
    )
