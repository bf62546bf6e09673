"""Tests of `evaluate.py --export` on a folder of images: broken files, refusals, signals."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
import tiny_runs
from PIL import Image

from sdecor import export

pytestmark = pytest.mark.full

COUNT, BROKEN = 18, "test/class1/4.png"
SMALL = ("--methods=gradient,smoothgrad:samples=2", "--device_batch=1", "--chunk_rows=2")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> pathlib.Path:
    return tiny_runs.draw_images(tmp_path_factory.mktemp("images"))


def train_run(images: pathlib.Path, workdir: pathlib.Path, **changes) -> pathlib.Path:
    import train

    assert train.train(tiny_runs.tiny_config(images, "ce", **{"train.epochs": 2.0} | changes), str(workdir))
    return workdir


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory) -> pathlib.Path:
    return train_run(images, tmp_path_factory.mktemp("run") / "run")


def start(*arguments: object) -> subprocess.Popen:
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "MPLBACKEND": "Agg"}
    env |= {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    return tiny_runs.start([tiny_runs.sys.executable, "evaluate.py", "--noprogress", *map(str, arguments)], env)


def evaluate(*arguments: object) -> tuple[int, str]:
    process = start(*arguments)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def tree(path: pathlib.Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("whole") / "out.zarr"
    status, output = evaluate(f"--workdir={trained}", f"--export={path}", *SMALL)
    assert status == 0, output
    return path


def test_a_broken_image_stops_it_or_is_skipped(trained, images, whole, tmp_path):
    moved = tmp_path / "images"
    shutil.copytree(images, moved)
    (moved / BROKEN).write_bytes((images / BROKEN).read_bytes()[:100])
    command = (f"--workdir={trained}", f"--data_path={moved}", *SMALL)
    status, output = evaluate(*command, f"--export={tmp_path / 'stop'}")
    assert status == 1 and f"{moved / BROKEN} (example 13) cannot be read" in output and "Traceback" not in output
    assert "12 of 18 examples are finished and kept" in output and "on_error=skip" in output
    shutil.copy(images / BROKEN, moved / BROKEN)
    status, output = evaluate(*command, f"--export={tmp_path / 'stop'}")
    assert status == 0 and tree(tmp_path / "stop") == tree(whole), output

    (moved / BROKEN).write_bytes(b"")
    status, output = evaluate(*command, f"--export={tmp_path / 'skip'}", "--on_error=skip")
    assert status == 0, output
    held, good = export.open(tmp_path / "skip"), np.arange(COUNT) != 13
    (skipped,) = map(json.loads, (tmp_path / "skip/skipped.jsonl").read_text().splitlines())
    assert skipped["index"] == 13 and skipped["name"] == "class1/4.png" and held.attributes["totals"]["skipped"] == 1
    maps, expected = (each.attribution("gradient", slice(None)) for each in (held, export.open(whole)))
    assert np.isnan(maps[13]).all() and maps[good].tobytes() == expected[good].tobytes()


def test_something_else_is_refused_by_name(trained, images, whole, tmp_path):
    before, another = tree(whole), tmp_path / "run"
    train_run(images, another, **{"seed": 1})
    other = tiny_runs.draw_images(tmp_path / "other")
    pixels = np.asarray(Image.open(other / "test/class0/0.png"))
    for file in other.glob("test/*/*.png"):
        Image.fromarray(255 - pixels).save(file)
    for flag, field in {
        f"--workdir={another}": "provenance.checkpoint.parameters.",
        "--split=val": "provenance.dataset.split: 'test' there, 'val' here",
        f"--data_path={other}": "data.images",
        "--target=label": "target: 'predicted' there, 'label' here",
        "--methods=gradient,smoothgrad:samples=3": "smoothgrad_samples_3",
        "--dtype=float16": "dtype: 'float32' there, 'float16' here",
    }.items():
        run = () if "workdir" in flag else (f"--workdir={trained}",)
        status, output = evaluate(*run, f"--export={whole}", *SMALL, flag)
        assert status == 1 and "holds another export" in output and field in output, output
        assert "Traceback" not in output
    assert tree(whole) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_batch_and_says_how_to_go_on(trained, tmp_path, number):
    path = tmp_path / "out.zarr"
    command = (f"--workdir={trained}", "--methods=smoothgrad:samples=4000", "--device_batch=1", "--chunk_rows=1")
    process = start(*command, f"--export={path}")
    while len(list(path.glob(".sdecor/ranges/*.json"))) < 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    there = len(list(path.glob(".sdecor/ranges/*.json")))
    assert process.returncode == 130 and "Traceback" not in output, output
    assert f"stopped, {there} of 18 examples are finished. Run the same command to continue." in output
    assert there < COUNT
    status, output = evaluate(*command, f"--export={path}")
    assert status == 0 and "18 examples" in output
    status, output = evaluate(*command, f"--export={tmp_path / 'whole'}")
    assert status == 0 and tree(path) == tree(tmp_path / "whole")


def test_two_at_once_into_one_path(trained, whole, tmp_path):
    path = tmp_path / "out.zarr"
    command = (f"--workdir={trained}", f"--export={path}", "--methods=smoothgrad:samples=4000", "--device_batch=1")
    first = start(*command)
    while not (path / ".sdecor/lock").exists():
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.02)
    first.send_signal(signal.SIGSTOP)  # stopped, so that it is still exporting when the second starts
    status, output = evaluate(*command)
    first.send_signal(signal.SIGCONT)
    assert status == 1 and f'"process": {first.pid}' in output and "is being exported to by" in output, output
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 0 and not export.open(path).check(), output
