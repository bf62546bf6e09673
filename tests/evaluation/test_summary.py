"""Tests of a run's summary and of differences between two runs, computed from metrics of each example."""

import json

import evaluated
import numpy as np
import pytest
from evaluated import COUNT, LABELS, QUICK

from sdecor import metrics
from sdecor.evaluation import GROUPS, RANDOM, Results, extend
from sdecor.evaluation.summary import FEWEST, compare, mean_curves, retest, summarise
from sdecor.metrics.registry import KNOWN

MODEL = {name for name, metric in (metrics.METRICS | metrics.DATASET_METRICS).items() if metric.needs == "model"}
RELATIVE = {"insertion_vs_random", "deletion_vs_random", "energy_ratio"}
KEYS = MODEL | {"area_share"} | {f"gradient/{name}" for name in (*QUICK, *RELATIVE)}
MEANS = [key for key in sorted(KEYS) if key.rpartition("/")[2] in metrics.METRICS and "_vs_" not in key]


@pytest.fixture(scope="module")
def reference() -> Results:
    return evaluated.evaluated()


@pytest.fixture(scope="module")
def other() -> Results:
    return evaluated.evaluated(seed=1)


def changed(results: Results, **changes) -> Results:
    """Return results with some arrays replaced; `gradient_x` stands for "gradient/x"."""
    arrays = {name.replace("gradient_", "gradient/", 1): values for name, values in changes.items()}
    return Results(results.examples | arrays, results.moments)


def test_summary_has_interval_count_and_chance(reference):
    summary = summarise(reference, n_resamples=200)
    assert summary.keys() == KEYS
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    for key in MEANS:
        entry, values = summary[key], reference.examples[key]
        assert entry["mean"] == pytest.approx(np.nanmean(values, dtype=np.float64)), key
        assert entry["low"] <= entry["mean"] <= entry["high"]
        assert entry["n"] + entry["undefined"] == COUNT
    inside = summary["gradient/energy_inside"]
    assert inside["undefined"] == summary["area_share"]["undefined"] == 1
    assert inside["chance"] == pytest.approx(summary["area_share"]["mean"])
    assert summary["gradient/pointing_game"]["chance"] == inside["chance"]
    assert summary["gradient/energy_ratio"]["mean"] == pytest.approx(inside["mean"] / inside["chance"])
    assert summary["accuracy"]["chance"] == np.bincount(LABELS).max() / COUNT
    error = summary["calibration_error"]
    assert 0 <= error["low"] <= error["mean"] <= error["high"]
    assert summary["effective_rank"]["low"] is None and 1 <= summary["effective_rank"]["mean"] <= 10


def test_a_random_order_is_the_level_of_chance(reference):
    summary, examples = summarise(reference, n_resamples=20), reference.examples
    for name in ("insertion", "deletion"):
        ours, random = examples[f"gradient/{name}"], examples[f"random/{name}"]
        assert summary[f"gradient/{name}"]["chance"] == pytest.approx(np.nanmean(random))
        assert summary[f"gradient/{name}_vs_random"]["mean"] == pytest.approx(np.nanmean(ours - random), abs=1e-6)
        assert summary[f"gradient/{name}_vs_random"]["chance"] == 0
    assert not any(key.startswith(RANDOM.key) for key in summary)


def test_every_method_has_its_own_block_and_shares_the_random_order(reference):
    own = {name.removeprefix("gradient/"): x for name, x in reference.examples.items() if name.startswith("gradient/")}
    both = extend(reference, Results({"index": reference.examples["index"]} | own, {}), "lrp:layer=a/b")
    summary = summarise(both, n_resamples=20)
    for name in (*QUICK, *RELATIVE):
        assert summary[f"lrp:layer=a/b/{name}"] == summary[f"gradient/{name}"]


def test_curves_are_means_with_the_random_order_beside(reference):
    curves = mean_curves(reference)
    names = ("insertion_curve", "deletion_curve")
    assert curves.keys() == {f"gradient/{name}{end}" for name in names for end in ("", "_random")}
    assert {len(curve) for curve in curves.values()} == {4}
    stored = reference.examples["random/insertion_curve"]
    np.testing.assert_allclose(curves["gradient/insertion_curve_random"], np.nanmean(stored, axis=0), rtol=1e-6)
    np.testing.assert_allclose(curves["gradient/insertion_curve"][0], np.nanmean(stored[:, 0]), rtol=1e-5)


