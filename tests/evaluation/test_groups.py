"""Tests of the groups of an evaluation: each equals its public metrics with the right arguments and options."""

import itertools
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdecor import metrics
from sdecor.attribution import input_x_gradient
from sdecor.core.arrays import blur
from sdecor.core.rng import example_keys
from sdecor.evaluation import GROUPS, RANDOM, Setup, choose_methods, groups_of, make_explanation, make_measurement, runs
from sdecor.evaluation.context import PARAMETER_SEED
from sdecor.metrics.registry import KNOWN

RNG = np.random.default_rng(3)
N, SIDE, CLASSES = 4, 12, 5
PIXELS = RNG.integers(0, 256, (N, SIDE, SIDE, 3), dtype=np.uint8)
IMAGES = jnp.asarray((PIXELS / 255 - 0.5) / 0.25, jnp.float32)
CODES = (RNG.random((N, SIDE, SIDE)) < 0.3).astype(np.uint8)
CODES[:, :2] = 2
LABELS, TARGETS = np.array([0, 1, 2, 3], np.int32), np.array([4, 1, 0, 3], np.int32)
VARIABLES = {
    "params": {
        "first": jnp.asarray(0.1 * RNG.normal(size=(SIDE * SIDE * 3, 8)), jnp.float32),
        "second": jnp.asarray(RNG.normal(size=(8, CLASSES)), jnp.float32),
    }
}
FEW = {  # options that make the test cheap; all others are the group's own
    "replacement": {"steps": 2},
    "road": {"percentages": (20, 50)},
    "masked_accuracy": {"percentages": (20, 50)},
    "infidelity": {"samples": 3},
    "sensitivities": {"samples": 2},
    "stabilities": {"samples": 2},
    "smooth_mprt": {"samples": 2},
    "aopc_morf": {"patch": 4},
    "aopc_lerf": {"patch": 4},
    "pixel_flipping": {"steps": 3},
    "monotonicity": {"steps": 3},
    "faithfulness_correlation": {"samples": 3},
    "faithfulness_estimate": {"steps": 3},
    "monotonicity_correlation": {"steps": 3, "samples": 2},
    "sensitivity_n": {"samples": 3, "shares": (0.1, 0.3)},
    "continuity": {"shifts": (-1, 2)},
    "non_sensitivity": {"pixels": 3},
}


def apply(variables, images):
    features = jnp.tanh(images.reshape(images.shape[0], -1) @ variables["params"]["first"])
    return features @ variables["params"]["second"], features


SETUP = Setup(apply, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), target="label", chunk_size=N)
INDEX = np.arange(N, dtype=np.int32)
OWN, KEYS = (example_keys(jax.random.key(0), step, INDEX) for step in (0, 1))  # for explanations and for metrics


def fn_of(params):
    return lambda image: apply({"params": params}, image[None])[0][0]


fn = fn_of(VARIABLES["params"])


def explain_of(fn, image, target, key):
    return input_x_gradient(fn, image, target)


def explain_one(image, target, key):
    return input_x_gradient(fn, image, target)


def explain_with(params, image, target, key):
    return input_x_gradient(fn_of(params), image, target)


ATTRIBUTIONS = jax.vmap(explain_one, (0, 0, None))(IMAGES, jnp.asarray(TARGETS), None)
MAPS, SIGNED = np.abs(ATTRIBUTIONS).sum(-1), np.sum(ATTRIBUTIONS, -1)
OBJECTS, IGNORE = CODES == 1, CODES == 2
PARAMS = (VARIABLES["params"], metrics.redraw(jax.random.key(PARAMETER_SEED), VARIABLES["params"]))


def usual(maps=MAPS, classes=TARGETS):
    return fn, IMAGES, maps, classes


def road():
    correct = metrics.road_curves(*usual(classes=LABELS), key=KEYS, percentages=(20, 50)).correct
    return jnp.mean(correct, 1), correct


def masked_accuracy():
    curve = metrics.masked_accuracy_curve(*usual(classes=LABELS), key=KEYS, percentages=(20, 50))
    return jnp.mean(curve, 1), curve


