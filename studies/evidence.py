"""Print the tables and draw the figure of docs/evidence/first_studies.md, from the results.csv of its sweeps.

    python -m studies.evidence [--results=docs/evidence] [--out=docs]

Prints Markdown and writes evidence.png. Holm's correction is over all tests of a preregistration together.
"""

import argparse
import pathlib
from collections.abc import Iterator, Sequence

from configs.sweeps.evidence import PRIMARY
from sdecor.evaluation.statistics import Mean, holm, mean_interval, paired_test
from sdecor.report.style import COLORS, dress, legend_below, new_figure, save_figure, theme_colors
from sdecor.sweep import tables
from sdecor.sweep.collect import EXPLORATORY, PLANNED, Comparison
from studies.choose import Values, read

STUDIES = (  # results by data of each preregistration, whose tests are corrected together
    {"scenes": "methods_scenes", "photographs": "methods_photographs"},
    {"photographs, 24 epochs": "confirmation"},
)
SDECOR, DECOR = "sdecor (density)", "decor (density)"  # today's names; the sweeps' cells name no form
METHODS = ("ce", "ce_equal_compute", "gradpen", "sgt", "sgt_1.0", DECOR, SDECOR)
REFERENCES = ("ce", "sgt")
SMOOTH, PATH = "smoothgrad:samples=16", "integrated_gradients:steps=16"
SECONDARY = (
    *("calibration_error", "mean_abs_correlation", "effective_rank"),
    *(f"gradient/{name}" for name in ("deletion_vs_random", "road_vs_random", "grid_pointing_game")),
    "gradient/parameter_randomization",
    *(f"{method}/{key.partition('/')[2]}" for method in (SMOOTH, PATH) for key in PRIMARY[1:4]),
)
EXPLORED = {"forms": ("ce", "sgt"), "factors": (SDECOR,)}  # tiers 2 and 3 and their references


def named(values: Values) -> Values:
    """Return cell → metric → seed → value, with today's names of the methods."""
    return {{"decor": DECOR, "sdecor": SDECOR}.get(cell, cell): found for cell, found in values.items()}


def planned(found: dict[str, Values]) -> dict[str, list[Comparison]]:
    """Return the preregistered comparisons of sdecor by data set, with p-values corrected over all of them."""
    tests = [
        (data, compare(PLANNED, values, SDECOR, measure, reference))
        for data, values in found.items()
        for reference in REFERENCES
        for measure in PRIMARY
    ]
    corrected = holm([test.difference.p for _, test in tests])
    by_data: dict[str, list[Comparison]] = {data: [] for data in found}
    for (data, test), p in zip(tests, corrected, strict=True):
        by_data[data].append(test._replace(p_holm=p))
    return by_data


def compare(kind: str, values: Values, cell: str, measure: str, reference: str) -> Comparison:
    """Compare two cells in a metric, paired over seeds."""
    one, other = (values.get(name, {}).get(measure, {}) for name in (cell, reference))
    return Comparison(kind, cell, measure, reference, paired_test(one, other))


def means(values: Values, cells: Sequence[str]) -> dict[str, dict[str, Mean]]:
    """Return the means over seeds with intervals, as cell → metric → mean."""
    return {
        cell: {key: mean_interval(list(seeds.values())) for key, seeds in values[cell].items()}
        for cell in cells
        if cell in values
    }


def pages(found: dict[str, Values]) -> Iterator[str]:
    """Yield the tables of the preregistered part: tests, primary metrics, differences, secondary and other metrics."""
    by_data = planned(found)
    count = sum(map(len, by_data.values()))
    for data, tests in by_data.items():
        caption = f"Preregistered, {data}: paired t-tests over seeds, p corrected by Holm over {count} tests."
        yield tables.markdown(tables.comparison_table(tests, caption, planned=True))
    for data, values in found.items():
        known = list(dict.fromkeys(key for each in values.values() for key in each))
        if not known:
            continue
        yield f"## {data}"
        yield tables.markdown(tables.main_table(means(values, METHODS), {}, PRIMARY))
        yield differences(values, REFERENCES, METHODS)
        yield tables.markdown(secondary(values, f"Secondary measures, {data}"))
        rest = [key for key in known if key not in PRIMARY + list(SECONDARY)]
        yield from map(tables.markdown, tables.means_tables(means(values, METHODS), {}, rest))


