"""Tests of class numbers: one that is no class raises, or gives NaN under `jit`; every integer type is accepted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import sdecor
from sdecor import losses, metrics
from sdecor.attribution import METHODS, Contrast, explain, gradient
from sdecor.core import classes
from sdecor.training import steps
from sdecor.training.objective import Objective, Values, _true_class, loss_fn

NARROW = (np.int8, np.uint8, np.int16, np.uint16, np.uint32, np.int32)
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(4, 5)).astype(np.float32)
LABELS = np.array([0, 4, 2, 3])
WRONG = np.array([0, -1, 2, 5])  # the second and the last are no classes
UNDEFINED = [False, True, False, True]
KEY = jax.random.key(0)


def cross_entropy(logits, labels, smoothing=0.0):
    """Return the cross-entropy, computed in float64."""
    targets = (1 - smoothing) * np.eye(logits.shape[1])[labels] + smoothing / logits.shape[1]
    return -np.sum(targets * np.log(oracles.softmax(logits.astype(np.float64))), axis=-1)


# --- numbers ---


@pytest.mark.parametrize("dtype", NARROW)
def test_every_integer_type_is_compared_with_a_count_that_it_may_not_hold(dtype):
    bounds = np.iinfo(dtype)
    numbers = np.unique([0, 1, 100, bounds.max, max(bounds.min, -56), max(bounds.min, -1)]).astype(dtype)
    for count in (3, 127, 128, 200, 256, 300, 70_000):
        expected = [0 <= int(number) < count for number in numbers]
        np.testing.assert_array_equal(classes.is_class(jnp.asarray(numbers), count), expected)


def test_traced_numbers_become_int32_and_minus_one_if_they_are_no_class():
    traced = jax.jit(lambda numbers: classes.check_classes("labels", numbers, 200))
    found = traced(np.array([0, 120, 255], np.uint8))
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, [0, 120, -1])
    np.testing.assert_array_equal(classes.check_classes("labels", [0, 199], 200), [0, 199])


WRONG_NUMBERS = {
    "negative": ([0, -1], r"labels contains -1: there are 3 classes, 0 to 2$"),
    "large": ([0, 5], r"labels contains 5: there are 3 classes, 0 to 2$"),
    "from one": (np.array([1, 2, 3], np.uint8), "labels contains 3: .* did you number classes from 1"),
    "beyond int32": (np.array([0, 2**33 + 1]), "labels contains 8589934593"),
    "one": (3, "labels = 3: there are 3 classes"),
    "float": ([0.0, 1.0], "labels has dtype float64"),
    "bool": ([True, False], "labels has dtype bool"),
    "beyond int64": ([0, 2**70], "labels has dtype object"),
}


@pytest.mark.parametrize("wrong", WRONG_NUMBERS)
def test_a_wrong_number_is_an_error_outside_of_jit(wrong):
    numbers, message = WRONG_NUMBERS[wrong]
    with pytest.raises(ValueError, match=message):
        classes.check_classes("labels", numbers, 3)


# --- losses ---


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classification_of_a_label_that_is_no_class(smoothing):
    with pytest.raises(ValueError, match="labels contains -1: there are 5 classes, 0 to 4"):
        losses.classification(LOGITS, WRONG, label_smoothing=smoothing)
    loss = lambda logits, labels: losses.classification(logits, labels, label_smoothing=smoothing)  # noqa: E731

    def both(logits, labels):
        values, pull_back = jax.vjp(lambda logits: loss(logits, labels), logits)
        return values, pull_back(jnp.ones_like(values))[0]

    values, gradients = jax.jit(both)(LOGITS, WRONG)
    expected = np.where(UNDEFINED, np.nan, cross_entropy(LOGITS, np.where(UNDEFINED, 0, WRONG), smoothing))
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    np.testing.assert_array_equal(np.isnan(gradients), np.repeat(np.array(UNDEFINED)[:, None], 5, axis=1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classification_by_labels_of_a_type_narrower_than_the_number_of_classes(smoothing):
    logits, labels = RNG.normal(size=(3, 300)).astype(np.float32), np.array([1, 50, 200])
    found = sdecor.classification(logits, labels.astype(np.uint8), label_smoothing=smoothing)
    np.testing.assert_allclose(found, cross_entropy(logits, labels, smoothing), rtol=1e-5)


@pytest.mark.parametrize("of", losses.PENALTY_OF)
def test_gradient_penalty_of_a_label_that_is_no_class(of):
    weights = RNG.normal(size=(6, 5)).astype(np.float32)
    images = RNG.normal(size=(4, 6)).astype(np.float32)
    penalties = lambda labels: losses.gradient_penalty(lambda x: (x @ weights, None), images, labels, of=of)[0]  # noqa: E731
    with pytest.raises(ValueError, match="labels contains -1"):
        penalties(WRONG)
    found = jax.jit(penalties)(WRONG)
    undefined = of != "log_probabilities"  # no label enters that one
    np.testing.assert_array_equal(np.isnan(found), np.array(UNDEFINED) & undefined)
    narrow = jax.jit(penalties)(LABELS.astype(np.uint8))
    p, one = oracles.softmax((images @ weights).astype(np.float64)), np.eye(5)[LABELS]
    cotangent = {"cross_entropy": p - one, "log_probabilities": 1 - 5 * p, "logit": one}[of]
    np.testing.assert_allclose(narrow, ((cotangent @ weights.T) ** 2).sum(1), rtol=1e-4)


def test_losses_of_one_logit_are_refused():
    one, labels = jnp.zeros((2, 1)), jnp.zeros(2, int)
    images, forward = jnp.ones((2, 3)), lambda x: (x[:, :1], None)
    for loss in (
        lambda: losses.classification(one, labels),
        lambda: losses.consistency(one, one),
        lambda: losses.gradient_penalty(forward, images, labels),
        lambda: losses.gradient_penalty(forward, images, labels, of="log_probabilities"),
    ):
        with pytest.raises(ValueError, match=r"1 logit: its softmax is 1 .* \[0, z\]"):
            loss()
    np.testing.assert_array_equal(losses.gradient_penalty(forward, images, labels, of="logit")[0], [1, 1])


# --- the step ---


def test_the_step_s_saliency_and_loss_of_a_label_that_is_no_class():
    features = jnp.ones((4, 3))

    def step(labels):
        cotangents = [
            _true_class((LOGITS, features), labels=labels, saliency_of=of)[0] for of in ("logit", "log_probability")
        ]
        loss = functools.partial(
            loss_fn,
            values=Values({}),
            objective=Objective(),
            axis_name=None,
        )
        return cotangents, loss((LOGITS, features), None, None, labels=labels)

    step = jax.jit(step)
    (logit, log_probability), (total, terms) = step(np.int32(WRONG))
    np.testing.assert_array_equal(np.isnan(logit).any(1), UNDEFINED)
    np.testing.assert_array_equal(np.isnan(log_probability).all(1), UNDEFINED)
    assert np.isnan(total) and np.isnan(terms["accuracy"])
    (logit, log_probability), (total, terms) = step(np.int32(LABELS))
    np.testing.assert_array_equal(logit, np.eye(5)[LABELS])
    np.testing.assert_allclose(log_probability, np.eye(5)[LABELS] - oracles.softmax(LOGITS), atol=1e-6)
    np.testing.assert_allclose(total, cross_entropy(LOGITS, LABELS).mean(), rtol=1e-5)
    np.testing.assert_allclose(terms["accuracy"], (LOGITS.argmax(1) == LABELS).mean())


def test_padding_never_makes_a_sum_nan_but_a_label_of_no_class_does():
    logits = np.concatenate([LOGITS, np.full((2, 5), np.nan, np.float32)])
    apply = lambda variables, images, train: (images, None)  # noqa: E731
    evaluate = jax.jit(functools.partial(steps.evaluation_step, apply, None))
    batch = {"label": np.int32([*LABELS, -1, 0]), "weight": np.float32([1, 1, 1, 1, 0, 0])}
    sums = evaluate(logits, batch)
    assert sums["count"] == 4 and sums["correct"] == (LOGITS.argmax(1) == LABELS).sum()
    np.testing.assert_allclose(sums["cross_entropy"], cross_entropy(LOGITS, LABELS).sum(), rtol=1e-5)
    sums = evaluate(logits, batch | {"label": np.int32([*WRONG, -1, 0])})
    assert np.isnan(sums["correct"]) and np.isnan(sums["cross_entropy"])


# --- metrics of predictions ---


def test_metrics_of_predictions_have_no_value_without_a_class():
    for metric, right in (
        (metrics.accuracy, LOGITS.argmax(1) == LABELS),
        (metrics.cross_entropy, cross_entropy(LOGITS, LABELS)),
    ):
        for labels in (LABELS.tolist(), LABELS.astype(np.uint8), LABELS.astype(np.uint16)):
            np.testing.assert_allclose(metric(LOGITS, labels), right, rtol=1e-5)
        with pytest.raises(ValueError, match="labels contains -1"):
            metric(LOGITS, WRONG)
        with pytest.raises(ValueError, match="labels has dtype float"):
            metric(LOGITS, LABELS * 1.0)
        np.testing.assert_array_equal(np.isnan(jax.jit(metric)(LOGITS, WRONG)), UNDEFINED)
        with pytest.raises(ValueError, match="1 logit"):
            metric(LOGITS[:, :1], LABELS)
    with pytest.raises(ValueError, match="1 logit"):
        metrics.confidence(LOGITS[:, :1])


def test_calibration_is_of_the_examples_that_have_a_class():
    confidence, correct = np.array([0.9, 0.8, 0.7, np.nan]), np.array([1.0, np.nan, 0.0, 0.0])
    columns = metrics.calibration_bins(confidence, correct)
    np.testing.assert_array_equal(columns[[1, 3]], 0)
    assert metrics.calibration_error(columns.sum(0), 2) == pytest.approx((0.1 + 0.7) / 2)


def test_mosaics_are_made_of_images_whose_class_is_known():
    labels = np.array([0, 1, 254, 255, 0, 1], np.uint8)
    confidence, correct = np.linspace(1, 0.5, 6), np.array([1, 1, 1, 1, np.nan, 1])
    chosen = metrics.choose_mosaics(labels, confidence, correct, count=1, seed=0)
    np.testing.assert_array_equal(np.sort(chosen.ravel()), [0, 1, 2, 3])
    with pytest.raises(ValueError, match="3 classes"):
        metrics.choose_mosaics(np.array([0, 1, 2, -1]), np.ones(4), np.ones(4), count=1, seed=0)


# --- metrics that follow a class, and attributions ---

SIDE, CLASSES = 4, 200
IMAGES = RNG.normal(size=(5, SIDE, SIDE, 1)).astype(np.float32)
MAPS = RNG.random((5, SIDE, SIDE)).astype(np.float32)
WEIGHTS = RNG.normal(size=(SIDE * SIDE, CLASSES)).astype(np.float32)
TARGETS = np.array([1, 50, 120, -1, -56], np.int8)  # in int8 200 is -56, and 56 more than 200 is 0
NONE = [False, False, False, True, True]


def network(weights):
    return lambda image: jnp.tanh(image.reshape(-1)) @ weights


def following(weights, images, maps, targets):
    """Return calls of the metrics that follow a class, by name, for a network with these weights."""
    fn, n = network(weights), functools.partial
    options = {"key": KEY, "chunk_size": 8}
    p = {"saliency_of": "probability"}
    whole = jnp.broadcast_to(maps[..., None], images.shape)

    def explain_one(image, target, key):
        return gradient(fn, image, target)

    def explain_with(params, image, target, key):
        return gradient(network(params["w"]), image, target)

    params, other = {"w": weights}, {"w": weights[::-1] + 0.1}
    batch, explained = (fn, images, maps, targets), (explain_one, images, targets)
    again = {"key": KEY, "chunk_size": 8, "samples": 2}
    return {
        "insertion": n(metrics.insertion, *batch, steps=2, **options),
        "deletion_vs_random": n(metrics.deletion_vs_random, *batch, steps=2, **options),
        "masked_accuracy": n(metrics.masked_accuracy_curve, *batch, percentages=(0, 50), **options),
        "region_perturbation": n(metrics.region_perturbation, *batch, patch=2, **options),
        "irof": n(metrics.irof, *batch, patch=2, **options),
        "monotonicity": n(metrics.monotonicity, *batch, steps=2, **options),
        "average_drop": n(metrics.average_drop, *batch, chunk_size=8),
        "average_increase": n(metrics.average_increase, *batch, chunk_size=8),
        "faithfulness_correlation": n(metrics.faithfulness_correlation, *batch, samples=4, **options, **p),
        "faithfulness_estimate": n(metrics.faithfulness_estimate, *batch, steps=4, **options, **p),
        "monotonicity_correlation": n(metrics.monotonicity_correlation, *batch, steps=4, samples=1, **options),
        "sensitivity_n": n(metrics.sensitivity_n, *batch, samples=4, shares=(0.3,), **options),
        "non_sensitivity": n(metrics.non_sensitivity, *batch, pixels=2, **options),
        "completeness": n(metrics.completeness, *batch, chunk_size=8, **p),
        "infidelity": n(metrics.infidelity, fn, images, whole, targets, perturbation="grid", patch=2, **options, **p),
        "road": n(metrics.road, *batch, percentages=(50,), **options),
        "max_sensitivity": n(metrics.max_sensitivity, *explained, **again),
        "continuity": n(metrics.continuity, *explained, shifts=(1,), **options),
        "output_stability": n(metrics.relative_output_stability, explain_one, fn, images, targets, **again),
        "input_invariance": n(
            metrics.input_invariance, lambda f, x, t, k: gradient(f, x, t), fn, images, targets, **options
        ),
        "random_logit": n(metrics.random_logit, *explained, num_classes=CLASSES, similarity="cosine", **options),
        "coherency": n(metrics.coherency, *explained, **options),
        "adcc": n(metrics.adcc, explain_one, fn, images, targets, **options),
        "arcc": n(metrics.arcc, explain_one, fn, images, targets, percentages=(50,), **options),
        "parameter_randomization": n(
            metrics.parameter_randomization, explain_with, params, other, images, targets,
            layers={"w": ["w"]}, similarity="cosine", **options,
        ),
        "efficient_mprt": n(metrics.efficient_mprt, explain_with, params, other, images, targets, **options),
    }  # fmt: skip


PROBABILITIES = (
    *("insertion", "deletion_vs_random", "masked_accuracy", "region_perturbation", "irof", "monotonicity"),
    *("average_drop", "average_increase", "faithfulness_correlation", "faithfulness_estimate"),
    *("monotonicity_correlation", "sensitivity_n", "non_sensitivity", "completeness", "infidelity", "road"),
    *("adcc", "arcc"),
)


QUICK = ("insertion", "masked_accuracy", "average_increase", "faithfulness_estimate", "completeness", "max_sensitivity")


@functools.partial(jax.jit, static_argnums=0)
def measured(names, weights, images, maps, targets):
    known = following(weights, images, maps, targets)
    found = {name: known[name]() for name in names}
    return found | {"gradient": explain(network(weights), images, targets, saliency_of="probability", chunk_size=5)}


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.full)])
def test_metrics_and_maps_do_not_depend_on_the_integer_type_and_are_nan_for_no_class(full):
    """As oracle, renumber the classes and reorder the network's logits: results must not change."""
    names = tuple(name for name in following(WEIGHTS, IMAGES, MAPS, TARGETS) if (name in QUICK) != full)
    order = np.roll(np.arange(CLASSES), 7)  # new class i is the former class order[i]
    renumbered = np.where(np.array(NONE), TARGETS, (TARGETS.astype(int) + 7) % CLASSES).astype(np.int8)
    found = measured(names, WEIGHTS, IMAGES, MAPS, TARGETS)
    other = measured(names, WEIGHTS[:, order], IMAGES, MAPS, renumbered)
    for name, values in found.items():
        undefined = np.isnan(values).reshape(5, -1)
        assert undefined[3:].all() and not undefined[:3].any(), name
        if name != "random_logit":  # random_logit draws the other class by its number
            np.testing.assert_allclose(values, other[name], rtol=2e-3, atol=1e-5, err_msg=name)