def replacement():
    insertion = metrics.insertion_curve(*usual(), key=KEYS, steps=2, baseline="blur")
    deletion = metrics.deletion_curve(*usual(), key=KEYS, steps=2, baseline="zero")
    return metrics.area_under(insertion), metrics.area_under(deletion), insertion, deletion


def stabilities():
    options = {"key": OWN, "samples": 2, "features_fn": lambda image: apply(VARIABLES, image[None])[1][0]}
    return metrics.relative_stabilities(explain_one, fn, IMAGES, TARGETS, **options)


def layers_of(metric, **options):
    values = metric(explain_with, *PARAMS, IMAGES, TARGETS, key=OWN, **options)
    return jnp.mean(values, 1), values


# Arrays from the public metrics, by group. Without a named option, the metric's default is right.
EXPECTED = {
    "replacement": replacement,
    "road": road,
    "masked_accuracy": masked_accuracy,
    "top_k_intersection": lambda: metrics.top_k_intersection(MAPS, OBJECTS, k=7, ignore=IGNORE),  # 5 % of 144
    "completeness": lambda: abs(metrics.completeness(fn, IMAGES, ATTRIBUTIONS, TARGETS, relative=True)),
    "infidelity": lambda: metrics.infidelity(
        fn, IMAGES, ATTRIBUTIONS, TARGETS, key=KEYS, samples=3, scaling="optimal", contributions=True
    ),
    "sensitivities": lambda: metrics.sensitivities(explain_one, IMAGES, TARGETS, key=OWN, samples=2),
    "stabilities": stabilities,
    "random_logit": lambda: metrics.random_logit(explain_one, IMAGES, TARGETS, num_classes=CLASSES, key=OWN),
    "coherency": lambda: metrics.coherency(explain_one, IMAGES, TARGETS, key=OWN),
    "adcc": lambda: metrics.adcc(explain_one, fn, IMAGES, TARGETS, key=OWN),
    "arcc": lambda: metrics.arcc(explain_one, fn, IMAGES, TARGETS, key=OWN),
    "input_invariance": lambda: metrics.input_invariance(explain_of, fn, IMAGES, TARGETS, key=OWN),
    "parameter_randomization": lambda: layers_of(metrics.parameter_randomization),
    "smooth_mprt": lambda: layers_of(metrics.smooth_mprt, samples=2),
    "energy_inside": lambda: metrics.energy_inside(MAPS, OBJECTS, ignore=IGNORE),
    "pointing_game": lambda: metrics.pointing_game(MAPS, OBJECTS, ignore=IGNORE),
    "attribution_localization": lambda: metrics.attribution_localization(MAPS, OBJECTS, ignore=IGNORE, weighted=True),
    "relevance_rank_accuracy": lambda: metrics.relevance_rank_accuracy(MAPS, OBJECTS, ignore=IGNORE),
    "roc_auc": lambda: metrics.roc_auc(MAPS, OBJECTS, ignore=IGNORE),
    "best_iou": lambda: metrics.best_iou(MAPS, OBJECTS, ignore=IGNORE),
    "gini": lambda: metrics.gini(MAPS),
    "checkerboard": lambda: metrics.checkerboard(MAPS),
    "entropy": lambda: metrics.entropy(MAPS),
    "effective_complexity": lambda: metrics.effective_complexity(MAPS),
    "mst_compactness": lambda: metrics.mst_compactness(MAPS),
    "aopc_morf": lambda: metrics.region_perturbation(*usual(), key=KEYS, patch=4, order="morf"),
    "aopc_lerf": lambda: metrics.region_perturbation(*usual(), key=KEYS, patch=4, order="lerf"),
    "pixel_flipping": lambda: metrics.pixel_flipping(*usual(), key=KEYS, steps=3),
    "selectivity": lambda: metrics.selectivity(*usual(), key=KEYS),
    "irof": lambda: metrics.irof(*usual(), key=KEYS),
    "monotonicity": lambda: metrics.monotonicity(*usual(), key=KEYS, steps=3, saliency_of="probability"),
    "average_drop": lambda: metrics.average_drop(*usual(), saliency_of="probability"),
    "average_increase": lambda: metrics.average_increase(*usual(), saliency_of="probability"),
    "faithfulness_correlation": lambda: metrics.faithfulness_correlation(*usual(SIGNED), key=KEYS, samples=3),
    "faithfulness_estimate": lambda: metrics.faithfulness_estimate(*usual(SIGNED), key=KEYS, steps=3),
    "monotonicity_correlation": lambda: metrics.monotonicity_correlation(*usual(), key=KEYS, steps=3, samples=2),
    "sensitivity_n": lambda: metrics.sensitivity_n(*usual(SIGNED), key=KEYS, samples=3, shares=(0.1, 0.3)),
    "continuity": lambda: metrics.continuity(explain_one, IMAGES, TARGETS, key=OWN, shifts=(-1, 2)),
    "efficient_mprt": lambda: metrics.efficient_mprt(explain_with, *PARAMS, IMAGES, TARGETS, key=OWN),
    "non_sensitivity": lambda: metrics.non_sensitivity(*usual(), key=KEYS, pixels=3),
}


