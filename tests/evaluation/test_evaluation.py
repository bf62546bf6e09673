"""Tests of an evaluation: equal for any batch size and number of devices, and equal to the public metrics."""

import evaluated
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluated import CLASSES, COUNT, IMAGES_OF, LABELS, OBJECTS, QUICK, SIDE, subject

from sdecor import metrics
from sdecor.core.rng import example_keys
from sdecor.data import Skipping
from sdecor.data.batches import evaluation_indices
from sdecor.evaluation import (
    GROUPS,
    IGNORE,
    METRIC_PRESETS,
    RANDOM,
    Results,
    choose_methods,
    choose_metrics,
    collect,
    extend,
    grid_pointing_game,
    groups_of,
    make_explanation,
    make_measurement,
    make_plan,
    make_prediction,
    merge,
    nested_order,
    plan,
    predict,
)

NAMES = (*QUICK, "max_sensitivity", "efficient_mprt", "consistency")


@pytest.fixture(scope="module")
def predicted() -> Results:
    return predict(subject())


@pytest.fixture(scope="module")
def reference(predicted) -> Results:
    return evaluated.measured(subject(), predicted, names=NAMES)[0]


def test_examples_that_are_left_out_change_no_others(reference):
    class Damaged(evaluated.Source):
        def __getitem__(self, index):
            if index in (3, 8):
                raise OSError("image file is truncated")
            return super().__getitem__(index)

    one = subject()._replace(source=Skipping(Damaged(), split="test"))
    predicted = predict(one)
    kept = np.setdiff1d(np.arange(COUNT), [3, 8])
    np.testing.assert_array_equal(predicted.examples["index"], kept)
    np.testing.assert_array_equal(predicted.examples["label"], LABELS[kept])
    found = evaluated.measured(one, predicted, names=("gini", "insertion"))[0].examples
    np.testing.assert_array_equal(found["index"], kept)
    for name, least in (("gini", kept.size), ("insertion", 8)):
        expected = reference.examples[name][kept]
        both = np.isfinite(found[name]) & np.isfinite(expected)
        assert both.sum() >= least
        np.testing.assert_allclose(found[name][both], expected[both], rtol=2e-4, atol=1e-5, err_msg=name)
    ((gradient, _),) = choose_methods(["gradient"]).values()
    right = Results(predicted.examples | {"accuracy": np.ones(kept.size)}, {})
    mosaics = grid_pointing_game(one, gradient, size=2, resize=True, images=12, predicted=right)
    assert mosaics.examples["index"].size and set(mosaics.examples["index"]) <= set(kept)


def one_batch() -> dict:
    """Return all examples as one batch of one device, without padding."""
    split = evaluated.Source()
    batch = {name: np.stack([split[i][name] for i in range(COUNT)]) for name in ("image", "label", "object")}
    return batch | {"index": np.arange(COUNT, dtype=np.int32), "weight": np.ones(COUNT, np.float32)}


def assert_same(found: Results, expected: Results):
    assert found.examples.keys() == expected.examples.keys()
    for name, values in expected.examples.items():
        np.testing.assert_allclose(found.examples[name], values, rtol=2e-4, atol=1e-5, err_msg=name)
    for name, values in expected.moments.items():
        np.testing.assert_allclose(found.moments[name], values, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("batch_size", "chunk_size"),
    [(3, 2), *(pytest.param(*sizes, marks=pytest.mark.full) for sizes in ((8, None), (16, 1)))],
)
def test_independent_of_the_batch_and_of_chunks(predicted, reference, batch_size, chunk_size):
    other = subject(batch_size=batch_size, chunk_size=chunk_size)
    assert_same(predict(other), predicted)
    assert_same(evaluated.measured(other, predicted, names=NAMES)[0], reference)


def test_one_device_has_the_metrics_of_eight(predicted, reference):
    setup, key, variables = subject().setup, jax.random.key(0), evaluated.variables()
    examples, moments = jax.jit(make_prediction(setup))(variables, one_batch(), key)
    assert_same(Results({name: x for name, x in examples.items() if name != "weight"}, moments), predicted)
    (gradient, _), *_ = choose_methods(["gradient"]).values()
    batch = one_batch() | {"target": predicted.examples["target"]}
    batch |= jax.jit(make_explanation(setup, gradient))(variables, batch, key)
    chosen = [each for each in groups_of(NAMES, {"replacement": {"steps": 3}}).values() if each.needs != "set"]
    found = jax.jit(make_measurement(setup, tuple(chosen), gradient))(variables, batch, key)
    for each in chosen:
        for name in each.gives:
            values = reference.examples[name]
            measured = np.isin(np.arange(COUNT), evaluation_indices(COUNT, IMAGES_OF[each.needs]))
            np.testing.assert_allclose(found[name][measured], values[measured], rtol=2e-4, atol=1e-5, err_msg=name)
            assert np.isnan(values[~measured]).all()


