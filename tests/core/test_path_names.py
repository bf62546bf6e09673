"""Tests of paths and names given to commands: bad ones are refused before any work, suggested commands are quoted."""

import argparse
import json
import os
import shlex

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs

import train
from sdecor import export
from sdecor.core import files
from sdecor.data import tfds_source
from sdecor.evaluation.runs import restore
from sdecor.export import __main__ as export_command
from sdecor.sweep import __main__ as sweep_command
from sdecor.training import build, checkpoint, members, run_folder
from sdecor.training.run import Run, opening

LATIN = os.fsdecode(b"caf\xe9")


def test_readable_is_text_that_can_be_stored():
    assert files.readable("café 1.png") == "café 1.png"
    assert files.readable(f"{LATIN}/a") == r"caf\xe9/a" == files.readable(files.readable(f"{LATIN}/a"))
    assert files.readable("\ud800").encode() == rb"\ud800"  # no file system returns such a name


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("file", "{root}/file is a file, where a folder is needed"),
        ("file/below/it", "{root}/file is a file"),
        ("link", "{root}/link is a link that leads nowhere"),
        (LATIN, r"caf\\\\xe9' is not UTF-8"),
    ],
)
def test_what_cannot_be_a_folder_is_refused(tmp_path, name, match):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "lost")
    with pytest.raises(ValueError, match=f"--output = .*{match.format(root=tmp_path)}"):
        files.check_output("--output", tmp_path / name)


def test_what_can_be_a_folder_is_accepted():
    for path in ("runs/new/deep", "/", ".", "gs://bucket/x", "runs/[1]"):
        files.check_output("--output", path)
    with pytest.raises(ValueError, match="--output is empty"):
        files.check_output("--output", "")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"--workdir = '{tmp_path}/file/x' cannot be made: Not a directory"):
        run_folder.claim(tmp_path / "file" / "x", {}, {})


@pytest.mark.parametrize("name", ["lr[0.1]", "file", LATIN])
def test_training_is_refused_before_its_data_are_read(tmp_path, name):
    (tmp_path / "file").touch()
    config = tiny_runs.tiny_config(tmp_path / "no data")
    with pytest.raises(ValueError, match="--workdir = "):
        train.train(config, str(tmp_path / name))
    with pytest.raises(ValueError, match="--workdir = "):
        train.train(config, str(tmp_path / name), train.replicas.parse(["seed=0", "seed=1"]))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("name", "match"), [("a*b", "because of the"), ("file", "is a file"), (LATIN, "not UTF-8")])
def test_a_sweep_is_refused_before_it_starts(tmp_path, name, match):
    (tmp_path / "file").touch()
    flags = sweep_command.parser().parse_args(["--config=configs/sweeps/smoke.py", f"--workdir={tmp_path}/{name}"])
    with pytest.raises(ValueError, match=f"--workdir = .*{match}"):
        sweep_command.run(flags)
    with pytest.raises(ValueError, match="--report = .*(is a file|not UTF-8)|holds no sweep"):
        sweep_command.run(sweep_command.parser().parse_args(["--report", f"{tmp_path}/{name}"]))


def test_reading_under_a_name_that_is_not_utf8_says_so(tmp_path):
    for reads in (lambda path: restore(path), lambda path: export.open(path)):
        with pytest.raises(ValueError, match="not UTF-8"):
            reads(f"{tmp_path}/{LATIN}")
    for flag in ("npz", "hdf5", "png"):
        given = {"npz": None, "hdf5": None, "png": None, flag: f"{tmp_path}/{LATIN}"}
        with pytest.raises(ValueError, match=f"--{flag} = .*not UTF-8"):
            export_command.validate_targets(argparse.Namespace(**given))


def test_examples_with_such_names_are_exported(tmp_path):
    class Source:
        labels = np.zeros(3, np.int32)

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {"image": np.full((4, 4, 1), 9 * index, np.uint8), "label": 0}

        def name(self, index):
            return f"/data/{LATIN}{index}.png"

    def fn(image):
        return image.mean((0, 1)) * jnp.arange(2.0)

    export.export(fn, Source(), tmp_path / "out.zarr", progress=False)
    assert export.open(tmp_path / "out.zarr").names == {i: rf"caf\xe9{i}.png" for i in range(3)}
    for path in (tmp_path / "file", tmp_path / LATIN, tmp_path / "out.zarr" / "zarr.json" / "x"):
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match="path = .*(not UTF-8|is a file)"):
            export.export(fn, Source(), path, progress=False)


def test_suggested_commands_are_quoted(tmp_path):
    class Saved:
        def best_step(self):
            return None

    folder = str(tmp_path / "it's a $run")
    said = members.Writer(members.Member("", folder, 0), Saved(), None).closing(True)
    assert shlex.split(said.partition("Next: ")[2]) == ["python", "evaluate.py", f"--workdir={folder}"]
    said = tfds_source._how_to_prepare("cifar10", folder, folder)
    (line,) = [line for line in said.splitlines() if "python -c" in line]
    _, option, program = shlex.split(line)
    assert option == "-c" and json.dumps(folder) in program
    compile(program, "said", "exec")


@pytest.mark.parametrize(
    ("step", "said"),
    [(0, "starting: 372 steps (62 per epoch)"), (124, "continuing at step 124 of 372 (62 per epoch)"),
     (372, "all 372 steps are done")],
)  # fmt: skip
def test_a_start_says_what_is_to_be_done(step, said):
    schedule = build.Schedule(62, 372, 0, 62, None)
    member = members.Member("", "runs/a", 0)
    run = Run(tiny_runs.tiny_config("data", method="ce"), [member], None, schedule, *[None] * 5)
    state = argparse.Namespace(step=step, params={"kernel": np.zeros((30, 50))})
    assert opening(run, state, "runs/a") == (f"ce · folder · cnn (1,500 parameters) · 8 cpu devices · {said} · runs/a")


def test_best_and_last_are_said_once(tmp_path):
    class Saved:
        def best_step(self):
            return 4

    row = {"step": 4, "split": "val", "accuracy": 0.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    closing = members.Writer(members.Member("", str(tmp_path), 0), Saved(), None).closing(True)
    assert "Validation accuracy: 50.0% at step 4 (best and last). Next" in closing


def test_a_reason_is_one_line():
    error = ValueError("NOT_FOUND: no manifest [tensorstore_spec='{...}']\nmore")
    assert checkpoint._reason(error) == "NOT_FOUND: no manifest"
    assert checkpoint._reason(KeyError()) == "KeyError"
