"""Tests of explaining noisy copies: closed forms, captum's results on the same copies, and wrapping any method."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_network as reference

from sdecor.attribution import Noise, explain, input_x_gradient, smoothed, smoothgrad, squaregrad, vargrad
from sdecor.attribution.paths import integrated_gradients

SHAPE = (6, 5, 3)
KEY = jax.random.key(0)


@pytest.fixture
def image() -> jax.Array:
    return jax.random.normal(jax.random.key(1), SHAPE)


@pytest.fixture
def weights() -> jax.Array:
    return jax.random.normal(jax.random.key(3), SHAPE)


def smooth(weights):
    """Return a smooth network that mixes all features."""
    return lambda x: jnp.stack([jnp.tanh((weights * x).sum() / 3), jnp.sin((weights * x**2).sum())])


def attribute(method, fn, image, target=0, **options):
    """Return a method's result under `jit`."""
    return jax.jit(lambda image: method(fn, image, target, **options))(image)


def same(found, expected, tolerance=1e-5):
    """Assert that maps agree, relative to the largest entry."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * float(np.abs(expected).max()))


def test_linear_network(image, weights):
    """The gradient is the same at every copy."""
    fn = lambda x: jnp.stack([(weights * x).sum(), 0.0])  # noqa: E731
    same(attribute(smoothgrad, fn, image, key=KEY), weights)
    same(attribute(squaregrad, fn, image, key=KEY), weights**2)
    np.testing.assert_allclose(attribute(vargrad, fn, image, key=KEY), 0, atol=1e-12)


def test_quadratic_network(image, weights):
    """The gradient `2 w (x + noise)` has mean `2 w x` and variance `4 w² σ²`: within five standard errors."""
    samples, sigma = 2000, 0.5
    options = {"key": KEY, "samples": samples, "scale": sigma, "relative": False, "chunk_size": 100}
    fn = lambda x: jnp.stack([(weights * x**2).sum(), 0.0])  # noqa: E731
    mean, variance = (attribute(method, fn, image, **options) for method in (smoothgrad, vargrad))
    assert (jnp.abs(mean - 2 * weights * image) < 5 * 2 * jnp.abs(weights) * sigma / np.sqrt(samples)).all()
    assert (jnp.abs(variance / (2 * weights * sigma) ** 2 - 1) < 5 * np.sqrt(2 / samples)).all()


def test_scale_is_a_share_of_the_range(image, weights):
    spread = float(image.max() - image.min())
    share = attribute(smoothgrad, smooth(weights), image, key=KEY, samples=3, scale=0.2)
    absolute = attribute(smoothgrad, smooth(weights), image, key=KEY, samples=3, scale=0.2 * spread, relative=False)
    same(share, absolute)


@pytest.mark.parametrize("method", [smoothgrad, pytest.param(squaregrad, marks=pytest.mark.full), vargrad])
def test_statistics_equal_captum_on_the_same_copies(method):
    expected = reference.stored("captum_gradients")[method.__name__]
    count = len(expected)
    run = jax.jit(lambda x, y: explain(reference.network, x, y, method=method, key=KEY, samples=6, scale=0.3))
    same(run(reference.images()[:count], reference.labels()[:count]), expected)


@pytest.mark.parametrize("method", [smoothgrad, vargrad])
def test_chunk_size_does_not_change_a_map(image, weights, method):
    whole = attribute(method, smooth(weights), image, key=KEY, samples=10)
    for chunk_size in (1, 3, 100):
        same(attribute(method, smooth(weights), image, key=KEY, samples=10, chunk_size=chunk_size), whole, 2e-5)


@pytest.mark.parametrize("method", [smoothgrad, vargrad])
def test_maps_belong_to_the_image(weights, method):
    """A map depends neither on the rest of the batch nor on `chunk_size`."""
    images, keys = jax.random.normal(jax.random.key(4), (8, *SHAPE)), jax.random.split(KEY, 8)

    def run(images, targets, keys, chunk_size=None):
        fn = smooth(weights)
        return explain(fn, images, targets, method=method, chunk_size=chunk_size, key=keys, samples=5)

    batch = (images, jnp.arange(8) % 2, keys)
    whole = jax.jit(run)(*batch)
    same(jax.jit(functools.partial(run, chunk_size=3))(*(x[3:8] for x in batch)), whole[3:8], 2e-5)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (input_x_gradient, {"saliency_of": "probability"}),
        (integrated_gradients, {"steps": 4, "baseline": "uniform"}),
    ],
)
def test_any_method_can_be_wrapped(image, weights, method, options):
    """The map is the mean of the method's maps of two copies, each with its own key."""
    noisy = smoothed(method, Noise(samples=2, scale=0.3, relative=False))
    found = attribute(noisy, smooth(weights), image, key=KEY, **options)

    @jax.jit
    def of_copy(key):
        draw, rest = jax.random.split(key)
        own = {} if method is input_x_gradient else {"key": rest}
        return method(smooth(weights), image + 0.3 * jax.random.normal(draw, SHAPE), 0, **own, **options)

    same(found, (of_copy(jax.random.fold_in(KEY, 0)) + of_copy(jax.random.fold_in(KEY, 1))) / 2)


def test_explain_wraps_any_method_and_knows_its_options(image, weights):
    batch, none = jnp.stack([image, -image]), Noise(samples=1, scale=0.0)
    run = functools.partial(explain, smooth(weights), method=integrated_gradients)
    same(*(jax.jit(lambda x: run(x, 1, noise=noise, key=KEY, steps=3))(batch) for noise in (None, none)))  # noqa: B023
    with pytest.raises(ValueError, match="did you mean 'steps'"):
        run(batch, 1, noise=none, key=KEY, step=3)
    with pytest.raises(ValueError, match="draws random numbers: pass key="):
        run(batch, 1, noise=none)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (Noise(statistic="median"), "statistic = 'median' is not known"),
        (Noise(samples=0), "samples = 0"),
        (Noise(scale=-0.1), "scale = -0.1"),
    ],
)
def test_errors_say_what_is_wrong(noise, message):
    with pytest.raises(ValueError, match=message):
        smoothed(input_x_gradient, noise)
