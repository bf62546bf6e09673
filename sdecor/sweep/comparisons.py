"""Differences between cells over seeds: those that were planned, corrected, and all others, marked exploratory."""

from collections.abc import Sequence
from typing import NamedTuple

from sdecor.evaluation.statistics import Difference, holm, paired_test
from sdecor.report.wording import direction
from sdecor.sweep import collect
from sdecor.sweep.collect import Result
from sdecor.sweep.plan import Sweep

PLANNED, EXPLORATORY = "preregistered", "exploratory"
ALPHA = 0.05
HEADER = ("kind", "cell", "measure", "reference", "n", "difference", "low", "high", "p", "p_holm", "verdict")


class Comparison(NamedTuple):
    """A cell against a reference in one measure; `p_holm` is of planned comparisons alone."""

    kind: str
    cell: str
    measure: str
    reference: str
    difference: Difference
    p_holm: float | None = None

    @property
    def verdict(self) -> str:
        """Say what the test found, "better" and "worse" where the measure has such a direction."""
        planned = self.kind == PLANNED
        p = self.p_holm if planned else self.difference.p
        if self.difference.n == 0:
            return "not run"
        if self.difference.n == 1:
            return "one pair"
        if p is None or p >= ALPHA:
            return ""
        higher = self.difference.mean > 0
        better = direction(self.measure)
        word = ("higher" if higher else "lower") if better is None else ("better" if higher == better else "worse")
        return word if planned else f"{word}, uncorrected"

    def row(self) -> list:
        """Return the comparison as a row of `HEADER`."""
        d = self.difference
        start = [self.kind, self.cell, self.measure, self.reference]
        return [*start, d.n, d.mean, d.low, d.high, d.p, self.p_holm, self.verdict]


def compare(sweep: Sweep, results: Sequence[Result]) -> list[Comparison]:
    """Return the planned comparisons, all of them, then the exploratory ones.

    Exploratory are all other measures and cells against each of `tags.references` and the references of the tests.
    """
    groups = collect.cells(results)
    planned = [_compare(PLANNED, groups, *test) for test in sweep.tests]
    corrected = holm([each.difference.p for each in planned])
    planned = [each._replace(p_holm=p) for each, p in zip(planned, corrected, strict=True)]
    references = dict.fromkeys([*sweep.tags["references"], *(test[2] for test in sweep.tests)])
    others = [
        _compare(EXPLORATORY, groups, cell, measure, reference)
        for reference in references
        for measure in collect.measures(results)
        for cell in groups
        if cell != reference and (cell, measure, reference) not in sweep.tests
    ]
    return [*planned, *others]


def _compare(kind: str, groups: dict[str, list[Result]], cell: str, measure: str, reference: str) -> Comparison:
    one, other = (collect.by_seed(groups[name], measure) for name in (cell, reference))
    return Comparison(kind, cell, measure, reference, paired_test(one, other))
