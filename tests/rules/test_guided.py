"""Tests of guided backpropagation and deconvnet against captum and the formula, and of finding ReLUs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_network as reference
import tiny_transformer as tiny

from sdecor.attribution import Contrast, explain
from sdecor.attribution.propagation import deconvnet, guided_backpropagation

METHODS = {method.__name__: jax.jit(method, static_argnums=0) for method in (guided_backpropagation, deconvnet)}
RELUS = {
    "relu": jax.nn.relu,
    "maximum": lambda x: jnp.maximum(x, 0),
    "where": lambda x: jnp.where(x > 0, x, 0),
    "product": lambda x: x * (x > 0),
    "clip": lambda x: jnp.clip(x, 0),
    "largest": lambda x: jnp.minimum(jnp.maximum(x, 0), jnp.inf),
    "minimum": lambda x: -jnp.minimum(-x, 0),
    "selected": lambda x: jax.lax.select(x <= 0, jnp.zeros_like(x), x),
    "absolute": lambda x: (x + jnp.abs(x)) / 2,
    "halves": lambda x: 0.5 * x + jnp.abs(x) * 0.5,
    "difference": lambda x: x - jnp.minimum(x, 0),
    "scaled": lambda x: 2 * jnp.maximum(x / 2, 0),
    "compiled": jax.jit(lambda x: jnp.maximum(x, 0)),
    "recomputed": jax.checkpoint(jax.nn.relu),
    "select": lambda x: jnp.select([x > 0], [x], 0.0),
    "piecewise": lambda x: jnp.piecewise(x, [x > 0], [lambda v: v, 0.0]),
    "stacked": lambda x: jnp.stack([jnp.zeros_like(x), x]).max(0),
    "of a column": lambda x: jnp.where((x > 0)[:, None], x[:, None], 0)[:, 0],
    "of two sums": lambda x: jnp.where(x * jnp.arange(1.0, 2) > 0, x * jnp.arange(1.0, 2), 0),
}
rng = np.random.default_rng(3)
IMAGE = rng.normal(size=(4, 4, 2))
W1, B1 = rng.normal(size=(32, 7)) / 4, rng.normal(size=7) / 4
W2, B2 = rng.normal(size=(7, 6)), rng.normal(size=6) / 4
W3 = rng.normal(size=(6, 3))
close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def dense(activation):
    """Return a network of three dense layers with `activation` after two of them."""
    w1, b1, w2, b2, w3 = (jnp.asarray(x, jnp.float32) for x in (W1, B1, W2, B2, W3))
    return lambda image: activation(activation(image.ravel() @ w1 + b1) @ w2 + b2) @ w3


def formula(method, target, cap=np.inf):
    """Return the attribution of `dense` in float64."""
    first = IMAGE.ravel() @ W1 + B1
    second = first.clip(0, cap) @ W2 + B2

    def passed(cotangent, x):
        inside = (x > 0) & (x < cap) if method == "guided_backpropagation" else x < cap
        return cotangent * (cotangent > 0) * inside

    return (W1 @ passed(W2 @ passed(W3[:, target], second), first)).reshape(IMAGE.shape)


@pytest.mark.parametrize("method", METHODS)
def test_equals_captum(method):
    maps = jax.jit(partial(explain, reference.network, method=method))(reference.images(), reference.labels())
    np.testing.assert_allclose(maps, reference.stored("captum_rules")[method], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("relu", RELUS)
def test_formula_however_the_relu_is_written(method, relu):
    image = jnp.asarray(IMAGE, jnp.float32)
    network = dense(RELUS[relu])
    for target in range(3):
        close(METHODS[method](network, image, target), formula(method, target))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("relu6", [jax.nn.relu6, lambda x: jnp.clip(x, 0, 6)])
def test_relu6_is_closed_above_its_cap(method, relu6):
    image, scale = jnp.asarray(IMAGE, jnp.float32), 8.0
    maps = METHODS[method](dense(lambda x: relu6(scale * x) / scale), image, 1)
    assert (IMAGE.ravel() @ W1 + B1 > 6 / scale).any()
    close(maps, formula(method, 1, cap=6 / scale))


@pytest.mark.parametrize("method", METHODS)
def test_reused_function_is_changed_at_each_use(method):
    relu = jax.jit(lambda x: jnp.maximum(x, 0))
    close(METHODS[method](dense(relu), jnp.asarray(IMAGE, jnp.float32), 0), formula(method, 0))
    weights = jnp.asarray(rng.normal(0.05, 0.2, size=(3, 32, 32)), jnp.float32)

    def scanned(image):
        return jax.lax.scan(lambda x, w: (relu(x @ w), None), image.ravel(), weights)[0].sum(keepdims=True)

    def unrolled(image):
        x = image.ravel()
        for w in weights:
            x = relu(x @ w)
        return x.sum(keepdims=True)

    image = jnp.abs(jnp.asarray(IMAGE, jnp.float32))
    maps = METHODS[method](scanned, image, 0)
    assert not np.allclose(maps, jax.grad(lambda x: scanned(x)[0])(image))
    close(maps, METHODS[method](unrolled, image, 0))


@pytest.mark.parametrize("method", METHODS)
def test_other_activations_keep_their_gradient(method):
    image = jnp.asarray(IMAGE, jnp.float32)
    with pytest.raises(ValueError, match=f"{method} changes how gradients pass a ReLU, and fn has none"):
        METHODS[method](dense(jax.nn.gelu), image, 0)
    for name in ("celu", "elu", "selu", "leaky_relu", "silu", "hard_swish", "hard_tanh", "softplus", "log_sigmoid"):
        with pytest.raises(ValueError, match="fn has none"):
            METHODS[method](dense(getattr(jax.nn, name)), image, 0)

    def mixed(image):  # the ReLU is always active: only GELU's gradient counts
        return jax.nn.relu(jnp.abs(dense(jax.nn.gelu)(image)) + 1)

    plain = jax.jit(jax.grad(lambda x: mixed(x)[0]))(image)
    close(METHODS[method](mixed, image, 0), plain)


def test_a_relu_that_is_not_entered_is_refused():
    def looped(image):
        return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: jax.nn.relu(x) / 2, image.ravel())[:3]

    with pytest.raises(ValueError, match="guided_backpropagation cannot handle `while`.*may hold a ReLU"):
        guided_backpropagation(looped, jnp.asarray(IMAGE, jnp.float32), 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", [9, Contrast(0, 9)])
def test_a_class_that_does_not_exist_gives_nan(method, target):
    """The method gives NaN without `explain` too, even where no ReLU passes a gradient."""
    maps = METHODS[method](dense(lambda x: jnp.maximum(x + 100, 0)), jnp.asarray(IMAGE, jnp.float32), target)
    assert jnp.isnan(maps).all()


@pytest.mark.parametrize("method", METHODS)
def test_examples_do_not_depend_on_the_chunk(method):
    images, labels = jnp.asarray(rng.normal(size=(5, *IMAGE.shape)), jnp.float32), jnp.arange(5) % 3
    run = jax.jit(partial(explain, dense(jax.nn.relu), method=method), static_argnames="chunk_size")
    maps = run(images, labels)
    assert maps.shape == images.shape
    close(run(images, labels, chunk_size=2), maps)
    close(METHODS[method](dense(jax.nn.relu), images[3], labels[3]), maps[3])


def test_a_transformer_keeps_its_gradient_but_for_the_relu():
    """A ReLU of the logits passes the gradient of a positive logit; the rest of a transformer has no ReLU."""
    params, image = tiny.weights(), jnp.asarray(tiny.image(), jnp.float32)

    def explained(way):
        fn = partial(tiny.apply, params, blocks=1, **way)
        guided = guided_backpropagation(lambda x: jax.nn.relu(jnp.abs(fn(x)[1:2]) * 2), image, 0)
        return guided, jax.grad(lambda x: 2 * jnp.abs(fn(x)[1]))(image)

    for guided, gradient in jax.jit(lambda: [explained(way) for way in tiny.WAYS.values()])():
        assert float(jnp.abs(gradient).max()) > 1e-3
        np.testing.assert_allclose(guided, gradient, rtol=1e-3, atol=1e-5)
