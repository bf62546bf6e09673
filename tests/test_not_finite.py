"""Tests that NaN or infinity reaches the results of its own example only, and that finite values make none."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from sdecor import attribution, losses, metrics

N, SIDE = 3, 12
_RNG = np.random.default_rng(0)
MAPS = _RNG.normal(size=(N, SIDE, SIDE)).astype(np.float32)
OTHERS = _RNG.normal(size=(N, SIDE, SIDE)).astype(np.float32)
OBJECTS = MAPS + OTHERS > 0.5
IMAGES = _RNG.normal(size=(N, SIDE, SIDE, 2)).astype(np.float32)
WEIGHTS = _RNG.normal(size=(2, 3)).astype(np.float32)
LABELS = np.arange(N)
KEY = jax.random.key(0)
NOT_FINITE = (np.nan, np.inf, -np.inf)


def with_one(arrays: np.ndarray, value: float) -> np.ndarray:
    """Return the arrays with `value` at one place of the middle example."""
    changed = arrays.copy()
    changed[(1, *(1,) * (arrays.ndim - 1))] = value
    return changed


@jax.jit
def features_results(features: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    forms = {
        f"{form} {gram}": partial(losses.decorrelation, form=form, gram=gram)
        for form in losses.FORMS
        for gram in ((None,) if form in ("whitening", "density") else (False, True))
    }
    return {name: jax.value_and_grad(form)(features) for name, form in forms.items()} | {
        "hinge": jax.value_and_grad(losses.variance_hinge)(features),
        "scale": (losses.feature_scale(features), features),
        "residual": (losses.whitening_residual(features), features),
    }


def test_features_that_are_not_finite_make_every_penalty_nan_and_its_gradient():
    features = _RNG.normal(size=(7, 4)).astype(np.float32)
    for value, gradient in features_results(features).values():
        assert np.isfinite(value) and np.isfinite(gradient).all()
    for bad in NOT_FINITE:
        for name, (value, gradient) in features_results(with_one(features, bad)).items():
            assert np.isnan(value) and not np.isfinite(gradient).all(), (name, bad)


def test_a_single_feature_that_is_not_finite_is_seen_though_it_has_no_pair():
    single = np.full((7, 1), np.nan, np.float32)
    for form in ("covariance", "density"):
        assert np.isnan(losses.decorrelation(single, form=form, gram=None if form == "density" else False))


@jax.jit
def map_results(maps: jax.Array) -> dict[str, jax.Array]:
    objects = (metrics.energy_inside, metrics.pointing_game, metrics.relevance_rank_accuracy, metrics.roc_auc)
    alone = (metrics.gini, metrics.entropy, metrics.effective_complexity, metrics.histogram_entropy)
    return (
        {metric.__name__: metric(maps, OBJECTS) for metric in (*objects, metrics.best_iou)}
        | {"top_k": metrics.top_k_intersection(maps, OBJECTS, k=9)}
        | {metric.__name__: metric(maps) for metric in (*alone, metrics.mst_compactness)}
        | {f.__name__: f(maps, OTHERS) for f in (metrics.pearson, metrics.spearman, metrics.cosine)}
        | {"ssim": metrics.ssim(maps, maps[:, ::-1]), "mosaic": metrics.grid_pointing_game(maps, jnp.arange(N))}
        | {f"scaled by {how}": attribution.normalise(maps, how=how) for how in attribution.NORMALISATIONS}
    )


def test_metrics_of_a_map_that_is_not_finite_are_nan_and_leave_the_others():
    plain = map_results(MAPS)
    for bad in NOT_FINITE:
        for name, values in map_results(with_one(MAPS, bad)).items():
            assert np.isnan(values[1]).all(), (name, bad)
            np.testing.assert_array_equal(values[::2], plain[name][::2], name)


@pytest.mark.parametrize("scale", [1e-30, 1e30, 3e38 / np.abs(MAPS).max()])
def test_metrics_of_a_map_do_not_change_with_its_scale(scale):
    plain, scaled = map_results(MAPS), map_results((MAPS.astype(np.float64) * scale).astype(np.float32))
    for name, values in plain.items():
        np.testing.assert_allclose(scaled[name], values, rtol=2e-5, atol=1e-6, err_msg=name)


def network(image: jax.Array) -> jax.Array:
    return jax.nn.relu(image).mean((0, 1)) @ WEIGHTS


@jax.jit
def image_results(images: jax.Array) -> dict[str, jax.Array]:
    def explain_one(image: jax.Array, target: jax.Array, key: jax.Array) -> jax.Array:
        return attribution.gradient(network, image, target)

    options = {"key": jax.random.split(KEY, N), "chunk_size": N}
    forward = lambda x: (jax.vmap(network)(x), ())  # noqa: E731
    return {
        "gradient": attribution.explain(network, images, LABELS),
        "penalty": losses.gradient_penalty(forward, images, LABELS, of="logit")[0],
        "deletion": metrics.deletion(network, images, MAPS, LABELS, steps=4, **options),
        "road": metrics.road(network, images, MAPS, LABELS, percentages=(20, 50), **options),
        "max_sensitivity": metrics.max_sensitivity(explain_one, images, LABELS, samples=2, **options),
        "random_logit": metrics.random_logit(
            explain_one, images, LABELS, num_classes=3, similarity="cosine", reduction="sum", **options
        ),
        "average_drop": metrics.average_drop(network, images, MAPS, LABELS, chunk_size=N),
        "completeness": metrics.completeness(network, images, MAPS, LABELS, chunk_size=N),
    }


def test_an_image_that_is_not_finite_gives_nan_behind_a_relu_too():
    plain = image_results(IMAGES)
    assert all(np.isfinite(values).all() for values in plain.values())
    for bad in NOT_FINITE:
        for name, values in image_results(with_one(IMAGES, bad)).items():
            assert np.isnan(values[1]).all(), (name, bad)
            np.testing.assert_allclose(values[::2], plain[name][::2], rtol=1e-5, atol=1e-6, err_msg=name)


# Classes that a logit of −inf excludes


LOGITS = np.float32([[0, 1, -1, 0.5], [2, 0, 1, -1], [0, 0.3, 0, 2]])
MASKED_LOGITS = np.float32([[0, 2, 1, 1], [1, 0, 0.5, 0], [1, 1, 0, 0]])
KEPT = [0, 1, 3]


def without(logits: np.ndarray, column: int = 2) -> np.ndarray:
    return np.where(np.arange(logits.shape[1]) == column, -np.inf, logits).astype(np.float32)


@partial(jax.jit, static_argnames="direction")
def consistency(logits: jax.Array, masked: jax.Array, *, direction: str) -> tuple[jax.Array, tuple]:
    def total(logits: jax.Array, masked: jax.Array) -> tuple[jax.Array, jax.Array]:
        values = losses.consistency(logits, masked, direction=direction)
        return values.sum(), values

    gradients, values = jax.grad(total, argnums=(0, 1), has_aux=True)(logits, masked)
    return values, gradients


@pytest.mark.parametrize("direction", losses.DIRECTIONS)
def test_consistency_is_the_divergence_over_the_classes_that_are_left(direction):
    values, gradients = consistency(without(LOGITS), without(MASKED_LOGITS), direction=direction)
    p, q = (oracles.softmax(z[:, KEPT].astype(np.float64)) for z in (LOGITS, MASKED_LOGITS))
    p, q = (p, q) if direction == "clean_masked" else (q, p)
    np.testing.assert_allclose(values, (p * np.log(p / q)).sum(1), rtol=1e-5)
    kept, kept_gradients = consistency(LOGITS[:, KEPT], MASKED_LOGITS[:, KEPT], direction=direction)
    np.testing.assert_allclose(values, kept, rtol=1e-5)
    for gradient, expected in zip(gradients, kept_gradients, strict=True):
        np.testing.assert_allclose(gradient[:, KEPT], expected, atol=1e-6)
        np.testing.assert_array_equal(gradient[:, 2], 0)


def test_consistency_is_infinite_only_where_the_second_prediction_alone_excludes_a_class():
    values, _ = consistency(LOGITS, without(MASKED_LOGITS), direction="clean_masked")
    np.testing.assert_array_equal(values, np.inf)
    values, gradients = consistency(without(LOGITS), MASKED_LOGITS, direction="clean_masked")
    p, q = oracles.softmax(LOGITS[:, KEPT].astype(np.float64)), oracles.softmax(MASKED_LOGITS.astype(np.float64))
    np.testing.assert_allclose(values, (p * np.log(p / q[:, KEPT])).sum(1), rtol=1e-5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    far = np.float32([[0, 0, -1e4, 0]])  # no probability in float32, but not −inf
    np.testing.assert_allclose(consistency(far, without(far), direction="clean_masked")[0], 0, atol=1e-6)


@jax.jit
def predictions(logits: jax.Array) -> dict[str, jax.Array]:
    labels = jnp.array([0, 1, 1])
    return {
        "classification": losses.classification(logits, labels),
        "gradient": jax.grad(lambda z: losses.classification(z, labels).sum())(logits)[:, :2],
        "cross_entropy": metrics.cross_entropy(logits, labels),
        "confidence": metrics.confidence(logits),
        "accuracy": metrics.accuracy(logits, labels),
    }


def test_predictions_without_a_class_are_those_of_the_classes_that_are_left():
    masked, kept = predictions(without(LOGITS)), predictions(LOGITS[:, KEPT])
    for name in kept:
        np.testing.assert_allclose(masked[name], kept[name], rtol=1e-5, atol=1e-6, err_msg=name)
    smoothed = losses.classification(without(LOGITS), np.array([0, 1, 1]), label_smoothing=0.1)
    np.testing.assert_array_equal(smoothed, np.inf)  # smoothing gives the excluded class a probability


def test_penalty_of_log_probabilities_sums_over_the_classes_that_are_left():
    images, labels = IMAGES[:, 0, 0], np.zeros(N, int)
    mask = jnp.array([0, -jnp.inf, 0])
    options = {"of": "log_probabilities"}
    masked, _ = losses.gradient_penalty(lambda x: (x @ WEIGHTS + mask[None], ()), images, labels, **options)
    kept = WEIGHTS[:, [0, 2]].astype(np.float64)
    slope = (1 - 2 * oracles.softmax(images @ kept)) @ kept.T  # gradient of Σ log p over two classes
    np.testing.assert_allclose(masked, (slope**2).sum(1), rtol=1e-5)


@pytest.mark.parametrize("saliency_of", attribution.SALIENCY_OF)
def test_attribution_without_a_class_is_that_of_the_classes_that_are_left(saliency_of):
    """This is tested for the gradient and for the two methods whose rules divide by logits."""
    mask, labels = jnp.array([0, -jnp.inf, 0]), np.array([0, 2, 2])
    masked = lambda x: network(x) + mask  # noqa: E731
    kept = lambda x: network(x)[np.array([0, 2])]  # noqa: E731
    methods = ("gradient", "deeplift") + (("lrp",) if saliency_of == "logit" else ())

    @jax.jit
    def maps(images: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        options = {"saliency_of": saliency_of}
        return [
            (
                attribution.explain(masked, images, labels, method=method, **options),
                attribution.explain(kept, images, labels // 2, method=method, **options),
            )
            for method in methods
        ]

    for found, expected in maps(IMAGES):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
