"""Tests of a run's folder: which run may continue there, also where config.json is missing or damaged."""

import errno
import json
import logging
import os
import pathlib
import shutil

import jax.numpy as jnp
import optax
import pytest

from configs import default
from sdecor.core import files, parallel
from sdecor.core.commands import TemporaryFailure
from sdecor.training import run_folder
from sdecor.training.checkpoint import Checkpoints
from sdecor.training.state import TrainState

DATASET = {"num_classes": 10, "mean": [0.5], "std": [0.2]}
FORMER = pathlib.Path(__file__).parents[1] / "former" / "run"


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Return the folder of a run with one checkpoint."""
    folder = tmp_path_factory.mktemp("started")
    run_folder.claim(folder, default.get_config(), DATASET)
    params = {"kernel": jnp.ones((2, 2))}
    state = TrainState.create(apply_fn=None, params=params, tx=optax.sgd(0.1), batch_stats={})
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(parallel.replicate(state.replace(step=jnp.int32(4))), position={"step": 4, "seed": 0})
    return folder


def without_config(tmp_path, origin, how):
    folder = tmp_path / "run"
    shutil.copytree(origin, folder)
    path = folder / "config.json"
    whole = path.read_bytes()
    damaged = {"cut": whole[: len(whole) // 2], "empty": b"", "other": b"[1, 2]", "part": b'{"config": {}}'}
    path.unlink() if how == "missing" else path.write_bytes(damaged[how])
    return folder


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "other", "part"])
def test_without_its_config_a_run_continues_with_the_same_config_only(started, tmp_path, how, caplog):
    folder = without_config(tmp_path, started, how)
    told = "missing. Train one" if how == "missing" else "config.json is damaged: .*put it back"
    with pytest.raises(ValueError, match=told):
        run_folder.read(folder)
    with pytest.raises(ValueError, match=r"holds a run of another config:\n  optim.lr: 0.002 there, 0.5 here"):
        config = default.get_config()
        config.optim.lr = 0.5
        run_folder.claim(folder, config, DATASET)
    with pytest.raises(ValueError, match="dataset.num_classes: 10 there, 11 here"):
        run_folder.claim(folder, default.get_config(), DATASET | {"num_classes": 11})
    config = default.get_config()
    config.train.checkpoint_every_minutes = 3.0
    with caplog.at_level(logging.WARNING):
        run_folder.claim(folder, config, DATASET)
    assert "config.json" in caplog.text and "checkpoint of step 4 is used" in caplog.text
    assert run_folder.read(folder)["config"]["optim"]["lr"] == 0.002


@pytest.mark.parametrize("how", ["missing", "empty", "cut"])
def test_checkpoints_that_do_not_name_their_config_are_refused_without_it(tmp_path, how):
    folder = without_config(tmp_path, FORMER, how)
    word = "missing" if how == "missing" else "damaged"
    with pytest.raises(ValueError, match=f"config.json is {word}, and no checkpoint .*put the file back from a copy"):
        run_folder.claim(folder, default.get_config(), DATASET)


def test_a_former_run_continues_with_its_config(tmp_path):
    shutil.copytree(FORMER, tmp_path / "run")
    stored = json.loads((tmp_path / "run/config.json").read_text())
    run_folder.claim(tmp_path / "run", stored["config"], stored["dataset"])


@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.EROFS, ValueError), (errno.EACCES, ValueError), (errno.ENOSPC, TemporaryFailure)],
)
@pytest.mark.parametrize("where", ["write_json", "mkdir"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, code, kind, where):
    def fails(*arguments, **options):
        raise OSError(code, os.strerror(code))

    if where == "write_json":
        monkeypatch.setattr(run_folder, "write_json", fails)
    else:
        monkeypatch.setattr(files.epath.Path, "mkdir", fails)
        monkeypatch.setattr(type(files.epath.Path(tmp_path)), "mkdir", fails)
    done = "written" if where == "write_json" else "made"
    with pytest.raises(kind, match=rf"--workdir = .*/run' cannot be {done}: {os.strerror(code)}$"):
        run_folder.claim(tmp_path / "run", default.get_config(), DATASET)


def test_a_failure_of_the_main_process_is_one_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "any_process", lambda flag: True)
    with pytest.raises(ValueError, match="cannot be written by the main process"):
        run_folder.claim(tmp_path, default.get_config(), DATASET, write=False)
