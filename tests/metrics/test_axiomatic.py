"""Tests of completeness, non-sensitivity and input invariance against Quantus, brute force and known networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_network import images, labels, network, parameters, stored

from sdecor.attribution import gradient, input_x_gradient
from sdecor.metrics import axiomatic

N = 4
EXPECTED = stored("quantus_robustness")
RNG = np.random.default_rng(6)
SMALL = RNG.normal(size=(3, 4, 5, 2)).astype(np.float32)
TARGETS = np.array([0, 2, 1])
WEIGHT = RNG.normal(size=(3, *SMALL.shape[1:])).astype(np.float32)


def linear(x):
    return (jnp.asarray(WEIGHT) * x[None]).sum((1, 2, 3)) + 0.5


def run(metric, *functions, **options):
    """Return the metric as a compiled function of arrays."""
    compiled = jax.jit(functools.partial(metric, *functions, **options))
    return lambda *arrays, **more: compiled(*arrays, **more)


class TestCompleteness:
    def test_quantus(self):
        """Quantus tests whether both sides are equal as floating point numbers; here the difference is returned."""
        x, y = images()[:N], labels()[:N]
        attributions = jax.jit(jax.vmap(functools.partial(gradient, network)))(x, y)
        darkest = jnp.broadcast_to(x.min((1, 2, 3), keepdims=True), x.shape)
        gaps = run(axiomatic.completeness, network)(x, attributions, y, baseline=darkest)
        np.testing.assert_allclose(gaps, EXPECTED["completeness"], rtol=1e-4)

    def test_linear_network(self):
        complete = SMALL * WEIGHT[TARGETS]
        gaps = run(axiomatic.completeness, linear)(SMALL, complete, TARGETS)
        np.testing.assert_allclose(gaps, 0, atol=1e-5)
        excess = run(axiomatic.completeness, linear)(SMALL, complete + 0.25, TARGETS)
        np.testing.assert_allclose(excess, 10, atol=1e-4)
        relative = run(axiomatic.completeness, linear, relative=True)(SMALL, 1.5 * complete, TARGETS)
        np.testing.assert_allclose(relative, 0.5 * np.sign(complete.sum((1, 2, 3))), rtol=2e-3)

    def test_scores_baselines_and_chunks(self):
        attributions, options = jnp.ones(SMALL.shape[:3]), {"saliency_of": "probability", "baseline": "mean"}
        mean = jnp.broadcast_to(SMALL.mean((1, 2), keepdims=True), SMALL.shape)
        p, q = (jax.nn.softmax(jax.vmap(linear)(x))[np.arange(3), TARGETS] for x in (SMALL, mean))
        gaps = run(axiomatic.completeness, linear, chunk_size=2, **options)(SMALL, attributions, TARGETS)
        np.testing.assert_allclose(gaps, 20 - (p - q), rtol=1e-5)

    def test_undefined_is_nan(self):
        completeness = run(axiomatic.completeness, linear, relative=True)
        assert np.isnan(completeness(SMALL, SMALL, TARGETS, baseline=SMALL)).all()
        assert np.isnan(completeness(SMALL, SMALL * jnp.nan, TARGETS)).all()
        assert np.isnan(completeness(SMALL, SMALL, TARGETS + 3)).all()
        with pytest.raises(ValueError, match="belong together"):
            axiomatic.completeness(linear, SMALL, SMALL[:2], TARGETS)


def test_integer_images_are_refused(key):
    integers = np.zeros(SMALL.shape, np.uint8)
    explain_of = functools.partial(TestInputInvariance.explained, gradient)
    for call in (
        lambda: axiomatic.completeness(linear, integers, SMALL, TARGETS),
        lambda: axiomatic.non_sensitivity(linear, integers, SMALL[..., 0], TARGETS, key=key),
        lambda: axiomatic.input_invariance(explain_of, linear, integers, TARGETS, key=key),
    ):
        with pytest.raises(ValueError, match="images has dtype uint8"):
            call()


class TestNonSensitivity:
    def test_quantus(self, key):
        """Quantus counts mismatches and takes channels as features; here one channel, and the share of mismatches."""
        seen, tint = jnp.asarray(EXPECTED["seen"])[..., None], jnp.array([1.0, 0.5, -0.7])[None, None]
        x, y, maps = images()[:N].mean(-1, keepdims=True), labels()[:N], EXPECTED["maps"]
        darkest = jnp.broadcast_to(x.min((1, 2, 3), keepdims=True), x.shape)
        metric = run(axiomatic.non_sensitivity, lambda x: network(x * seen * tint), chunk_size=64)
        shares = metric(x, maps, y, key=key, baseline=darkest)
        np.testing.assert_allclose(shares * 256, EXPECTED["non_sensitivity"], atol=1e-3)

    def test_known_network(self, key):
        """Half of the pixels matter: the map of these scores 0, its opposite 1, a constant map a half."""
        used = (np.arange(20).reshape(4, 5) % 2).astype(np.float32)
        metric = run(axiomatic.non_sensitivity, lambda x: linear(x * used[..., None]))
        for saliency, expected in ((used, 0), (1 - used, 1), (np.ones_like(used), 0.5), (-7 * used, 0)):
            maps = np.repeat(saliency[None], 3, 0)
            np.testing.assert_allclose(metric(SMALL, maps, TARGETS, key=key), expected)

    def test_more_samples_find_a_pixel_that_matters_seldom(self, key):
        def seldom(x):
            return jnp.stack([jnp.maximum(x - 0.8, 0).sum(), jnp.float32(0)])

        # Values are in [0, 1], and the image is below 0.8: a fifth of the replacements change the score.
        batch = np.clip(np.abs(SMALL[:1, ..., :1]), 0, 0.7).astype(np.float32)
        batch[0, 0, :2, 0] = 0, 1
        maps, share = np.ones((1, 4, 5), np.float32), {}
        for samples in (1, 40):
            metric = run(axiomatic.non_sensitivity, seldom, samples=samples, chunk_size=4)
            share[samples] = metric(batch, maps, np.array([0]), key=key)[0]
        assert 0.5 < share[1] <= 0.95 and share[40] == 0

    def test_chunks_batches_and_visited_pixels(self, key):
        keys = jax.random.split(key, 3)
        maps = np.where(RNG.random((3, 4, 5)) < 0.4, 0, SMALL[..., 0]).astype(np.float32)
        used = (RNG.random((4, 5)) < 0.5).astype(np.float32)[..., None]
        metric = functools.partial(axiomatic.non_sensitivity, lambda x: linear(x * used), samples=2)
        expected = np.mean((used[..., 0] == 0) ^ (maps == 0), (1, 2))
        np.testing.assert_allclose(run(metric)(SMALL, maps, TARGETS, key=keys), expected, rtol=1e-6)
        chunked = run(metric, chunk_size=7)(SMALL[1:], maps[1:], TARGETS[1:], key=keys[1:])
        np.testing.assert_allclose(chunked, expected[1:], rtol=1e-6)
        every = run(metric, chunk_size=2, pixels=20)(SMALL, maps, TARGETS, key=keys)
        np.testing.assert_allclose(every, expected, rtol=1e-6)
        few = run(axiomatic.non_sensitivity, lambda x: linear(x * used), pixels=5)(SMALL, maps, TARGETS, key=keys)
        np.testing.assert_allclose(few * 5, np.round(few * 5), atol=1e-6)

    def test_undefined_is_nan(self, key):
        maps = np.ones((3, 4, 5), np.float32)
        maps[0], maps[1, 0, 0] = 0, np.inf
        metric = functools.partial(axiomatic.non_sensitivity, linear, key=key)
        np.testing.assert_array_equal(np.isnan(jax.jit(metric)(SMALL, maps, TARGETS)), [True, True, False])
        for options, name in (
            ({"pixels": 21}, "pixels"),
            ({"samples": 0}, "samples"),
            ({"baseline": "red"}, "baseline"),
        ):
            with pytest.raises(ValueError, match=name):
                run(metric, **options)(SMALL, maps, TARGETS)
        with pytest.raises(ValueError, match="belong together"):
            metric(SMALL, maps[:2], TARGETS)


class TestInputInvariance:
    def first_layer(self, padding):
        kernel, bias = parameters()["conv1/kernel"], parameters()["conv1/bias"][None, None, None]
        layout = ("NHWC", "HWIO", "NHWC")

        def fn(x):
            y = jax.lax.conv_general_dilated(x[None], kernel, (1, 1), padding, dimension_numbers=layout) + bias
            return jax.nn.relu(y).mean((0, 1, 2))

        return fn

    def test_quantus(self, key):
        """Quantus shifts the first layer's bias by its smallest response, which is wrong for padded images.

        With padding Quantus therefore finds that the gradient depends on the shift. Shifting the input is right for any
        network.
        """
        x, y = images()[:N], labels()[:N]
        for method, padding, name, agree in (
            (gradient, "VALID", "gradient", True),
            (input_x_gradient, "VALID", "input_x_gradient", True),
            (gradient, "SAME", "gradient_padded", False),
        ):
            explain_of = functools.partial(self.explained, method)
            metric = run(axiomatic.input_invariance, explain_of, self.first_layer(padding), shift=-1.0)
            invariant = np.asarray(metric(x, y, key=key)) < 1e-4
            np.testing.assert_array_equal(invariant == (EXPECTED[f"input_invariance/{name}"] == 1), agree)

    @staticmethod
    def explained(method, fn, x, target, key):
        return method(fn, x, target)

    @pytest.mark.parametrize("shift", [1.0, np.array([0.5, -2.0], np.float32)[None, None]])
    def test_closed_form(self, key, shift):
        metric = run(axiomatic.input_invariance, functools.partial(self.explained, input_x_gradient), linear)
        weight = np.abs(WEIGHT[TARGETS])
        expected = (np.abs(shift) * weight).sum((1, 2, 3)) / (np.abs(SMALL) * weight).sum((1, 2, 3))
        values = metric(SMALL, TARGETS, key=key, shift=jnp.asarray(shift))
        np.testing.assert_allclose(values, expected, rtol=1e-4)

    def test_chunks_and_undefined(self, key):
        explain_of = functools.partial(self.explained, input_x_gradient)
        expected = run(axiomatic.input_invariance, explain_of, linear)(SMALL, TARGETS, key=key)
        chunked = run(axiomatic.input_invariance, explain_of, linear, chunk_size=2)
        known = SMALL * WEIGHT[TARGETS]
        np.testing.assert_allclose(chunked(SMALL, TARGETS, key=key), expected, rtol=1e-5)
        np.testing.assert_allclose(chunked(SMALL, TARGETS, key=key, attributions=known), expected, rtol=1e-5)
        assert np.isnan(run(axiomatic.input_invariance, explain_of, linear)(0 * SMALL, TARGETS, key=key)).all()
