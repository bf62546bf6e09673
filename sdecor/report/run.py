"""The report of an evaluation, for one run or several compared: evaluation.json, the figures and the page."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from etils import epath

from sdecor.attribution import reduce
from sdecor.core import files
from sdecor.data import center_crop
from sdecor.data.batches import object_mask
from sdecor.evaluation import Plan, Results, summary
from sdecor.evaluation.runs import OF_ONE_RUN, Run, source_of
from sdecor.report.figures import figure_curves, figure_differences, figure_training
from sdecor.report.heatmaps import NOTE, series_maps, series_pictures
from sdecor.report.maps import figure_methods, figure_side_by_side
from sdecor.report.page import html_report
from sdecor.report.style import THEMES, save_figure
from sdecor.report.wording import method_title
from sdecor.training import logbook

_IMAGES, _ROWS = 12, 6  # number of images in the static figures; the gallery shows all
_NO_FACTS = (*OF_ONE_RUN, "data")  # settings not listed on the page, except those of `_FACTS_OF_RUNS`
_FACTS_OF_RUNS = {"step": "checkpoint step", "temperature": "temperature of the logits"}
_Comparisons = Mapping[str, Mapping[str, Any]]
_Drawn = dict[str, tuple[str, str, Callable[..., Any]]]


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """A trained run and its evaluation, in plain arrays and dictionaries.

    Attributes:
      name: name of the run, unique in the report.
      config: config of the run.
      dataset: the data set's `name` and `class_names`.
      log: rows of the run's metrics.jsonl.
      settings: settings that the numbers depend on: split, checkpoint, options of methods and metrics.
      results: values of each example.
      summary: key → numbers, from `summary.summarise`. A key is a metric's name; for a metric of maps, the method's
        name and a slash stand before it.
      curves: key → mean curve, as for `figure_curves`.
      pictures: content of the gallery for this run, as in `gallery_data`.
      other_versions: part of the evaluation → its package versions that differ from today's.
    """

    name: str
    config: Mapping[str, Any]
    dataset: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    results: Results
    summary: Mapping[str, Mapping[str, Any]]
    curves: Mapping[str, np.ndarray]
    pictures: Mapping[str, Any]
    other_versions: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def evaluated_run(
    run: Run,
    plan: Plan,
    results: Results,
    shown: Results,
    other_versions: Mapping[str, Any] | None = None,
    *,
    noise: Mapping[str, Mapping[str, Any]] | None = None,
) -> Evaluated:
    """Summarise the results of a run, and gather the content of its report.

    Args:
      run: the network and the data.
      plan: plan of the evaluation; only its results are reported.
      results: results of all examples.
      shown: the `index` of some images and, by key of the method, their attributions `[images, H, W, C]`.
      other_versions: see `Evaluated`.
      noise: key → the metric's own noise, see `summary.retest`; it becomes the entry `retest` of the key's numbers.
    """
    results, noise = plan.select(results), noise or {}
    numbers = summary.summarise(results, n_resamples=run.settings["resamples"])
    return Evaluated(
        name=run.name,
        config=run.recorded["config"],
        dataset=run.recorded["dataset"],
        log=logbook.read_rows(run.folder),
        settings=run.settings | plan.settings(),
        results=results,
        summary={key: entry | ({"retest": noise[key]} if key in noise else {}) for key, entry in numbers.items()},
        curves=plan.with_percentages(summary.mean_curves(results)),
        pictures=_pictures(run, plan.setup.reduction, results, shown),
        other_versions=other_versions or {},
    )


def _pictures(run: Run, reduction: str, results: Results, shown: Results) -> dict[str, Any]:
    """Return some images with their predictions and maps, see `gallery_data`."""
    source, size, known = source_of(run), run.settings["data"]["crop"], run.recorded["dataset"]
    attributions = dict(shown.examples)
    index = attributions.pop("index")
    chosen = [source[int(i)] for i in index]
    place = np.searchsorted(results.examples["index"], index)
    pictures = {name: results.examples[name][place] for name in ("label", "prediction", "confidence")}
    pictures["image"] = center_crop(np.stack([example["image"] for example in chosen]), size)
    masks = [object_mask(example) for example in chosen]
    if masks[0] is not None:
        pictures["object"] = center_crop(np.stack(masks), size) == 1
    if _is_series(known):
        return pictures | _of_series(pictures, attributions, known)
    signed = {key: np.asarray(reduce(values, how="sum")) for key, values in attributions.items()}
    how = "abs_sum" if reduction == "sum" else reduction  # these maps must have no signs
    return pictures | {
        "maps": {key: np.asarray(reduce(values, how=how)) for key, values in attributions.items()},
        "signed": {key: maps for key, maps in signed.items() if (maps < 0).any()},
    }


def _is_series(dataset: Mapping[str, Any]) -> bool:
    return len(dataset.get("image_shape", ())) == 2


def _of_series(
    pictures: Mapping[str, np.ndarray], attributions: Mapping[str, np.ndarray], dataset: Mapping[str, Any]
) -> dict[str, Any]:
    """Return series, masks and attributions as pictures of channels and times; the channels are not reduced."""
    channels = pictures["image"].shape[-1]
    signed = {key: series_maps(values, channels) for key, values in attributions.items()}
    found = {"object": series_maps(pictures["object"], channels)} if "object" in pictures else {}
    return found | {
        "image": series_pictures(pictures["image"], dataset["mean"], dataset["std"]),
        "maps": {key: np.abs(maps) for key, maps in signed.items()},
        "signed": {key: maps for key, maps in signed.items() if (maps < 0).any()},
    }


def write_evaluation(folder: Any, evaluated: Evaluated) -> None:
    """Write a run's numbers, and the settings that they depend on, to evaluation.json in `folder`."""
    content = {
        "settings": evaluated.settings,
        "examples": int(evaluated.results.examples["index"].size),
        "metrics": evaluated.summary,
        "versions": files.versions(),
    }
    content |= {"other_versions": evaluated.other_versions} if evaluated.other_versions else {}
    files.write_json(epath.Path(folder) / "evaluation.json", content)


