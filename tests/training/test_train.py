"""Tests of training as a whole: exact resumption, guarded folders, and failures that say what to do."""

import contextlib
import json
import os
import signal
import time
from unittest import mock

import command_lines
import jax
import networks
import numpy as np
import pytest
import tiny_runs

import train
from configs import default
from sdecor.core import files, parallel
from sdecor.core.interrupt import Interrupt
from sdecor.evaluation import runs as trained
from sdecor.training import build, logbook, run, run_folder, steps
from sdecor.training.batches import batch_shapes, member_batches, step_batches
from sdecor.training.checkpoint import Checkpoints, checksums
from sdecor.training.run import build_run

EVENTS = []  # events of the last undisturbed run


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny_runs.draw_images(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    """Return the folder of an uninterrupted run, with which others are compared."""
    folder = tmp_path_factory.mktemp("undisturbed")
    EVENTS.clear()  # a worker that comes back to this module makes the run again
    step, loaders = steps.train_step, run.create_loaders
    trace = lambda *args, **given: EVENTS.append("trace") or step(*args, **given)  # noqa: E731
    read = lambda *args, **given: EVENTS.append("read") or loaders(*args, **given)  # noqa: E731
    with mock.patch.object(steps, "train_step", trace), mock.patch.object(run, "create_loaders", read):
        assert train.train(tiny_runs.tiny_config(images), str(folder))
    return folder


def test_the_step_is_traced_once_before_images_are_read(undisturbed):
    assert EVENTS == ["trace", "read"]


@pytest.mark.parametrize("replicas", [None, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_shapes_traced_are_those_of_the_batches(replicas, accumulate):
    """Otherwise the step is traced a second time."""

    class Loader:
        def iterate(self, start):
            while True:
                batch = networks.tiny_batch(16 // accumulate)
                yield {name: batch[name] for name in ("image", "label", "position")}

    sizes = {"replicas": replicas, "batch_size": 16, "accumulate": accumulate}
    with contextlib.closing(member_batches([Loader()] * (replicas or 1), 0, **sizes)) as batches:
        expected = jax.tree.map(lambda array: (array.shape, array.dtype), next(batches))
    found = batch_shapes(networks.SHAPE, **sizes)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in found.items()} == expected


def final_state(images, folder):
    _, state = build_run(tiny_runs.tiny_config(images), str(folder))
    with Checkpoints(folder, create=False) as checkpoints:
        state, position = checkpoints.restore(state)
        return checksums({"params": state.params, "opt": state.opt_state, "stats": state.batch_stats}), position


rows_without_rate = tiny_runs.rows_without_times


def test_run_writes_its_config_and_log(undisturbed):
    recorded = run_folder.read(undisturbed)
    assert recorded["config"]["method"] == "sdecor" and recorded["versions"]["jax"] == jax.__version__
    rows = logbook.read_rows(undisturbed)
    assert [row["step"] for row in rows if row["split"] == "train"] == list(range(1, 13))
    assert [row["step"] for row in rows if row["split"] == "val"] == [3, 6, 9, 12]
    last = [row for row in rows if row["split"] == "train"][-1]
    for name in ("loss", "classification", "consistency", "decorrelation", "decorrelation_samples",
                 "feature_scale", "gradient_norm", "accuracy", "learning_rate"):  # fmt: skip
        assert np.isfinite(last[name]), name
    assert list((undisturbed / "tensorboard").glob("events.*"))


@pytest.mark.parametrize(("arg", "warned"), [("", True), ("form=density", False), ("method=ce", False)])
def test_a_batch_too_small_for_its_covariance_is_told(arg, warned, caplog):
    config = default.get_config(arg)
    model = build.create_model(config, 10, (32, 32, 3))
    with caplog.at_level("WARNING"):
        build.warn_small_batch(config, model, (32, 32, 3))
    assert ("128 features from 128 samples" in caplog.text) == warned


def test_a_data_set_of_one_class_is_refused_at_the_start(tmp_path):
    images = tiny_runs.draw_images(tmp_path / "images", classes=1, train=4, test=1)
    with pytest.raises(ValueError, match="config.data.name = 'folder', data.path = .* has one class, 'class0'"):
        train.train(tiny_runs.tiny_config(images), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_gradient_penalty_trains_and_older_runs_are_restored(images, tmp_path):
    config = tiny_runs.tiny_config(images, method="gradpen", **{"train.epochs": 1.0})
    assert train.train(config, str(tmp_path))
    *_, last = [row for row in logbook.read_rows(tmp_path) if row["split"] == "train"]
    assert last["gradient_penalty"] > 0 and last["gradient_penalty_weight"] == pytest.approx(0.1)
    assert last["loss"] == pytest.approx(last["classification"] + 0.1 * last["gradient_penalty"], rel=1e-5)
    recorded = run_folder.read(tmp_path)
    restored = trained.restore(str(tmp_path))
    del recorded["config"]["gradient_penalty"]  # as before this group existed
    files.write_json(tmp_path / "config.json", recorded)
    assert trained.restore(str(tmp_path)).settings == restored.settings


@pytest.mark.parametrize(  # the first step, one with a validation, the last one
    "step", [pytest.param(1, marks=pytest.mark.full), 6, pytest.param(12, marks=pytest.mark.full)]
)
def test_interrupted_run_continues_exactly(images, undisturbed, tmp_path, monkeypatch, step, capsys):
    with monkeypatch.context() as patch:
        tiny_runs.interrupt_at(patch, step)
        assert not train.train(tiny_runs.tiny_config(images), str(tmp_path))
    assert "Run the same command to continue" in capsys.readouterr().out
    assert train.train(tiny_runs.tiny_config(images), str(tmp_path))
    assert final_state(images, tmp_path) == final_state(images, undisturbed)
    assert rows_without_rate(tmp_path) == rows_without_rate(undisturbed)


def test_validation_cut_off_by_a_signal_is_repeated(images, undisturbed, tmp_path, monkeypatch):
    original = run.create_validation

    def validation(*arguments, **options):
        validate = original(*arguments, **options)

        def cut_off(state, interrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            return validate(state, interrupt)

        return cut_off

    with monkeypatch.context() as patch:
        patch.setattr(run, "create_validation", validation)
        assert not train.train(tiny_runs.tiny_config(images), str(tmp_path))
    assert not [row for row in logbook.read_rows(tmp_path) if row["split"] == "val"]
    assert train.train(tiny_runs.tiny_config(images), str(tmp_path))
    assert final_state(images, tmp_path) == final_state(images, undisturbed)
    assert rows_without_rate(tmp_path) == rows_without_rate(undisturbed)


def test_a_signal_while_validation_waits_for_images_saves_the_step(images, undisturbed, tmp_path, monkeypatch):
    class Blocked:
        def __init__(self, source):
            self.source = source

        def __len__(self):
            return len(self.source)

        def __getitem__(self, place):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
            return self.source[place]

    original = run.validation_source
    with monkeypatch.context() as patch:
        patch.setattr(run, "validation_source", lambda *arguments: Blocked(original(*arguments)))
        assert not train.train(tiny_runs.tiny_config(images, **{"train.checkpoint_every_steps": 100}), str(tmp_path))
    (saved,) = Checkpoints(tmp_path, create=False).steps()
    assert {row["step"] for row in logbook.read_rows(tmp_path)} == set(range(saved + 1))
    assert train.train(tiny_runs.tiny_config(images), str(tmp_path))
    assert final_state(images, tmp_path) == final_state(images, undisturbed)
    assert rows_without_rate(tmp_path) == rows_without_rate(undisturbed)


def test_finished_run_is_left_as_it_is(images, undisturbed, capsys):
    before = (undisturbed / "metrics.jsonl").read_text()
    assert train.train(tiny_runs.tiny_config(images), str(undisturbed))
    assert (undisturbed / "metrics.jsonl").read_text() == before
    assert "Finished" in capsys.readouterr().out


def test_folder_of_another_config_is_refused_with_the_fields(images, undisturbed):
    other = tiny_runs.tiny_config(images, **{"optim.lr": 0.5, "masking.fill": "zero"})
    with pytest.raises(ValueError, match="another config") as error:
        train.train(other, str(undisturbed))
    assert "optim.lr: 0.002 there, 0.5 here" in str(error.value)
    assert "masking.fill: 'uniform' there, 'zero' here" in str(error.value)


def test_fields_that_change_no_parameter_may_differ(images, undisturbed):
    assert train.train(tiny_runs.tiny_config(images, **{"log.every_steps": 5, "data.workers": 0}), str(undisturbed))


def test_non_finite_loss_stops_with_step_terms_and_last_checkpoint(images, tmp_path):
    config = tiny_runs.tiny_config(images, method="ce", **{"optim.name": "sgd", "optim.lr": 1e30, "model.norm": "none"})
    with pytest.raises(FloatingPointError, match=r"not finite at step \d+ .*classification") as error:
        train.train(config, str(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_damaged_last_checkpoint_costs_only_its_steps(images, undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        tiny_runs.interrupt_at(patch, 9)
        train.train(tiny_runs.tiny_config(images), str(tmp_path))
    for path in (tmp_path / "checkpoints" / "9" / "state").rglob("*"):
        if path.is_file() and "/d/" in str(path):
            path.write_bytes(b"")
    assert train.train(tiny_runs.tiny_config(images), str(tmp_path))
    assert final_state(images, tmp_path) == final_state(images, undisturbed)
    assert rows_without_rate(tmp_path) == rows_without_rate(undisturbed)


def test_logbook_drops_what_will_be_written_again_and_a_torn_line(tmp_path):
    with logbook.Logbook(tmp_path, tensorboard=False) as book:
        for step in (1, 2, 3):
            book.write(step, "train", {"loss": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "spl')
    with logbook.Logbook(tmp_path, step=2, tensorboard=False) as book:
        book.write(3, "train", {"loss": 9.0})
        book.write(3, "train", {"loss": 8.0})  # a repeated row is dropped
        book.write(3, "val", {"loss": float("nan")})  # NaN is written as null
    assert [(row["step"], row["loss"]) for row in logbook.read_rows(tmp_path)] == [
        (1, 1.0), (2, 2.0), (3, 9.0), (3, None),
    ]  # fmt: skip


def test_gradient_accumulation_draws_apart():
    """Positions continue through the micro-batches of a step, so that its examples draw differently."""
    loader = [{"position": np.arange(8, dtype=np.int32), "image": np.zeros((8, 2, 2, 3), np.uint8)} for _ in range(2)]

    class Loader:
        def iterate(self, start):
            assert start == 6
            return (dict(batch) for batch in loader)

    batch = next(step_batches(Loader(), 3, batch_size=16, accumulate=2))
    assert sorted(batch["position"].ravel()) == list(range(16))
    assert batch["image"].shape[:2] == (jax.local_device_count(), 2)


def test_interrupt_turns_the_first_signal_into_a_flag():
    before = signal.getsignal(signal.SIGINT)  # shells start background jobs with SIGINT ignored
    with Interrupt() as interrupt:
        assert not interrupt
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt and interrupt.signal == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before


def test_batch_size_must_divide():
    with pytest.raises(ValueError, match="config.train.batch_size = 12 .* 8 devices .* multiple of 8"):
        parallel.check_batch_size("config.train.batch_size", 12)


def test_folder_without_a_step_is_free_for_another_config(images, tmp_path):
    run_folder.claim(tmp_path, tiny_runs.tiny_config(images), {"name": "folder"})
    run_folder.claim(tmp_path, tiny_runs.tiny_config(images, **{"optim.lr": 0.5}), {"name": "folder"})
    assert run_folder.read(tmp_path)["config"]["optim"]["lr"] == 0.5


WRONG = {
    "field": (["--config=configs/default.py", "--config.optim.lrr=1"], 'Did you mean "lr"'),
    "file": (["--config=configs/nothing.py"], "configs/nothing.py"),
    "file with a choice": (["--config=configs/nothing.py:method=ce"], "--config=configs/nothing.py: there is no"),
    "method": (["--config=configs/default.py:method=sdcor"], "ce|sgt|decor|sdecor|gradpen"),
    "value": (["--config=configs/default.py", "--config.masking.fraction=1.0"], "[0, 1)"),
    "job": (["--config=configs/default.py", "--processes=2"], "--coordinator"),
    "profile": (["--config=configs/default.py", "--profile=0"], "--profile = '0' names no steps"),
    "watchdog": (["--config=configs/default.py", "--watchdog=-1"], "--watchdog = -1"),
    "topology": (["--config=configs/default.py", "--topology=v5e:2x2"], "--topology goes with --compile_only"),
    "image_shape": (
        ["--config=configs/default.py", "--compile_only", "--classes=2", "--image_shape=8,a"],
        "= 8,a: give",
    ),
    "compilation_cache": (
        ["--config=configs/default.py", "--compilation_cache=/dev/null/cache"],
        "--compilation_cache = '/dev/null/cache' cannot be made",
    ),
    "none": ([], "--config is missing"),
    "word": (["workdir"], "--name=value"),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """Return the named folder, and the exit status and output of each wrong command line."""
    folder = tmp_path_factory.mktemp("wrong") / "run"
    found = command_lines.answers("train", [[f"--workdir={folder}", *arguments] for arguments, _ in WRONG.values()])
    return folder, dict(zip(WRONG, found, strict=True))


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_command_line_ends_with_one_clear_line(refused, wrong):
    folder, found = refused
    status, output = found[wrong]
    assert status != 0
    assert WRONG[wrong][1] in output and "Traceback" not in output and output.count("\n") <= 4
    assert not folder.exists()


@pytest.mark.full
@pytest.mark.parametrize("lines", [3, 6, 10, 13])
def test_killed_process_continues_exactly(images, tmp_path, lines):
    """After kill -9 at a number of log lines, the same command ends where an undisturbed run ends."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = tiny_runs.start(tiny_runs.command(images, whole), env)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    process = tiny_runs.start(tiny_runs.command(images, broken), env)
    while process.poll() is None:
        if (broken / "metrics.jsonl").exists() and len((broken / "metrics.jsonl").read_text().splitlines()) >= lines:
            process.kill()
            break
        time.sleep(0.02)
    process.wait()
    process = tiny_runs.start(tiny_runs.command(images, broken), env)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert final_state(images, broken) == final_state(images, whole)
    assert rows_without_rate(broken) == rows_without_rate(whole)


@pytest.mark.full
def test_ctrl_c_saves_and_says_how_to_go_on(images, tmp_path):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    process = tiny_runs.start(tiny_runs.command(images, tmp_path, "--config.train.epochs=4000"), env)
    while process.poll() is None:
        if (tmp_path / "metrics.jsonl").exists() and len((tmp_path / "metrics.jsonl").read_text().splitlines()) > 4:
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.02)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "Run the same command to continue" in output and "Traceback" not in output
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert (tmp_path / "checkpoints" / str(last)).is_dir()


@pytest.mark.full
def test_two_processes_train_and_resume_as_one(images, tmp_path):
    """Two processes with four devices each end with the parameters of one process with eight, up to rounding."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1", "JAX_NUM_CPU_DEVICES": "4"}
    port = 20000 + os.getpid() % 20000
    pair = [
        tiny_runs.start(
            tiny_runs.command(
                images, tmp_path / "two", f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process={i}"
            ),
            env,
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=400)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    one = tiny_runs.start(tiny_runs.command(images, tmp_path / "one"), env | {"JAX_NUM_CPU_DEVICES": "8"})
    assert one.wait(timeout=300) == 0
    rows = [{r["step"]: r for r in logbook.read_rows(tmp_path / n) if r["split"] == "val"} for n in ("one", "two")]
    assert rows[0].keys() == rows[1].keys()
    for step, row in rows[0].items():
        assert rows[1][step]["cross_entropy"] == pytest.approx(row["cross_entropy"], rel=1e-3)
