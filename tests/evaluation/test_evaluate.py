"""Tests of evaluate.py as a command: one run, several runs, any number of devices, reuse of results, errors."""

import errno
import json
import os
import types

import command_lines
import jax
import numpy as np
import pytest
import tiny_runs
from ml_collections import ConfigDict

import evaluate
import sdecor
import train
from sdecor import export
from sdecor.core.commands import TemporaryFailure
from sdecor.evaluation import runs
from sdecor.evaluation.runs import check_comparable, run_names

METHODS = ("gradient", "smoothgrad:samples=2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return the folder of two finished runs on the same images."""
    root = tmp_path_factory.mktemp("evaluate")
    images = tiny_runs.draw_images(root / "data")
    for method in ("ce", "sdecor"):
        assert train.train(tiny_runs.tiny_config(images, method, **{"train.epochs": 2.0}), str(root / method))
    return root


def environment(devices: int) -> dict[str, str]:
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "MPLBACKEND": "Agg"}
    env |= {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    return env | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}


def run(*arguments, devices: int = 1):
    process = tiny_runs.start(
        [tiny_runs.sys.executable, "evaluate.py", "--images=3", *map(str, arguments)], environment(devices)
    )
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def examples(folder):
    with np.load(folder / "evaluation.npz") as arrays:
        return {name: arrays[name] for name in arrays if name != "settings"}


@pytest.mark.full
def test_compares_runs_on_a_number_of_devices_that_does_not_divide(folders):
    both = [f"--workdir={folders / method}" for method in ("ce", "sdecor")]
    chosen = ("--methods=quick,smoothgrad:samples=2", "--metrics=quick,entropy", "--chunk_size=4")
    status, output = run(*both, *chosen, devices=3)  # the config's batch size, 16, is not divisible by 3
    assert status == 0, output
    assert "Accuracy" in output and "paired difference" in output and "SmoothGrad" in output
    for name in ("comparison.html", "comparison.json", "saliency.png", "ce/report.html", "sdecor/saliency.png"):
        assert (folders / name).stat().st_size > 0
    numbers = json.loads((folders / "ce" / "evaluation.json").read_text())
    assert numbers["examples"] == 18 and numbers["settings"]["split"] == "test"
    measured = {f"{method}/{name}" for method in METHODS for name in ("gini", "entropy", "insertion", "deletion")}
    assert set(numbers["metrics"]) >= {"accuracy", "calibration_error"} | measured
    assert numbers["settings"]["methods"]["smoothgrad:samples=2"]["samples"] == 2
    assert numbers["settings"]["measures"]["replacement"]["insertion_baseline"] == "blur"
    differences = json.loads((folders / "comparison.json").read_text())["differences"]["sdecor"]
    other = json.loads((folders / "sdecor" / "evaluation.json").read_text())
    for key in ("gradient/gini", "smoothgrad:samples=2/entropy"):
        gap = other["metrics"][key]["mean"] - numbers["metrics"][key]["mean"]
        assert differences[key]["mean"] == pytest.approx(gap, abs=1e-6)
    with np.load(folders / "ce" / "attributions.npz") as arrays:
        assert {arrays[method].shape for method in METHODS} == {(3, 8, 8, 3)}


@pytest.mark.full
def test_results_are_reused_and_do_not_depend_on_devices(folders):
    run(f"--workdir={folders / 'ce'}", "--force", devices=3)
    on_three = examples(folders / "ce")
    before = (folders / "ce" / "evaluation.npz").stat().st_mtime_ns
    status, output = run(f"--workdir={folders / 'ce'}")
    assert status == 0 and (folders / "ce" / "evaluation.npz").stat().st_mtime_ns == before, output
    status, output = run(f"--workdir={folders / 'ce'}", "--force", devices=1)
    assert status == 0 and (folders / "ce" / "evaluation.npz").stat().st_mtime_ns > before, output
    for name, values in examples(folders / "ce").items():
        if name != "moments/outer":
            np.testing.assert_allclose(values, on_three[name], rtol=2e-3, atol=1e-4, err_msg=name)


