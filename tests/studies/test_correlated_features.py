"""Tests of the closed forms of docs/theory.md against float64 definitions, and of its theorems on trained networks."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from studies import correlated_features, network, redundancy
from studies.network import LAYERS, Recipe, cosines, densities, initial, train
from studies.patches import CLASSES, groups, parts

# Compiled as one program each: operation by operation they take seconds.
forward = jax.jit(network.forward, static_argnames="relu")
input_gradient = jax.jit(network.input_gradient, static_argnames="relu")
penalise = jax.jit(network.penalise, static_argnums=0)

RNG = np.random.default_rng(0)
RATIOS = np.geomspace(0.25, 4, 8)


def test_refit_after_an_invertible_change_leaves_the_gradient():
    jacobian, x, target = RNG.normal(size=(5, 9)), RNG.normal(size=(200, 9)), RNG.normal(size=200)
    features, change = x @ jacobian.T, RNG.normal(size=(5, 5))

    def gradient(jacobian: np.ndarray, features: np.ndarray) -> np.ndarray:
        return jacobian.T @ np.linalg.lstsq(features, target, rcond=None)[0]

    changed = gradient(change @ jacobian, features @ change.T)
    np.testing.assert_allclose(changed, gradient(jacobian, features), atol=1e-12)


@pytest.mark.parametrize("ridge", [0.0, 0.3, RNG.random(8)])
def test_ridge_weights_solve_the_normal_equations(ridge):
    noise = redundancy.noise_of(0.6, RATIOS)
    covariance = np.ones((8, 8)) + np.diag(noise)
    expected = np.linalg.solve(covariance + np.diag(ridge * np.ones(8)), np.ones(8))
    weights = redundancy.ridge_weights(noise, ridge)
    np.testing.assert_allclose(weights, expected, rtol=1e-12)
    error = 1 - 2 * weights.sum() + weights @ covariance @ weights
    np.testing.assert_allclose(redundancy.explained_error(noise, weights), error, rtol=1e-12)


def test_whitened_ridge_weights_are_those_of_ridge_in_white_coordinates():
    noise = redundancy.noise_of(0.8, RATIOS)
    values, axes = np.linalg.eigh(np.ones((8, 8)) + np.diag(noise))
    white = axes / np.sqrt(values) @ axes.T
    expected = white @ (white @ np.ones(8)) / 1.5
    np.testing.assert_allclose(redundancy.whitened_ridge_weights(noise, 0.5), expected, rtol=1e-10)


def test_spread_rises_with_correlation_under_a_ridge_and_only_then():
    def spreads(ridge: float) -> np.ndarray:
        noises = [redundancy.noise_of(each, RATIOS) for each in (0.1, 0.3, 0.5, 0.7, 0.9, 0.99)]
        return np.array([redundancy.participation(redundancy.ridge_weights(noise, ridge)) for noise in noises])

    np.testing.assert_allclose(spreads(0.0), spreads(0.0)[0], rtol=1e-12)
    assert (np.diff(spreads(0.1)) > 0).all() and (spreads(0.1) > spreads(0.0)).all() and spreads(0.1)[-1] < 8


def test_fitted_spread_follows_the_closed_form():
    rows = list(correlated_features.fixed_detectors(range(2), count=20000))
    spread, predicted = (np.array([row[name] for row in rows]) for name in ("spread", "predicted"))
    np.testing.assert_allclose(spread, predicted, rtol=0.12)
    np.testing.assert_allclose([row["predicted"] for row in rows if row["white"]], predicted[0], rtol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_participation_counts_equal_entries(scale):
    values = scale * np.array([[1.0, -1.0, 1.0, 0.0], [0.0, 0.0, 2.0, 0.0]])
    np.testing.assert_allclose(redundancy.participation(values), [3.0, 1.0])


def test_mean_cosine_is_the_number_of_active_paths():
    samples = np.maximum(RNG.normal(size=(500, 6)) + RNG.normal(size=6), 0)
    samples /= np.sqrt((samples**2).mean(0))
    pairs = np.asarray(cosines(samples))
    mean = pairs[~np.eye(6, dtype=bool)].mean()
    expected = (samples.sum(1) ** 2).mean() / (samples**2).sum(1).mean()
    np.testing.assert_allclose(redundancy.active_paths(mean, 6), expected, rtol=1e-5)


def test_cosine_is_made_of_correlation_and_densities():
    samples = np.maximum(RNG.normal(size=(300, 5)) + 0.5, 0)
    density = np.asarray(densities(samples))
    np.testing.assert_allclose(density, samples.mean(0) ** 2 / (samples**2).mean(0), rtol=1e-5)
    expected = np.corrcoef(samples.T) * np.sqrt(np.outer(1 - density, 1 - density)) + np.sqrt(
        np.outer(density, density)
    )
    np.testing.assert_allclose(cosines(samples), expected, atol=1e-5)


def test_independent_rectified_gaussians_share_a_third_of_their_length():
    pairs = np.asarray(cosines(np.maximum(RNG.normal(size=(200_000, 2)), 0)))
    np.testing.assert_allclose(pairs[0, 1], 1 / np.pi, atol=0.01)


def test_collapsed_classes_bound_the_correlation_from_below():
    for _ in range(20):
        means = RNG.normal(size=(4, 10))
        correlation = np.corrcoef(means.T)
        found = (correlation[~np.eye(10, dtype=bool)] ** 2).mean()
        assert found >= redundancy.collapse_floor(10, 4) - 1e-12
    # Three orthogonal contrasts of four classes, each in the same number of features, reach the bound.
    contrasts = np.array([[1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]])
    correlation = np.corrcoef(np.repeat(contrasts, 3, 0))
    found = (correlation[~np.eye(9, dtype=bool)] ** 2).mean()
    np.testing.assert_allclose(found, redundancy.collapse_floor(9, 4), rtol=1e-12)
    assert redundancy.collapse_floor(3, 4) == 0


def test_variance_of_an_average_of_gradients():
    covariance = 0.3 * np.ones((5, 5)) + 0.7 * np.eye(5)
    np.testing.assert_allclose(redundancy.averaged_variance(5, 0.3), np.full(5, 0.2) @ covariance @ np.full(5, 0.2))


def test_white_features_may_be_local_or_global():
    spectrum = 1 / np.maximum(np.minimum(np.arange(64), 64 - np.arange(64)), 1.0) ** 2
    covariance = np.fft.ifft(spectrum).real[(np.arange(64)[:, None] - np.arange(64)) % 64]
    spreads = {}
    for basis in ("fourier", "local"):
        filters = redundancy.white_filters(64, basis)
        np.testing.assert_allclose(filters @ covariance @ filters.T * 1.0, np.eye(64), atol=1e-9)
        spreads[basis] = redundancy.participation(filters).mean()
    assert spreads["fourier"] > 50 and spreads["local"] < 20


def small(data, seeds=1, count=96):
    drawn = [data(seed, count) for seed in range(seeds)]
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    return keys, jnp.stack([each.images for each in drawn]), jnp.stack([each.labels for each in drawn])


def test_rotation_decorrelates_linear_features_at_no_cost_and_with_the_same_gradient():
    keys, images, labels = small(groups)
    params = jax.tree.map(lambda x: x[0], train(Recipe(relu=False, steps=100), keys, images, labels, 0.0, 1e-3))
    _, features = forward(params, images[0], relu=False)
    rotation = np.linalg.eigh(np.cov(np.asarray(features["pooled"], np.float64).T))[1].astype(np.float32)
    rotated = params | {
        "filters": params["filters"] @ rotation,
        "bias": params["bias"] @ rotation,
        "classifier": rotation.T @ params["classifier"],
    }
    before, after = (
        penalise("covariance", forward(each, images[0], relu=False)[1]["pooled"], labels[0])
        for each in (params, rotated)
    )
    assert after < 1e-6 * before
    for name in ("filters", "classifier"):
        np.testing.assert_allclose(jnp.linalg.norm(rotated[name]), jnp.linalg.norm(params[name]), rtol=1e-5)
    gradients = [input_gradient(each, images[0], labels[0], relu=False) for each in (params, rotated)]
    np.testing.assert_allclose(*gradients, atol=1e-5 * float(jnp.abs(gradients[0]).max()))


def test_pooled_penalties_do_not_see_where_features_are_active():
    images, params = jnp.asarray(parts(0, 32).images), initial(jax.random.key(0), 16, 8)
    after = np.array(forward(params, images, relu=True)[1]["after"])
    moved = np.stack([np.stack([RNG.permutation(each) for each in image.T]).T for image in after])
    labels = jnp.asarray(parts(0, 32).labels)
    for penalty in ("covariance", "correlation", "cosine", "within"):
        values = [penalise(penalty, jnp.asarray(maps.mean(1)), labels) for maps in (after, moved)]
        np.testing.assert_allclose(*values, rtol=1e-4)
    assert abs(penalise("cosine", after, labels) - penalise("cosine", moved, labels)) > 1e-3


def test_penalties_are_their_definitions():
    features, labels = RNG.random((24, 3, 5)).astype(np.float32), jnp.arange(24) % CLASSES
    samples = features.reshape(-1, 5).astype(np.float64)
    cosine = samples.T @ samples / np.outer(*[np.linalg.norm(samples, axis=0)] * 2)
    expected = {
        "cosine": (cosine[~np.eye(5, dtype=bool)] ** 2).mean(),
        "density": (samples.mean(0) ** 2 / (samples**2).mean(0)).mean(),
        "covariance": oracles.decorrelation(samples, "covariance"),
    }
    own = np.repeat(np.asarray(labels), 3)
    within = samples - np.stack([samples[own == k].mean(0) for k in range(CLASSES)])[own]
    expected["within"] = oracles.decorrelation(within, "correlation")
    for penalty, value in expected.items():
        np.testing.assert_allclose(penalise(penalty, features, labels), value, rtol=1e-4)


@pytest.mark.full
def test_metrics_of_a_network_are_finite_and_in_range(monkeypatch):
    compiled = {"forward": forward, "input_gradient": input_gradient}
    for name in ("cosines", "densities", "gini", "energy_inside"):
        compiled[name] = jax.jit(getattr(correlated_features, name))
    for name, function in compiled.items():
        monkeypatch.setattr(correlated_features, name, function)
    keys, images, labels = small(parts, count=32)
    recipe = Recipe(penalty="density", layer="after", consistency=True, steps=3)
    params = jax.tree.map(lambda x: x[0], train(recipe, keys, images, labels, 1.0, 1e-3))
    found = correlated_features.measure(params, parts(1000, 32), relu=True)
    assert all(np.isfinite(value) and 0 <= value <= 16 for value in found.values())
    features = forward(params, images[0], relu=True)[1]
    assert {name: features[name].shape for name in LAYERS} == {
        "pooled": (32, 16), "before": (32, 16, 16), "after": (32, 16, 16)
    }  # fmt: skip


def test_drawn_groups_correlate_as_asked():
    examples = groups(0, 40_000, correlation=0.4)
    sums = examples.images.reshape(-1, CLASSES, 4, 4).mean(-1)
    middle = np.corrcoef(sums[:, 0].T)[~np.eye(4, dtype=bool)].mean()
    np.testing.assert_allclose(middle, 0.4, atol=0.03)
    assert examples.shown.mean() == pytest.approx(1 / CLASSES)
