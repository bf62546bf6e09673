"""Tests of robustness and relative stability against Quantus, float64 loops over the same draws, and known cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_network import apply, images, labels, network, parameters, stored
from scipy.stats import kstest
from traced import largest

from sdecor.attribution import gradient
from sdecor.metrics import robustness
from sdecor.metrics.robustness import NOISE, symmetric_uniform

N, RADIUS, SAMPLES = 4, 0.05, 5
RNG = np.random.default_rng(2)
SIDE = 4
IMAGES = RNG.normal(size=(3, SIDE, SIDE, 2)).astype(np.float32)
TARGETS = np.array([0, 1, 0])
MATRIX = RNG.normal(size=(2, IMAGES[0].size, IMAGES[0].size)).astype(np.float32)


def explain(x, target, key):
    return gradient(network, x, target)


def quadratic(x, target, key):
    """Return the gradient of ½ xᵀAx for the target's symmetric A."""
    a = jnp.asarray(MATRIX)[target]
    return ((a + a.T) / 2 @ x.ravel()).reshape(x.shape)


def features(x):
    """Return the last hidden layer, by replacing the head by the identity."""
    head = {"dense2/kernel": jnp.eye(24), "dense2/bias": jnp.zeros(24)}
    return apply(parameters() | head, x)


def run(metric, *functions, **options):
    """Return the metric as a compiled function of arrays and a key."""
    compiled = jax.jit(functools.partial(metric, *functions, **options))
    return lambda *arrays, key, **more: compiled(*arrays, key=key, **more)


def draws(key, n, shape, samples, radius):
    """Return the neighbours' differences `[n, samples, …]` in float64, drawn with the documented keys."""
    keys = [jax.random.fold_in(jax.random.fold_in(key, i), NOISE) for i in range(n)]
    uniform = jax.jit(functools.partial(symmetric_uniform, shape=shape))
    return radius * np.array([[uniform(jax.random.fold_in(k, s)) for s in range(samples)] for k in keys], np.float64)


class TestQuantus:
    batch = (images()[:N], labels()[:N])
    options = {"samples": SAMPLES, "radius": RADIUS}

    def test_sensitivities(self, key):
        values = run(robustness.sensitivities, explain, relative=False, **self.options)(*self.batch, key=key)
        expected = stored("quantus_robustness")
        np.testing.assert_allclose(values.maximum, expected["max_sensitivity"], rtol=2e-4)
        np.testing.assert_allclose(values.average, expected["avg_sensitivity"], rtol=2e-4)
        np.testing.assert_allclose(values.lipschitz, expected["local_lipschitz"], rtol=2e-4)

    def test_relative_stabilities(self, key):
        """Where a neighbour changes the prediction, Quantus's maximum is NaN; ours is over the other neighbours."""
        options = {"features_fn": features, **self.options}
        values = run(robustness.relative_stabilities, explain, network, **options)(*self.batch, key=key)
        expected = stored("quantus_robustness")
        np.testing.assert_allclose(values.input, expected["relative_input_stability"], rtol=2e-3)
        np.testing.assert_allclose(values.output, expected["relative_output_stability"], rtol=2e-3)
        np.testing.assert_allclose(values.representation, expected["relative_representation_stability"], rtol=2e-3)

    def test_continuity(self, key):
        """Quantus's shift of 0 pixels is left out: it compares the image with itself."""
        darkest = jnp.broadcast_to(self.batch[0].min((1, 2, 3), keepdims=True), self.batch[0].shape)
        continuity = run(robustness.continuity, explain, shifts=(-8, 8, 16), relative=False)
        values = continuity(*self.batch, key=key, baseline=darkest)
        np.testing.assert_allclose(values, stored("quantus_robustness")["continuity"], rtol=2e-4)

    def test_consistency(self):
        """Quantus returns 0 where no other explanation is equal; ours is NaN, as there is nothing to compare with."""
        maps = np.abs(jax.jit(jax.vmap(lambda x, y: explain(x, y, None)))(images(), labels())).sum(-1)
        cells = maps.reshape(8, -1).argmax(1) // 64
        values = np.asarray(jax.jit(robustness.consistency)(cells, jax.jit(jax.vmap(network))(images()).argmax(1)))
        alone = np.array([(np.asarray(cells) == cell).sum() == 1 for cell in cells])
        np.testing.assert_array_equal(np.isnan(values), alone)
        np.testing.assert_allclose(values[~alone], stored("quantus_robustness")["consistency"][~alone])


