"""Tests of the own input gradients of convolutions: equality with JAX's, and no product with the zeros of a stride."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sdecor.attribution.canonical import canonical

IMAGES = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize(
    ("layout", "shape", "kernel"),
    [
        (IMAGES, (1, 9, 12, 3), (4, 4, 3, 5)),  # the last row is in no patch
        (("NCHW", "OIHW", "NHWC"), (2, 3, 6, 9), (5, 3, 2, 3)),
        (("NWC", "WIO", "NWC"), (1, 7, 3), (2, 3, 5)),
    ],
)
def test_gradient_of_patches_is_a_matrix_product(layout, shape, kernel):
    rng = np.random.default_rng(0)
    x, weights = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in (shape, kernel))
    numbers = lax.conv_dimension_numbers(shape, kernel, layout)
    strides = tuple(kernel[place] for place in numbers.rhs_spec[2:])
    fn = lambda x: jnp.sin(lax.conv_general_dilated(x, weights, strides, "VALID", dimension_numbers=numbers)).sum()  # noqa: E731
    found, expected = jax.jit(lambda x: (jax.grad(canonical(fn))(x), jax.grad(fn)(x)))(x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected).max() > 0.1
    for equation in jax.make_jaxpr(jax.grad(canonical(fn)))(x).jaxpr.eqns:  # zeros are spread by `lhs_dilation`
        assert set(equation.params.get("lhs_dilation", (1,))) == {1}