@pytest.mark.full
def test_other_settings_have_files_of_their_own_and_one_run_may_be_reported_elsewhere(folders, tmp_path):
    ce = f"--workdir={folders / 'ce'}"
    assert run(ce, "--metrics=gini")[0] == 0
    before = (folders / "ce" / "evaluation.npz").stat().st_mtime_ns
    status, output = run(ce, "--split=val", "--target=label", "--metrics=entropy", f"--output={tmp_path / 'page'}")
    assert status == 0 and f"{tmp_path}/page/report.html" in output, output
    assert (tmp_path / "page" / "report.html").exists()
    assert (folders / "ce" / "evaluation-val-label.npz").exists()
    assert json.loads((folders / "ce" / "evaluation.json").read_text())["settings"]["split"] == "val"
    status, output = run(ce, "--methods=occlusion:window=(4,4)", "--metrics=entropy")
    assert status == 0 and "Occlusion (window=(4, 4))" in output, output
    assert (folders / "ce" / "evaluation.npz").stat().st_mtime_ns > before
    numbers = json.loads((folders / "ce" / "evaluation.json").read_text())
    assert numbers["settings"]["split"] == "test"
    assert {"gradient/gini", "occlusion:window=(4, 4)/entropy"} <= set(numbers["metrics"])
    assert run(ce, "--metrics=entropy", "--noall_stored")[0] == 0
    assert "gradient/gini" not in json.loads((folders / "ce" / "evaluation.json").read_text())["metrics"]


@pytest.mark.full
def test_retest_measures_again_what_draws(folders, tmp_path):
    chosen = ("--methods=gradient,smoothgrad:samples=2", "--metrics=gini,road,average_drop", "--retest")
    status, output = run(f"--workdir={folders / 'ce'}", *chosen, "--noall_stored", f"--output={tmp_path / 'page'}")
    assert status == 0 and "retest" in output, output
    numbers = json.loads((folders / "ce" / "evaluation.json").read_text())["metrics"]
    retested = {key for key, entry in numbers.items() if "retest" in entry}
    # average_drop takes a key, for a baseline that draws; the default one does not.
    of_both = {f"{method}/{name}" for method in METHODS for name in ("road", "road_vs_random", "average_drop")}
    assert retested == of_both | {f"{METHODS[1]}/gini"}  # SmoothGrad draws, too
    assert numbers[f"{METHODS[0]}/average_drop"]["retest"]["sd"] == 0
    assert all(numbers[key]["retest"]["n"] == numbers[key]["n"] for key in retested)
    assert numbers[f"{METHODS[1]}/gini"]["retest"]["sd"] > 0
    assert "<small>retest ± " in (tmp_path / "page" / "report.html").read_text()
    before = (folders / "ce" / "evaluation-retest.npz").stat().st_mtime_ns
    assert run(f"--workdir={folders / 'ce'}", *chosen)[0] == 0
    assert (folders / "ce" / "evaluation-retest.npz").stat().st_mtime_ns == before


@pytest.mark.full
def test_runs_are_compared_at_fitted_temperatures(folders, tmp_path):
    both = [f"--workdir={folders / method}" for method in ("ce", "sdecor")]
    chosen = ("--metrics=gini", "--temperature=fitted", f"--output={tmp_path / 'page'}")
    status, output = run(*both, *chosen)
    assert status == 0 and "fitted on 8 validation images" in output, output
    settings = json.loads((folders / "ce" / "evaluation.json").read_text())["settings"]
    assert f"ce: temperature {settings['temperature']}, fitted" in output
    assert "temperature of the logits" in (tmp_path / "page" / "comparison.html").read_text()
    before = (folders / "ce" / "evaluation-temperature_fitted.npz").stat().st_mtime_ns
    assert run(*both, *chosen)[0] == 0
    assert (folders / "ce" / "evaluation-temperature_fitted.npz").stat().st_mtime_ns == before