def secondary(values: Values, caption: str) -> tables.Table:
    """Return the table of secondary metrics: means of the methods, then differences of sdecor."""
    cells = [method for method in METHODS if method in values]
    rows = []
    for key in SECONDARY:
        entries = [mean_interval(list(values[cell].get(key, {}).values())) for cell in cells]
        if any(entry.n for entry in entries):
            texts = [tables.mean_text(key, entry) for entry in entries]
            rows.append([tables.heading(key, with_method=True), *texts])
            rows[-1] += [_marked(compare(EXPLORATORY, values, SDECOR, key, reference)) for reference in REFERENCES]
    header = ["", *cells, *(f"{SDECOR} − {reference}" for reference in REFERENCES)]
    return tables.Table(f"{caption}: means; differences as above.", header, rows)


def _marked(comparison: Comparison) -> str:
    """Return a difference ± half the width of its interval, with a star if its uncorrected p is below 0.05."""
    found = comparison.difference
    text = tables.mean_text(comparison.measure, Mean(*found[:4]))
    return text + ("" if found.p is None or found.p >= 0.05 else "*")


def differences(values: Values, references: Sequence[str], cells: Sequence[str]) -> str:
    """Return the table of exploratory comparisons in the primary metrics: each cell against each reference."""
    headings = [tables.heading(key) for key in PRIMARY]
    rows = []
    for reference in references:
        for cell in cells:
            found = [compare(EXPLORATORY, values, cell, key, reference) for key in PRIMARY]
            if cell == reference or not any(each.difference.n for each in found):
                continue
            count = max(each.difference.n for each in found)
            rows.append([f"{cell} − {reference}", *map(_marked, found), str(count)])
    if not rows:
        return ""
    caption = "Paired differences over seeds ± half the width of the 95 % interval; * p < 0.05, not corrected."
    return tables.markdown(tables.Table(caption, ["", *headings, "n"], rows))


def draw(found: dict[str, Values], path: pathlib.Path) -> None:
    """Draw the methods' paired differences to cross-entropy in the primary metrics, a row for each data set."""
    color = theme_colors("light")
    figure = new_figure(2.45 * len(PRIMARY), 2.5 * len(found) + 0.3, color)
    places = figure.subplots(len(found), len(PRIMARY), squeeze=False)
    for row, (data, values) in zip(places, found.items(), strict=True):
        for axes, measure in zip(row, PRIMARY, strict=True):
            axes.axvline(0, color=color["faint"], linewidth=1)
            for place, method in enumerate(METHODS[1:]):
                d = compare(EXPLORATORY, values, method, measure, "ce").difference
                if d.n > 1:
                    error = [[d.mean - d.low], [d.high - d.mean]]
                    style = {"color": COLORS[place], "fmt": "o", "markersize": 5, "capsize": 2.5}
                    axes.errorbar(d.mean, -place, xerr=error, label=method.replace("_", " "), **style)
            axes.set_yticks([])
            axes.margins(y=0.15)
            dress(axes, color, tables.heading(measure).replace(" (%)", ""), f"{data}: difference to ce", small=True)
    legend_below(figure, color, lay_out=True)
    save_figure(figure, path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path("docs/evidence"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs"))
    options = parser.parse_args(arguments)
    drawn = {}
    for study in STUDIES:
        files = {data: options.results / f"{name}.csv" for data, name in study.items()}  # absent: not run
        found = {data: named(read(file)) if file.exists() else {} for data, file in files.items()}
        print("\n\n".join(filter(None, pages(found))), end="\n\n")
        drawn |= {data: values for data, values in found.items() if values}
    for name, references in EXPLORED.items():
        if (options.results / f"{name}.csv").exists():
            values = named(read(options.results / f"{name}.csv"))
            print(f"\n## {name}\n\n{tables.markdown(tables.main_table(means(values, list(values)), {}, PRIMARY))}")
            print(f"\n{differences(values, references, list(values))}")
    draw(drawn, options.out / "evidence.png")


if __name__ == "__main__":
    main()
