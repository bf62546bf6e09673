"""Tests of what counts as a ReLU, what is refused because it may be one, and what keeps its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdecor.attribution import explain
from sdecor.attribution.propagation import deconvnet, guided_backpropagation

rng = np.random.default_rng(4)
IMAGE = jnp.asarray(rng.normal(size=(2, 2, 2)), jnp.float32)
W1, W2, W3 = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((8, 6), (6, 6), (6, 3)))
HIDDEN = IMAGE.ravel() @ W1


def network(activation):
    """Return a network with `activation` before its one ordinary ReLU."""
    return lambda image: jax.nn.relu(activation(image.ravel() @ W1) @ W2) @ W3


def pulled_back(activation):
    """Return the gradient of class 0 at W1's output, guided at the ordinary ReLU alone."""
    value, pull_back = jax.vjp(activation, HIDDEN)
    cotangent = W3[:, 0] * (W3[:, 0] > 0) * (value @ W2 > 0)
    return pull_back(W2 @ cotangent)[0]


def custom(function):
    """Return `function` with the derivative of the identity."""
    wrapped = jax.custom_jvp(function)
    wrapped.defjvp(lambda primals, tangents: (wrapped(*primals), tangents[0]))
    return wrapped


def root(x):
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)


def write_first(x):
    array = jax.new_ref(x)
    array[0] = 1.0
    return array[...]


SCALED = {
    "scaled": (lambda x: jnp.where(x > 0, 1.5 * x, 0), lambda x: 1.5 * jax.nn.relu(x)),
    "negative": (lambda x: jnp.select([x < 0], [2.0 * x]), lambda x: -2 * jax.nn.relu(-x)),
    "least": (lambda x: jnp.minimum(x, 0), lambda x: -jax.nn.relu(-x)),
    "capped": (lambda x: jnp.piecewise(x, [x > 0, x > 6], [lambda v: v, 6.0, 0.0]), jax.nn.relu6),
    "cast": (lambda x: jnp.where(x > 0, x.astype("bfloat16"), 0), lambda x: jax.nn.relu(x).astype("bfloat16")),
    "held": (lambda x: held(jax.nn.relu, x), jax.nn.relu),
}
OTHER = {
    "gate of another value": lambda x: jnp.where(x @ W2 > 0, x, 0),
    "gate of another part": lambda x: jnp.tile(x[:3] * (x[3:] > 0), 2),
    "constant mask": lambda x: jnp.where(jnp.arange(6) > 2, x, 0),
    "guard of a quotient": lambda x: 1 / jnp.where(jnp.abs(x) > 0, jnp.abs(x), 1),
    "root of what is not negative": lambda x: x * root((x**2).sum()),
    "threshold": lambda x: jnp.where(x > 0.5, x, 0),
    "clip": lambda x: jnp.clip(x, -1, 1),
    "slope for each feature": lambda x: jnp.where(x > 0, x, jnp.linspace(0.1, 1, 6) * x),
    "absolute": jnp.abs,
    "ELU": jax.nn.elu,
    "GELU": jax.nn.gelu,
    "maximum of two": lambda x: jnp.maximum(x, x @ W2),
    "pooling": lambda x: jnp.repeat(x.reshape(3, 2).max(1), 2),
    "softmax": jax.nn.softmax,
    "layer norm": lambda x: x * jax.lax.rsqrt(jnp.maximum((x**2).mean() - x.mean() ** 2, 0) + 1e-3),
    "sum at places": lambda x: jnp.zeros(6).at[jnp.arange(6)[::-1]].add(x),
    "custom derivative": custom(lambda x: jax.nn.softmax(x) * x),
    "sign that is held": lambda x: jnp.where(jax.lax.stop_gradient(x) > 0, x * x.sum(), 0),
}
REFUSED = {
    "cond": (lambda x: jax.lax.cond(x.sum() > 0, lambda x: x, lambda x: -x, x), "`cond`.*is not entered"),
    "custom derivative": (custom(lambda x: jax.nn.relu(x) @ W2), "`custom_jvp_call .*is not entered"),
    "callback": (
        lambda x: jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
        "`pure_callback`.*is not entered",
    ),
    "times another": (lambda x: jnp.where(x > 0, x * (x @ W2), 0), "`select_n`.*by the sign of the same value"),
    "mask": (lambda x: (x[:, None] * (x > 0)[:, None] * jnp.ones((6, 2))).sum(1) * 0 + (x * x[0] * (x > 0)), "`mul`"),
    "bend": (lambda x: jnp.where(x > 0, jnp.log1p(jnp.abs(x)), 0), "constant on one side of 0 and bends there"),
    "part of an array": (write_first, "`swap` changes a mutable array"),
}