class TestSensitivities:
    def test_against_a_loop(self, key):
        values = run(robustness.sensitivities, quadratic, samples=6, radius=0.1)(IMAGES, TARGETS, key=key)
        for i, steps in enumerate(draws(key, 3, IMAGES.shape[1:], 6, 0.1).reshape(3, 6, -1)):
            a = MATRIX[TARGETS[i]].astype(np.float64)
            a = (a + a.T) / 2
            size = np.linalg.norm(a @ IMAGES[i].ravel())
            changes = np.linalg.norm(steps @ a, axis=1)
            assert values.maximum[i] == pytest.approx(changes.max() / size, rel=1e-4)
            assert values.average[i] == pytest.approx(changes.mean() / size, rel=1e-4)
            slope = (changes / np.linalg.norm(steps, axis=1)).max()
            assert values.lipschitz[i] == pytest.approx(slope / size, rel=1e-4)
            assert values.lipschitz[i] * size <= np.linalg.norm(a, 2) * 1.0001

    def test_constant_explanation_does_not_change(self, key):
        values = run(robustness.sensitivities, lambda x, y, k: jnp.arange(3.0))(IMAGES, TARGETS, key=key)
        np.testing.assert_array_equal(np.stack(values), 0)

    def test_identity_has_slope_one_whatever_the_radius(self, key):
        for radius in (1e-3, 1.0):
            options = {"radius": radius, "relative": False}
            slope = run(robustness.local_lipschitz, lambda x, y, k: x, **options)(IMAGES, TARGETS, key=key)
            np.testing.assert_allclose(slope, 1, rtol=1e-3)

    def test_noise_of_the_method_does_not_count(self, key):
        def noisy(x, target, k):
            return jax.random.normal(k, x.shape)

        values = run(robustness.max_sensitivity, noisy)(IMAGES, TARGETS, key=key)
        np.testing.assert_allclose(values, 0, atol=1e-6)

    def test_scale_of_the_explanation_does_not_matter(self, key):
        tiny = run(robustness.sensitivities, lambda *a: 1e-30 * quadratic(*a))(IMAGES, TARGETS, key=key)
        expected = run(robustness.sensitivities, quadratic)(IMAGES, TARGETS, key=key)
        np.testing.assert_allclose(tiny, expected, rtol=1e-4)

    def test_undefined_is_nan(self, key):
        """The metric is NaN for an attribution of zeros and for one that is not finite."""
        factors = jnp.array([0, jnp.inf, jnp.nan, 1])
        batch, kinds = np.concatenate([IMAGES, IMAGES[:1]]), np.arange(4)
        values = np.stack(run(robustness.sensitivities, lambda x, y, k: factors[y] * x)(batch, kinds, key=key))
        np.testing.assert_array_equal(np.isnan(values), np.broadcast_to(kinds < 3, (3, 4)))

    def test_chunks_batches_and_known_explanations_do_not_matter(self, key):
        keys = jax.random.split(key, 3)
        plain = run(robustness.sensitivities, quadratic, samples=5)
        expected = np.stack(plain(IMAGES, TARGETS, key=keys))
        chunked = run(robustness.sensitivities, quadratic, samples=5, chunk_size=2)
        known = np.stack([quadratic(*each, None) for each in zip(IMAGES, TARGETS, strict=True)])
        values = chunked(IMAGES, TARGETS, key=keys, attributions=known)
        np.testing.assert_allclose(values, expected, rtol=1e-5)
        chunked = run(robustness.sensitivities, quadratic, samples=5, chunk_size=4)  # two neighbours at a time
        values = np.stack(chunked(IMAGES[1:], TARGETS[1:], key=keys[1:]))
        np.testing.assert_allclose(values, expected[:, 1:], rtol=1e-5)

    def test_neighbours_are_never_all_built(self, key):
        many = functools.partial(robustness.sensitivities, quadratic, samples=64, chunk_size=6)
        assert largest(jax.make_jaxpr(many)(IMAGES, TARGETS, key=key).jaxpr) < 64 * IMAGES.size

    def test_bad_arguments_are_named(self, key):
        for options, name in (({"samples": 0}, "samples"), ({"radius": 0.0}, "radius"), ({"chunk_size": 0}, "chunk")):
            with pytest.raises(ValueError, match=name):
                run(robustness.max_sensitivity, quadratic, **options)(IMAGES, TARGETS, key=key)
        with pytest.raises(ValueError, match="belong together"):
            robustness.max_sensitivity(quadratic, IMAGES, TARGETS[:2], key=key)