def measured(name: str, word: str = "input_x_gradient", key: jax.Array | None = None) -> dict[str, np.ndarray]:
    key = jax.random.key(0) if key is None else key
    (group,) = groups_of(GROUPS[name].gives, FEW).values()
    ((method, _),) = choose_methods([word]).values()
    group = group.of(method, SETUP.saliency_of)
    batch = {"image": PIXELS, "label": LABELS, "index": INDEX, "target": TARGETS, "object": CODES}
    batch |= make_explanation(SETUP, method)(VARIABLES, batch, key)
    return make_measurement(SETUP, (group,), method)(VARIABLES, batch, key)


# In the full suite only: they share their arguments with others and take seconds to compile.
FULL = (
    *("adcc", "aopc_lerf", "arcc", "coherency"),
    *("continuity", "efficient_mprt", "faithfulness_estimate", "irof", "monotonicity_correlation"),
    *("non_sensitivity", "pixel_flipping", "selectivity", "smooth_mprt"),
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full if name in FULL else ()) for name in sorted(EXPECTED)]
)
def test_a_group_is_the_metric_with_its_arguments(name):
    names = GROUPS[name].gives

    @jax.jit  # one compilation for both
    def both():
        found, expected = measured(name), EXPECTED[name]()
        assert tuple(found) == names
        return tuple(found.values()), expected if isinstance(expected, tuple) else (expected,)

    for key, found, expected in zip(names, *both(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-5, err_msg=key)
        assert np.isfinite(found).any()


QUICK = ("gini", "average_drop", "road", "faithfulness_correlation")  # the others in the full suite only


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.full) for name in sorted(EXPECTED)]
)
def test_what_a_retest_leaves_out_does_not_depend_on_the_seed(name):
    found = jax.jit(lambda key: measured(name, key=key))
    first, second = (jax.device_get(found(jax.random.key(seed))) for seed in (0, 1))
    equal = all(np.array_equal(first[given], second[given], equal_nan=True) for given in first)
    assert equal or GROUPS[name].draws
    assert not (equal and name == "faithfulness_correlation")


def test_the_two_orders_of_regions_are_options():
    assert dict(GROUPS["aopc_morf"].options)["order"] == "morf"
    assert dict(GROUPS["aopc_lerf"].options)["order"] == "lerf"


def test_no_group_is_without_an_expectation():
    elsewhere = {name for name, each in GROUPS.items() if each.needs in ("set", "mosaic")}  # in test_evaluation.py
    assert EXPECTED.keys() == GROUPS.keys() - elsewhere


@pytest.mark.parametrize("name", sorted(GROUPS))
def test_a_group_needs_what_the_registry_says(name):
    known = metrics.METRICS | metrics.DATASET_METRICS
    assert {known[given].needs for given in GROUPS[name].gives if given in known} == {GROUPS[name].needs}


def test_metrics_of_a_group_agree_in_their_options():
    for group in GROUPS.values():
        rows = [KNOWN[name] for name in group.gives if name in KNOWN]
        for one, other in itertools.combinations((row.options for row in rows), 2):
            assert all(one[name] == other[name] for name in one.keys() & other.keys()), group.name
        assert len({row.signature for row in rows}) == len({row.follows for row in rows}) == 1, group.name


