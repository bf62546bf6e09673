"""Tests of `explain` with gradients: known gradients, targets, chunks, devices, errors, reductions, normalisations."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdecor.attribution import METHODS, Noise, explain, gradient, normalise, reduce

SHAPE = (4, 5, 3)
CLASSES = 6


@pytest.fixture
def images() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (9, *SHAPE))


@pytest.fixture
def weights() -> jax.Array:
    return jax.random.normal(jax.random.key(2), (CLASSES, *SHAPE))


def network(weights):
    """Return a small non-linear network of one image."""
    return lambda image: jnp.tanh(weights * image[None]).sum((1, 2, 3)) + jnp.square(image).sum() * jnp.arange(6.0)


TARGETS = jnp.array([0, 5, 2, 2, 1, 4, 3, 0, 5])


def test_linear_network_has_its_weights_as_gradient(images, weights):
    found = explain(lambda x: jnp.einsum("khwc,hwc->k", weights, x), images, TARGETS)
    np.testing.assert_allclose(found, weights[TARGETS], rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "derivative"), [(jnp.square, lambda x: 2 * x), (jnp.sin, jnp.cos)], ids=["quadratic", "sin"]
)
def test_elementwise_networks(images, weights, function, derivative):
    found = explain(lambda x: jnp.einsum("khwc,hwc->k", weights, function(x)), images, TARGETS)
    np.testing.assert_allclose(found, weights[TARGETS] * derivative(images), rtol=1e-5, atol=1e-6)


def test_vmapped_gradient_equals_gradient_of_summed_target_logits(images, weights):
    fn = network(weights)
    summed = jax.grad(lambda x: jnp.take_along_axis(jax.vmap(fn)(x), TARGETS[:, None], 1).sum())(images)
    np.testing.assert_allclose(explain(fn, images, TARGETS), summed, rtol=1e-5, atol=1e-6)


def test_probability_gradients_follow_the_chain_rule(images, weights):
    fn, image = network(weights), 0.1 * images[0]
    p, jacobian = jax.jit(lambda x: (jax.nn.softmax(fn(x)), jax.jacrev(fn)(x)))(image)
    log_probability = jacobian[2] - jnp.einsum("k,khwc->hwc", p, jacobian)
    np.testing.assert_allclose(
        gradient(fn, image, 2, saliency_of="log_probability"), log_probability, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        gradient(fn, image, 2, saliency_of="probability"), p[2] * log_probability, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("chunk_size", [1, 2, 4, 9, 100])
def test_chunk_size_does_not_change_the_result(images, weights, chunk_size):
    fn = network(weights)
    whole = explain(fn, images, TARGETS)
    chunked = jax.jit(lambda x, y: explain(fn, x, y, chunk_size=chunk_size))(images, TARGETS)
    np.testing.assert_allclose(chunked, whole, rtol=1e-5, atol=1e-6)


def test_chunk_size_bounds_memory():
    """A program that takes few images at a time needs a fraction of the memory."""
    wide = jax.random.normal(jax.random.key(3), (5000, 60))

    def fn(image):
        return jnp.tanh(wide @ image.ravel()) @ jnp.ones((5000, CLASSES))

    images = jax.ShapeDtypeStruct((256, *SHAPE), jnp.float32)

    def temporary(chunk_size):
        run = jax.jit(lambda x: explain(fn, x, 0, chunk_size=chunk_size))
        return run.lower(images).compile().memory_analysis().temp_size_in_bytes

    assert temporary(4) < temporary(None) / 4


def test_one_target_for_all_and_one_for_each(images, weights):
    fn = network(weights)
    np.testing.assert_array_equal(explain(fn, images, 3), explain(fn, images, jnp.full(9, 3)))
    mixed = explain(fn, images, TARGETS)
    for row, target in enumerate(TARGETS):
        np.testing.assert_allclose(mixed[row], gradient(fn, images[row], target), rtol=1e-5, atol=1e-6)


def test_pmap_gives_the_same_maps(images, weights):
    fn, images, targets = network(weights), images[:8], TARGETS[:8]
    spread = jax.pmap(lambda x, y: explain(fn, x, y, chunk_size=1))(images.reshape(4, 2, *SHAPE), targets.reshape(4, 2))
    np.testing.assert_allclose(spread.reshape(images.shape), explain(fn, images, targets), rtol=1e-5, atol=1e-6)


def test_a_target_that_is_no_class_is_never_explained_as_another(images, weights):
    fn = network(weights)
    with pytest.raises(ValueError, match="targets = 6: there are 6 classes, 0 to 5"):
        explain(fn, images, 6)
    with pytest.raises(ValueError, match="targets contains -1"):
        explain(fn, images, TARGETS.at[3].set(-1))
    inside_jit = jax.jit(lambda x, y: explain(fn, x, y))(images, TARGETS.at[3].set(6))
    assert jnp.isnan(inside_jit[3]).all()
    assert jnp.isfinite(inside_jit[jnp.array([0, 1, 2, 4])]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "gradients"}, "did you mean 'gradient'"),
        ({"saliency_off": "logit"}, "did you mean 'saliency_of'"),
        ({"saliency_of": "logits"}, "did you mean 'logit'"),
        ({"images": jnp.zeros(5)}, r"images has shape \(5,\): pass a batch"),
        ({"images": jnp.zeros((2, *SHAPE), jnp.uint8)}, "images has dtype uint8"),
        ({"targets": jnp.zeros(3, int)}, r"targets has shape \(3,\)"),
        ({"targets": jnp.zeros(2)}, "targets has dtype float32"),
        ({"chunk_size": 0}, "chunk_size = 0"),
        ({"fn": lambda image: image.sum()[None, None]}, r"fn returned shape \(1, 1\)"),
        ({"fn": lambda image: image.sum()}, r"fn returned shape \(\)"),
        (
            {"fn": lambda x: {"logits": x, "a": x}},
            r"dict with keys 'a', 'logits': .* fn\(x\)\['logits'\]",
        ),
        ({"fn": lambda image: (image.sum((0, 1)), image)}, r"fn returned a tuple: .* lambda x: fn\(x\)\[0\]"),
        ({"fn": lambda image: None}, "fn returned a NoneType"),
        ({"fn": lambda image: jnp.argsort(image.sum((0, 1)))}, "fn returned dtype int32"),
        ({"method": lambda fn, image, target, *, step=3: image, "steps": 3}, "'<lambda>'.* did you mean 'step'"),
    ],
)
def test_errors_say_what_is_wrong(weights, change, message):
    arguments = {"fn": network(weights), "images": jnp.zeros((2, *SHAPE)), "targets": jnp.zeros(2, int)} | change
    with pytest.raises(ValueError, match=message):
        explain(**arguments)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_refuses_what_is_not_logits(method):
    """The method checks its function itself, without `explain`."""
    run = METHODS[method]
    key = {"key": jax.random.key(0)} if "key" in inspect.signature(run).parameters else {}
    with pytest.raises(ValueError, match="fn returned a dict with keys 'z': return its logits"):
        run(lambda image: {"z": jax.nn.relu(image.sum((0, 1)))}, jnp.ones(SHAPE), 0, **key)


def scaled(fn, image, target, factor=1.0, *, shift=0.0):
    return gradient(fn, image, target) * factor + shift


def open_ended(fn, image, target, **options):
    return scaled(fn, image, target, **options)


@pytest.mark.parametrize("method", [scaled, open_ended, functools.partial(scaled, shift=0.0)])
@pytest.mark.parametrize("noise", [None, Noise(samples=2, scale=0.0)])
def test_options_of_a_method_of_ones_own(images, weights, method, noise):
    fn, options = network(weights), {"noise": noise, "key": jax.random.key(0)}
    found = explain(fn, images, 0, method=method, factor=2.0, shift=1.0, **options)
    np.testing.assert_allclose(found, 2 * explain(fn, images, 0) + 1, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="method 'drawing' draws random numbers"):

        def drawing(fn, image, target, key):
            return image

        explain(fn, images, 0, method=drawing)


def test_bfloat16_network_gives_float32_maps(images, weights):
    fn = network(weights)
    half = explain(lambda x: fn(x.astype(jnp.bfloat16)), images, TARGETS)
    assert half.dtype == jnp.float32
    exact = explain(fn, images, TARGETS)
    assert float(jnp.abs(half - exact).max()) < 0.05 * float(jnp.abs(exact).max())
    assert reduce(half.astype(jnp.bfloat16)).dtype == jnp.float32


def test_reductions():
    attribution = jnp.array([[[[1.0, -3.0, 2.0]]]])
    expected = {"abs_sum": 6.0, "abs_mean": 2.0, "abs_max": 3.0, "sum": 0.0}
    for how, value in expected.items():
        assert reduce(attribution, how=how).shape == (1, 1, 1)
        assert float(reduce(attribution, how=how)[0, 0, 0]) == value
    with pytest.raises(ValueError, match="how = 'mean'"):
        reduce(attribution, how="mean")


def test_normalisations_belong_to_the_map():
    scaled = jax.jit(normalise, static_argnames=("how", "percentile"))
    maps = jax.random.normal(jax.random.key(0), (3, 10, 10)) * jnp.array([1.0, 1e-30, 1e30])[:, None, None]
    np.testing.assert_allclose(jnp.abs(scaled(maps, how="max")).max((1, 2)), 1, rtol=1e-6)
    np.testing.assert_allclose(jnp.abs(scaled(maps, how="sum")).sum((1, 2)), 1, rtol=1e-5)
    clipped = scaled(maps, how="percentile", percentile=90)
    np.testing.assert_allclose(jnp.abs(clipped).max((1, 2)), 1, rtol=1e-6)
    assert ((jnp.abs(clipped) == 1).sum((1, 2)) == 10).all()
    for how in ("max", "sum", "percentile"):
        np.testing.assert_allclose(scaled(maps, how=how)[:1], scaled(maps[:1], how=how), rtol=1e-6)
        np.testing.assert_array_equal(scaled(jnp.zeros((1, 4, 4)), how=how), 0)
        undefined = scaled(maps.at[0, 2, 3].set(jnp.nan).at[1, 2, 3].set(-jnp.inf), how=how)
        assert jnp.isnan(undefined[:2]).all() and jnp.isfinite(undefined[2]).all()
    lone = jnp.zeros((1, 20, 20)).at[0, 3, 3].set(7.0)
    assert float(scaled(lone, how="percentile")[0, 3, 3]) == 1
