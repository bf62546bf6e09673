"""Read the results of all trials, and compare cells over seeds."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging

from sdecor.core import files
from sdecor.evaluation.statistics import Difference, Mean, holm, mean_interval, paired_test
from sdecor.report.wording import direction
from sdecor.sweep import trial_folder
from sdecor.sweep.plan import Sweep, Trial
from sdecor.training import run_folder

TIME = "training_seconds"
OTHERWISE, DAMAGED = "evaluated otherwise", "damaged results"
NOT_RUN = {
    trial_folder.LEFT: "not run", trial_folder.STARTED: "not finished",
    trial_folder.RUNNING: "still running", trial_folder.FAILED: "failed",
}  # fmt: skip
RESULTS = ("cell", "seed", "overrides", "step", "measure", "value", "n")


class Result(NamedTuple):
    """The result of one trial.

    Attributes:
      trial: the trial.
      state: "finished", `OTHERWISE`, `DAMAGED`, or a value of `NOT_RUN`. All other fields are empty unless it is
        "finished".
      step: the evaluated training step.
      values: measure → value.
      counts: measure → number of examples.
      chances: measure → chance level, for measures that have one.
      settings: the settings of the evaluation.
      config: the run's config, by dotted names.
    """

    trial: Trial
    state: str
    step: int | None = None
    values: Mapping[str, float | None] = {}
    counts: Mapping[str, int] = {}
    chances: Mapping[str, float | None] = {}
    settings: Mapping[str, Any] = {}
    config: Mapping[str, Any] = {}


def collect(sweep: Sweep, folder: pathlib.Path) -> list[Result]:
    """Return the results of the sweep's trials, then those of trials that a former sweep file had.

    Trials in the folder are never dropped, except those whose state file is damaged, with a warning.
    """
    trials = {trial.key: trial for trial in sweep.trials()}
    for path in sorted(folder.glob(f"*/seed*/{trial_folder.STATE_FILE}")):
        former = _former(path, sweep)
        if former is not None:
            trials.setdefault(former.key, former)
    return [_result(trial, folder / key) for key, trial in trials.items()]


def cells(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Group results by cell."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.trial.cell, []).append(result)
    return groups


def with_forms(sweep: Sweep, results: Sequence[Result]) -> tuple[Sweep, list[Result]]:
    """Return sweep and results with the decorrelation form in the names of cells: "sdecor (density)".

    A name stays where the form is the paper's, and where the name holds the form already.
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
    return renamed, [result._replace(trial=result.trial._replace(cell=names[result.trial.cell])) for result in results]


def by_seed(results: Sequence[Result], measure: str) -> dict[int, float | None]:
    """Return seed → value of a measure, for the results that have it."""
    return {result.trial.seed: result.values[measure] for result in results if measure in result.values}


def measures(results: Sequence[Result]) -> list[str]:
    """Return every measure that some result has, in order of appearance."""
    return list(dict.fromkeys(measure for result in results for measure in result.values))


def means(results: Sequence[Result]) -> dict[str, dict[str, Mean]]:
    """Return cell → measure → mean over seeds."""
    return {
        cell: {measure: mean_interval(list(by_seed(group, measure).values())) for measure in measures(results)}
        for cell, group in cells(results).items()
    }


