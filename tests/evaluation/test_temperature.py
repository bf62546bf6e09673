"""Tests of a run at a temperature: its logits are divided, and the fitted one is that of its validation split."""

import pathlib
import shutil

import jax
import numpy as np
import pytest
import tiny_runs

from sdecor import evaluation, metrics
from sdecor.evaluation import programs, runs, temperature

FORMER = pathlib.Path(__file__).parents[1] / "former/run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a trained run, with its images in the working directory."""
    folder = tmp_path_factory.mktemp("temperature")
    shutil.copytree(FORMER, folder / "run")
    tiny_runs.draw_images(folder / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield runs.restore(str(folder / "run"), checkpoint="latest")


def outputs(run, split: str = "test"):
    """Return the logits and the labels of a split, by a call of the network alone."""
    source = run.dataset.source(split)
    images = np.stack([source[i]["image"] for i in range(len(source))])
    logits, _ = run.apply(run.variables, programs.images_of(runs.setup_of(run), {"image": images}))
    return np.asarray(logits), np.array([source[i]["label"] for i in range(len(source))])


def test_logits_are_divided(run):
    logits, labels = outputs(run)
    warm = temperature.with_temperature(temperature.with_temperature(run, 3.0), 4.0)
    np.testing.assert_allclose(outputs(warm)[0], logits / 4, rtol=1e-6)
    assert warm.settings["temperature"] == 4 and "temperature" not in run.settings
    assert runs.depends_of(warm) != runs.depends_of(run)
    found = programs.predict(runs.subject_of(warm, runs.setup_of(warm))).examples
    np.testing.assert_allclose(found["confidence"], jax.nn.softmax(logits / 4).max(1), rtol=1e-5)
    np.testing.assert_allclose(found["cross_entropy"], metrics.cross_entropy(logits / 4, labels), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found["prediction"], logits.argmax(1))


def test_the_temperature_is_fitted_on_the_validation_split(run):
    fitted = temperature.with_fitted_temperature(run)
    value = fitted.settings["temperature"]
    assert value == pytest.approx(metrics.fit_temperature(*outputs(run, "val")), rel=1e-3)
    assert value == float(f"{value:.4g}") == pytest.approx(fitted.variables["temperature"], rel=1e-6)
    again = temperature.with_fitted_temperature(temperature.with_temperature(run, 7.0))
    assert again.settings == fitted.settings
    runs.check_comparable([fitted, temperature.with_temperature(run, 2.0)])  # each run has its own temperature


@pytest.mark.full
def test_methods_that_rewrite_the_network_take_the_division(run):
    """Maps are divided like the logits, also those whose rules follow the network's program; FullGrad has no scale."""
    methods = evaluation.choose_methods("gradient,lrp,deeplift,integrated_gradients:steps=2,fullgrad".split(","))
    plan, notes = runs.plan_of(run, methods, {})
    assert not notes
    image = programs.images_of(plan.setup, {"image": runs.source_of(run)[0]["image"][None]})
    warm = temperature.with_temperature(run, 4.0)
    for key, method in plan.explained().items():
        explain = lambda of, method=method: method.bind("logit")(  # noqa: E731
            programs.network(runs.setup_of(of), of.variables), image[0], np.int32(1), jax.random.key(0)
        )
        # FullGrad rescales each layer's map, with a small constant in the denominator.
        factor, tolerance = (1, 1e-3) if key == "fullgrad" else (4, 1e-4)
        np.testing.assert_allclose(explain(warm), explain(run) / factor, rtol=tolerance, atol=1e-7, err_msg=key)


@pytest.mark.parametrize("text", ["warm", "0", "-1", "nan", "inf", ""])
def test_words_that_are_no_temperature(text):
    with pytest.raises(ValueError, match=f"--temperature={text}: give fitted or a positive number"):
        temperature.parse(text)
    assert temperature.parse("fitted") is None and temperature.parse("2.5") == 2.5
