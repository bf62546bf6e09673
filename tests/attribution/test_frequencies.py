"""Tests of FORGrad: the filter against NumPy's Fourier transform, and the choice of its cut-off."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdecor.attribution import choose_cutoff, explain, gradient, integrated_gradients, low_pass, low_passed

_RNG = np.random.default_rng(0)
MAPS = _RNG.normal(size=(3, 9, 12, 2))


@pytest.mark.parametrize("cutoff", [1.0, 5.0, 11.0, 12.0])
def test_filter_is_an_ideal_low_pass(cutoff):
    rows, columns = (np.abs(np.fft.fftfreq(side) * side) for side in (9, 12))
    kept = (rows <= cutoff / 2 * 9 / 12 + 1e-6)[:, None] & (columns <= cutoff / 2 + 1e-6)
    expected = np.fft.ifft2(np.fft.fft2(MAPS[0], axes=(0, 1)) * kept[..., None], axes=(0, 1)).real
    found = low_pass(jnp.asarray(MAPS[0], jnp.float32), cutoff)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(), MAPS[0].sum(), atol=1e-4)
    if cutoff == 12:
        np.testing.assert_allclose(found, MAPS[0], atol=1e-5)


def test_a_filtered_method_has_the_options_of_the_method():
    images = jnp.asarray(MAPS, jnp.float32)
    fn = lambda x: jnp.stack([jnp.sin(x).sum(), jnp.float32(0)])  # noqa: E731
    method = low_passed(integrated_gradients, 4)
    assert "steps" in inspect.signature(method).parameters
    maps, errors = jax.jit(lambda x: explain(fn, x, 0, method=method, steps=2, with_error=True))(images)
    plain, expected = jax.jit(lambda x: explain(fn, x, 0, method="integrated_gradients", steps=2, with_error=True))(
        images
    )
    np.testing.assert_allclose(maps, jax.vmap(lambda each: low_pass(each, 4))(plain), atol=1e-5)
    np.testing.assert_allclose(errors, expected, atol=1e-5)
    series = explain(lambda x: (x**2).sum()[None], images[:, 0], 0, method=low_passed(gradient, 3))
    assert series.shape == (3, 12, 2)


def test_cutoff_of_validation_images():
    """A smooth map with noise above its frequencies: the cut-off between them is the best, whichever way scores go."""
    truth = np.asarray(jax.vmap(lambda x: low_pass(x, 4))(jnp.asarray(MAPS, jnp.float32)))
    noise = MAPS - np.asarray(jax.vmap(lambda x: low_pass(x, 6))(jnp.asarray(MAPS, jnp.float32)))
    maps = jnp.asarray(truth + noise, jnp.float32)
    distance = lambda maps: ((maps - truth) ** 2).sum((1, 2, 3)).at[1].set(jnp.nan)  # noqa: E731
    found = choose_cutoff(maps, distance, cutoffs=(2, 4, 8, 12), higher_is_better=False)
    assert found.best == 4 and found.cutoffs == (2, 4, 8, 12) and len(found.scores) == 4
    np.testing.assert_allclose(found.scores[3], (noise**2).sum((1, 2, 3))[[0, 2]].mean(), rtol=1e-4)
    assert choose_cutoff(maps, lambda maps: -distance(maps), cutoffs=(2, 4, 8)).best == 4
    assert choose_cutoff(maps, lambda maps: jnp.ones(3)).best == 12
    with pytest.raises(ValueError, match="cutoffs = 13.0"):
        choose_cutoff(maps, distance, cutoffs=(13,))
    with pytest.raises(ValueError, match="score gave no number"):
        choose_cutoff(maps, lambda maps: jnp.full(3, jnp.nan), cutoffs=(3,))
    with pytest.raises(ValueError, match="low_pass needs an input with positions"):
        low_pass(jnp.ones(3), 1)