INTEGERS = np.zeros(IMAGES.shape, np.uint8)


@pytest.mark.parametrize(
    "metric",
    [
        functools.partial(robustness.sensitivities, quadratic),
        functools.partial(robustness.continuity, quadratic),
        functools.partial(robustness.relative_stabilities, quadratic, lambda x: x[0, 0]),
    ],
)
class TestInputs:
    def test_integer_images_are_refused(self, metric, key):
        """Integer neighbours closer than 1 would be the image itself, and every explanation perfectly robust."""
        with pytest.raises(ValueError, match="images has dtype uint8"):
            metric(INTEGERS, TARGETS, key=key)

    def test_targets(self, metric, key):
        with pytest.raises(ValueError, match="targets = 'predicted': pass classes"):
            metric(IMAGES, "predicted", key=key)
        assert jax.tree.leaves(jax.eval_shape(functools.partial(metric, IMAGES, [0, 1, 0], key=key)))[0].shape == (3,)

    def test_memory_is_bounded_by_default(self, metric, key):
        many = np.resize(IMAGES, (1000, *IMAGES.shape[1:]))
        targets, keys = np.resize(TARGETS, 1000), jax.random.split(key, 1000)
        traced = jax.make_jaxpr(metric)(many, targets, key=keys)
        assert largest(traced.jaxpr) <= 64 * MATRIX[0].size


