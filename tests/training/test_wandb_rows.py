"""Tests of the rows for Weights & Biases, with a module in its place: no network, and training never waits."""

import errno
import importlib.util
import json
import os
import sys
import threading
import types
from unittest import mock

import pytest
import tiny_runs
from absl import flags

import train
from sdecor.core import launch
from sdecor.training import logbook, wandb_rows


class Module(types.ModuleType):
    """A module `wandb` that records calls; `gate` can hold back every row, and `error` is raised by `log`."""

    def __init__(self):
        super().__init__("wandb")
        self.inits, self.rows, self.metrics, self.finished = [], [], [], 0
        self.gate, self.error, self.threads = threading.Event(), None, set()
        self.gate.set()

    def init(self, **options):
        self.inits.append(options)
        return self

    def define_metric(self, name, step_metric):
        self.metrics.append((name, step_metric))

    def log(self, row):
        self.gate.wait()
        self.threads.add(threading.current_thread())
        if self.error:
            raise self.error
        self.rows.append(row)

    def finish(self):
        self.finished += 1


@pytest.fixture
def module(monkeypatch):
    found = Module()
    monkeypatch.setitem(sys.modules, "wandb", found)
    return found


def test_the_rows_of_a_run_are_those_of_its_log_and_a_resumed_run_is_the_same(module, tmp_path):
    images = tiny_runs.draw_images(tmp_path / "images")
    config = tiny_runs.tiny_config(images, "ce", **{"train.epochs": 1.0, "log.tensorboard": False})
    for _ in range(2):
        assert train.train(config, str(tmp_path / "run"), wandb="digits")
    assert module.finished == 2 and threading.main_thread() not in module.threads
    first, second = module.inits
    assert first["project"] == "digits" and first["resume"] == "allow" and first["config"]["method"] == "ce"
    assert first["id"] == second["id"] == json.loads((tmp_path / "run" / "wandb.json").read_text())["id"]
    assert module.metrics[0] == ("*", "step")
    expected = [
        {"step": row["step"]} | {f"{row['split']}/{n}": v for n, v in row.items() if n not in ("step", "split")}
        for row in logbook.read_rows(tmp_path / "run")
    ]
    assert module.rows == expected and "val/accuracy" in expected[-1]


def test_a_network_that_hangs_or_fails_does_not_hold_the_run(module, tmp_path, capsys):
    module.gate.clear()
    with wandb_rows.Sender("p", str(tmp_path), {}, patience=0.1) as sender:
        send = sender.to("a")
        for step in range(1000):
            send({"step": step, "split": "train", "loss": 1.0})
    assert "rows are not sent yet after 0.1 s" in capsys.readouterr().out
    module.gate.set()
    module.error = ConnectionError("no route")
    with wandb_rows.Sender("p", str(tmp_path / "other"), {}) as sender:
        sender.to("a")({"step": 1, "split": "train", "loss": 1.0})
    assert "wandb: ConnectionError: no route; training continues" in capsys.readouterr().out


def test_a_damaged_id_is_replaced(module, tmp_path):
    (tmp_path / "wandb.json").write_text("{")
    with wandb_rows.Sender("p", str(tmp_path), {}):
        pass
    assert module.inits[0]["id"] == json.loads((tmp_path / "wandb.json").read_text())["id"]


def test_an_id_that_cannot_be_stored_or_read_stops_nothing(module, tmp_path, monkeypatch, caplog):
    (tmp_path / "wandb.json").write_text("[]")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(wandb_rows.files, "write_json", mock.Mock(side_effect=full))
    with wandb_rows.Sender("p", str(tmp_path), {}):
        pass
    assert module.inits[0]["id"] and "wandb.json cannot be written: No space left on device" in caplog.text


def test_without_the_package_the_flag_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--wandb needs the package wandb, which is not installed"):
        wandb_rows.check()


@pytest.mark.parametrize(
    ("arguments", "value"), [([], None), (["--wandb"], "sdecor"), (["--wandb=digits"], "digits"), (["--nowandb"], None)]
)
def test_the_flag_has_a_value_of_its_own_or_the_default(arguments, value):
    found = flags.FlagValues()
    holder = launch.define_optional("wandb", "sdecor", "about", found)
    found(["train.py", *arguments])
    assert holder.value == value