def test_numbers_are_those_of_the_metrics(predicted, reference):
    images, variables = evaluated.images(), evaluated.variables()
    logits, features = jax.device_get(jax.jit(evaluated.apply_fixed)(variables, images))
    prediction = np.argmax(logits, -1)
    np.testing.assert_array_equal(predicted.examples["prediction"], prediction)
    np.testing.assert_array_equal(predicted.examples["target"], prediction)
    found = predicted.examples["cross_entropy"]
    np.testing.assert_allclose(found, metrics.cross_entropy(logits, LABELS), rtol=1e-4, atol=1e-5)
    spread = metrics.feature_diagnostics(predicted.moments)["mean_std"]
    assert spread == pytest.approx(float(np.std(features, axis=0, ddof=1).mean()), rel=1e-4)
    picked = lambda x: jnp.take_along_axis(evaluated.apply_fixed(variables, x)[0], prediction[:, None], 1)  # noqa: E731
    gradient = jax.device_get(jax.jit(jax.grad(lambda x: picked(x).sum()))(images))
    maps, codes = np.abs(gradient).sum(-1), OBJECTS[:, 1:-1, 1:-1]
    inside = metrics.energy_inside(maps, codes == 1, ignore=codes == IGNORE)
    np.testing.assert_allclose(reference.examples["energy_inside"], inside, rtol=1e-4)
    few = evaluation_indices(COUNT, IMAGES_OF["network"])
    fn = lambda image: evaluated.apply_fixed(variables, image[None])[0][0]  # noqa: E731
    keys = example_keys(jax.random.key(0), 1, few)
    area = metrics.insertion(fn, images[few], maps[few], prediction[few], key=keys, steps=3)
    np.testing.assert_allclose(reference.examples["insertion"][few], area, rtol=1e-3)


def test_a_random_order_is_that_of_a_constant_map(predicted):
    found, _ = evaluated.measured(subject(), predicted, RANDOM.key, ("deletion",))
    few = evaluation_indices(COUNT, IMAGES_OF["network"])
    images, targets = evaluated.images()[few], predicted.examples["target"][few]
    fn = lambda image: evaluated.apply_fixed(evaluated.variables(), image[None])[0][0]  # noqa: E731
    keys = example_keys(jax.random.key(0), 1, few)
    area = metrics.deletion(fn, images, np.ones((few.size, SIDE, SIDE)), targets, key=keys, steps=3)
    np.testing.assert_array_equal(found.examples["index"], few)
    np.testing.assert_allclose(found.examples["deletion"], area, rtol=1e-3)


def test_label_as_target():
    found = predict(subject(target="label"))
    np.testing.assert_array_equal(found.examples["target"], LABELS)
    with pytest.raises(ValueError, match="did you mean 'label'"):
        predict(subject(target="labels"))