def test_each_metric_refuses_a_class_that_does_not_exist():
    for name, metric in following(WEIGHTS, IMAGES, MAPS, np.array([1, 50, 120, -1, 3])).items():
        with pytest.raises(ValueError, match=r"(targets|labels) contains -1"):
            metric()
            pytest.fail(name)


def test_each_metric_of_probabilities_refuses_one_logit_and_names_the_remedy():
    for name, metric in following(WEIGHTS[:, :1], IMAGES, MAPS, np.zeros(5, np.uint8)).items():
        if name in PROBABILITIES:
            with pytest.raises(ValueError, match=r"1 logit: its softmax is 1 .* \[0, z\]"):
                jax.eval_shape(metric)
                pytest.fail(name)


def test_each_metric_says_what_a_network_has_to_return():
    fn = lambda image: (image.reshape(-1) @ WEIGHTS, image)  # noqa: E731
    for metric in (metrics.deletion, metrics.average_drop, metrics.road):
        options = {} if metric is metrics.average_drop else {"key": KEY}
        with pytest.raises(ValueError, match="fn returned a tuple: return its logits"):
            metric(fn, IMAGES, MAPS, TARGETS[:1], **options)


def test_each_method_refuses_the_probability_of_one_logit():
    kernel = RNG.normal(size=(3, 3, 1, 2)).astype(np.float32)

    def fn(image, attends=False):
        found = jax.lax.conv_general_dilated(
            image[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(found)[0].reshape(-1, 2) if attends else jax.nn.relu(found)[0]
        return (x + jax.nn.softmax(x @ x.T) @ x if attends else x).sum()[None]

    for name in METHODS:
        network = functools.partial(fn, attends=name in ("attention_rollout", "attention_relevance", "legrad"))
        for saliency_of in ("probability", "log_probability"):
            if name not in ("lrp", "eigen_cam"):  # LRP starts from logits alone, Eigen-CAM from none
                with pytest.raises(ValueError, match=r"1 logit: .* \[0, z\] .* saliency_of='logit'"):
                    jax.eval_shape(
                        functools.partial(explain, network, IMAGES, 0, method=name, saliency_of=saliency_of, key=KEY)
                    )
                    pytest.fail(name)
    with pytest.raises(ValueError, match="1 logit"):  # RISE explains the probability by default
        explain(fn, IMAGES, 0, method="rise", key=KEY)


def test_one_logit_as_two_is_explained_by_its_sigmoid():
    weights = RNG.normal(size=(SIDE * SIDE, 1)).astype(np.float32) * 0.3
    two = lambda image: jnp.concatenate([jnp.zeros(1), image.reshape(-1) @ weights])  # noqa: E731
    found = explain(two, IMAGES, 1, saliency_of="probability", chunk_size=5)
    p = 1 / (1 + np.exp(-(IMAGES.reshape(5, -1).astype(np.float64) @ weights)))
    np.testing.assert_allclose(found.reshape(5, -1), p * (1 - p) * weights[:, 0], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("dtype", "count"), [(np.uint8, 300), (np.uint8, 256), (np.int8, 200), (np.uint16, 300)])
def test_a_gradient_by_a_narrow_target_is_the_class_s_own(dtype, count):
    weights = RNG.normal(size=(SIDE * SIDE, count)).astype(np.float32)
    targets = np.array([1, 50, 120, 127, count // 2], dtype)
    expected = weights[:, targets.astype(int)].T.reshape(IMAGES.shape)
    fn = lambda image: image.reshape(-1) @ weights  # noqa: E731
    np.testing.assert_array_equal(explain(fn, IMAGES, targets, chunk_size=5), expected)
    contrast = Contrast(targets, np.zeros(5, dtype))
    np.testing.assert_allclose(
        explain(fn, IMAGES, contrast, chunk_size=5), expected - weights[:, :1].T.reshape(1, SIDE, SIDE, 1), atol=1e-6
    )