def test_every_need_of_a_group_has_a_number_of_images():
    counted = [needs for several in runs.IMAGES.values() for needs in several]
    assert sorted(counted) == sorted({group.needs for group in GROUPS.values()})


@pytest.mark.parametrize("baseline", ["blur", "white"])
@pytest.mark.parametrize("of", ["logit", "probability"])
def test_completeness_is_held_against_the_methods_own_baseline_and_score(baseline, of):
    found = measured("completeness", f"integrated_gradients:steps=24:baseline={baseline}:saliency_of={of}")
    assert np.max(found["completeness"]) < 0.01


@pytest.mark.parametrize(
    "word", ["integrated_gradients:steps=24:baseline=uniform", "blur_integrated_gradients:steps=48"]
)
def test_completeness_knows_drawn_baselines_and_the_start_of_blurring(word):
    assert np.max(measured("completeness", word)["completeness"]) < 0.02


def test_infidelity_replaces_by_the_methods_own_baseline():
    found = measured("infidelity", "integrated_gradients:steps=4:baseline=blur:saliency_of=probability")
    ((method, _),) = choose_methods(["integrated_gradients:steps=4:baseline=blur:saliency_of=probability"]).values()
    explain = method.bind("logit")
    attributions = jax.vmap(lambda x, y: explain(fn, x, y, None))(IMAGES, jnp.asarray(TARGETS))
    options = {"samples": 3, "scaling": "optimal", "contributions": True, "saliency_of": "probability"}
    expected = metrics.infidelity(fn, IMAGES, attributions, TARGETS, key=KEYS, baseline=blur(IMAGES, 5.0), **options)
    np.testing.assert_allclose(found["infidelity"], expected, rtol=2e-3)


def test_blur_sigma_is_an_option_that_is_bound_to_the_baseline_for_the_metric():
    assert dict(GROUPS["aopc_morf"].options)["blur_sigma"] == dict(GROUPS["infidelity"].options)["blur_sigma"] == 5.0
    assert "blur_sigma" not in dict(GROUPS["completeness"].options)
    (group,) = groups_of(["insertion"], {"replacement": {"steps": 2, "blur_sigma": 2.0}}).values()
    context = SimpleNamespace(fn=fn, images=IMAGES, maps=MAPS, targets=TARGETS, keys=KEYS, chunk_size=N)
    smooth = partial(metrics.blurred, sigma=2.0)
    found, expected = jax.jit(
        lambda: (group(context)["insertion"], metrics.insertion(*usual(), key=KEYS, steps=2, baseline=smooth))
    )()
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    ((method, _),) = choose_methods(["blur_integrated_gradients:max_sigma=3"]).values()
    own = dict(GROUPS["completeness"].of(method, "logit").options)
    assert (own["baseline"], own["blur_sigma"]) == ("blur", 3)


def test_what_draws_a_baseline_for_each_sample_has_no_completeness():
    ((method, _),) = choose_methods(["expected_gradients"]).values()
    with pytest.raises(ValueError, match="expected_gradients draws a baseline for each sample"):
        GROUPS["completeness"].of(method, "logit")
    assert dict(GROUPS["infidelity"].of(method, "logit").options)["baseline"] == "uniform"


def test_options_that_are_given_stay():
    (group,) = groups_of(["completeness"], {"completeness": {"baseline": "white"}}).values()
    ((method, _),) = choose_methods(["integrated_gradients:baseline=blur"]).values()
    assert dict(group.of(method, "probability").options) == {
        "baseline": "white",
        "saliency_of": "probability",
        "relative": True,
    }


def test_a_random_order_is_evaluated_for_groups_that_rank_pixels():
    assert {name for name, each in GROUPS.items() if each.reference} == {
        *("replacement", "road", "masked_accuracy", "aopc_morf", "aopc_lerf", "pixel_flipping", "selectivity", "irof")
    }
    assert RANDOM.settings("logit") == {"saliency_of": "logit"}