def test_pictures_are_the_attributions_of_the_first_chosen(predicted):
    _, found = evaluated.measured(subject(), predicted, "input_x_gradient", ("gini",), pictures=5)
    index = evaluation_indices(COUNT, 5)
    np.testing.assert_array_equal(found.examples["index"], index)
    images = jnp.asarray(evaluated.images()[index])
    fn = lambda image: evaluated.apply_fixed(evaluated.variables(), image[None])[0][0]  # noqa: E731
    slopes = jax.jit(jax.vmap(lambda x, y: jax.grad(lambda z: fn(z)[y])(x)))
    slope = slopes(images, predicted.examples["target"][index])
    np.testing.assert_allclose(found.examples["attributions"], images * slope, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("sizes", [{3, 7}, {0, 5, COUNT}, {2}])
def test_fewer_images_are_among_more(sizes):
    order = nested_order(COUNT, sizes)
    assert len(order) == max(sizes) == len(set(order))
    for size in sizes - {0}:
        np.testing.assert_array_equal(np.sort(order[:size]), evaluation_indices(COUNT, size))


def test_mosaics_explain_the_class_of_each_cell(predicted):
    """A network that sees only one cell has all its saliency there: 1 for that cell, 0 for the others."""

    def first_cell(variables, images):
        seen = images[:, :SIDE, :SIDE]
        return evaluated.apply_fixed(variables, seen)

    one = subject()._replace(setup=subject().setup._replace(apply=first_cell))
    right = Results(predicted.examples | {"accuracy": np.ones(COUNT), "label": np.arange(COUNT) % CLASSES}, {})
    (gradient, _), *_ = choose_methods(["gradient"]).values()
    found = grid_pointing_game(one, gradient, size=2, resize=False, images=9, predicted=right)
    assert len(found.examples["index"]) == 8 and np.all(np.diff(found.examples["index"]) > 0)
    np.testing.assert_allclose(np.sort(found.examples["grid_pointing_game"]), [0] * 6 + [1] * 2, atol=1e-6)
    shrunk = grid_pointing_game(one, gradient, size=2, resize=True, images=9, predicted=right)
    assert ((shrunk.examples["grid_pointing_game"] > 0) & (shrunk.examples["grid_pointing_game"] < 1)).all()
    wrong = Results(predicted.examples | {"accuracy": np.zeros(COUNT)}, {})
    assert not grid_pointing_game(one, gradient, size=2, resize=False, images=9, predicted=wrong).examples["index"].size


def plan_of(methods, metric_names, *, with_objects=True, side=16, apply=evaluated.apply):
    batch = {"image": np.zeros((1, side, side, 3), np.uint8), "label": np.zeros(1, np.int32)}
    batch |= {"index": np.zeros(1, np.int32), "weight": np.ones(1, np.float32)}
    batch |= {"object": np.zeros((1, side, side), np.uint8)} if with_objects else {}
    return make_plan(
        subject(apply=apply, size=None).setup,
        choose_methods(methods),
        choose_metrics(metric_names),
        variables=evaluated.variables(),
        batch=batch,
        images=IMAGES_OF,
        options={"replacement": {"steps": 5}},
    )


def test_every_registered_metric_can_be_evaluated():
    plan, notes = plan_of(["quick"], ["full"])
    assert not notes
    assert {each.name for each in plan.groups} == GROUPS.keys()
    given = {name for each in plan.groups for name in each.gives}
    derived = {"insertion_vs_random", "deletion_vs_random", "area_share"}
    assert {name for name in METRIC_PRESETS["full"] if metrics_needs(name) != "model"} - derived <= given
    settings = plan.settings()
    assert settings["measures"]["replacement"] == {
        "images": 12,
        "looks_at": "map",
        "steps": 5,
        "insertion_baseline": "blur",
        "deletion_baseline": "zero",
        "blur_sigma": 5.0,
    }
    assert settings["measures"]["sensitivities"]["radius"] == 0.02
    looked = {name: each["looks_at"] for name, each in settings["measures"].items()}
    signed = {name for name, what in looked.items() if what == "signed sum over channels"}
    assert signed == {"faithfulness_correlation", "faithfulness_estimate", "sensitivity_n", "completeness"}
    assert looked["infidelity"] == looked["continuity"] == "whole attribution"
    assert settings["measures"]["completeness"]["baseline"] == "the method's, else zero"
    assert settings["methods"] == {"gradient": {"saliency_of": "logit"}}


def metrics_needs(name: str) -> str:
    return (metrics.METRICS | metrics.DATASET_METRICS)[name].needs


def test_what_the_network_does_not_support_is_left_out_of_presets_and_an_error_by_name():
    """A tanh network has no ReLU for guided backpropagation; one of a fixed size takes no larger mosaic."""
    plan, notes = plan_of(["full"], ["quick", "grid_pointing_game"], side=SIDE, apply=evaluated.apply_fixed)
    assert "guided_backpropagation" not in plan.methods and "gradient" in plan.methods
    assert any(note.startswith("method guided_backpropagation is left out: ") for note in notes)
    assert dict(next(each for each in plan.groups if each.needs == "mosaic").options)["resize"] is True
    with pytest.raises(ValueError, match="guided_backpropagation cannot be taken of this network"):
        plan_of(["quick", "guided_backpropagation"], ["gini"], side=SIDE, apply=evaluated.apply_fixed)
    plan, _ = plan_of(["quick"], ["grid_pointing_game"])
    assert dict(plan.groups[0].options)["resize"] is False


def test_what_an_image_is_too_small_for_and_a_mosaic_of_too_few_classes_are_left_out():
    """At 8×8 pixels one patch of AOPC's 8 covers the image: any order would give the same value."""

    def two(variables, images):
        logits, features = evaluated.apply(variables, images)
        return logits[:, :2], features

    plan, notes = plan_of(["quick"], ["standard"], side=SIDE, apply=two)
    assert {"aopc_morf", "aopc_lerf", "grid_pointing_game"}.isdisjoint(each.name for each in plan.groups)
    assert "road" in [each.name for each in plan.groups]
    patch = "metric aopc_morf is left out: patch = 8: one patch covers the whole image of 8×8; pass a smaller patch"
    few = "metric grid_pointing_game is left out: a mosaic of 4 different classes needs more than the network's 2"
    assert {patch, few} <= set(notes)
    with pytest.raises(ValueError, match="aopc_morf cannot be taken of this network: patch = 8: one patch covers"):
        plan_of(["quick"], ["aopc_morf"], side=SIDE)
    with pytest.raises(ValueError, match="grid_pointing_game cannot be taken of this network: a mosaic of 4"):
        plan_of(["quick"], ["grid_pointing_game"], apply=two)


def test_without_objects_their_metrics_are_left_out_and_an_error_by_name():
    plan, _ = plan_of(["quick"], ["quick"], with_objects=False)
    assert [each.name for each in plan.groups] == ["gini", "replacement"]
    with pytest.raises(ValueError, match="roc_auc: the data set has neither object masks nor boxes"):
        plan_of(["quick"], ["roc_auc"], with_objects=False)


def test_a_plan_selects_what_was_asked_for():
    plan, _ = plan_of(["quick"], ["insertion", "gini"])
    names = ("index", "accuracy", "gradient/insertion", "gradient/deletion", "gradient/insertion_curve")
    stored = Results({name: np.zeros(1) for name in (*names, "gradient/entropy", "lrp/gini", "random/insertion")}, {})
    expected = {*names, "random/insertion"} - {"gradient/deletion"}
    assert plan.select(stored).examples.keys() == expected
    curves = plan_of(["quick"], ["road"])[0].with_percentages({"gradient/road_curve": 1})
    assert curves["gradient/road_percentages"] == (10, 20, 30, 40, 50, 60, 70, 80, 90)


def test_results_of_processes_merge_and_nothing_counts_twice(predicted):
    halves = [{name: x[start::2] for name, x in predicted.examples.items()} for start in (0, 1)]
    found = merge([Results(half, {}) for half in halves[::-1]])
    for name, values in predicted.examples.items():
        np.testing.assert_array_equal(found.examples[name], values)
    with pytest.raises(ValueError, match="example 0 was evaluated twice"):
        merge([Results(predicted.examples, {}), Results(halves[0], {})])
    with pytest.raises(ValueError, match="no examples"):
        collect(lambda batch: ({}, {}), [])


def test_metrics_of_some_examples_join_those_of_all():
    """Examples without the metric are undefined, not 0."""
    everything = Results({"index": np.arange(5), "accuracy": np.ones(5)}, {})
    part = Results({"index": np.array([1, 4]), "gini": np.array([0.25, 0.5]), "curve": np.ones((2, 3))}, {})
    joined = extend(everything, part, "lrp").examples
    np.testing.assert_array_equal(joined["lrp/gini"], [np.nan, 0.25, np.nan, np.nan, 0.5])
    assert np.isnan(joined["lrp/curve"][[0, 2, 3]]).all() and (joined["lrp/curve"][[1, 4]] == 1).all()
    ragged = merge([Results({"index": np.array([i]), **more}, {}) for i, more in ((1, {"x": np.ones(1)}), (0, {}))])
    np.testing.assert_array_equal(ragged.examples["x"], [np.nan, 1])


def small_plan(methods, names, **changes):
    return plan_of(methods, names, side=SIDE, apply=evaluated.apply_fixed, **changes)


def test_a_metric_that_refuses_a_method_is_left_out_of_it():
    """Every pair is tried before anything is evaluated, not hours later."""
    methods = ["quick", "expected_gradients:samples=2"]
    plan, notes = small_plan(["quick", "full"], ["gini", "completeness"])
    assert "expected_gradients/completeness" in plan.refused
    assert any(note.startswith("metric completeness of expected_gradients is left out: ") for note in notes)
    parts = plan.all_parts()
    assert "gradient/completeness" in parts and "expected_gradients/gini" in parts
    assert "expected_gradients/completeness" not in parts
    with pytest.raises(ValueError, match="metric completeness of expected_gradients.* cannot be taken"):
        small_plan(methods, ["completeness"])
    with pytest.raises(ValueError, match="metric completeness cannot be taken"):
        small_plan(methods[1:], ["completeness"])


@pytest.mark.parametrize("name", ["max_sensitivity", "parameter_randomization", "infidelity"])
def test_what_explains_again_is_tried_with_every_method(name, monkeypatch):
    """A method that the metric cannot call is found, even if it is not the first."""
    inner = plan.make_measurement

    def refusing(setup, groups, method=None):
        if method is not None and method.key == "input_x_gradient":
            return lambda *arguments: (_ for _ in ()).throw(NotImplementedError("not with this method"))
        return inner(setup, groups, method)

    monkeypatch.setattr(plan, "make_measurement", refusing)
    with pytest.raises(ValueError, match="of input_x_gradient cannot be taken of this network: not with this method"):
        small_plan(["gradient", "input_x_gradient"], [name])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "integrated_gradients:steps=1.5",
            "method integrated_gradients:steps=1.5 cannot be taken of",
        ),
        ("integrated_gradients:baseline=None", "method integrated_gradients:baseline=None cannot be taken"),
        ("occlusion:window=(4,4,4)", "method occlusion:window=.4, 4, 4. cannot be taken"),
    ],
)
def test_options_that_break_a_method_are_a_clear_error(word, message):
    with pytest.raises(ValueError, match=message):
        small_plan([word], ["gini"])
