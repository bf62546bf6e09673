"""What the trials of a sweep found, from the files in their folders, and the differences between cells over seeds."""

import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sdecor.evaluation.statistics import Difference, Mean, holm, mean_interval, paired_test
from sdecor.report.wording import direction
from sdecor.sweep import check, trial_folder
from sdecor.sweep.plan import Run, Sweep
from sdecor.training import run_folder

TIME = "training_seconds"
OTHERWISE = "evaluated otherwise"
NOT_RUN = {
    trial_folder.LEFT: "not run", trial_folder.STARTED: "not finished",
    trial_folder.RUNNING: "still running", trial_folder.FAILED: "failed",
}  # fmt: skip
RESULTS = ("cell", "seed", "overrides", "step", "measure", "value", "n")


class Result(NamedTuple):
    """One run: its state ("finished", or one of `NOT_RUN`), and what it found if it is finished.

    `values` are by measure, `counts` the examples behind them and `chances` the level of chance where there is one;
    `settings` is what the evaluation depends on, `config` the run's by dotted names.
    """

    run: Run
    state: str
    step: int | None = None
    values: Mapping[str, float | None] = {}
    counts: Mapping[str, int] = {}
    chances: Mapping[str, float | None] = {}
    settings: Mapping[str, Any] = {}
    config: Mapping[str, Any] = {}


def collect(sweep: Sweep, folder: pathlib.Path) -> list[Result]:
    """Return all runs: those of the sweep, then others that were once run in its folder, which are never dropped."""
    runs = sweep.runs()
    known = {run.key for run in runs}
    former = [_former(path, sweep) for path in sorted(folder.glob(f"*/seed*/{trial_folder.RECORD}"))]
    return [_result(run, folder / run.key) for run in [*runs, *(run for run in former if run.key not in known)]]


def cells(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Group results by cell."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.run.cell, []).append(result)
    return groups


def with_forms(sweep: Sweep, results: Sequence[Result]) -> tuple[Sweep, list[Result]]:
    """Return sweep and results with cells named by their form where it is not the paper's: "sdecor (density)".

    A name that says the form already stays.
    """
    names = {name: name for name in sweep.cells}
    for cell, group in cells(results).items():
        config = next((result.config for result in group if result.config), {})
        form = config.get("decorrelation.form")
        suffix = run_folder.form_suffix(form, config.get("decorrelation.weight"))
        names[cell] = cell if form and form in cell else cell + suffix
    tags = {
        "references": [names[cell] for cell in sweep.tags["references"]],
        "measures": sweep.tags["measures"],
        "factors": {names[cell]: varied for cell, varied in sweep.tags["factors"].items()},
    }
    renamed = dataclasses.replace(
        sweep,
        cells={names[cell]: overrides for cell, overrides in sweep.cells.items()},
        tags=tags,
        tests=tuple((names[cell], measure, names[reference]) for cell, measure, reference in sweep.tests),
    )
    return renamed, [result._replace(run=result.run._replace(cell=names[result.run.cell])) for result in results]


def by_seed(results: Sequence[Result], measure: str) -> dict[int, float | None]:
    """Return a measure of the runs that have it, by seed."""
    return {result.run.seed: result.values[measure] for result in results if measure in result.values}


def measures(results: Sequence[Result]) -> list[str]:
    """Return every measure that some run has, in the order of the first."""
    return list(dict.fromkeys(measure for result in results for measure in result.values))


def means(results: Sequence[Result]) -> dict[str, dict[str, Mean]]:
    """Return cell → measure → mean over seeds."""
    return {
        cell: {measure: mean_interval(list(by_seed(group, measure).values())) for measure in measures(results)}
        for cell, group in cells(results).items()
    }


def chances(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Return cell → measure → mean level of chance over seeds, where a measure has one."""
    found: dict[str, dict[str, float]] = {}
    for cell, group in cells(results).items():
        for measure in measures(group):
            mean = mean_interval([result.chances.get(measure) for result in group]).mean
            if mean is not None:
                found.setdefault(cell, {})[measure] = mean
    return found


def unlike(results: Sequence[Result]) -> list[str]:
    """Name the settings of evaluation in which finished runs differ, with the cells that have each value."""
    finished = [result for result in results if result.state == trial_folder.FINISHED]
    notes = []
    for field in sorted({field for result in finished for field in result.settings}):
        found: dict[str, dict[str, None]] = {}
        for result in finished:
            value = json.dumps(result.settings.get(field), ensure_ascii=False)
            found.setdefault(value, {})[result.run.cell] = None
        if len(found) > 1:
            listed = "; ".join(f"{value} in {', '.join(names)}" for value, names in found.items())
            notes.append(f"{field}: {listed}")
    return notes


def results_csv(results: Sequence[Result]) -> str:
    """Write a row for each measure of each run; of a run that is not finished, one with its state as the measure."""
    rows = []
    for result in results:
        run = result.run
        start = [run.cell, run.seed, json.dumps(run.overrides, ensure_ascii=False), result.step]
        if result.state != trial_folder.FINISHED:
            rows.append([*start, f"({result.state})", None, None])
        rows += [[*start, measure, value, result.counts.get(measure)] for measure, value in result.values.items()]
    return to_csv(RESULTS, rows)


def to_csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Write rows as CSV; None is empty, and floats are written exactly."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if value is None else value for value in row] for row in rows])
    return buffer.getvalue()


def _former(path: pathlib.Path, sweep: Sweep) -> Run:
    """Return the run of a record, evaluated as the sweep says."""
    stored = json.loads(path.read_text())
    return Run(stored["cell"], stored["seed"], stored["config"], stored["overrides"], sweep.evaluate)


def _result(run: Run, folder: pathlib.Path) -> Result:
    state = trial_folder.state(folder, run)
    if state != trial_folder.FINISHED:
        done = trial_folder.read(folder).get("done", {})
        return Result(run, OTHERWISE if state == trial_folder.STARTED and "evaluate" in done else NOT_RUN[state])
    found = json.loads((folder / "evaluation.json").read_text())
    entries, settings = found["metrics"], found["settings"]
    seconds = trial_folder.training_seconds(folder)
    return Result(
        run,
        state,
        settings.get("step"),
        {key: entry["mean"] for key, entry in entries.items()} | ({} if seconds is None else {TIME: seconds}),
        {key: entry["n"] for key, entry in entries.items()},
        {key: entry["chance"] for key, entry in entries.items() if "chance" in entry},
        {name: value for name, value in settings.items() if name not in ("step", "parameters")},
        check.flat(run_folder.read(folder)["config"]),
    )


def in_sweep(sweep: Sweep, run: Run) -> bool:
    """Tell whether a run is one of the sweep's, rather than one of a former state of its file."""
    return run.cell in sweep.cells and run.seed in sweep.seeds


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
    groups = cells(results)
    planned = [_compare(PLANNED, groups, *test) for test in sweep.tests]
    corrected = holm([each.difference.p for each in planned])
    planned = [each._replace(p_holm=p) for each, p in zip(planned, corrected, strict=True)]
    references = dict.fromkeys([*sweep.tags["references"], *(test[2] for test in sweep.tests)])
    others = [
        _compare(EXPLORATORY, groups, cell, measure, reference)
        for reference in references
        for measure in measures(results)
        for cell in groups
        if cell != reference and (cell, measure, reference) not in sweep.tests
    ]
    return [*planned, *others]


def _compare(kind: str, groups: dict[str, list[Result]], cell: str, measure: str, reference: str) -> Comparison:
    one, other = (by_seed(groups[name], measure) for name in (cell, reference))
    return Comparison(kind, cell, measure, reference, paired_test(one, other))
