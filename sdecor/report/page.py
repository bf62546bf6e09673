"""A self-contained page with numbers, figures, a gallery and explanations: one file that opens without a server."""

from collections.abc import Mapping, Sequence
from typing import Any

from sdecor.core.files import write_file
from sdecor.report.figures import Curves, figure_curves
from sdecor.report.gallery import Pictures, gallery_data, script_json
from sdecor.report.html import (
    Entries,
    configs_table,
    document,
    facts_table,
    figure,
    methods_table,
    part,
    plain,
    runs_table,
    text,
)
from sdecor.report.style import COLORS, THEMES
from sdecor.report.wording import (
    expected_by_chance,
    format_bounds,
    format_mean,
    is_retested,
    keys_by_method,
    method_title,
    split_key,
    title,
)

_CARD = ("calibration_error", "effective_rank")  # metrics on a run's card, beside the accuracy


def html_report(
    path: Any,
    *,
    title: str,
    summaries: Mapping[str, Entries],
    comparisons: Mapping[str, Entries] | None = None,
    curves: Curves | None = None,
    pictures: Pictures | None = None,
    class_names: Sequence[str] = (),
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    facts: Mapping[str, Any] | None = None,
    figures: Sequence[tuple[str, str, Mapping[str, Any]]] = (),
    lead: str = "",
    level: float = 0.95,
) -> None:
    """Write a page about one run, or about several runs side by side.

    Args:
      path: path of the file, local or remote; the file is replaced only when complete.
      title: heading of the page.
      summaries: run → key → numbers, from `summary.summarise`; the first run is the reference. A metric of a method's
        maps has a key that begins with the method's name and a slash.
      comparisons: run → key → paired difference to the reference, from `summary.compare`.
      curves: run → key → values, as for `figure_curves`.
      pictures: content of the gallery, as for `gallery_data`.
      class_names: names of the classes, by label.
      configs: run → config; only fields that differ are shown.
      facts: name → value, such as data set, split, explained class, baselines, versions. A value that maps each run's
        name to an entry is shown on the runs' cards.
      figures: `(heading, caption, figure by theme)`; themes are "light" and, optionally, "dark".
      lead: sentence below the title.
      level: coverage of the intervals, for the text.
    """
    comparisons, facts = comparisons or {}, facts or {}
    groups = keys_by_method(key for summary in summaries.values() for key in summary)
    of_runs = {name: value for name, value in facts.items() if _is_by_run(value, summaries)}
    common = {name: value for name, value in facts.items() if name not in of_runs}
    sections = [
        f"<h1>{text(title)}</h1>",
        f'<p class="lead">{text(lead)}</p>' if lead else "",
        _cards(summaries, of_runs),
        _model(groups, summaries, comparisons),
        f'<p class="note">{text(_reading(comparisons, level, retested=is_retested(summaries)))}</p>',
        _saliency(groups, summaries, comparisons, curves or {}),
        _gallery(pictures, class_names),
        *(f"<h2>{text(heading)}</h2>{figure(heading, caption, themes)}" for heading, caption, themes in figures),
        "<h2>Differences between the configs</h2>" + configs_table(configs) if configs and len(configs) > 1 else "",
        "<h2>Settings of the evaluation</h2>" + facts_table(common) if common else "",
    ]
    write_file(path, document(title, "\n".join(filter(None, sections))))


def _is_by_run(value: Any, runs: Mapping[str, Any]) -> bool:
    return isinstance(value, Mapping) and set(value) == set(runs)


def _cards(summaries: Mapping[str, Entries], facts: Mapping[str, Mapping[str, Any]]) -> str:
    cards = []
    for k, (run, summary) in enumerate(summaries.items()):
        reference = "<small>reference</small>" if k == 0 and len(summaries) > 1 else ""
        accuracy = summary.get("accuracy")
        headline = ""
        if accuracy:
            bounds = format_bounds("accuracy", accuracy)
            interval = f", {bounds[0]} to {bounds[1]}" if bounds else ""
            headline = f'<p class="headline">{format_mean("accuracy", accuracy)}</p><p>accuracy{interval}</p>'
        entries = {title(key): format_mean(key, summary[key]) for key in _CARD if key in summary}
        entries |= {name: plain(values[run]) for name, values in facts.items()}
        listed = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in entries.items())
        name = f'<h2 class="run">{text(run)}{reference}</h2>'
        style = f'style="--run: {COLORS[k % len(COLORS)]}"'
        cards.append(f'<article class="card" {style}>{name}{headline}<dl>{listed}</dl></article>')
    return f'<div class="cards">{"".join(cards)}</div>'


