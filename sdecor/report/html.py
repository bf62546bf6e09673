"""The HTML of a page: document, tables and figures. Every text from the caller is escaped."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from sdecor.report.style import figure_bytes
from sdecor.report.table import config_differences
from sdecor.report.wording import (
    ARROWS,
    description,
    direction,
    format_bounds,
    format_chance,
    format_mean,
    format_retest,
    format_several,
    method_title,
    split_key,
    title,
)

_SCRIPTS = ("pixels.js", "state.js", "gallery.js", "page.js")
# The page loads nothing from elsewhere, and this policy makes the browser enforce it.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def document(title: str, body: str) -> str:
    """Return a complete page that includes its style and scripts."""
    scripts = "\n".join(part(name) for name in _SCRIPTS)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{part('page.css')}</style>\n</head>\n<body>\n{body}\n"
        f'<script type="module">\n{scripts}</script>\n</body>\n</html>\n'
    )


def part(name: str) -> str:
    """Return the text of a file in `assets`."""
    return resources.files("sdecor.report").joinpath("assets", name).read_text(encoding="utf-8")


def text(value: Any) -> str:
    """Return a value as escaped text, without markup."""
    return html.escape(str(value), quote=True)


def table(head: Iterable[str], rows: Iterable[str], *, label: str, wide: bool = False) -> str:
    """Return a table that scrolls sideways if it is wider than the page.

    Args:
      head: `th` cells; empty for a table without a head.
      rows: `tr` elements.
      label: description for screen readers.
      wide: whether the first column stays in view while the table scrolls.
    """
    head, body = "".join(head), "\n".join(rows)
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    region = f'class="scroll{" wide" if wide else ""}" tabindex="0" role="region" aria-label="{text(label)}"'
    return f"<div {region}><table>{head}<tbody>\n{body}\n</tbody></table></div>"


def figure(heading: str, caption: str, themes: Mapping[str, Any]) -> str:
    """Return a figure that follows the reader's light or dark theme.

    Args:
      heading: description for screen readers.
      caption: text below the figure.
      themes: figure by theme: "light" and, optionally, "dark".
    """
    sources = {theme: _data_uri(drawn) for theme, drawn in themes.items()}
    dark = sources.get("dark")
    source = f'<source srcset="{dark}" media="screen and (prefers-color-scheme: dark)">' if dark else ""
    image = f'<img src="{sources["light"]}" alt="{text(heading)}">'
    return f"<figure><picture>{source}{image}</picture><figcaption>{text(caption)}</figcaption></figure>"


def _data_uri(drawn: Any) -> str:
    return "data:image/png;base64," + base64.b64encode(figure_bytes(drawn)).decode()


Entries = Mapping[str, Mapping[str, Any]]


def runs_table(
    keys: Sequence[str], summaries: Mapping[str, Entries], comparisons: Mapping[str, Entries], *, label: str
) -> str:
    """Return a table with a row per metric: chance, each run's value, number of images, paired differences."""
    runs = list(summaries)
    head = ["<th>Metric</th>", "<th>Chance</th>", *(f"<th>{text(run)}</th>" for run in runs), "<th>Images</th>"]
    head += [f"<th>{text(run)} − {text(runs[0])}</th>" for run in comparisons]
    rows = []
    for key in keys:
        entries = [summary.get(key) for summary in summaries.values()]
        cells = [f"<td>{format_chance(key, entries)}</td>", *(_value(key, entry) for entry in entries), _count(entries)]
        cells += [_difference(key, comparison.get(key)) for comparison in comparisons.values()]
        rows.append(f'<tr id="{text(key)}">{_name(key)}{"".join(cells)}</tr>')
    return table(head, rows, label=label)


