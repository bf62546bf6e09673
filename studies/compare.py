"""Print the table of a study: means of cells, and paired differences to a reference, corrected by Holm where planned.

    python -m studies.compare docs/evidence/scarce/methods_photographs20.csv --cells=sdecor,decor --planned=sdecor

The files are a sweep's results.csv, or what `studies.temperature` writes. Values of the same cell and seed are joined.
Means and differences have 95 % t-intervals over seeds. The tests of the cells in --planned, in each of --measures, are
one family; p-values of other cells are not shown.
"""

import argparse
import pathlib
from collections.abc import Mapping, Sequence

from configs.sweeps.ablation import PRIMARY
from sdecor.evaluation.statistics import Difference, Mean, holm, mean_interval, paired_test
from sdecor.metrics.registry import KNOWN
from sdecor.report import wording
from studies.choose import read

Values = Mapping[str, Mapping[str, Mapping[int, float]]]  # cell → measure → seed → value


def join(files: Sequence[pathlib.Path]) -> dict[str, dict[str, dict[int, float]]]:
    """Return the values of all files; a later file replaces values of an earlier one."""
    joined: dict[str, dict[str, dict[int, float]]] = {}
    for file in files:
        for cell, measures in read(file).items():
            for measure, seeds in measures.items():
                joined.setdefault(cell, {}).setdefault(measure, {}).update(seeds)
    return joined


def differences(
    values: Values, cells: Sequence[str], references: Sequence[str], measures: Sequence[str]
) -> dict[tuple[str, str, str], Difference]:
    """Return the paired tests (cell, reference, measure)."""
    return {
        (cell, reference, measure): paired_test(values[cell].get(measure, {}), values[reference].get(measure, {}))
        for reference in references
        for cell in cells
        for measure in measures
        if cell != reference
    }


def corrected(tests: Mapping[tuple[str, str, str], Difference], planned: Sequence[str]) -> dict:
    """Return Holm's p-values of the tests of the planned cells, which are one family."""
    family = [key for key in tests if key[0] in planned]
    return dict(zip(family, holm([tests[key].p for key in family]), strict=True))


def _number(measure: str, mean: Mean | Difference, signed: bool = False) -> str:
    if mean.mean is None:
        return "–"
    metric = KNOWN.get(measure.rpartition("/")[2])
    scale, digits = (100, 1) if metric is not None and metric.percent else (1, 3)
    number = lambda value: f"{scale * value:{'+' if signed else ''}.{digits}f}".replace("-", "−")  # noqa: E731
    if mean.low is None:
        return number(mean.mean)
    return f"{number(mean.mean)} [{number(mean.low)}, {number(mean.high)}]"


def table(
    values: Values, cells: Sequence[str], references: Sequence[str], measures: Sequence[str], planned: Sequence[str]
) -> str:
    """Return the study's table in Markdown."""
    tests = differences(values, cells, references, measures)
    p_values = corrected(tests, planned)
    shown = [*references, *(cell for cell in cells if cell not in references)]
    pairs = [(cell, reference) for reference in references for cell in cells if cell != reference]
    heads = ["measure", *shown]
    for cell, reference in pairs:
        heads += [f"{cell} − {reference}", *(["p (Holm)"] if cell in planned else [])]
    lines = [heads, ["---"] * len(heads)]
    for measure in measures:
        means = [mean_interval(list(values[cell].get(measure, {}).values())) for cell in shown]
        arrow = wording.ARROWS[wording.direction(measure)]
        row = [f"{measure} {arrow}".strip(), *(_number(measure, mean) for mean in means)]
        for cell, reference in pairs:
            key = (cell, reference, measure)
            row.append(_number(measure, tests[key], signed=True))
            if cell in planned:
                p = p_values[key]
                row.append("–" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.4f}")
        lines.append(row)
    counts = {cell: max((len(seeds) for seeds in values[cell].values()), default=0) for cell in shown}
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\nSeeds: {', '.join(f'{cell} {count}' for cell, count in counts.items())}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    parser.add_argument("--cells", type=words, default=["sdecor"])
    parser.add_argument("--references", type=words, default=["ce"])
    parser.add_argument("--measures", type=words, default=list(PRIMARY))
    parser.add_argument("--planned", type=words, default=[], help="cells whose tests are one family of hypotheses")
    args = parser.parse_args()
    values = join(args.files)
    for cell in [*args.cells, *args.references]:
        if cell not in values:
            parser.error(f"{cell!r} is no cell of these files: they have {', '.join(values)}")
    print(table(values, args.cells, args.references, args.measures, args.planned))


if __name__ == "__main__":
    main()
