"""Tests of temperature scaling: the temperature is found, and it divides the logits."""

import jax
import numpy as np

from sdecor.models import create_model
from studies import temperature


def test_the_temperature_of_drawn_labels_is_found():
    """Labels are drawn from the softmax of logits; logits 2.5 times as large need the temperature 2.5."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((20_000, 5))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    assert abs(temperature.fit(2.5 * logits, labels) - 2.5) < 0.1
    assert abs(temperature.fit(0.5 * logits, labels) - 0.5) < 0.02


def test_the_last_layer_divides_the_logits():
    model = create_model("cnn", num_classes=3, widths=(4,))
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    variables = model.init(jax.random.key(0), images)
    logits, features = model.apply(variables, images)
    divided, same = model.apply(temperature.scaled(variables, 4.0), images)
    np.testing.assert_allclose(divided, logits / 4, rtol=1e-6)
    np.testing.assert_array_equal(same, features)
