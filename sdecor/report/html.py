"""A self-contained HTML page: numbers, figures and what they mean, in one file that opens without a server."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

from sdecor.report.figures import figure_bytes
from sdecor.report.table import (
    ARROWS,
    TITLES,
    config_differences,
    description,
    direction,
    format_chance,
    format_interval,
    format_value,
    names_in_order,
)

_CSS = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d2433; --faint: #697386; --line: #e4e7ec; --band:
#f7f8fa;
  --good: #1f7a43; --good-bg: #e7f5ec; --bad: #b42318; --bad-bg: #fdeceb; }
@media (prefers-color-scheme: dark) { :root { --paper: #161a22; --ink: #e8eaf0; --faint: #98a2b3; --line:
#2c3340;
  --band: #1c212b; --good: #6fd396; --good-bg: #16331f; --bad: #ff9b92; --bad-bg: #3b1a18; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 3rem 1.5rem 5rem; background: var(--paper); color:
var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -.02em; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; letter-spacing: -.01em; margin: 3rem 0 .8rem; }
p { margin: .4rem 0; max-width: 46rem; }
.lead, figcaption, .note { color: var(--faint); }
.note, figcaption { font-size: .85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .9rem .5rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align:
top; } thead th { font-weight: 600; border-bottom: 2px solid var(--line); white-space: nowrap; }
tbody th { font-weight: 500; min-width: 14rem; }
tbody th small { display: block; color: var(--faint); font-weight: 400; line-height: 1.35; max-width: 24rem; }
td { white-space: nowrap; } td small { display: block; color: var(--faint); }
td.wrap { white-space: normal; overflow-wrap: anywhere; }
.mark { display: inline-block; border-radius: .35rem; padding: 0 .45rem; font-weight: 600; }
.better { color: var(--good); background: var(--good-bg); } .worse { color: var(--bad); background:
var(--bad-bg); } code { font: .88em ui-monospace, "SFMono-Regular", Menlo, Consolas, monospace; }
figure { margin: 1rem 0 2rem; } figure img { max-width: 100%; height: auto; display: block; }
figcaption { margin-top: .5rem; max-width: 46rem; }
@media print { body { max-width: none; padding: 0; } h2 { break-after: avoid; } figure, tr { break-inside:
avoid; } }
"""


def html_report(
    path: Any,
    *,
    title: str,
    summaries: Mapping[str, Mapping[str, Mapping[str, Any]]],
    comparisons: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    facts: Mapping[str, Any] | None = None,
    figures: Sequence[tuple[str, str, Mapping[str, Any]]] = (),
    lead: str = "",
    level: float = 0.95,
) -> None:
    """Write one page about one run, or about several side by side.

    Args:
      path: the file, local or remote; it is replaced only when complete.
      title: heading of the page.
      summaries: run → measure → numbers, as of `summary.summarise`; the first run is the reference.
      comparisons: run → measure → paired difference to the reference, as of `summary.compare`.
      configs: run → config; only the fields that differ are shown.
      facts: what holds for all runs, name → value: data set, split, explained class, baselines, versions.
      figures: `(heading, caption, figure by theme)`, with a figure under "light" and, optionally, under "dark".
      lead: a sentence below the title.
      level: coverage of the intervals, for the text.
    """
    from etils import epath

    comparisons, configs = comparisons or {}, configs or {}
    parts = [f"<h1>{_text(title)}</h1>"]
    parts += [f'<p class="lead">{_text(lead)}</p>'] if lead else []
    parts += ["<h2>Measures</h2>", _measures(summaries, comparisons), _reading(comparisons, level)]
    for heading, caption, themes in figures:
        parts += [f"<h2>{_text(heading)}</h2>", _figure(heading, caption, themes)]
    if len(configs) > 1:
        parts += ["<h2>What differs between the runs</h2>", _configs(configs)]
    if facts:
        rows = [f'<tr><th>{_text(k)}</th><td class="wrap">{_text(v)}</td></tr>' for k, v in facts.items()]
        parts += ["<h2>How it was measured</h2>", _table("", rows)]
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )
    path = epath.Path(path)
    temporary = path.parent / f".{path.name}.tmp"
    temporary.write_text(page)
    temporary.replace(path)


