"""Tests of maps under flags with which JAX changes the form of its operations: maps must not change."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from sdecor.attribution import explain
from sdecor.attribution.canonical import canonical

FLAGS = ("jax_custom_jvp3", "jax_custom_vjp3", "jax_remat3", "jax_scan3")
METHODS = ("guided_backpropagation", "deconvnet", "deeplift", "lrp", "grad_cam")
rng = np.random.default_rng(5)
IMAGES = jnp.asarray(rng.normal(size=(2, 4, 4, 3)), jnp.float32)
KERNEL, FIRST, LAST = (jnp.asarray(rng.normal(size=n) / 3, jnp.float32) for n in ((3, 3, 3, 3), (48, 6), (6, 3)))
HIDDEN = jnp.asarray(rng.normal(size=(4, 6, 6)) / 2, jnp.float32)
pytestmark = pytest.mark.skipif(not hasattr(jax.config, FLAGS[0]), reason="this JAX does not have the flags")


@jax.custom_vjp
def own_relu(x):
    return jnp.maximum(x, 0)


own_relu.defvjp(lambda x: (own_relu(x), x), lambda x, cotangent: (jnp.where(x > 0, cotangent, 0),))


def features(image):
    with jax.named_scope("features"):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.nn.relu(jax.lax.conv_general_dilated(image[None], KERNEL, (1, 1), "SAME", dimension_numbers=numbers))


def written_out(image):
    """Return the network's logits, written with ReLUs and products only."""
    x = jax.nn.relu(features(image).ravel() @ FIRST)
    for kernel in (*HIDDEN, *HIDDEN[:1:-1]):
        x = jax.nn.relu(x @ kernel)
    return x @ LAST


def called(image):
    """Return the same logits by a traced function, a checkpoint, loops and a custom derivative."""
    x = own_relu(features(image).ravel() @ FIRST)
    x = jax.checkpoint(lambda x: checkpoint_name(jax.nn.relu(x @ HIDDEN[0]), "hidden"))(x)
    layer = lambda x, kernel: jax.nn.relu(x @ kernel)  # noqa: E731
    x = jax.jit(layer).trace(x, HIDDEN[1])(x, HIDDEN[1])
    x, _ = jax.lax.scan(lambda x, kernel: (layer(x, kernel), x.sum()), x, HIDDEN[2:])
    x, _ = jax.lax.scan(lambda x, kernel: (layer(x, kernel), None), x, HIDDEN[2:], reverse=True)
    return x @ LAST


def maps(fn):
    """Return the maps of all methods, and the gradient of the canonical form."""
    every = {method: explain(fn, IMAGES, 1, method=method) for method in METHODS}
    named = explain(fn, IMAGES, 1, method="grad_cam", layer="features")
    gradients = jax.vmap(jax.grad(lambda image: canonical(fn)(image)[1]))(IMAGES)
    return {**every, "named": named, "canonical": gradients}


@contextlib.contextmanager
def turned_on(flags):
    before = {flag: getattr(jax.config, flag) for flag in flags}
    try:
        for flag in flags:
            jax.config.update(flag, True)
        yield
    finally:
        for flag, value in before.items():
            jax.config.update(flag, value)


@pytest.fixture(scope="module")
def expected():
    return jax.jit(lambda: maps(written_out))()


@pytest.mark.parametrize(
    "flags",
    [*(pytest.param(flags, marks=pytest.mark.full) for flags in [(), *((flag,) for flag in FLAGS)]), FLAGS],
    ids=lambda flags: "+".join(flags) or "none",
)
def test_maps_are_those_of_the_network_written_out(expected, flags):
    with turned_on(flags):
        found = jax.jit(lambda: maps(called))()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("flags", [(), FLAGS], ids=["none", "all"])
def test_a_relu_that_is_not_entered_is_refused(flags):
    @jax.custom_jvp
    def two(x):
        return jax.nn.relu(x) @ HIDDEN[0]

    two.defjvp(lambda primals, tangents: (two(*primals), tangents[0]))
    with turned_on(flags), pytest.raises(ValueError, match="`custom_jvp_call two`.*may hold a ReLU and is not entered"):
        explain(lambda image: jax.nn.relu(two(image.ravel() @ FIRST)) @ LAST, IMAGES, 1, method="deconvnet")