WRONG = {
    "temperature": ("--temperature=0", "--temperature=0: give fitted or a positive number"),
    "temperature of an export": ("--temperature=fitted --export=maps.zarr", "leave out --export and --from_export"),
    "retest": ("--retest --export=maps.zarr", "--retest explains again: leave out --export and --from_export"),
    "run": ("--workdir=nowhere", "holds no run"),
    "checkpoint": ("--checkpoint=5", "no checkpoint of step 5"),
    "options": ("--methods=integrated_gradients:steps=1.5", "integrated_gradients:steps=1.5 cannot be taken"),
    "brackets": ("--methods=occlusion:window=(4", "brackets of 'occlusion:window=(4' do not match"),
    "method": ("--methods=smothgrad", "did you mean 'smoothgrad'"),
    "metric": ("--metrics=roc_auc", "neither object masks nor boxes"),
    "output": ("--output=/proc/page", "--output = '/proc/page': no file can be written in /proc"),
    "export": ("--export=/proc/out.zarr", "--export = '/proc/out.zarr': no file can be written in /proc"),
    "read-only": ("--workdir=/proc", "--workdir = '/proc': no file can be written in /proc"),
}


@pytest.fixture(scope="module")
def refused(folders):
    """Return the exit status and output of each wrong command line."""
    whose = lambda flag: [] if flag.startswith("--workdir") else [f"--workdir={folders / 'ce'}"]  # noqa: E731
    lists = [[*whose(flag), *flag.split(), "--images=3"] for flag, _ in WRONG.values()]
    return dict(zip(WRONG, command_lines.answers("evaluate", lists, environment(1)), strict=True))


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_evaluated_is_one_clear_line(refused, wrong):
    status, output = refused[wrong]
    assert status == 1 and WRONG[wrong][1] in output and "Traceback" not in output


def test_a_fault_of_the_disk_can_be_tried_again_and_a_missing_permission_not(tmp_path):
    for number, kind in ((errno.ENOSPC, TemporaryFailure), (errno.EIO, TemporaryFailure), (errno.EACCES, ValueError),
                         (errno.EROFS, ValueError), (errno.ENOENT, ValueError)):  # fmt: skip
        error = OSError(number, os.strerror(number), "out")
        found = evaluate.disk_error(error)
        assert type(found) is kind and os.strerror(number) in str(found)
        exported = export.StorageError("4 of 11 examples are finished")
        exported.__cause__ = error
        found = evaluate.disk_error(exported)
        assert type(found) is kind and str(found) == str(exported)


def evaluated(**changes):
    values = {"curve_steps": 16, "canvas": 8, "name": "folder", "step": 1} | changes
    seen = {"examples": 9, "labels": "ab", "pixels": "cd", "masks": True, "mean": [0.5], "std": [0.2], "crop": None}
    seen |= {name: value for name, value in changes.items() if name in seen}
    data = {"canvas": values["canvas"], "canvas_fit": "stretch", "channels": 3, "limit": None}
    return types.SimpleNamespace(
        folder="runs/x",
        config=ConfigDict(),
        settings={"curve_steps": values["curve_steps"], "step": values["step"], "parameters": {}, "data": seen},
        recorded={
            "dataset": {"name": values["name"], "class_names": ["a"], "image_shape": [8, 8, 3]},
            "config": {"data": data},
        },
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("curve_steps", 8), ("crop", 6), ("canvas", 16), ("name", "tiny_imagenet"), ("mean", [0.0]), ("std", [1.0])),
        *(("examples", 8), ("labels", "xy"), ("pixels", "xy"), ("masks", False)),
    ],
)
def test_runs_that_are_not_evaluated_alike_are_not_compared(field, value):
    check_comparable([evaluated(), evaluated(step=7)])
    with pytest.raises(ValueError, match=f"{field}.*{value!r}"):
        check_comparable([evaluated(), evaluated(**{field: value})])


def test_runs_are_named_by_method_or_folder(folders):
    assert run_names([str(folders / "ce"), str(folders / "sdecor")]) == ["ce", "sdecor"]
    with pytest.raises(ValueError, match="given twice"):
        run_names([str(folders / "ce"), str(folders / "ce")])


def test_numbers_depend_on_the_data_and_the_version():
    settings = {name: name for name in ("split", "step", "parameters", "target", "seed", "data", "resamples")}
    found = runs.depends_of(types.SimpleNamespace(settings=settings))
    assert found.pop("sdecor") == sdecor.__version__
    assert found == {name: name for name in ("split", "step", "parameters", "target", "seed", "data")}
    settings["from_export"] = {"path": "maps.zarr", "dtype": "float32", "sha256": "ab"}
    assert runs.depends_of(types.SimpleNamespace(settings=settings))["export"] == "ab"
