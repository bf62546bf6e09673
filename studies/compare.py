"""Print the table of a study: means of cells, and paired differences to a reference, corrected by Holm where planned.

    python -m studies.compare docs/evidence/scarce/methods_photographs20.csv --cells=sdecor,decor --planned=sdecor

The files are a sweep's results.csv, or what `studies.temperature` and `studies.lattice` write. With
PREFIX:FILE the cells of a file are named PREFIX/CELL, so that several data sets are one family. Means and differences
have 95 % t-intervals over seeds. The tests of the cells in --planned, in each of --measures, are one family; other
p-values are not shown.
"""

import argparse
import pathlib
from collections.abc import Mapping, Sequence

from configs.sweeps.ablation import PRIMARY
from sdecor.evaluation.statistics import Difference, holm, mean_interval, paired_test
from sdecor.report import wording
from sdecor.sweep.tables import difference_text, mean_text, p_text
from studies.choose import read

Values = Mapping[str, Mapping[str, Mapping[int, float]]]  # cell → measure → seed → value


def join(files: Sequence[str]) -> dict[str, dict[str, dict[int, float]]]:
    """Return the values of all files, FILE or PREFIX:FILE.

    Raises:
      ValueError: if two files have different values of the same cell, measure and seed.
    """
    joined: dict[str, dict[str, dict[int, float]]] = {}
    for name in files:
        prefix, _, path = name.rpartition(":")
        for cell, measures in read(pathlib.Path(path)).items():
            cell = f"{prefix}/{cell}" if prefix else cell
            for measure, seeds in measures.items():
                known = joined.setdefault(cell, {}).setdefault(measure, {})
                if twice := [seed for seed in seeds if known.get(seed, seeds[seed]) != seeds[seed]]:
                    raise ValueError(f"{name}: another file has another {measure} of {cell}, seed {twice[0]}")
                known.update(seeds)
    return joined


def differences(
    values: Values, cells: Sequence[str], references: Sequence[str], measures: Sequence[str]
) -> dict[tuple[str, str, str], Difference]:
    """Return the paired tests (cell, reference, measure)."""
    return {
        (cell, reference, measure): paired_test(values[cell].get(measure, {}), values[reference].get(measure, {}))
        for cell, reference in _pairs(cells, references)
        for measure in measures
    }


def _pairs(cells: Sequence[str], references: Sequence[str]) -> list[tuple[str, str]]:
    """Return each cell with each other reference of the same prefix."""
    prefix = lambda cell: cell.rpartition("/")[0]  # noqa: E731
    return [(a, b) for b in references for a in cells if a != b and prefix(a) == prefix(b)]


def corrected(tests: Mapping[tuple[str, str, str], Difference], planned: Sequence[str]) -> dict:
    """Return Holm's p-values of the tests of the planned cells, which are one family."""
    family = [key for key in tests if key[0] in planned]
    return dict(zip(family, holm([tests[key].p for key in family]), strict=True))


def _difference(measure: str, found: Difference) -> str:
    mean, low, high = (difference_text(measure, found, value) for value in (found.mean, found.low, found.high))
    return mean if found.low is None else f"{mean} [{low}, {high}]"


def table(
    values: Values, cells: Sequence[str], references: Sequence[str], measures: Sequence[str], planned: Sequence[str]
) -> str:
    """Return the study's table in Markdown."""
    tests = differences(values, cells, references, measures)
    p_values = corrected(tests, planned)
    shown = [*references, *(cell for cell in cells if cell not in references)]
    pairs = _pairs(cells, references)
    heads = ["measure", *shown]
    for cell, reference in pairs:
        heads += [f"{cell} − {reference}", *(["p (Holm)"] if cell in planned else [])]
    lines = [heads, ["---"] * len(heads)]
    for measure in measures:
        means = [mean_interval(list(values[cell].get(measure, {}).values())) for cell in shown]
        arrow = wording.ARROWS[wording.direction(measure)]
        row = [f"{measure} {arrow}".strip(), *(mean_text(measure, mean) for mean in means)]
        for cell, reference in pairs:
            key = (cell, reference, measure)
            row.append(_difference(measure, tests[key]))
            if cell in planned:
                row.append(p_text(p_values[key]))
        lines.append(row)
    counts = {cell: max((len(seeds) for seeds in values[cell].values()), default=0) for cell in shown}
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\nSeeds: {', '.join(f'{cell} {count}' for cell, count in counts.items())}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("files", nargs="+", metavar="[PREFIX:]FILE")
    parser.add_argument("--cells", type=words, default=["sdecor"])
    parser.add_argument("--references", type=words, default=["ce"])
    parser.add_argument("--measures", type=words, default=list(PRIMARY))
    parser.add_argument("--planned", type=words, default=[], help="cells whose tests are one family of hypotheses")
    args = parser.parse_args()
    values = join(args.files)
    for cell in [*args.cells, *args.references]:
        if cell not in values:
            parser.error(f"{cell!r} is no cell of these files: they have {', '.join(values)}")
    for cell in args.planned:
        if cell not in args.cells:
            parser.error(f"--planned={cell} is not in --cells={','.join(args.cells)}")
    for measure in args.measures:
        if not any(measure in values[cell] for cell in args.cells):
            known = {name for cell in args.cells for name in values[cell]}
            parser.error(f"--measures={measure} is in no file: they have {', '.join(sorted(known))}")
    print(table(values, args.cells, args.references, args.measures, args.planned))


if __name__ == "__main__":
    main()