def write_report(output: Any, evaluated: Sequence[Evaluated]) -> dict[str, dict]:
    """Write the page and figures of evaluated runs into the folder `output`; for several runs also comparison.json.

    Returns:
      Run → key → paired difference to the first run, see `summary.compare`; empty for one run.
    """
    output, (reference, *others) = epath.Path(output), evaluated
    resamples = reference.settings["resamples"]
    comparisons = {
        each.name: summary.compare(reference.results, each.results, n_resamples=resamples) for each in others
    }
    run_report(output, evaluated, comparisons)
    if others:
        files.write_json(output / "comparison.json", {"reference": reference.name, "differences": comparisons})
    return comparisons


def run_report(output: epath.Path, evaluated: Sequence[Evaluated], comparisons: _Comparisons) -> None:
    """Write report.html for one run, or comparison.html for several, and each figure as a PNG file.

    The figures are saliency.png (the maps of the first method for all runs), methods.png (a single run's methods side
    by side), differences.png, curves.png and training.png. A figure without content is not written.

    Args:
      output: folder of the files.
      evaluated: the runs, with pictures of the same images; the first run is the reference.
      comparisons: run → key → paired difference to the reference, from `summary.compare`; empty for one run.
    """
    reference, *others = evaluated
    summaries, facts = {each.name: each.summary for each in evaluated}, _facts(evaluated)
    curves = {each.name: each.curves for each in evaluated}
    drawn = _figures(evaluated, comparisons)
    themed = {name: {theme: draw(theme=theme) for theme in THEMES} for name, (_, _, draw) in drawn.items()}
    against = f"{', '.join(each.name for each in others)} against {reference.name}"
    html_report(
        output / ("comparison.html" if others else "report.html"),
        title=against if others else f"{reference.name} on {facts['data set']}",
        lead=_lead(summaries, facts),
        summaries=summaries,
        comparisons=comparisons,
        curves=curves,
        pictures={each.name: each.pictures for each in evaluated},
        class_names=reference.dataset["class_names"],
        configs={each.name: each.config for each in evaluated},
        facts=facts,
        figures=[(heading, caption, themed[name]) for name, (heading, caption, _) in drawn.items()],
    )
    for name, figures in themed.items():
        save_figure(figures["light"], output / f"{name}.png")
    if any(curves.values()):
        save_figure(figure_curves(curves), output / "curves.png")