def test_comparison_is_paired(reference, other):
    differences = compare(reference, other, n_resamples=300)
    assert differences.keys() == KEYS
    for key in MEANS:
        expected = np.nanmean(other.examples[key].astype(np.float64) - reference.examples[key])
        assert differences[key]["mean"] == pytest.approx(expected, abs=1e-7), key
    summaries = [summarise(run, n_resamples=10) for run in (reference, other)]
    for key in ("calibration_error", "gradient/energy_ratio", "gradient/deletion_vs_random"):
        gap = summaries[1][key]["mean"] - summaries[0][key]["mean"]
        assert differences[key]["mean"] == pytest.approx(gap, abs=1e-7)
    itself = compare(reference, reference, n_resamples=50)
    assert all(entry["mean"] == 0 and entry["better"] is None for entry in itself.values())


def test_a_difference_of_ratios_is_over_the_images_that_both_runs_define(reference):
    """Each run leaves out other images; nothing else differs, so the ratio must not differ."""
    a, b = (reference.examples["gradient/energy_inside"].copy() for _ in range(2))
    a[2:8], b[5:14] = np.nan, np.nan
    runs = [changed(reference, gradient_energy_inside=values) for values in (a, b)]
    means = [summarise(run, n_resamples=10)["gradient/energy_ratio"]["mean"] for run in runs]
    assert abs(means[0] - means[1]) > 0.01
    found = compare(*runs, n_resamples=50)["gradient/energy_ratio"]
    assert found == {"mean": 0, "low": 0, "high": 0, "n": COUNT - 12 - 1, "better": None}


def test_examples_without_confidence_are_counted_apart(reference):
    values = reference.examples["confidence"].copy()
    values[:3] = np.nan
    found = summarise(changed(reference, confidence=values), n_resamples=50)["calibration_error"]
    assert (found["n"], found["undefined"]) == (COUNT - 3, 3)
    rest = {name: values[3:] for name, values in reference.examples.items()}
    alone = summarise(Results(rest, reference.moments), n_resamples=50)["calibration_error"]
    assert found["mean"] == pytest.approx(alone["mean"])
    assert found["low"] <= found["mean"] <= found["high"]


def test_better_follows_the_direction_of_the_metric(reference):
    examples = reference.examples
    better = changed(
        reference,
        cross_entropy=examples["cross_entropy"] - 1,
        gradient_gini=examples["gradient/gini"] - 0.1,
        area_share=examples["area_share"] - 0.1,
    )
    found = compare(reference, better, n_resamples=50)
    assert found["cross_entropy"]["better"] is True
    assert found["gradient/gini"]["better"] is False
    assert found["area_share"]["better"] is None and found["accuracy"]["better"] is None


def test_methods_of_one_run_alone_are_not_compared(reference, other):
    without = {name: x for name, x in other.examples.items() if "/" not in name}
    found = compare(reference, Results(without, other.moments), n_resamples=10)
    assert found.keys() == {key for key in KEYS if "/" not in key}


def test_runs_on_different_images_are_not_compared(reference):
    fewer = {name: x[:20] for name, x in reference.examples.items()}
    with pytest.raises(ValueError, match=r"different images \(21 and 20\)"):
        compare(reference, Results(fewer, reference.moments))


RAW = sorted(name for each in GROUPS.values() if each.reference for name in each.gives if name in KNOWN)


@pytest.mark.parametrize("name", RAW)
def test_only_what_exceeds_a_random_order_compares_runs(reference, name):
    """A network that is more robust to masked images is not better explained."""
    values = np.linspace(0.2, 0.4, COUNT)
    better = 1 if KNOWN[name].higher_is_better else -1
    runs = [
        changed(reference, **{f"gradient/{name}": values + better * by, f"random/{name}": values}) for by in (0, 0.3)
    ]
    found = compare(*runs, n_resamples=50)
    assert found[f"gradient/{name}"]["better"] is None
    assert found[f"gradient/{name}_vs_random"]["better"] is True
    assert found[f"gradient/{name}_vs_random"]["mean"] == pytest.approx(better * 0.3)
    easier = [changed(run, **{f"random/{name}": values + by}) for run, by in zip(runs, (0, better * 0.3), strict=True)]
    assert compare(*easier, n_resamples=50)[f"gradient/{name}_vs_random"]["mean"] == pytest.approx(0, abs=1e-9)
    summary = summarise(runs[0], n_resamples=20)
    assert summary[f"gradient/{name}_vs_random"]["chance"] == 0


def test_nothing_is_marked_of_few_images(reference):
    rest = reference.examples["cross_entropy"].copy()
    rest[FEWEST:] = np.nan
    for undefined, better in ((0, True), (1, None)):
        values = rest.copy()
        values[:undefined] = np.nan
        runs = [changed(reference, cross_entropy=values - by) for by in (0, 1)]
        assert compare(*runs, n_resamples=50)["cross_entropy"]["better"] is better


