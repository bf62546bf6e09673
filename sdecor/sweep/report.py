"""Write the report of a sweep: tables and figures, in the folder `report` of the sweep's folder."""

import pathlib
from collections.abc import Sequence
from typing import Any

from sdecor.core.files import check_writable, csv_text, write_file
from sdecor.evaluation.statistics import Mean
from sdecor.report.style import save_figure
from sdecor.sweep import collect, figures, plan, tables, trial_folder
from sdecor.sweep.collect import EXPLORATORY, PLANNED, TIME, Comparison, Result
from sdecor.sweep.plan import Sweep

FORMATS = ("pdf", "svg", "png")
MEANS = ("cell", "measure", "n", "mean", "low", "high", "chance")


def write(folder: pathlib.Path) -> str:
    """Write the report of the sweep in `folder`; return a summary for the terminal.

    Raises:
      ValueError: when `folder` holds no sweep, or no file can be written in it.
    """
    sweep = plan.read(folder)
    check_writable("--report", folder)
    results = collect.collect(sweep, folder)
    output = folder / plan.REPORT
    output.mkdir(exist_ok=True)
    texts = csv_files(sweep, results)  # for programs, with the names of the cells in the sweep file
    sweep, results = collect.with_forms(sweep, results)
    means = collect.means(results)
    drawn = draw(sweep, results, means)
    for name, figure in drawn.items():
        for kind in FORMATS:
            save_figure(figure, output / f"{name}.{kind}")
    front, groups = tables_of(sweep, results, means, collect.compare(sweep, results))
    latex = {"means.tex": [table for table in front if table.header[-1] == "n"] + groups}
    latex["differences.tex"] = [table for table in front if table.header[-1] == "verdict"]
    texts |= {name: "\n\n".join(map(tables.latex, chosen)) + "\n" for name, chosen in latex.items()}
    texts["report.md"] = page(sweep, results, front, groups, list(drawn))
    for name, text in texts.items():
        write_file(output / name, text)
    finished = sum(result.state == trial_folder.FINISHED for result in results)
    figure_names = ", ".join(f"{name}.{{{','.join(FORMATS)}}}" for name in drawn) or "no figure"
    return (
        f"{finished} of {len(results)} trials are finished.\n"
        f"Written: {output}/report.md, {', '.join(texts)}, {figure_names}"
    )


def csv_files(sweep: Sweep, results: Sequence[Result]) -> dict[str, str]:
    """Return the CSV files of the report, name → text."""
    chances = collect.chances(results)
    means = [
        [cell, key, entry.n, *entry[:3], chances.get(cell, {}).get(key)]
        for cell, found in collect.means(results).items()
        for key, entry in found.items()
    ]
    differences = [comparison.row() for comparison in collect.compare(sweep, results)]
    return {
        "results.csv": collect.results_csv(results),
        "means.csv": csv_text(MEANS, means),
        "differences.csv": csv_text(collect.HEADER, differences),
    }


def tables_of(
    sweep: Sweep, results: Sequence[Result], means: dict[str, dict[str, Mean]], compared: Sequence[Comparison]
) -> tuple[list[tables.Table], list[tables.Table]]:
    """Return the tables of the main measures, and the tables of all others."""
    main, chances = main_measures(sweep, results), collect.chances(results)
    planned = [each for each in compared if each.kind == PLANNED]
    others = [each for each in compared if each.kind == EXPLORATORY and each.measure in main]
    front = [tables.trials_table(results, sweep.tags["factors"], list(sweep.cells))]
    if main:
        front.append(tables.main_table(means, chances, main))
    if planned:
        caption = (
            f"Preregistered comparisons ({len(planned)}): paired t-tests over seeds, p corrected by Holm over all of "
            "them, also those that were not run."
        )
        front.append(tables.comparison_table(planned, caption, planned=True))
    if others:
        caption = "Exploratory comparisons in the main measures: p is not corrected for their number."
        front.append(tables.comparison_table(others, caption, planned=False))
    rest = [key for key in collect.measures(results) if key not in main]
    return front, tables.means_tables(means, chances, rest)


def main_measures(sweep: Sweep, results: Sequence[Result]) -> list[str]:
    """Return the measures that the sweep file tags or tests; without any, accuracy and those of the first method."""
    tagged = dict.fromkeys([*sweep.tags["measures"], *(test[1] for test in sweep.tests)])
    if tagged:
        return list(tagged)
    known = collect.measures(results)
    first = next((key.rpartition("/")[0] for key in known if "/" in key), None)
    return [key for key in known if key == figures.QUALITY or (first and key.rpartition("/")[0] == first)]


def draw(sweep: Sweep, results: Sequence[Result], means: dict[str, dict[str, Mean]]) -> dict[str, Any]:
    """Return the figures, file name → figure."""
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
    differing = collect.differing_settings(results)
    notes = ["Not all trials were evaluated alike:", *(f"- {note}" for note in differing)] if differing else []
    evaluated = ", ".join(f"{name} = {value}" for name, value in sweep.evaluate.items())
    parts = [
        "# Results of the sweep",
        f"{len(sweep.cells)} cells, seeds {', '.join(map(str, sweep.seeds))}; "
        f"evaluated with {evaluated or 'defaults'}. Intervals are over seeds: Student's t, 95 %. "
        "↑ more is better, ↓ less is better.",
        "\n".join(notes),
        *map(tables.markdown, front),
        "All comparisons: differences.csv. All means: means.csv. The numbers of each trial: results.csv.",
        *(f"![{name}]({name}.png)" for name in drawn),
        "## Other measures" if groups else "",
        *map(tables.markdown, groups),
        f"{tables.measure_title(TIME)} is measured by the training loop, without start and evaluation."
        if groups
        else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _file(name: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in name)