def chances(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Return cell → measure → mean chance level over seeds, for measures that have one."""
    found: dict[str, dict[str, float]] = {}
    for cell, group in cells(results).items():
        for measure in measures(group):
            mean = mean_interval([result.chances.get(measure) for result in group]).mean
            if mean is not None:
                found.setdefault(cell, {})[measure] = mean
    return found


def differing_settings(results: Sequence[Result]) -> list[str]:
    """Return a line for each setting of the evaluation in which finished trials differ: its values and their cells."""
    finished = [result for result in results if result.state == trial_folder.FINISHED]
    notes = []
    for field in sorted({field for result in finished for field in result.settings}):
        found: dict[str, dict[str, None]] = {}
        for result in finished:
            value = json.dumps(result.settings.get(field), ensure_ascii=False)
            found.setdefault(value, {})[result.trial.cell] = None
        if len(found) > 1:
            listed = "; ".join(f"{value} in {', '.join(names)}" for value, names in found.items())
            notes.append(f"{field}: {listed}")
    return notes


def results_csv(results: Sequence[Result]) -> str:
    """Return results.csv: a row for each trial and measure.

    A trial that is not finished has one row, with its state in brackets as the measure.
    """
    rows = []
    for result in results:
        trial = result.trial
        start = [trial.cell, trial.seed, json.dumps(trial.overrides, ensure_ascii=False), result.step]
        if result.state != trial_folder.FINISHED:
            rows.append([*start, f"({result.state})", None, None])
        rows += [[*start, measure, value, result.counts.get(measure)] for measure, value in result.values.items()]
    return files.csv_text(RESULTS, rows)


def _former(path: pathlib.Path, sweep: Sweep) -> Trial | None:
    """Return the trial of a state file, with the sweep's settings of the evaluation; None if the file is damaged."""
    stored = trial_folder.read(path.parent)
    fields = ("cell", "seed", "config", "overrides")
    if not {*fields} <= stored.keys():
        return None
    return Trial(*(stored[field] for field in fields), sweep.evaluate)


def _result(trial: Trial, folder: pathlib.Path) -> Result:
    state = trial_folder.state(folder, trial)
    if state != trial_folder.FINISHED:
        done = trial_folder.read(folder).get("done", {})
        return Result(trial, OTHERWISE if state == trial_folder.STARTED and "evaluate" in done else NOT_RUN[state])
    try:
        entries, settings = _evaluation(folder / trial_folder.EVALUATION)
    except ValueError as error:
        logging.warning(str(error))
        return Result(trial, DAMAGED)
    seconds = trial_folder.training_seconds(folder)
    return Result(
        trial,
        state,
        settings.get("step"),
        {key: entry.get("mean") for key, entry in entries.items()} | ({} if seconds is None else {TIME: seconds}),
        {key: entry.get("n") for key, entry in entries.items()},
        {key: entry["chance"] for key, entry in entries.items() if "chance" in entry},
        {name: value for name, value in settings.items() if name not in ("step", "parameters")},
        files.flat(run_folder.read(folder)["config"]),
    )


def _evaluation(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the entries of the metrics and the settings in an evaluation.json.

    Raises:
      ValueError: when the file is damaged, or an entry is no number.
    """
    remedy = "run the sweep's command again, it evaluates the trial again"
    found = files.read_json(path, remedy=remedy)
    entries, settings = found.get("metrics"), found.get("settings")
    if not isinstance(entries, dict) or not isinstance(settings, dict):
        raise ValueError(f"{path} has no metrics and settings: delete it and {remedy}")
    for name, entry in entries.items():
        numbers = [entry.get(field) for field in ("mean", "n", "chance")] if isinstance(entry, dict) else [entry]
        if not all(value is None or type(value) in (int, float) for value in numbers):
            raise ValueError(f"{path} has {name!r} = {entry!r}, which is no number: delete it and {remedy}")
    return entries, settings


PLANNED, EXPLORATORY = "preregistered", "exploratory"
ALPHA = 0.05
HEADER = ("kind", "cell", "measure", "reference", "n", "difference", "low", "high", "p", "p_holm", "verdict")


class Comparison(NamedTuple):
    """A cell compared with a reference in one measure; only planned comparisons have `p_holm`."""

    kind: str
    cell: str
    measure: str
    reference: str
    difference: Difference
    p_holm: float | None = None

    @property
    def verdict(self) -> str:
        """The outcome of the test: "better" or "worse", or "higher" or "lower" for a measure without a direction."""
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
    """Return all planned comparisons, corrected by Holm's procedure, then the exploratory ones.

    Exploratory comparisons are those of every other cell and measure with each reference. The references are those of
    the tags and of the tests.
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