@pytest.mark.parametrize("name", ["sufficiency", "consistency"])
def test_values_that_depend_on_one_another_have_no_interval_and_no_mark(reference, name):
    runs = [changed(reference, **{f"gradient_{name}": np.linspace(0, 0.2, COUNT) + by}) for by in (0, 0.5)]
    entries = summarise(runs[1], n_resamples=20), compare(*runs, n_resamples=20)
    for entry in (each[f"gradient/{name}"] for each in entries):
        assert entry["mean"] is not None and entry["low"] is entry["high"] is None
    assert entries[1][f"gradient/{name}"]["better"] is None


@pytest.mark.parametrize("name", [name for name, metric in KNOWN.items() if metric.statistic == "median"])
def test_one_image_does_not_decide_a_heavy_tailed_metric(reference, name):
    values = np.linspace(1, 2, COUNT)
    values[5] = 1e9
    run = changed(reference, **{f"gradient_{name}": values})
    found = summarise(run, n_resamples=200)[f"gradient/{name}"]
    assert found["statistic"] == "median" and found["mean"] == np.median(values)
    assert 1 < found["low"] < found["mean"] < found["high"] < 2
    lower = changed(reference, **{f"gradient_{name}": values - 0.1})
    difference = compare(run, lower, n_resamples=200)[f"gradient/{name}"]
    assert difference["mean"] == pytest.approx(-0.1) and difference["better"] is True


def test_best_iou_has_no_level_of_chance(reference):
    run = changed(reference, gradient_best_iou=np.full(COUNT, 0.2))
    assert "chance" not in summarise(run, n_resamples=10)["gradient/best_iou"]


def twice(values: np.ndarray, noise: np.ndarray, name: str = "road") -> dict:
    """Return the retest of one metric of a gradient, measured as `values` and as `values + noise`."""
    key = f"gradient/{name}"
    return retest(*(Results({key: each}, {}) for each in (values, values + noise)))[key]


def test_retest_is_a_one_way_analysis_of_variance():
    rng = np.random.default_rng(0)
    pairs = rng.normal(size=(30, 1)) + 0.5 * rng.normal(size=(30, 2))
    found = twice(pairs[:, 0], pairs[:, 1] - pairs[:, 0])
    grand, means = pairs.mean(), pairs.mean(1)
    between = 2 * sum((means - grand) ** 2) / 29
    within = sum((pairs[i, j] - means[i]) ** 2 for i in range(30) for j in range(2)) / 30
    assert found["n"] == 30
    assert found["sd"] == pytest.approx(np.sqrt(within))
    assert found["of_mean"] == pytest.approx(np.sqrt(within / 30))
    assert found["reliability"] == pytest.approx((between - within) / (between + within))


def test_retest_finds_the_noise_that_is_there():
    """Values of variance 1 with noise of variance 1/4, in each measurement: the reliability is 0.8."""
    rng = np.random.default_rng(0)
    values, (first, second) = rng.normal(size=20_000), 0.5 * rng.normal(size=(2, 20_000))
    found = twice(values + first, second - first)
    assert found["sd"] == pytest.approx(0.5, rel=0.02) and found["reliability"] == pytest.approx(0.8, abs=0.01)
    means = (values[:, None] + 0.5 * rng.normal(size=(20_000, 100))).mean(0)
    assert found["of_mean"] == pytest.approx(means.std(), rel=0.2)


def test_retest_of_what_does_not_vary_and_of_what_is_undefined():
    values = np.array([1.0, 3.0, np.nan, 2.0])
    assert twice(values, np.zeros(4)) == {"n": 3, "sd": 0.0, "of_mean": 0.0, "reliability": 1.0}
    assert twice(values[1:3], np.zeros(2)) == {"n": 1, "sd": None, "of_mean": None, "reliability": None}
    assert twice(np.ones(4), np.zeros(4))["reliability"] is None


def test_retest_of_a_median_compares_the_medians():
    found = twice(np.array([1.0, 2.0, 9.0]), np.array([0.0, 3.0, 0.0]), "relative_input_stability")
    assert found["of_mean"] == pytest.approx(3 / np.sqrt(2))


def test_retest_is_of_metrics_measured_twice_and_of_their_difference_to_random(reference, other):
    again = Results({key: x for key, x in other.examples.items() if "gini" not in key}, {})
    found = retest(reference, again)
    assert {"gradient/insertion", "gradient/insertion_vs_random"} <= found.keys() <= KEYS
    assert not [key for key in found if "gini" in key or key.startswith("random/") or "/" not in key]
