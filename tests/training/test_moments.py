"""Tests that SIGTERM at any moment stops a job with everything saved, and that the same command then completes it."""

import contextlib
import json
import pathlib
import shutil

import numpy as np
import pytest
import tiny_runs
import training_jobs

from sdecor.core.commands import INTERRUPTED

pytestmark = pytest.mark.full

TRAINING = (  # the second number: statuses that are right; a run whose last step is saved may be finished
    ("building", {INTERRUPTED}),
    ("compiling", {INTERRUPTED}),
    ("reading a batch:3", {INTERRUPTED}),
    ("fetching the terms of a step:2", {INTERRUPTED}),
    ("validating:1", {INTERRUPTED}),
    ("restoring", {INTERRUPTED}),
    ("saving:2", {INTERRUPTED}),
    ("validating:2", {INTERRUPTED}),
    ("finishing", {INTERRUPTED, 0}),
    ("leaving the job", {INTERRUPTED, 0}),
)
EVALUATION = ("restoring", "predicting", "compiling", "measuring:2", "reporting")
EXPORT = ("restoring", "compiling", "reading an image:8")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny_runs.draw_images(tmp_path_factory.mktemp("images") / "data")


@pytest.mark.parametrize("processes", [1, 2])
def test_training_stopped_at_each_moment_ends_as_undisturbed(images, tmp_path, processes):
    changes = {"train.epochs": 12.0}
    command = lambda folder: tiny_runs.command(images, folder, "--config.train.epochs=12")  # noqa: E731
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    training_jobs.finish(command(whole), tmp_path / "logs", processes)
    for number, (moment, right) in enumerate(TRAINING):
        training_jobs.stop_at(moment, command(broken), tmp_path / f"{number}", processes, right, times=1 + number % 2)
    training_jobs.finish(command(broken), tmp_path / "last", processes)
    assert training_jobs.rows(broken) == training_jobs.rows(whole)
    found, expected = (training_jobs.state(images, folder, **changes) for folder in (broken, whole))
    training_jobs.assert_same(found, expected)


# Evaluation and export


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    training_jobs.finish(tiny_runs.command(images, folder), folder.parent / "logs")
    return folder


def results(folder: pathlib.Path) -> dict:
    """Return all numbers of an evaluation, and the bytes of its arrays."""
    summary = json.loads((folder / "evaluation.json").read_text())
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(np.load(folder / name)) for name in ("evaluation.npz", "attributions.npz")}
        arrays = {f"{name}/{key}": held[key].tobytes() for name, held in files.items() for key in held.files}
    return {"summary": {name: value for name, value in summary.items() if name != "workdir"}, **arrays}


@pytest.mark.parametrize("processes", [1, 2])
def test_an_evaluation_stopped_at_each_moment_ends_as_undisturbed(run, tmp_path, processes):
    whole, broken = (pathlib.Path(shutil.copytree(run, tmp_path / name)) for name in ("whole", "broken"))
    flags = ["--methods=gradient,smoothgrad:samples=3", "--metrics=quick", "--noprogress"]
    command = lambda folder: training_jobs.program("evaluate.py", f"--workdir={folder}", *flags)  # noqa: E731
    training_jobs.finish(command(whole), tmp_path / "logs", processes)
    for number, moment in enumerate(EVALUATION):
        if moment == "reporting" and processes > 1:
            continue  # the last process does not report
        training_jobs.stop_at(
            moment, command(broken), tmp_path / f"{number}", processes, {INTERRUPTED}, times=1 + number % 2
        )
    training_jobs.finish(command(broken), tmp_path / "last", processes)
    assert results(broken) == results(whole)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_export_stopped_at_each_moment_has_the_bytes_of_an_undisturbed_one(run, tmp_path, processes):
    flags = [f"--workdir={run}", "--methods=gradient,smoothgrad:samples=3", "--noprogress"]
    flags += ["--device_batch=1", "--chunk_rows=1"]
    command = lambda path: training_jobs.program("evaluate.py", *flags, f"--export={path}")  # noqa: E731
    whole, broken = tmp_path / "whole.zarr", tmp_path / "broken.zarr"
    training_jobs.finish(command(whole), tmp_path / "logs", processes)
    for number, moment in enumerate(EXPORT):
        training_jobs.stop_at(
            moment, command(broken), tmp_path / f"{number}", processes, {INTERRUPTED}, times=1 + number % 2
        )
    training_jobs.finish(command(broken), tmp_path / "last", processes)
    found, expected = (
        {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
        for path in (broken, whole)
    )
    assert found == expected