def methods_table(groups: Mapping[str, Sequence[str]], summary: Entries, *, label: str) -> str:
    """Return the table of one run, with a row per metric and a column per method; the best mean of a row is bold.

    Args:
      groups: method → keys.
      summary: key → numbers.
      label: description for screen readers.
    """
    head = ["<th>Metric</th>", "<th>Chance</th>", *(f"<th>{text(method_title(method))}</th>" for method in groups)]
    head.append("<th>Images</th>")
    rows = []
    for name in dict.fromkeys(split_key(key)[1] for keys in groups.values() for key in keys):
        entries = [summary.get(f"{method}/{name}") for method in groups]
        best = _best(name, entries)
        cells = [_value(name, entry, best=k == best) for k, entry in enumerate(entries)]
        chance = f"<td>{format_chance(name, entries)}</td>"
        rows.append(f"<tr>{_name(name)}{chance}{''.join(cells)}{_count(entries)}</tr>")
    return table(head, rows, label=label, wide=True)


def configs_table(configs: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of fields in which the configs differ, or a sentence if there are none."""
    differences = config_differences(configs)
    if not differences:
        return "<p>The configs are equal.</p>"
    head = ["<th>Field</th>", *(f"<th>{text(run)}</th>" for run in configs)]
    rows = []
    for field, values in differences:
        cells = "".join(f'<td class="wrap">{text("–" if v is None else v)}</td>' for v in values)
        rows.append(f"<tr><th><code>{text(field)}</code></th>{cells}</tr>")
    return table(head, rows, label="Differences between the configs", wide=True)


def facts_table(facts: Mapping[str, Any]) -> str:
    """Return a table with a row for each fact; a mapping of mappings has a row for each of its entries."""
    rows = []
    for name, value in facts.items():
        groups = isinstance(value, Mapping) and value and all(isinstance(entry, Mapping) for entry in value.values())
        for label, entry in ((f"{name}: {part}", value[part]) for part in value) if groups else ((name, value),):
            rows.append(f'<tr><th scope="row">{text(label)}</th><td class="wrap">{text(plain(entry))}</td></tr>')
    return table((), rows, label="Settings of the evaluation")


def plain(value: Any) -> str:
    """Return a fact as text: items separated by commas, and digits of large whole numbers in groups of three."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000
    return f"{value:,}".replace(",", "\u202f") if whole else str(value)


def _name(key: str) -> str:
    note = f"<small>{text(description(key))}</small>" if description(key) else ""
    return f'<th scope="row">{text(title(key))}\u00a0{ARROWS[direction(key)]}{note}</th>'


def _value(key: str, entry: Mapping[str, Any] | None, *, best: bool = False) -> str:
    if entry is None:
        return "<td>–</td>"
    mean, bounds = format_mean(key, entry), format_bounds(key, entry)
    cell = f'<span class="best">{mean}</span>' if best else mean
    cell += f"<small>{bounds[0]} to {bounds[1]}</small>" if bounds else ""
    noise = format_retest(key, entry)
    cell += f"<small>retest {noise}</small>" if noise else ""
    return f"<td>{cell}</td>"


def _best(name: str, entries: Sequence[Mapping[str, Any] | None]) -> int | None:
    """Return the index of the best mean; None without a better direction, or for fewer than two means."""
    means = [(entry["mean"], k) for k, entry in enumerate(entries) if entry and entry["mean"] is not None]
    if direction(name) is None or len(means) < 2:
        return None
    return (max if direction(name) else min)(means)[1]


def _count(entries: Sequence[Mapping[str, Any] | None]) -> str:
    """Return the cell with the number of images of each value, and the number of images left out."""
    counts = [(entry["n"], entry.get("undefined", 0)) for entry in entries if entry]
    counts = counts if len(counts) <= 3 else sorted(counts)
    undefined = [str(count) for _, count in counts]
    note = f"<small>{format_several(undefined)} left out</small>" if set(undefined) != {"0"} else ""
    return f"<td>{format_several([str(n) for n, _ in counts])}{note}</td>"


def _difference(key: str, entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "<td></td>"
    mean, bounds = format_mean(key, entry, signed=True), format_bounds(key, entry, signed=True)
    kind = {True: "better", False: "worse", None: ""}[entry["better"]]
    mean = f'<span class="mark {kind}">{mean} {kind}</span>' if kind else mean
    return f"<td>{mean}<small>{bounds[0]} to {bounds[1]}</small></td>" if bounds else f"<td>{mean}</td>"
