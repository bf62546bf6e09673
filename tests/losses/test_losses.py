"""Tests of classification and consistency: values, gradients, dtypes and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from sdecor import losses


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32) * 3


@pytest.fixture
def masked_logits() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32) * 3


LABELS = np.array([0, 4, 2, 2, 1, 3], np.int32)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.sum(p * (np.log(p) - np.log(q)), axis=-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_classification_is_the_cross_entropy_of_each_example(logits, smoothing):
    targets = (1 - smoothing) * np.eye(5)[LABELS] + smoothing / 5
    expected = -np.sum(targets * np.log(oracles.softmax(logits.astype(np.float64))), axis=-1)
    values = losses.classification(logits, LABELS, label_smoothing=smoothing)
    assert values.shape == (6,) and values.dtype == jnp.float32
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_classification_gradient_is_prediction_minus_target(logits):
    gradient = jax.grad(lambda z: losses.classification(z, LABELS).sum())(logits)
    np.testing.assert_allclose(gradient, oracles.softmax(logits) - np.eye(5)[LABELS], atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_is_summed_over_the_classes(logits, smoothing):
    targets = (1 - smoothing) * np.eye(5)[LABELS] + smoothing / 5
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = -np.sum(targets * np.log(p) + (1 - targets) * np.log(1 - p), axis=-1)
    loss = lambda z: losses.classification(z, LABELS, loss="bce", label_smoothing=smoothing)  # noqa: E731
    np.testing.assert_allclose(loss(logits), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda z: loss(z).sum())(logits), p - targets, atol=1e-6)


def test_binary_cross_entropy_leaves_out_an_excluded_class():
    logits = jnp.array([[1.0, -jnp.inf]])
    value, gradient = jax.value_and_grad(lambda z: losses.classification(z, jnp.array([0]), loss="bce").sum())(logits)
    np.testing.assert_allclose(value, np.log1p(np.exp(-1)), rtol=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("direction", losses.DIRECTIONS)
def test_consistency_of_binary_predictions_is_the_sum_over_classes(logits, masked_logits, direction):
    p, q = (1 / (1 + np.exp(-z.astype(np.float64))) for z in (logits, masked_logits))
    p, q = (p, q) if direction == "clean_masked" else (q, p)
    expected = np.sum(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)), axis=-1)
    found = losses.consistency(logits, masked_logits, loss="bce", direction=direction)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_an_unknown_classification_loss_is_named(logits):
    with pytest.raises(ValueError, match="did you mean 'bce'"):
        losses.classification(logits, LABELS, loss="bse")
    with pytest.raises(ValueError, match="did you mean 'bce'"):
        losses.consistency(logits, logits, loss="bse")


def test_classification_of_uniform_logits_is_log_of_the_class_count():
    np.testing.assert_allclose(losses.classification(jnp.zeros((3, 7)), jnp.arange(3)), np.log(7), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [-0.1, 1.1])
def test_classification_names_a_wrong_smoothing(logits, smoothing):
    with pytest.raises(ValueError, match="label_smoothing"):
        losses.classification(logits, LABELS, label_smoothing=smoothing)


def test_consistency_is_the_divergence_in_either_direction(logits, masked_logits):
    p, q = oracles.softmax(logits.astype(np.float64)), oracles.softmax(masked_logits.astype(np.float64))
    forward = losses.consistency(logits, masked_logits)
    assert forward.shape == (6,) and forward.dtype == jnp.float32
    np.testing.assert_allclose(forward, kl(p, q), rtol=1e-5)
    np.testing.assert_allclose(losses.consistency(logits, masked_logits, direction="masked_clean"), kl(q, p), rtol=1e-5)


def test_consistency_of_equal_predictions_is_zero_with_zero_gradient(logits):
    value, gradients = jax.value_and_grad(lambda a, b: losses.consistency(a, b).sum(), argnums=(0, 1))(
        logits, logits + 2.0
    )
    np.testing.assert_allclose(value, 0, atol=1e-5)
    np.testing.assert_allclose(gradients, 0, atol=1e-5)


@pytest.mark.parametrize("direction", losses.DIRECTIONS)
@pytest.mark.parametrize("stop_gradient", [False, True])
def test_consistency_gradients(logits, masked_logits, direction, stop_gradient):
    def value(a: np.ndarray, b: np.ndarray) -> float:
        p, q = oracles.softmax(a), oracles.softmax(b)
        return kl(p, q).sum() if direction == "clean_masked" else kl(q, p).sum()

    options = dict(direction=direction, stop_gradient=stop_gradient)
    clean, masked = jax.grad(lambda a, b: losses.consistency(a, b, **options).sum(), argnums=(0, 1))(
        logits, masked_logits
    )
    a, b = logits.astype(np.float64), masked_logits.astype(np.float64)
    np.testing.assert_allclose(masked, oracles.numerical_gradient(lambda x: value(a, x), b), atol=1e-5)
    expected = np.zeros_like(a) if stop_gradient else oracles.numerical_gradient(lambda x: value(x, b), a)
    np.testing.assert_allclose(clean, expected, atol=1e-5)


def test_consistency_is_finite_at_certain_predictions_that_disagree():
    a, b = jnp.array([[1e4, 0.0, 0.0]]), jnp.array([[0.0, 1e4, 0.0]])
    value, gradient = jax.value_and_grad(lambda a: losses.consistency(a, b).sum())(a)
    np.testing.assert_allclose(value, 1e4, rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_bfloat16_logits_are_compared_in_float32(logits, masked_logits):
    a, b = jnp.asarray(logits, jnp.bfloat16), jnp.asarray(masked_logits, jnp.bfloat16)
    value = losses.consistency(a, b)
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, losses.consistency(a.astype(jnp.float32), b.astype(jnp.float32)))
    np.testing.assert_array_equal(
        losses.classification(a, LABELS), losses.classification(a.astype(jnp.float32), LABELS)
    )


def test_consistency_lists_the_directions(logits):
    with pytest.raises(ValueError, match="direction = 'clean_maskd'.*clean_masked.*masked_clean"):
        losses.consistency(logits, logits, direction="clean_maskd")


def test_consistency_refuses_unequal_shapes(logits):
    with pytest.raises(AssertionError):
        losses.consistency(logits, logits[:, :3])
