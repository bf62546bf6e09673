"""Tests of the report of a sweep whose trials have known numbers."""

import csv
import io
import json

import numpy as np
import pytest
import sweeps
from scipy import stats

from sdecor.evaluation.statistics import Mean
from sdecor.sweep import __main__ as command, collect, figures, plan, report, tables, trial_folder

GINI = "gradient/gini"
CE = {0: 0.40, 1: 0.42, 2: 0.41, 3: 0.43}
SGT = {0: 0.46, 1: 0.48, 2: 0.475}  # seed 3 was not run
CELLS = [(name, {"method": name}) for name in ("ce", "sgt", "decor", "sdecor")]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a sweep's folder with its report, which tests must not change."""
    folder = make(tmp_path_factory.mktemp("sweep"))
    text = report.write(folder)
    assert "8 of 17 trials are finished" in text
    return folder


@pytest.fixture
def folder(tmp_path):
    """Return a sweep's folder without a report."""
    return make(tmp_path)


def make(tmp_path):
    """Return a sweep of four cells × four seeds: sgt lacks one, decor failed, sdecor did not run; and an old cell."""
    tests = [("sgt", GINI, "ce"), ("sgt", "accuracy", "ce"), ("sdecor", GINI, "ce")]
    content = {"cells": CELLS, "seeds": 4, "tests": tests, "tags": {"references": ["ce"]}}
    former = plan.make({"cells": [("old", {"method": "ce"})], "seeds": 1})
    numbers = {seed: {"accuracy": 0.8 + 0.01 * seed, GINI: value} for seed, value in CE.items()}
    sweeps.finished(tmp_path, former, {"old": {0: {"accuracy": 0.5, GINI: 0.3}}})
    others = {seed: {"accuracy": 0.81 + 0.01 * seed, GINI: value} for seed, value in SGT.items()}
    sweep = plan.make(content)
    sweeps.finished(
        tmp_path,
        sweep,
        {"ce": numbers, "sgt": others},
        ce={"consistency": {"weight": 0.0}},
        sgt={"consistency": {"weight": 1.0}},
    )
    for trial in sweep.trials(["decor"], [0, 1]):
        (tmp_path / trial.key).mkdir(parents=True)
        trial_folder.add_start(tmp_path / trial.key, trial)
        trial_folder.add_failure(tmp_path / trial.key, "train", 1, ["the loss is not finite"])
    return tmp_path


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_every_number_is_in_the_tables(written):
    results = rows(written / "report" / "results.csv")
    (one,) = [row for row in results if (row["cell"], row["seed"], row["measure"]) == ("sgt", "2", GINI)]
    assert (one["value"], one["n"], one["step"], json.loads(one["overrides"])) == (
        "0.475",
        "100",
        "10",
        {"method": "sgt"},
    )
    (time,) = [row for row in results if (row["cell"], row["seed"], row["measure"]) == ("ce", "0", collect.TIME)]
    assert float(time["value"]) == 10 * 2 / 0.5  # number of images over images per second
    (mean,) = [row for row in rows(written / "report" / "means.csv") if (row["cell"], row["measure"]) == ("ce", GINI)]
    values = np.array(list(CE.values()))
    low, high = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values))
    found = [float(mean[name]) for name in ("mean", "low", "high")]
    np.testing.assert_allclose(found, [values.mean(), low, high], rtol=1e-12)
    assert mean["n"] == "4"


def test_planned_tests_are_corrected_and_others_marked(written):
    found = rows(written / "report" / "differences.csv")
    planned = [row for row in found if row["kind"] == "preregistered"]
    assert [row["measure"] for row in planned] == [GINI, "accuracy", GINI]
    gini, accuracy, missing = planned
    expected = stats.ttest_rel(list(SGT.values()), [CE[seed] for seed in SGT])
    interval = expected.confidence_interval()
    numbers = [float(gini[name]) for name in ("p", "low", "high", "difference")]
    np.testing.assert_allclose(numbers, [expected.pvalue, interval.low, interval.high, 0.185 / 3], rtol=1e-9)
    assert gini["n"] == "3"  # the seed that sgt lacks is left out
    # The accuracies differ by exactly 0.01, up to rounding: the smallest p, times 3 tests. Gini's p is next, times 2.
    assert float(accuracy["p_holm"]) == pytest.approx(3 * float(accuracy["p"]))
    assert float(gini["p_holm"]) == pytest.approx(2 * float(gini["p"])) and gini["verdict"] == "better"
    assert (missing["n"], missing["p"], missing["p_holm"], missing["verdict"]) == ("0", "", "", "not run")
    others = [row for row in found if row["kind"] == "exploratory"]
    assert {row["cell"] for row in others} == {"sgt", "decor", "sdecor", "old"}
    assert ("sgt", GINI) not in {(row["cell"], row["measure"]) for row in others}
    assert all(not row["p_holm"] for row in others)