def held(function, x):
    array = jax.new_ref(x)
    array[...] = function(array[...])
    return array[...]


def test_multiples_of_a_relu_are_relus():
    for method in (guided_backpropagation, deconvnet):
        run = jax.jit(lambda image, method=method: [[method(network(f), image, 0) for f in x] for x in SCALED.values()])
        for name, (found, expected) in zip(SCALED, run(IMAGE), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=name)


def test_what_is_no_relu_keeps_its_gradient():
    run = jax.jit(lambda image: [guided_backpropagation(network(f), image, 0) for f in OTHER.values()])
    expected = jax.jit(lambda: [(W1 @ pulled_back(f)).reshape(IMAGE.shape) for f in OTHER.values()])()
    for name, found, gradient in zip(OTHER, run(IMAGE), expected, strict=True):
        np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_be_a_relu_is_refused_beside_another(name):
    activation, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        guided_backpropagation(network(activation), IMAGE, 0)


@pytest.mark.parametrize("method", ["deeplift", "lrp"])
def test_other_rules_take_a_selection_for_the_function_that_it_is(method):
    ways = [
        jax.nn.relu,
        lambda x: jnp.select([x > 0], [x], 0.0),
        lambda x: jnp.piecewise(x, [x > 0], [lambda v: v, 0.0]),
        lambda x: jnp.stack([x, jnp.zeros_like(x)]).max(0),
    ]
    run = jax.jit(lambda images: [explain(network(way), images, 0, method=method) for way in ways])
    expected, *found = run(IMAGE[None])
    for maps in found:
        np.testing.assert_allclose(maps, expected, rtol=1e-5, atol=1e-6)


def test_a_difference_of_a_value_and_a_square_is_no_variance():
    """Only `E[x²] − E[x]²` is never negative; a ReLU behind another difference is guided."""
    rng = np.random.default_rng(6)
    first, second, last = (rng.normal(size=size).astype(np.float32) for size in ((48, 20), (48, 20), (20, 2)))
    hidden = lambda image: image.reshape(-1) @ first - (image.reshape(-1) @ second / 20) ** 2  # noqa: E731
    image = rng.normal(size=(4, 4, 3)).astype(np.float32)
    found = jax.jit(lambda x: guided_backpropagation(lambda x: jax.nn.relu(hidden(x)) @ last, x, 0))(image)
    passed = (hidden(image) > 0) * np.maximum(last[:, 0], 0)
    assert 0 < np.sum(passed > 0) < np.sum(hidden(image) > 0)  # the rule changes the gradient
    expected = np.tensordot(passed, np.asarray(jax.jacobian(hidden)(image)), axes=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def mean_product(x):
    centred = x - x.mean()
    return (centred * centred).mean()


@pytest.mark.parametrize("variance", [jnp.var, lambda x: jnp.square(x - x.mean()).mean(), mean_product])
def test_a_variance_that_is_kept_from_being_negative_is_no_relu(variance):
    """As in Equinox's LayerNorm; without another ReLU, guided backpropagation says that there is none."""

    def normalised(image):
        x = image.reshape(-1)
        return ((x - x.mean()) * jax.lax.rsqrt(jnp.maximum(0.0, variance(x)) + 1e-5))[:3]

    for method in (guided_backpropagation, deconvnet):
        with pytest.raises(ValueError, match="fn has none"):
            method(normalised, IMAGE, 0)
