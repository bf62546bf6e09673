"""Tests that a run and an export of an earlier version are read, continued and evaluated as new ones are.

`tests/former` was written at commit e352c59, before the library got its present layout. It has a tiny run on the images
of `tiny_runs.draw_images`, its evaluation, and an export of its maps in float16.
"""

import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
import tiny_runs

import train
from sdecor import export
from sdecor.core.arrays import widened
from sdecor.evaluation import runs

FORMER = pathlib.Path(__file__).parent / "former"
CHANGES = {
    "train.epochs": 2.0,
    "train.checkpoint_every_steps": None,
    "train.eval_every_epochs": 2.0,
    "optim.name": "sgd",
    "log.tensorboard": False,
}
METHODS, METRICS = "--methods=gradient,deeplift", "--metrics=gini,insertion,max_sensitivity"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with the run, the export and the images; it is the working directory."""
    for name in ("run", "maps.zarr"):
        shutil.copytree(FORMER / name, tmp_path / name)
    tiny_runs.draw_images(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_former_run_is_restored_and_found_finished(folder):
    run = runs.restore("run")
    assert run.settings["step"] == 6
    config = tiny_runs.tiny_config(pathlib.Path("images"), "sdecor", **CHANGES)
    rows = (folder / "run/metrics.jsonl").read_bytes()
    assert train.train(config, "run")
    assert (folder / "run/metrics.jsonl").read_bytes() == rows
    images = np.stack([run.dataset.source("test")[i]["image"] for i in range(18)])
    mean, std = (np.asarray(x, np.float32) for x in (run.dataset.mean, run.dataset.std))
    logits, _ = run.apply(run.variables, widened((images / np.float32(255) - mean) / std))
    stored = np.load(FORMER / "run/evaluation.npz")
    np.testing.assert_allclose(jax.nn.softmax(logits).max(1), stored["confidence"], rtol=1e-5)


def test_a_former_export_is_whole_and_is_that_of_its_run(folder):
    opened = export.open("maps.zarr")
    assert opened.complete and opened.check() == []
    assert len(opened) == 18 and set(opened.methods) == {"gradient", "deeplift"}
    stored, evaluated = (np.load(FORMER / f"run/{name}.npz") for name in ("attributions", "evaluation"))
    np.testing.assert_array_equal(opened.prediction, evaluated["prediction"])
    for method in opened.methods:
        whole = stored[method].astype(np.float64)
        maps = opened.attribution(method)[stored["index"]]
        expected = whole if maps.ndim == 4 else np.abs(whole).sum(-1)
        np.testing.assert_allclose(maps, expected, rtol=2e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.full
def test_a_former_evaluation_and_export_are_finished(folder):
    """The same command lines compute nothing again and write the same numbers."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "Agg", "PYTHONPATH": str(tiny_runs.ROOT)}
    before = json.loads((folder / "run/evaluation.json").read_text())
    arrays = (folder / "run/evaluation.npz").stat().st_mtime_ns
    for command in ([METRICS, "--images=2"], ["--export=maps.zarr", "--dtype=float16"]):
        arguments = [tiny_runs.sys.executable, str(tiny_runs.ROOT / "evaluate.py"), "--workdir=run", METHODS, *command]
        process = tiny_runs.start(arguments, env, folder)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    after = json.loads((folder / "run/evaluation.json").read_text())
    # Ranks and the like are computed again from stored moments, and a processor's linear algebra rounds its own way.
    trees = [each["metrics"] for each in (after, before)]
    assert jax.tree.structure(trees[0]) == jax.tree.structure(trees[1])  # with the names, and what is None
    flat = [dict(jax.tree.leaves_with_path(each)) for each in trees]
    assert flat[0] == pytest.approx(flat[1], rel=1e-12)
    assert (folder / "run/evaluation.npz").stat().st_mtime_ns == arrays
    assert "already" in output or "finished" in output, output
