"""Evaluation is exact for any number of images, batch size and devices, and compares runs image by image."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdecor import evaluation, metrics
from sdecor.evaluation import Results, collect, extend, load, make_example_metrics, make_explain, merge, save
from sdecor.summary import compare, mean_curves, summarise

RNG = np.random.default_rng(0)
COUNT, SIDE, CLASSES = 21, 8, 4
IMAGES = RNG.integers(0, 256, (COUNT, SIDE + 2, SIDE + 2, 3), dtype=np.uint8)
LABELS = RNG.integers(0, CLASSES, COUNT).astype(np.int32)
OBJECTS = (RNG.random((COUNT, SIDE + 2, SIDE + 2)) < 0.3).astype(np.uint8)
OBJECTS[0], OBJECTS[1, :5] = 0, evaluation.IGNORE
COLOURS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25)}
KEY = jax.random.key(7)


def apply(variables, images):
    """A two-layer network without a batch statistic: `(logits, features)`."""
    features = jnp.tanh(images.reshape(images.shape[0], -1) @ variables["first"])
    return features @ variables["second"], features


def variables(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "first": 0.1 * rng.normal(size=(SIDE * SIDE * 3, 10)).astype(np.float32),
        "second": rng.normal(size=(10, CLASSES)).astype(np.float32),
    }


def batches(size, count=COUNT, devices=None):
    """Batches of one size, the last one padded by the first example with weight 0."""
    for start in range(0, count, size):
        index = np.arange(start, start + size)
        real = index < count
        index = np.where(real, index, -1)
        batch = {"image": IMAGES[index * real], "label": LABELS[index * real], "object": OBJECTS[index * real]}
        batch |= {"index": index.astype(np.int32), "weight": real.astype(np.float32)}
        yield jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]) if devices else x, batch)


@functools.cache
def compiled_step(steps, devices, chunk_size):
    one = make_example_metrics(apply, size=SIDE, steps=steps, chunk_size=chunk_size, **COLOURS)
    if devices is None:
        return jax.jit(one)
    return jax.pmap(one, axis_name="batch", in_axes=(None, 0, None), devices=jax.devices()[:devices])


def step_of(steps=3, seed=0, devices=None, chunk_size=None):
    compiled = compiled_step(steps, devices, chunk_size)
    return lambda batch: compiled(variables(seed), batch, KEY)


@pytest.fixture(scope="module")
def reference() -> Results:
    return collect(step_of(), batches(COUNT))


@pytest.fixture(scope="module")
def other() -> Results:
    return collect(step_of(seed=1), batches(COUNT))


def assert_same(found: Results, reference: Results):
    assert found.examples.keys() == reference.examples.keys()
    for name, values in reference.examples.items():
        np.testing.assert_allclose(found.examples[name], values, rtol=2e-4, atol=1e-5, err_msg=name)
    for name, values in reference.moments.items():
        np.testing.assert_allclose(found.moments[name], values, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("size", [4, 16])
def test_independent_of_the_batch_size(reference, size):
    assert_same(collect(step_of(chunk_size=3 if size == 16 else None), batches(size)), reference)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_independent_of_the_number_of_devices(reference, devices):
    assert_same(collect(step_of(devices=devices), batches(16, devices=devices)), reference)


def test_numbers_are_those_of_the_measures(reference):
    examples = reference.examples
    images = (IMAGES[:, 1:-1, 1:-1] / 255 - np.array(COLOURS["mean"])) / np.array(COLOURS["std"])
    logits, features = apply(variables(), images.astype(np.float32))
    prediction = np.argmax(logits, -1)
    np.testing.assert_array_equal(examples["index"], np.arange(COUNT))
    np.testing.assert_array_equal(examples["prediction"], prediction)
    np.testing.assert_array_equal(examples["target"], prediction)
    np.testing.assert_allclose(examples["cross_entropy"], metrics.cross_entropy(logits, LABELS), rtol=1e-4, atol=1e-5)
    summed = jax.grad(lambda x: jnp.take_along_axis(apply(variables(), x)[0], prediction[:, None], 1).sum())
    maps = np.abs(summed(images.astype(np.float32))).sum(-1)
    codes = OBJECTS[:, 1:-1, 1:-1]
    np.testing.assert_allclose(
        examples["energy_inside"], metrics.energy_inside(maps, codes == 1, ignore=codes == 2), rtol=1e-4
    )
    found = metrics.feature_diagnostics(reference.moments)
    assert found["mean_std"] == pytest.approx(float(np.std(features, axis=0, ddof=1).mean()), rel=1e-4)


def test_label_as_target_and_maps_for_pictures():
    batch = next(batches(COUNT))
    explain_batch = jax.jit(make_explain(apply, size=SIDE, target="label", **COLOURS))
    found = explain_batch(variables(), batch, KEY)
    np.testing.assert_array_equal(found["target"], LABELS)
    assert found["maps"].shape == (COUNT, SIDE, SIDE) and (found["maps"] >= 0).all()
    with pytest.raises(ValueError, match="did you mean 'label'"):
        make_explain(apply, target="labels", **COLOURS)


def test_summary_has_interval_count_and_chance(reference):
    summary = summarise(reference, n_resamples=200)
    assert summary.keys() == metrics.METRICS.keys() | metrics.DATASET_METRICS.keys()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    for name in metrics.METRICS:
        entry, values = summary[name], reference.examples[name]
        assert entry["mean"] == pytest.approx(np.nanmean(values, dtype=np.float64)), name
        assert entry["low"] <= entry["mean"] <= entry["high"]
        assert entry["n"] + entry["undefined"] == COUNT
    assert summary["energy_inside"]["undefined"] == summary["area_share"]["undefined"] == 1
    assert summary["energy_inside"]["chance"] == pytest.approx(summary["area_share"]["mean"])
    ratio = summary["energy_inside"]["mean"] / summary["area_share"]["mean"]
    assert summary["energy_ratio"]["mean"] == pytest.approx(ratio)
    assert summary["accuracy"]["chance"] == np.bincount(LABELS).max() / COUNT
    error = summary["calibration_error"]
    assert 0 <= error["low"] <= error["mean"] <= error["high"]
    assert summary["effective_rank"]["low"] is None and 1 <= summary["effective_rank"]["mean"] <= 10


def test_relative_areas_are_differences_to_a_random_order(reference):
    examples = reference.examples
    for name in ("insertion", "deletion"):
        np.testing.assert_allclose(
            examples[f"{name}_vs_random"], examples[name] - examples[f"{name}_random"], atol=1e-6
        )
    curves = mean_curves(reference)
    assert {len(curve) for curve in curves.values()} == {4}
    np.testing.assert_allclose(curves["insertion_curve"][0], curves["insertion_curve_random"][0], rtol=1e-5)


def test_without_objects_and_curves():
    without = [{k: v for k, v in batch.items() if k != "object"} for batch in batches(8)]
    summary = summarise(collect(step_of(steps=0), without), n_resamples=50)
    assert not summary.keys() & {"energy_inside", "energy_ratio", "insertion", "deletion_vs_random"}
    assert summary["gini"]["n"] == COUNT


def test_comparison_is_paired(reference, other):
    differences = compare(reference, other, n_resamples=300)
    for name in metrics.METRICS:
        expected = np.nanmean(other.examples[name].astype(np.float64) - reference.examples[name])
        assert differences[name]["mean"] == pytest.approx(expected, abs=1e-7), name
    summaries = [summarise(run, n_resamples=10) for run in (reference, other)]
    for name in ("calibration_error", "energy_ratio"):
        gap = summaries[1][name]["mean"] - summaries[0][name]["mean"]
        assert differences[name]["mean"] == pytest.approx(gap)
    itself = compare(reference, reference, n_resamples=50)
    assert all(entry["mean"] == 0 and entry["better"] is None for entry in itself.values())


def test_a_difference_of_ratios_is_over_the_images_that_both_runs_define(reference):
    """Maps of zeros leave images out, each run its own; nothing else differs, so neither does the ratio."""
    a, b = (dict(reference.examples, energy_inside=reference.examples["energy_inside"].copy()) for _ in range(2))
    a["energy_inside"][2:8], b["energy_inside"][5:14] = np.nan, np.nan
    runs = [Results(examples, reference.moments) for examples in (a, b)]
    means = [summarise(run, n_resamples=10)["energy_ratio"]["mean"] for run in runs]
    assert abs(means[0] - means[1]) > 0.01
    found = compare(*runs, n_resamples=50)["energy_ratio"]
    assert found == {"mean": 0, "low": 0, "high": 0, "n": COUNT - 12 - 1, "better": None}


def test_examples_without_confidence_are_counted_apart(reference):
    examples = dict(reference.examples, confidence=reference.examples["confidence"].copy())
    examples["confidence"][:3] = np.nan
    found = summarise(Results(examples, reference.moments), n_resamples=50)["calibration_error"]
    assert (found["n"], found["undefined"]) == (COUNT - 3, 3)
    rest = {name: values[3:] for name, values in reference.examples.items()}
    alone = summarise(Results(rest, reference.moments), n_resamples=50)["calibration_error"]
    assert found["mean"] == pytest.approx(alone["mean"])
    assert found["low"] <= found["mean"] <= found["high"]


def test_better_follows_the_direction_of_the_measure(reference):
    better = dict(reference.examples, cross_entropy=reference.examples["cross_entropy"] - 1)
    better["gini"] = reference.examples["gini"] - 0.1
    better["area_share"] = reference.examples["area_share"] - 0.1
    found = compare(reference, Results(better, reference.moments), n_resamples=50)
    assert found["cross_entropy"]["better"] is True
    assert found["gini"]["better"] is False
    assert found["area_share"]["better"] is None and found["accuracy"]["better"] is None


def test_runs_on_different_images_are_not_compared(reference):
    fewer = collect(step_of(), batches(4, count=20))
    with pytest.raises(ValueError, match=r"different images \(21 and 20\)"):
        compare(reference, fewer)


def test_results_of_processes_merge_and_nothing_counts_twice(reference):
    parts = [
        collect(step_of(), [batch for i, batch in enumerate(batches(4)) if i % 2 == process]) for process in range(2)
    ]
    assert_same(merge(parts[::-1]), reference)
    with pytest.raises(ValueError, match="example 0 was evaluated twice"):
        merge([reference, parts[0]])
    with pytest.raises(ValueError, match="no examples"):
        collect(step_of(), [])


def test_stored_results_are_the_same(reference, tmp_path):
    settings = {"split": "test", "step": 7}
    save(tmp_path / "results.npz", reference, settings)
    assert load(tmp_path / "results.npz", settings | {"split": "val"}) is None
    assert load(tmp_path / "nothing.npz", settings) is None
    found = load(tmp_path / "results.npz", settings)
    for old, new in zip(reference, found, strict=True):
        assert old.keys() == new.keys()
        for name, values in old.items():
            np.testing.assert_array_equal(new[name], values)
    assert not list(tmp_path.glob(".*"))


def test_measures_of_some_examples_join_those_of_all(reference):
    """Curves cost many forwards, so only some images may have them; the others are undefined, not 0."""
    few = reference.examples["index"] % 3 == 0
    everything = {name: values for name, values in reference.examples.items() if not name.startswith("insertion")}
    part = {name: values[few] for name, values in reference.examples.items()}
    joined = extend(Results(everything, reference.moments), Results(part, reference.moments))
    np.testing.assert_array_equal(joined.examples["insertion"][few], reference.examples["insertion"][few])
    assert np.isnan(joined.examples["insertion"][~few]).all()
    assert np.isnan(joined.examples["insertion_curve"][~few]).all()
    numbers = summarise(joined, n_resamples=20)
    assert numbers["insertion"]["n"] <= few.sum() < numbers["gini"]["n"]
