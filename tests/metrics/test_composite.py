"""Tests of coherency, ADCC and ARCC against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import softmax

from sdecor import metrics

RNG = np.random.default_rng(5)
N, CLASSES = 3, 3
IMAGES = RNG.normal(size=(N, 4, 5, 2)).astype(np.float32)
WEIGHTS = RNG.normal(size=(4, 5, 2, CLASSES)).astype(np.float32)
SHIFT = RNG.normal(size=(4, 5)).astype(np.float32)
TARGETS = np.array([2, 0, 1])


def fn(image):
    return jnp.einsum("hwc,hwck->k", image, WEIGHTS)


def explain_one(image, target, key):
    """Return input × gradient, and a constant map that keeps the two maps from being alike up to a factor."""
    return (image * jnp.asarray(WEIGHTS)[..., target]).sum(-1) + SHIFT


@jax.jit
def computed(images, targets, key):
    explained = (explain_one, fn, images, targets)
    own = jax.vmap(explain_one, (0, 0, None))(images, targets, key)
    return {
        "coherency": metrics.coherency(explain_one, images, targets, key=key, reduction="sum", chunk_size=2),
        "adcc": metrics.adcc(*explained, key=key),
        "adcc_given": metrics.adcc(*explained, key=key, attributions=own),
        "arcc": metrics.arcc(*explained, key=key),
        "arcc_reversed": metrics.arcc(*explained, key=key, attributions=-own),
        "most": metrics.road_curves(fn, images, own, targets, key=key, percentages=(20, 40, 60, 80)).probability,
        "least": metrics.road_curves(
            fn, images, own, targets, key=key, percentages=(20, 40, 60, 80), order="lerf"
        ).probability,
    }


def parts():
    """Return coherency, complexity and average drop of each image, by their definitions."""
    found = []
    for image, target in zip(IMAGES.astype(np.float64), TARGETS, strict=True):
        own = (image * WEIGHTS[..., target]).sum(-1) + SHIFT
        scaled = (own - own.min()) / (own.max() - own.min())
        masked = image * scaled[..., None]
        other = (masked * WEIGHTS[..., target]).sum(-1) + SHIFT
        coherency = (1 + stats.pearsonr(own.ravel(), other.ravel()).statistic) / 2
        before, after = (softmax(np.einsum("hwc,hwck->k", x, WEIGHTS))[target] for x in (image, masked))
        found.append((coherency, np.linalg.norm(scaled.ravel(), 1) / scaled.size, max(0, before - after) / before))
    return np.array(found).T


def test_the_formulas(key):
    found = computed(IMAGES, TARGETS, key)
    coherency, complexity, drop = parts()
    assert (drop > 0).any() and (0.1 < complexity).all() and (coherency < 0.99).all()
    np.testing.assert_allclose(found["coherency"], coherency, rtol=1e-4)
    adcc = stats.hmean([coherency, 1 - complexity, 1 - drop])
    np.testing.assert_allclose(found["adcc"], adcc, rtol=1e-4)
    np.testing.assert_allclose(found["adcc_given"], adcc, rtol=1e-4)
    combined = np.mean(found["least"] - found["most"], axis=1)
    assert (combined > 0.01).all()
    np.testing.assert_allclose(found["arcc"], stats.hmean([coherency, 1 - complexity, combined]), rtol=1e-4)
    np.testing.assert_array_equal(found["arcc_reversed"], 0)  # the least relevant pixels are found first


def test_undefined_for_a_constant_map_and_for_no_class(key):
    def constant(image, target, key):
        return jnp.ones(image.shape[:2])

    for values in (
        metrics.coherency(constant, IMAGES[:1], TARGETS[:1], key=key),
        metrics.adcc(constant, fn, IMAGES[:1], TARGETS[:1], key=key),
    ):
        assert np.isnan(values).all()
    assert np.isnan(computed(IMAGES, np.array([0, -1, 3]), key)["arcc"][1:]).all()
    with pytest.raises(ValueError, match="ARCC is defined for images"):
        metrics.arcc(explain_one, fn, IMAGES[:, 0], TARGETS, key=key)
    with pytest.raises(ValueError, match="targets contains 3"):
        metrics.arcc(explain_one, fn, IMAGES, np.array([0, 1, 3]), key=key)