def test_draws_are_uniform_and_symmetric(key):
    draw = np.asarray(symmetric_uniform(key, (101, 99)), np.float64)
    assert draw.shape == (101, 99) and -1 < draw.min() < -0.999 and 0.999 < draw.max() < 1
    assert kstest(draw.ravel(), "uniform", (-1, 2)).pvalue > 0.01
    assert abs(np.corrcoef(draw.ravel()[: 101 * 99 // 2], draw.ravel()[-(101 * 99 // 2) :])[0, 1]) < 0.05


class TestContinuity:
    def test_against_a_loop(self, key):
        shifts = (-2, 1, 3)
        continuity = run(robustness.continuity, quadratic, shifts=shifts, baseline="mean")
        values = continuity(IMAGES, TARGETS, key=key)
        for i, image in enumerate(IMAGES.astype(np.float64)):
            slopes = []
            for shift in shifts:
                near = np.broadcast_to(image.mean((0, 1)), image.shape).copy()
                for column in range(SIDE):
                    if 0 <= column - shift < SIDE:
                        near[:, column] = image[:, column - shift]
                here, there = (np.asarray(quadratic(jnp.float32(x), TARGETS[i], None)) for x in (image, near))
                slopes.append(np.abs(here - there).sum() / np.abs(here).sum() / np.linalg.norm(image - near))
            assert values[i] == pytest.approx(max(slopes), rel=1e-4)

    def test_chunks_do_not_matter(self, key):
        expected, chunked = (
            run(robustness.continuity, quadratic, shifts=(-1, 1, 2), chunk_size=chunk_size)(IMAGES, TARGETS, key=key)
            for chunk_size in (None, 7)
        )
        np.testing.assert_allclose(chunked, expected, rtol=1e-5)

    def test_undefined_is_nan(self, key):
        constant = jnp.zeros((1, SIDE, SIDE, 2))
        continuity = run(robustness.continuity, lambda x, y, k: x + 1)
        assert np.isnan(continuity(constant, TARGETS[:1], key=key)).all()
        with pytest.raises(ValueError, match="shifts"):
            robustness.continuity(quadratic, IMAGES, TARGETS, key=key, shifts=(0, 1))


class TestConsistency:
    def test_known_case(self):
        codes = jnp.array([[1, 2], [1, 2], [1, 2], [1, 3], [2, 1], [2, 1]])
        expected = [0.5, 0.5, 0, np.nan, 1, 1]
        consistency = jax.jit(functools.partial(robustness.consistency, chunk_size=4))
        np.testing.assert_allclose(consistency(codes, jnp.array([0, 0, 1, 0, 3, 3])), expected)


class TestStability:
    def test_against_a_loop_where_some_neighbours_change_the_prediction(self, key):
        weight = RNG.normal(size=(2, IMAGES[0].size)).astype(np.float32)
        # The images are almost on the boundary between the two classes.
        gap = (weight[0] - weight[1]).astype(np.float64)
        flat = IMAGES.reshape(3, -1)
        near = (flat - ((flat @ gap) / (gap @ gap))[:, None] * gap + 1e-3 * gap).reshape(IMAGES.shape)
        near[0, 0, 0, 0] += 5  # the first image is far from the boundary
        near, explained = near.astype(np.float32), TARGETS
        options = {"features_fn": lambda x: x[..., 0] ** 2, "samples": 8}
        stabilities = run(robustness.relative_stabilities, quadratic, lambda x: weight @ x.ravel(), **options)
        values = stabilities(near, explained, key=key)
        changed = 0
        for i, steps in enumerate(draws(key, 3, IMAGES.shape[1:], 8, 0.02)):
            x, a = near[i].astype(np.float64), MATRIX[explained[i]].astype(np.float64)
            a = (a + a.T) / 2
            ratios = []
            for step in steps:
                y = x + step
                logits, moved = weight @ x.ravel(), weight @ y.ravel()
                if logits.argmax() != moved.argmax():
                    changed += 1
                    continue
                change = np.linalg.norm(a @ step.ravel() / (a @ x.ravel()))
                square = x[..., 0] ** 2
                below = (step / x, logits - moved, (square - y[..., 0] ** 2) / square)
                ratios.append([change / np.linalg.norm(part) for part in below])
            np.testing.assert_allclose([v[i] for v in values], np.max(ratios, 0), rtol=2e-3)
        assert 0 < changed < 24

    def test_no_neighbour_with_the_same_prediction_is_nan(self, key):
        def only_here(x):
            return jnp.where((x == jnp.asarray(IMAGES[1])).all() | (x[0, 0, 0] > 1e3), jnp.eye(2)[0], jnp.eye(2)[1])

        values = run(robustness.relative_stabilities, quadratic, only_here)(IMAGES, TARGETS, key=key)
        np.testing.assert_array_equal(np.isnan(values.input), [False, True, False])
        assert values.representation is None
        # The other images' logits do not change at all: the smallest denominator is used.
        assert np.isfinite(values.output[0]) and values.output[0] > 1e3

    def test_undefined_is_nan(self, key):
        """The metric is NaN for an attribution of zeros, one that is not finite, and logits that are not."""
        of_map, of_logits = jnp.array([0, jnp.nan, 1.0]), jnp.array([1.0, 1.0, jnp.nan])
        images = jnp.concatenate([IMAGES, jnp.broadcast_to(jnp.arange(3.0)[:, None, None, None], (3, 4, 4, 1))], -1)
        functions = (
            lambda x, y, k: of_map[x[0, 0, 2].round().astype(int)] * x,
            lambda x: of_logits[x[0, 0, 2].round().astype(int)] * x[0, 0, :2],
        )
        values = run(robustness.relative_input_stability, *functions)(images, TARGETS, key=key)
        assert np.isnan(values).all()

    def test_chunks_and_batches_do_not_matter(self, key):
        keys = jax.random.split(key, 3)
        metric, functions = robustness.relative_representation_stability, (lambda x: x[0, 0], lambda x: x[1])
        plain = run(metric, quadratic, *functions, samples=4)
        expected = plain(IMAGES, TARGETS, key=keys)
        chunked = run(metric, quadratic, *functions, samples=4, chunk_size=7)
        np.testing.assert_allclose(chunked(IMAGES[1:], TARGETS[1:], key=keys[1:]), expected[1:], rtol=1e-4)