def _measures(summaries, comparisons) -> str:
    runs = list(summaries)
    head = ["<th>Measure</th>", "<th>Chance</th>", *(f"<th>{_text(run)}</th>" for run in runs), "<th>Images</th>"]
    head += [f"<th>{_text(run)} − {_text(runs[0])}</th>" for run in comparisons]
    rows = []
    for name in names_in_order({name: 0 for summary in summaries.values() for name in summary}):
        entries = [summaries[run].get(name) for run in runs]
        cells = [
            f"<td>{format_chance(name, entries)}</td>",
            *(_value(name, entry) for entry in entries),
            _count(entries),
        ]
        cells += [_difference(name, comparison.get(name)) for comparison in comparisons.values()]
        label = f"{_text(TITLES.get(name, name))} {ARROWS[direction(name)]}"
        note = f"<small>{_text(description(name))}</small>"
        rows.append(f'<tr id="{_text(name)}"><th>{label}{note}</th>' + "".join(cells) + "</tr>")
    return _table("".join(head), rows)


def _value(name: str, entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "<td>–</td>"
    mean = format_value(name, entry["mean"])
    if entry.get("low") is None:
        return f"<td>{mean}</td>"
    low, high = (format_value(name, entry[end], unit=False) for end in ("low", "high"))
    return f"<td>{mean}<small>{low} to {high}</small></td>"


def _count(entries: Sequence[Mapping[str, Any] | None]) -> str:
    """The number of images behind each run's value, once where they agree."""
    counts = [(entry["n"], entry.get("undefined", 0)) for entry in entries if entry]
    counts = counts[:1] if len(set(counts)) == 1 else counts
    undefined = " / ".join(str(count) for _, count in counts) if any(count for _, count in counts) else ""
    note = f"<small>{undefined} left out</small>" if undefined else ""
    return f"<td>{' / '.join(str(n) for n, _ in counts)}{note}</td>"


def _difference(name: str, entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "<td></td>"
    mean = format_value(name, entry["mean"], signed=True)
    kind = {True: "better", False: "worse", None: ""}[entry["better"]]
    mean = f'<span class="mark {kind}">{mean} {kind}</span>' if kind else mean
    if entry.get("low") is None:
        return f"<td>{mean}</td>"
    bounds = format_interval(name, entry, signed=True).partition("[")[2].rstrip("]").replace(",", " to")
    return f"<td>{mean}<small>{bounds}</small></td>"


def _reading(comparisons, level: float) -> str:
    text = (
        f"Below a value: its {100 * level:g} % bootstrap interval over images. ↑ more is better, ↓ less is better. "
        "Left out: images for which a measure was not computed or has no answer, such as those without an object. "
        "Chance is what a meaningless map, or always the most frequent class, would score; for insertion and deletion "
        "a random order of pixels on the same network, for feature correlation independent features."
    )
    if comparisons:
        text += (
            " Differences are paired: both runs on the same images, resampled together. One is marked better or worse "
            "only where its interval excludes 0."
        )
    return f'<p class="note">{_text(text)}</p>'


def _figure(heading: str, caption: str, themes: Mapping[str, Any]) -> str:
    sources = {theme: _data_uri(figure) for theme, figure in themes.items()}
    dark = sources.get("dark")
    source = f'<source srcset="{dark}" media="(prefers-color-scheme: dark)">' if dark else ""
    image = f'<img src="{sources["light"]}" alt="{_text(heading)}">'
    return f"<figure><picture>{source}{image}</picture><figcaption>{_text(caption)}</figcaption></figure>"


def _data_uri(figure: Any) -> str:
    return "data:image/png;base64," + base64.b64encode(figure_bytes(figure)).decode()


def _configs(configs: Mapping[str, Mapping[str, Any]]) -> str:
    differences = config_differences(configs)
    if not differences:
        return "<p>Nothing: the configs are equal.</p>"
    head = "<th>Field</th>" + "".join(f"<th>{_text(run)}</th>" for run in configs)
    rows = []
    for field, values in differences:
        cells = "".join(f'<td class="wrap">{_text("–" if v is None else v)}</td>' for v in values)
        rows.append(f"<tr><th><code>{_text(field)}</code></th>{cells}</tr>")
    return _table(head, rows)


def _table(head: str, rows: Sequence[str]) -> str:
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f'<div class="scroll"><table>{head}<tbody>' + "\n".join(rows) + "</tbody></table></div>"


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)
