"""Tests of what studies measure on trained runs: the fitted temperature divides the logits, and checkerboards."""

import pathlib
import shutil

import jax
import numpy as np
import pytest
import tiny_runs

from sdecor.models import create_model
from studies import lattice, temperature, trained

FORMER = pathlib.Path(__file__).parents[1] / "former/run"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return the folder of a trained run, with its images in the working directory."""
    shutil.copytree(FORMER, tmp_path / "cell/seed0")
    tiny_runs.draw_images(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cell/seed0"


def test_predictions_are_those_of_the_evaluation(folder):
    logits, labels = temperature.predict(trained.restore(folder, "test"))
    stored = np.load(FORMER / "evaluation.npz")
    np.testing.assert_allclose(jax.nn.softmax(logits).max(1), stored["confidence"], rtol=1e-5)
    np.testing.assert_array_equal(logits.argmax(1) == labels, stored["accuracy"])


@pytest.mark.full
def test_rows_are_of_the_run(folder):
    found = {name: value for cell, name, value in temperature.rows(folder, "test") if cell == "cell"}
    assert found["temperature"] == temperature.fit(*temperature.predict(trained.restore(folder, "val")))
    assert np.isclose(found["scaled/accuracy"], np.load(FORMER / "evaluation.npz")["accuracy"].mean())
    assert {name for _, name, _ in lattice.rows(folder, "test")} == {f"gradient/checkerboard_{p}" for p in (2, 4, 8)}


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
