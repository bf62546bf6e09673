"""Tests of the training convolution."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sdecor.models.convolution import training_convolution

# Height and width, channels, kernel, strides, padding. The third has maps so small, and the fourth a kernel, that
# the gradient is XLA's.
CASES = [
    ((16, 16), (3, 5), (4, 4), (2, 2), ((1, 1), (1, 1))),
    ((9, 25), (3, 2), (3, 2), (1, 3), ((0, 2), (1, 0))),
    ((7, 7), (16, 4), (3, 3), (1, 1), ((1, 1), (1, 1))),
    ((16, 17), (6, 4), (1, 1), (2, 2), ((0, 0), (0, 0))),
]
plain = partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _data(size, channels, kernel):
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, *size, channels[0])), rng.normal(size=(*kernel, *channels))


def _derivatives(convolve, x, weights, strides, padding):
    """Return the value, its gradients, a gradient penalty and its gradient, and a forward-over-reverse derivative."""

    def value(x, weights):
        return jnp.sum(jnp.sin(convolve(x, weights, strides, padding)))

    def penalty(weights):
        return jnp.sum(jax.grad(value)(x, weights) ** 2)

    both = jax.value_and_grad(value, (0, 1))
    second = jax.jvp(partial(jax.grad(value, (0, 1))), (x, weights), (x, weights))[1]
    seeds = jnp.stack([weights, -0.5 * weights])
    return both(x, weights), jax.value_and_grad(penalty)(weights), second, jax.vmap(both, (None, 0))(x, seeds)


@pytest.mark.parametrize("size, channels, kernel, strides, padding", CASES)
def test_every_derivative_is_that_of_the_plain_convolution(size, channels, kernel, strides, padding):
    with jax.enable_x64(True):
        arrays = [jnp.asarray(each) for each in _data(size, channels, kernel)]
        results = [
            jax.jit(partial(_derivatives, convolve, strides=strides, padding=padding))(*arrays)
            for convolve in (plain, training_convolution)
        ]
    assert jax.tree.leaves(results)[0].dtype == np.float64
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), results[1], results[0])


def test_kernel_gradient_is_the_sum_over_windows():
    size, channels, kernel, strides, padding = CASES[1]
    x, weights = _data(size, channels, kernel)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), *padding, (0, 0))), kernel, axis=(1, 2))
    windows = windows[:, :: strides[0], :: strides[1]]  # [N, H, W, C, h, w]
    value = np.einsum("nhwcij,ijck->nhwk", windows, weights)
    wanted = np.einsum("nhwcij,nhwk->ijck", windows, np.cos(value))

    def total(weights):
        return jnp.sum(jnp.sin(training_convolution(jnp.float32(x), weights, strides, padding)))

    np.testing.assert_allclose(jax.jit(jax.grad(total))(jnp.float32(weights)), wanted, rtol=1e-4, atol=1e-4)


def test_bfloat16_stays_bfloat16():
    x, weights = (jnp.asarray(each, jnp.bfloat16) for each in _data(*CASES[0][:3]))
    grads = []
    for convolve in (plain, training_convolution):
        _, pull_back = jax.vjp(lambda w, convolve=convolve: convolve(x, w, *CASES[0][3:]), weights)
        grads.append(pull_back(jnp.ones((2, 8, 8, 5), jnp.bfloat16))[0])
    assert grads[1].dtype == jnp.bfloat16
    np.testing.assert_allclose(*(np.asarray(each, np.float32) for each in grads), rtol=0.02, atol=0.1)


def _lowered(convolve, platform):
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 16, 16, 3), (3, 3, 3, 5))]

    def total(x, weights):
        return jnp.sum(convolve(x, weights, (1, 1), ((1, 1), (1, 1))) ** 2)

    lowered = jax.jit(jax.grad(total, (0, 1))).trace(*shapes).lower(lowering_platforms=(platform,))
    return lowered.as_text().count("stablehlo.convolution"), lowered.as_text().count("stablehlo.dot_general")


def test_only_a_cpu_takes_products():
    assert _lowered(training_convolution, "cpu") == (2, 3)  # forward and to x; a product a row of the kernel
    for platform in ("tpu", "cuda"):
        assert _lowered(training_convolution, platform) == _lowered(plain, platform) == (3, 0)


def test_dilation_and_groups_are_refused():
    x, kernel = jnp.zeros((1, 4, 4, 2)), jnp.zeros((1, 1, 2, 2))
    with pytest.raises(ValueError, match="feature_group_count = 2"):
        training_convolution(x, kernel, (1, 1), ((0, 0), (0, 0)), feature_group_count=2)
    with pytest.raises(ValueError, match="only plain convolutions"):
        training_convolution(x, kernel, (1, 1), ((0, 0), (0, 0)), rhs_dilation=(2, 2))
