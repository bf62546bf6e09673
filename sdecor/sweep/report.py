"""The report of a sweep: results.csv, tables and figures, in the folder `report` of the sweep's."""

import pathlib
from collections.abc import Sequence
from typing import Any

from sdecor.core.files import write_file
from sdecor.evaluation.statistics import Mean
from sdecor.report.style import save_figure
from sdecor.sweep import collect, figures, plan, tables
from sdecor.sweep.collect import EXPLORATORY, PLANNED, TIME, Comparison, Result
from sdecor.sweep.plan import Sweep

FORMATS = ("pdf", "svg", "png")
MEANS = ("cell", "measure", "n", "mean", "low", "high", "chance")


def write(folder: pathlib.Path) -> str:
    """Write the report of the sweep in `folder`; return some lines about it.

    Raises:
      ValueError: when there is no sweep.
    """
    sweep = plan.read(folder)
    results = collect.collect(sweep, folder)
    output = folder / plan.REPORT
    output.mkdir(exist_ok=True)
    means, chances = collect.means(results), collect.chances(results)
    compared = collect.compare(sweep, results)
    rows = [
        [cell, key, entry.n, *entry[:3], chances.get(cell, {}).get(key)]
        for cell, found in means.items()
        for key, entry in found.items()
    ]
    shown, shown_results = collect.with_forms(sweep, results)
    shown_means, shown_compared = collect.means(shown_results), collect.compare(shown, shown_results)
    files = {
        "results.csv": collect.results_csv(results),
        "means.csv": collect.to_csv(MEANS, rows),
        "differences.csv": collect.to_csv(collect.HEADER, [each.row() for each in compared]),
    }
    drawn = draw(shown, shown_results, shown_means)
    for name, figure in drawn.items():
        for kind in FORMATS:
            save_figure(figure, output / f"{name}.{kind}")
    front, groups = tables_of(shown, shown_results, shown_means, shown_compared)
    listed = {"means.tex": [table for table in front if table.header[-1] == "n"] + groups}
    listed["differences.tex"] = [table for table in front if table.header[-1] == "verdict"]
    files |= {name: "\n\n".join(map(tables.latex, chosen)) + "\n" for name, chosen in listed.items()}
    files["report.md"] = page(shown, shown_results, front, groups, list(drawn))
    for name, text in files.items():
        write_file(output / name, text)
    finished = sum(result.state == "finished" for result in results)
    return f"{finished} of {len(results)} runs are finished.\nWritten: {output}/report.md, {', '.join(files)}, " + (
        ", ".join(f"{name}.{{{','.join(FORMATS)}}}" for name in drawn) or "no figure"
    )


def tables_of(
    sweep: Sweep, results: Sequence[Result], means: dict[str, dict[str, Mean]], compared: Sequence[Comparison]
) -> tuple[list[tables.Table], list[tables.Table]]:
    """Return the tables that are read first, and those of all measures."""
    main, chances = main_measures(sweep, results), collect.chances(results)
    planned = [each for each in compared if each.kind == PLANNED]
    others = [each for each in compared if each.kind == EXPLORATORY and each.measure in main]
    front = [tables.runs_table(results, sweep.tags["factors"], list(sweep.cells))]
    if main:
        front.append(tables.main_table(means, chances, main))
    if planned:
        caption = (
            f"Preregistered comparisons ({len(planned)}): paired t-tests over seeds, p corrected by Holm over all of "
            "them, those that were not run among them."
        )
        front.append(tables.comparison_table(planned, caption, planned=True))
    if others:
        caption = "Exploratory comparisons in the main measures: p is not corrected for their number."
        front.append(tables.comparison_table(others, caption, planned=False))
    rest = [key for key in collect.measures(results) if key not in main]
    return front, tables.means_tables(means, chances, rest)


def main_measures(sweep: Sweep, results: Sequence[Result]) -> list[str]:
    """Return the main measures: those that the sweep file tags or tests, else accuracy and the first method's."""
    tagged = dict.fromkeys([*sweep.tags["measures"], *(test[1] for test in sweep.tests)])
    if tagged:
        return list(tagged)
    known = collect.measures(results)
    first = next((key.rpartition("/")[0] for key in known if "/" in key), None)
    return [key for key in known if key == figures.QUALITY or (first and key.rpartition("/")[0] == first)]


def draw(sweep: Sweep, results: Sequence[Result], means: dict[str, dict[str, Mean]]) -> dict[str, Any]:
    """Return the figures by the name of their file."""
    drawn = {f"pareto_{_file(method)}": figure for method, figure in figures.pareto(means).items()}
    shown = [key for key in main_measures(sweep, results) if key in collect.measures(results)]
    for field, found in figures.curves(results).items() if shown else ():
        drawn[f"sensitivity_{_file(field)}"] = figures.sensitivity(field, found, means, shown, theme="light")
    return drawn


def page(
    sweep: Sweep,
    results: Sequence[Result],
    front: Sequence[tables.Table],
    groups: Sequence[tables.Table],
    drawn: Sequence[str],
) -> str:
    """Return the report in Markdown."""
    unlike = collect.unlike(results)
    notes = ["Not all runs were measured alike:", *(f"- {note}" for note in unlike)] if unlike else []
    evaluated = ", ".join(f"{name} = {value}" for name, value in sweep.evaluate.items())
    parts = [
        "# What the sweep found",
        f"{len(sweep.cells)} cells, seeds {', '.join(map(str, sweep.seeds))}; "
        f"evaluated with {evaluated or 'defaults'}. Intervals are over seeds: Student's t, 95 %. "
        "↑ more is better, ↓ less is better.",
        "\n".join(notes),
        *map(tables.markdown, front),
        "All comparisons: differences.csv. All means: means.csv. Each run's numbers: results.csv.",
        *(f"![{name}]({name}.png)" for name in drawn),
        "## Other measures" if groups else "",
        *map(tables.markdown, groups),
        f"{tables.measure_title(TIME)} is by the run's own count, without start and evaluation." if groups else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _file(name: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in name)
