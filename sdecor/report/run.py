"""The report of an evaluation: evaluation.json, the figures and the page, of one run or several compared."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from etils import epath

from sdecor.attribution import reduce
from sdecor.core import files
from sdecor.data import center_crop
from sdecor.data.batches import object_mask
from sdecor.evaluation import Plan, Results, Store, summary
from sdecor.evaluation.runs import Run, source_of
from sdecor.report.figures import figure_curves, figure_differences, figure_training
from sdecor.report.maps import figure_methods, figure_side_by_side
from sdecor.report.page import html_report
from sdecor.report.style import THEMES, save_figure
from sdecor.report.wording import method_title
from sdecor.training import logbook

_IMAGES, _ROWS = 12, 6  # of the static figures; the gallery shows all
_Drawn = dict[str, tuple[str, str, Callable[..., Any]]]


def run_report(
    output: Any,
    *,
    summaries: Mapping[str, Mapping[str, Any]],
    comparisons: Mapping[str, Mapping[str, Any]],
    pictures: Mapping[str, Mapping[str, Any]],
    curves: Mapping[str, Mapping[str, np.ndarray]],
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    configs: Mapping[str, Mapping[str, Any]],
    class_names: Sequence[str],
    facts: Mapping[str, Any],
) -> None:
    """Write report.html of one run, or comparison.html of several, and every figure as a PNG file.

    The figures are saliency.png (the first method, run below run), methods.png (one run's methods side by side),
    differences.png, curves.png and training.png, each where there is something to draw.

    Args:
      output: the folder, an `epath.Path`.
      summaries: run → key → numbers, as of `summary.summarise`; the first run is the reference. A key is a metric's
        name, after the name of a method and a slash where it is of maps.
      comparisons: run → key → paired difference to the reference, as of `summary.compare`; empty for one run.
      pictures: run → `image` uint8 `[n, H, W, C]`, `label`, `prediction`, `confidence` `[n]`, `maps`: method →
        `[n, H, W]` ≥ 0, and where known `signed`: method → `[n, H, W]`, and `object` bool `[n, H, W]`; of the same
        images in every run.
      curves: run → key → mean curve, as `figure_curves` takes them.
      rows: run → rows of its metrics.jsonl.
      configs: run → config.
      class_names: of the labels.
      facts: name → value; a mapping from each run's name is shown on the runs' cards.
    """
    names = list(summaries)
    drawn = _figures(names[0], comparisons, pictures, rows, class_names)
    themed = {name: {theme: draw(theme=theme) for theme in THEMES} for name, (_, _, draw) in drawn.items()}
    html_report(
        output / ("comparison.html" if comparisons else "report.html"),
        title=f"{', '.join(names[1:])} against {names[0]}" if comparisons else f"{names[0]} on {facts['data set']}",
        lead=_lead(summaries, facts),
        summaries=summaries,
        comparisons=comparisons,
        curves=curves,
        pictures=pictures,
        class_names=class_names,
        configs=configs,
        facts=facts,
        figures=[(heading, caption, themed[name]) for name, (heading, caption, _) in drawn.items()],
    )
    for name, figures in themed.items():
        save_figure(figures["light"], output / f"{name}.png")
    if any(curves.values()):
        save_figure(figure_curves(curves), output / "curves.png")


def _lead(summaries: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    count = max((entry["n"] for summary in summaries.values() for entry in summary.values()), default=0)
    parts = [facts.get("data set"), f"{facts['split']} split" if "split" in facts else None, f"{count} images"]
    parts.append(f"explained class: {facts['target']}" if "target" in facts else None)
    return " · ".join(str(part) for part in parts if part)


def _figures(
    reference: str,
    comparisons: Mapping[str, Any],
    pictures: Mapping[str, Any],
    rows: Mapping[str, Any],
    class_names: Sequence[str],
) -> _Drawn:
    """Return the page's static figures in order: name → (heading, caption, function of the theme)."""
    methods = list(next(iter(pictures.values()))["maps"])
    shown = (
        "Each map is divided by its sum, so a color is a share of the map's saliency; the maps of one image share one "
        "scale. The outline is the object, where the data set has it."
    )
    drawn: _Drawn = {}
    if comparisons:
        caption = f"To {reference}, on the same images; better is to the right."
        draw = partial(figure_differences, comparisons, reference=reference)
        drawn["differences"] = ("Paired differences", caption, draw)
    heading = f"{method_title(methods[0])} saliency of the same images"
    drawn["saliency"] = (heading, shown, partial(_side_by_side, pictures, methods[0], class_names))
    if len(methods) > 1 and len(pictures) == 1:
        drawn["methods"] = ("Methods side by side", shown, partial(_methods, pictures[reference], class_names))
    if any(rows.values()):
        caption = "The loss is that of each run's own objective, so only accuracies compare."
        drawn["training"] = ("Training", caption, partial(figure_training, rows))
    return drawn


def _side_by_side(pictures: Mapping[str, Any], method: str, class_names: Sequence[str], *, theme: str) -> Any:
    first, n = next(iter(pictures.values())), _IMAGES
    return figure_side_by_side(
        first["image"][:n],
        {run: picture["maps"][method][:n] for run, picture in pictures.items()},
        labels=[class_names[label] for label in first["label"][:n]],
        predictions={run: [class_names[p] for p in picture["prediction"][:n]] for run, picture in pictures.items()},
        correct={run: picture["prediction"] == picture["label"] for run, picture in pictures.items()},
        objects=first["object"][:n] if "object" in first else None,
        theme=theme,
    )


def _methods(picture: Mapping[str, Any], class_names: Sequence[str], *, theme: str) -> Any:
    return figure_methods(
        picture["image"][:_ROWS],
        {method: maps[:_ROWS] for method, maps in picture["maps"].items()},
        labels=[class_names[label] for label in picture["label"][:_ROWS]],
        objects=picture["object"][:_ROWS] if "object" in picture else None,
        theme=theme,
    )


def summary_of(
    run: Run, plan: Plan, results: Results, output: epath.Path | None = None, store: Store | None = None
) -> dict[str, dict]:
    """Summarise a run's results and write them to evaluation.json, in its folder or in `output`."""
    numbers = summary.summarise(results, n_resamples=run.settings["resamples"])
    others = {} if store is None else store.other_versions(plan.all_parts())
    content = {
        "settings": run.settings | plan.settings(),
        "examples": int(results.examples["index"].size),
        "metrics": numbers,
        "versions": files.versions(),
        **({"other_versions": others} if others else {}),  # of what was evaluated with those
    }
    files.write_json((output or epath.Path(run.folder)) / "evaluation.json", content)
    return numbers


def pictures_of(
    run: Run, plan: Plan, shown: Results, results: Results, methods: Iterable[str] | None = None
) -> dict[str, Any]:
    """Return some images with their predictions and maps, as the gallery shows them: see `report.run_report`.

    Args:
      run: of the network and the data.
      plan: what is evaluated.
      shown: the images' `index` and, under the methods' keys, their attributions `[images, H, W, C]`.
      results: of all examples.
      methods: the keys of those to be shown; default: all of the plan.
    """
    source, size = source_of(run), run.config.augment.size
    index, examples = shown.examples["index"], results.examples
    chosen = [source[int(i)] for i in index]
    place = np.searchsorted(examples["index"], index)
    pictures = {name: examples[name][place] for name in ("label", "prediction", "confidence")}
    pictures["image"] = center_crop(np.stack([example["image"] for example in chosen]), size)
    masks = [object_mask(example) for example in chosen]
    if masks[0] is not None:
        pictures["object"] = center_crop(np.stack(masks), size) == 1
    attributions = {key: shown.examples[key] for key in (plan.explained() if methods is None else methods)}
    signed = {key: np.asarray(reduce(values, how="sum")) for key, values in attributions.items()}
    how = "abs_sum" if plan.setup.reduction == "sum" else plan.setup.reduction  # maps to be shown have no signs
    return pictures | {
        "maps": {key: np.asarray(reduce(x, how=how)) for key, x in attributions.items()},
        "signed": {key: maps for key, maps in signed.items() if (maps < 0).any()},
    }


def write_report(
    output: epath.Path,
    runs: Mapping[str, Run],
    plans: Mapping[str, Plan],
    results: Mapping[str, Results],
    summaries: Mapping[str, dict],
    pictures: Mapping[str, dict],
) -> dict[str, dict]:
    """Write the page and figures of `runs` into `output`; return paired differences to the first."""
    reference, *others = runs
    first = runs[reference]
    resamples = first.settings["resamples"]
    comparisons = {name: summary.compare(results[reference], results[name], n_resamples=resamples) for name in others}
    data = first.recorded["dataset"]
    settings = {name: value for name, value in first.settings.items() if name not in ("parameters", "step", "data")}
    facts = {"data set": data["name"], **settings, **plans[reference].settings(), "versions": files.versions()}
    facts["checkpoint step"] = {name: run.settings["step"] for name, run in runs.items()}
    run_report(
        output,
        summaries={name: summaries[name] for name in runs},
        comparisons=comparisons,
        pictures={name: pictures[name] for name in runs},
        curves={name: plans[name].with_percentages(summary.mean_curves(results[name])) for name in runs},
        rows={name: logbook.read_rows(run.folder) for name, run in runs.items()},
        configs={name: run.recorded["config"] for name, run in runs.items()},
        class_names=data["class_names"],
        facts={name: value for name, value in facts.items() if value is not None},
    )
    if others:
        files.write_json(output / "comparison.json", {"reference": reference, "differences": comparisons})
    return comparisons
