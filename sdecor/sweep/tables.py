"""Tables of a sweep in Markdown and LaTeX (booktabs)."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sdecor.evaluation.statistics import Difference, Mean
from sdecor.report.wording import (
    ARROWS,
    direction,
    format_several,
    format_value,
    keys_by_method,
    method_title,
    split_key,
    title,
)
from sdecor.sweep import collect
from sdecor.sweep.collect import TIME, Comparison, Result

_COLUMNS = 6  # measures side by side
_LATEX = {
    "\\": r"\textbackslash{}", "%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$",
    "−": r"$-$", "±": r"$\pm$", "×": r"$\times$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--", "…": r"\dots{}",
}  # fmt: skip
_SUPERSCRIPT = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


Means = Mapping[str, Mapping[str, Mean]]  # cell → measure → mean over seeds
Chances = Mapping[str, Mapping[str, float]]  # cell → measure → mean chance level


class Table(NamedTuple):
    """A table of text with a header and a caption."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def markdown(table: Table) -> str:
    """Return a table in Markdown, below its caption."""
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    written = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"{table.caption}\n\n{written}"


def latex(table: Table) -> str:
    """Return a table in LaTeX, for the package booktabs."""
    width = len(table.header)
    rows = [" & ".join(escape(cell) for cell in line) + r" \\" for line in (table.header, *table.rows)]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{escape(table.caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}",
            r"\toprule",
            rows[0],
            r"\midrule",
            *rows[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def escape(text: str) -> str:
    """Return a text with LaTeX's special characters escaped."""
    written = "".join(_LATEX.get(character, character) for character in text)
    return re.sub("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda found: f"$^{{{found[0].translate(_SUPERSCRIPT)}}}$", written)


def trials_table(results: Sequence[Result], factors: Mapping[str, Mapping], planned: Sequence[str]) -> Table:
    """Return a row for each cell: how many trials are finished, and which are missing.

    Args:
      results: the results of all trials.
      factors: cell → factor → value, the tags of the sweep file.
      planned: the cells of the sweep file; others were in a former one.
    """
    rows = []
    for cell, group in collect.cells(results).items():
        states: dict[str, list[int]] = {}
        for result in group:
            states.setdefault(result.state, []).append(result.trial.seed)
        finished = states.pop("finished", [])
        missing = [f"seed {', '.join(map(str, seeds))}: {state}" for state, seeds in states.items()]
        varied = ", ".join(f"{field} = {value}" for field, value in factors.get(cell, {}).items())
        note = [] if cell in planned else ["no longer in the sweep file"]
        rows.append([cell, varied, f"{len(finished)} of {len(group)}", "; ".join([*missing, *note])])
    header = ["cell", "varies", "finished", "missing"]
    if not any(row[1] for row in rows):
        header, rows = header[:1] + header[2:], [row[:1] + row[2:] for row in rows]
    return Table("Trials.", header, rows)


def means_tables(means: Means, chances: Chances, measures: Sequence[str]) -> list[Table]:
    """Return tables with a row for each cell: first the network's measures, then those of each method."""
    tables = []
    for method, keys in keys_by_method(measures).items():
        for start in range(0, len(keys), _COLUMNS):
            name = method_title(method) if method else "The network"
            tables.append(_means_table(name, means, chances, keys[start : start + _COLUMNS]))
    return tables


def main_table(means: Means, chances: Chances, measures: Sequence[str]) -> Table:
    """Return one table of the main measures, those of all methods side by side."""
    several = len({split_key(key)[0] for key in measures} - {""}) > 1
    return _means_table("Main measures", means, chances, measures, with_method=several)


def _means_table(name: str, means: Means, chances: Chances, keys: Sequence[str], *, with_method: bool = False) -> Table:
    rows = []
    for cell, found in means.items():
        entries = [found.get(key, Mean(None, None, None, 0)) for key in keys]
        seeds = max((entry.n for entry in entries), default=0)
        texts = [
            mean_text(key, entry) + (f" (n = {entry.n})" if 0 < entry.n < seeds else "")
            for key, entry in zip(keys, entries, strict=True)
        ]
        rows.append([cell, *(texts if seeds else ["not run"] * len(keys)), str(seeds)])
    levels = [[chances.get(cell, {}).get(key) for cell, found in means.items() if key in found] for key in keys]
    if any(level is not None for column in levels for level in column):
        rows.append(["chance", *(_chance_text(key, column) for key, column in zip(keys, levels, strict=True)), ""])
    caption = f"{name}: mean over n seeds ± half the width of its 95 % t-interval."
    return Table(caption, ["cell", *(heading(key, with_method=with_method) for key in keys), "n"], rows)


def _chance_text(key: str, levels: Sequence[float | None]) -> str:
    """Format chance levels, once where all cells have the same."""
    known = sorted(level for level in levels if level is not None)
    return format_several([format_value(key, level, unit=False) for level in known]) if known else ""


def comparison_table(comparisons: Sequence[Comparison], caption: str, *, planned: bool) -> Table:
    """Return a table with a row for each comparison; only planned ones have a corrected p."""
    header = ["measure", "cell − reference", "difference", "95 % interval", "n", "p"]
    header += ["p (Holm)", "verdict"] if planned else ["verdict"]
    rows = []
    for each in comparisons:
        d, key = each.difference, each.measure
        corrected = [p_text(each.p_holm)] if planned else []
        method, measure = split_key(key)
        name = f"{method_title(method)}: {measure_title(measure)}" if method else measure_title(measure)
        rows.append(
            [
                f"{name} {ARROWS[direction(key)]}".rstrip(),
                f"{each.cell} − {each.reference}",
                difference_text(key, d, d.mean),
                "–" if d.low is None else f"[{', '.join(difference_text(key, d, end) for end in (d.low, d.high))}]",
                str(d.n),
                p_text(d.p),
                *corrected,
                each.verdict,
            ]
        )
    return Table(caption, header, rows)


def heading(key: str, *, with_method: bool = False) -> str:
    """Return a measure's title with its unit and the arrow of its better direction."""
    method, measure = split_key(key)
    unit = " (%)" if is_percent(key) else ""
    front = f"{method_title(method)}: " if with_method and method else ""
    return f"{front}{measure_title(measure)}{unit} {ARROWS[direction(key)]}".rstrip()


def measure_title(measure: str) -> str:
    """Return a measure's title."""
    return "Training time (s)" if measure == TIME else title(measure)


def is_percent(key: str) -> bool:
    """Tell whether a measure is shown in per cent."""
    return format_value(key, 0.5).endswith("%")


def mean_text(key: str, entry: Mean) -> str:
    """Format a mean as `mean ± half width`; the mean alone for one seed, a dash for none."""
    if entry.low is None:
        return format_value(key, entry.mean, unit=False)
    half = (entry.high - entry.low) / 2
    size = max(abs(entry.mean), half) if abs(entry.mean) < 0.01 else abs(entry.mean)
    return f"{format_value(key, entry.mean, unit=False, size=size)} ± {format_value(key, half, unit=False, size=size)}"


def difference_text(key: str, difference: Difference, value: float | None) -> str:
    """Format a difference or an end of its interval, all with the same digits; shares in percentage points."""
    if value is None:
        return "–"
    ends = [abs(x) for x in (difference.mean, difference.low, difference.high) if x is not None]
    return format_value(key, value, signed=True, unit=value is difference.mean, size=max(ends))


def p_text(p: float | None) -> str:
    """Format a p-value."""
    if p is None:
        return "–"
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}"