def _model(groups: Mapping[str, Sequence[str]], summaries, comparisons) -> str:
    keys = groups.get("")
    return "<h2>Model</h2>" + runs_table(keys, summaries, comparisons, label="Model") if keys else ""


def _saliency(groups: Mapping[str, Sequence[str]], summaries, comparisons, curves: Curves) -> str:
    """Return one table with methods side by side for a single run, or a section for each method of several runs."""
    groups = {method: keys for method, keys in groups.items() if method}
    if not groups:
        return _curves("", {run: dict(values) for run, values in curves.items()})
    if len(summaries) == 1 and len(groups) > 1:
        ((_, summary),) = summaries.items()
        (run_curves,) = curves.values() or ({},)
        by_method = {method_title(method): _of_method(run_curves, method) for method in groups}
        shown = methods_table(groups, summary, label="Saliency by method")
        note = '<p class="note">Bold: the best mean of a row. Differences between methods are not tested.</p>'
        return "<h2>Saliency</h2>" + shown + note + _curves("", by_method)
    sections, links = [], []
    for k, (method, keys) in enumerate(groups.items()):
        name = method_title(method)
        shown = runs_table(keys, summaries, comparisons, label=name)
        drawn = _curves(name, {run: _of_method(values, method) for run, values in curves.items()})
        sections.append(f'<section id="method-{k}"><h3>{text(name)}</h3>{shown}{drawn}</section>')
        links.append(f'<a href="#method-{k}">{text(name)}</a>')
    menu = f'<nav class="methods" aria-label="Attribution methods">{"".join(links)}</nav>' if len(links) > 1 else ""
    return "<h2>Saliency</h2>" + menu + "\n".join(sections)


def _of_method(curves: Mapping[str, Any], method: str) -> dict[str, Any]:
    return {split_key(key)[1]: values for key, values in curves.items() if split_key(key)[0] == method}


def _curves(name: str, curves: Curves) -> str:
    if not any(curves.values()):
        return ""
    caption = "Mean over the images. Dotted: a random order of pixels on the same network."
    heading = f"Faithfulness curves, {name}" if name else "Faithfulness curves"
    return figure(heading, caption, {theme: figure_curves(curves, theme=theme) for theme in THEMES})


def _gallery(pictures: Pictures | None, class_names: Sequence[str]) -> str:
    if not pictures:
        return ""
    data = script_json(gallery_data(pictures, class_names))
    how = "One image, explained by every method and every run. Keys: ← → change the image, ? lists all keys."
    script = f'<script type="application/json" id="gallery-data">{data}</script>'
    return f'<h2>Gallery</h2><p class="note">{how}</p>{part("gallery.html")}{script}'


def _reading(comparisons: Mapping[str, Any], level: float, *, retested: bool) -> str:
    words = (
        f"Below a value: its {100 * level:g} % bootstrap interval over images. ↑ more is better, ↓ less is better. "
        "Left out: images for which a metric was not computed or is undefined, such as images without an object. "
        "Chance is the score of a meaningless map, or of always predicting the most frequent class. For insertion, "
        "deletion and similar metrics it is the score of a random order of pixels on the same network; for feature "
        "correlation, that of independent features."
    )
    if retested:
        words += (
            " Retest: the standard deviation of the value over the random numbers of the metric and of the attribution "
            "method, from a second measurement of the same images."
        )
    if comparisons:
        words += (
            " Differences are paired: both runs on the same images, resampled together. A difference is marked better "
            "or worse only if its interval excludes 0 and it has at least 20 images. Metrics that depend on the "
            "network's robustness to masked images as much as on its maps are marked only relative to a random order. "
            + expected_by_chance(comparisons)
        )
    return words