def test_what_was_not_run_is_listed(written):
    text = (written / "report" / "report.md").read_text()
    assert "| sgt | 3 of 4 | seed 3: not run |" in text
    assert "| decor | 0 of 4 | seed 0, 1: failed; seed 2, 3: not run |" in text
    assert "| sdecor | 0 of 4 | seed 0, 1, 2, 3: not run |" in text
    assert "| old | 1 of 1 | no longer in the sweep file |" in text
    assert "| decor | not run | not run | 0 |" in text
    states = [row["measure"] for row in rows(written / "report" / "results.csv") if row["cell"] == "decor"]
    assert states == ["(failed)", "(failed)", "(not run)", "(not run)"]


def test_trials_evaluated_otherwise_are_not_mixed_in(folder):
    stored = json.loads((folder / "sweep.json").read_text())
    sweeps.write_json(folder / "sweep.json", stored | {"evaluate": {"split": "val"}})
    results = collect.collect(plan.read(folder), folder)
    assert {result.state for result in results if result.trial.cell == "ce"} == {collect.OTHERWISE}


def test_trials_not_evaluated_alike_are_named(folder):
    path = folder / "sgt/seed0/evaluation.json"
    found = json.loads(path.read_text())
    sweeps.write_json(path, found | {"settings": found["settings"] | {"curve_images": 7}})
    (note,) = collect.differing_settings(collect.collect(plan.read(folder), folder))
    assert note.startswith("curve_images: ") and "7 in sgt" in note
    report.write(folder)
    assert "Not all trials were evaluated alike" in (folder / "report" / "report.md").read_text()


def test_figures_are_drawn_in_three_formats(written):
    for name in ("pareto_gradient", "sensitivity_consistency_weight"):
        for kind in ("pdf", "svg", "png"):
            assert (written / "report" / f"{name}.{kind}").stat().st_size > 0
    means = collect.means(collect.collect(plan.read(written), written))
    (axes,) = figures.pareto(means)["gradient"].axes
    assert {text for text in axes.get_legend_handles_labels()[1] if text != "Pareto front"} == {"ce", "sgt", "old"}


def test_front_is_what_nothing_beats():
    points = {"a": (1.0, 5.0), "b": (2.0, 4.0), "c": (2.0, 3.0), "d": (3.0, 1.0), "e": (0.5, 0.5)}
    assert figures.front(points, higher=True) == ["a", "b", "d"]
    assert figures.front(points, higher=False) == ["e", "a"]


def result(cell, **config):
    trial = plan.Trial(cell, 0, "", {}, {})
    return collect.Result(
        trial, trial_folder.FINISHED, values={"accuracy": 0.5}, config={"method": cell, "seed": 0, **config}
    )


def test_curves_are_of_cells_that_differ_in_one_field():
    weight, fraction = "decorrelation.weight", "masking.fraction"
    results = [
        result("sgt", **{weight: 0.0, fraction: 0.5, "log.every_steps": 1}),
        result("small", **{weight: 0.1, fraction: 0.5, "log.every_steps": 2}),
        result("large", **{weight: 1.0, fraction: 0.5}),
        result("less", **{weight: 0.1, fraction: 0.25}),
        result("alone", **{weight: 7.0, fraction: 0.9}),
    ]
    found = figures.curves(results)
    assert set(found) == {weight, fraction}
    assert [curve.values for curve in found[weight]] == [{0.0: "sgt", 0.1: "small", 1.0: "large"}]
    assert [curve.values for curve in found[fraction]] == [{0.25: "less", 0.5: "small"}]
    means = collect.means(results)
    figure = figures.sensitivity(weight, found[weight], means, ["accuracy"], theme="light")
    assert figure.axes[0].get_xscale() == "symlog"


def test_latex_is_escaped_and_in_booktabs():
    means = {"a_b": {"accuracy": Mean(0.5, 0.49, 0.51, 3)}, "c": {"accuracy": Mean(None, None, None, 0)}}
    (table,) = tables.means_tables(means, {"a_b": {"accuracy": 0.1}}, ["accuracy"])
    text = tables.latex(table)
    assert r"a\_b & 50.0 $\pm$ 1.0 & 3 \\" in text and r"Accuracy (\%) $\uparrow$" in text
    assert r"c & not run & 0 \\" in text and r"chance & 10.0 &  \\" in text
    for word in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert word in text