def _facts(evaluated: Sequence[Evaluated]) -> dict[str, Any]:
    """Return the settings of the evaluation, name → value; the checkpoint's step is given for each run."""
    first = evaluated[0]
    facts = {"data set": first.dataset["name"]}
    facts |= {"pictures": NOTE} if _is_series(first.dataset) else {}
    facts |= {name: value for name, value in first.settings.items() if name not in _NO_FACTS}
    facts |= {"versions": files.versions()}
    for field, title in _FACTS_OF_RUNS.items():
        facts |= {title: {each.name: each.settings[field] for each in evaluated}} if field in first.settings else {}
    return {name: value for name, value in facts.items() if value is not None}


def _lead(summaries: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    count = max((entry["n"] for summary in summaries.values() for entry in summary.values()), default=0)
    parts = [facts.get("data set"), f"{facts['split']} split" if "split" in facts else None, f"{count} images"]
    parts.append(f"explained class: {facts['target']}" if "target" in facts else None)
    return " · ".join(str(part) for part in parts if part)


def _figures(evaluated: Sequence[Evaluated], comparisons: _Comparisons) -> _Drawn:
    """Return the page's static figures in order: name → (heading, caption, function of the theme)."""
    reference, *others = evaluated
    methods = list(reference.pictures["maps"])
    shown = (
        "Each map is divided by its sum, so a color is a share of the map's saliency. The maps of an image use the "
        "same scale. The outline is the object, if the data set has one."
    )
    shown += f" {NOTE}" if _is_series(reference.dataset) else ""
    drawn: _Drawn = {}
    if others:
        caption = f"Differences from {reference.name} on the same images; better is to the right."
        draw = partial(figure_differences, comparisons, reference=reference.name)
        drawn["differences"] = ("Paired differences", caption, draw)
    heading = f"{method_title(methods[0])} saliency of the same images"
    drawn["saliency"] = (heading, shown, partial(_side_by_side, evaluated, methods[0]))
    if len(methods) > 1 and not others:
        caption = shown.replace("The maps of an image use the same scale.", "Each map has its own scale.")
        drawn["methods"] = ("Methods side by side", caption, partial(_methods, reference))
    logs = {each.name: each.log for each in evaluated}
    if any(logs.values()):
        caption = "The loss is that of each run's own training method, so only accuracies can be compared."
        drawn["training"] = ("Training", caption, partial(figure_training, logs))
    return drawn


def _side_by_side(evaluated: Sequence[Evaluated], method: str, *, theme: str) -> Any:
    pictures, names = {each.name: each.pictures for each in evaluated}, evaluated[0].dataset["class_names"]
    first, n = evaluated[0].pictures, _IMAGES
    return figure_side_by_side(
        first["image"][:n],
        {run: picture["maps"][method][:n] for run, picture in pictures.items()},
        labels=[names[label] for label in first["label"][:n]],
        predictions={run: [names[p] for p in picture["prediction"][:n]] for run, picture in pictures.items()},
        correct={run: picture["prediction"] == picture["label"] for run, picture in pictures.items()},
        objects=first["object"][:n] if "object" in first else None,
        theme=theme,
    )


def _methods(evaluated: Evaluated, *, theme: str) -> Any:
    picture, names = evaluated.pictures, evaluated.dataset["class_names"]
    return figure_methods(
        picture["image"][:_ROWS],
        {method: maps[:_ROWS] for method, maps in picture["maps"].items()},
        labels=[names[label] for label in picture["label"][:_ROWS]],
        objects=picture["object"][:_ROWS] if "object" in picture else None,
        common=False,
        theme=theme,
    )