def test_numbers_are_written_with_the_digits_of_their_interval():
    assert tables.mean_text(GINI, Mean(0.4123, 0.4, 0.4246, 3)) == "0.412 ± 0.012"
    assert tables.mean_text("accuracy", Mean(0.8, None, None, 1)) == "80.0"
    assert tables.p_text(0.00001) == "< 0.0001" and tables.p_text(0.0234) == "0.023" and tables.p_text(None) == "–"
    difference = collect.Difference(0.02, 0.01, 0.03, 5, 0.01)
    assert tables.difference_text("accuracy", difference, difference.mean) == "+2.0 pp"


def test_tables_name_the_form_where_it_is_not_the_papers(tmp_path):
    """Cells keep their names in the CSV files, which programs read."""
    named = {"sdecor": "density", "decor_density": "density", "plain": "covariance", "ce": "density"}
    cells = [(name, {"method": "sdecor", "form": form}) for name, form in named.items()]
    tests = [("sdecor", GINI, "ce")]
    factors = {"sdecor": {"masking.fraction": 0.5}}
    tags = {"references": ["sdecor"], "factors": factors}
    sweep = plan.make({"cells": cells, "seeds": 1, "tests": tests, "tags": tags})
    configs = {name: {"decorrelation": {"form": form, "weight": float(name != "ce")}} for name, form in named.items()}
    sweeps.finished(tmp_path, sweep, {name: {0: {"accuracy": 0.8, GINI: 0.3}} for name in named}, **configs)
    report.write(tmp_path)
    text = (tmp_path / "report" / "report.md").read_text()
    for row in ("| sdecor (density) | masking.fraction = 0.5 |", "| decor_density |", "| plain |", "| ce |"):
        assert row in text
    assert "sdecor (density) − ce" in text and "plain − sdecor (density)" in text
    assert "(density)" not in (tmp_path / "report" / "results.csv").read_text()


def tables_of(folder):
    """Return the CSV files of a sweep's report, without drawing figures."""
    sweep = plan.read(folder)
    return report.csv_files(sweep, collect.collect(sweep, folder))


def foreign(folder, **entries):
    path = folder / "ce" / "seed0" / "evaluation.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"metrics": content["metrics"] | entries}))
    return path


def test_names_of_a_foreign_evaluation_reach_no_table_as_formulas(folder):
    foreign(folder, **{'=HYPERLINK("x")/gini': {"mean": -0.5, "n": 100}, "@x": {"mean": 1, "n": 2}})
    for name, text in tables_of(folder).items():
        cells = {cell for row in csv.DictReader(io.StringIO(text)) for cell in row.values()}
        assert {'\'=HYPERLINK("x")/gini', "'@x"} <= cells
        assert not any(cell.startswith(("=", "@")) for cell in cells)
        assert name == "differences.csv" or "-0.5" in cells


@pytest.mark.parametrize(
    "content", ["", '{"metrics": {', "[]", '{"metrics": []}', '{"metrics": {"a": {"mean": "=1"}}, "settings": {}}']
)
def test_damaged_results_are_named_and_the_others_reported(folder, caplog, content):
    path = folder / "ce" / "seed0" / "evaluation.json"
    path.write_text(content)
    found = csv.DictReader(io.StringIO(tables_of(folder)["results.csv"]))
    states = [row["measure"] for row in found if row["cell"] == "ce"]
    (message,) = caplog.messages
    assert str(path) in message and "run the sweep's command again" in message
    assert "(damaged results)" in states and states.count(GINI) == 3


def test_damaged_states_of_trials_are_named_and_the_others_reported(folder, caplog):
    for cell in ("ce", "old"):  # a trial of the sweep file, and one that only its state file knows
        (folder / cell / "seed0" / "sweep.json").write_text("{")
    results = collect.collect(plan.read(folder), folder)
    assert [result.state for result in results].count(trial_folder.FINISHED) == 6 and len(results) == 16
    assert len(caplog.messages) == 2
    assert all("seed0/sweep.json is damaged" in message and "started again" in message for message in caplog.messages)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"tests": 3}'])
def test_a_damaged_sweep_file_is_one_clear_line(folder, content):
    (folder / "sweep.json").write_text(content)
    with pytest.raises(SystemExit, match=r"sdecor\.sweep: .*sweep\.json is .*run the sweep's command again"):
        command.main(["--report", str(folder)])


def test_damaged_results_are_put_aside_when_the_sweep_starts(folder, caplog):
    (trial,) = plan.read(folder).trials(["ce"], [0])
    place = folder / trial.key
    trial_folder.put_damaged_aside(place)
    assert trial_folder.state(folder / trial.key, trial) == trial_folder.FINISHED and not caplog.messages
    (place / "evaluation.json").write_text("")
    trial_folder.put_damaged_aside(place)
    assert trial_folder.missing_stages(place, trial) == ["evaluate"]
    assert (place / "evaluation.json.damaged").exists()
    assert "evaluation.json is damaged: it is empty" in caplog.messages[0]
