"""Tests of sweeps: sweep files, their trials, and starting again, which runs only what is missing."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
import sweeps
import tiny_runs as trained

from sdecor.core import children
from sdecor.sweep import __main__ as command_line, check, commands, dry, job, local, plan, trial_folder

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": []}, "did you mean 'cells'"),
        ({"cells": []}, "at least one"),
        ({"cells": [("ce", {}), ("ce", {})]}, "'ce' twice"),
        ({"cells": [("a/b", {})]}, "name of a folder"),
        ({"cells": [("report", {})]}, "none of report"),
        ({"cells": [("ce", {"seed": 1})]}, "list the seeds"),
        ({"seeds": 0}, "seeds = 0"),
        ({"seeds": [1, 1]}, "each seed once"),
        ({"base": {"conifg": "x"}}, "did you mean 'config'"),
        ({"base": {"config": "configs/default.py:method=ce"}}, "name the file alone"),
        ({"tags": {"references": ["sgd"]}}, "did you mean 'sgt'"),
        ({"tests": [("sgt", "accuracy")]}, r"\(cell, measure, reference\)"),
        ({"tests": [("sgt", "accuracy", "c")]}, "reference of the test"),
        ({"tests": [("sgt", "accuracy", "sgt")]}, "another one"),
        ({"tests": [("sgt", "accuracy", "ce")] * 2}, "twice"),
    ],
)
def test_impossible_sweeps_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        plan.make(sweeps.content(**changes))


def test_trials_are_all_cells_of_a_seed_then_of_the_next():
    sweep = plan.make(sweeps.content(base={"overrides": {"method": "ce", "optim.lr": 0.1}}, seeds=[3, 5]))
    assert [trial.key for trial in sweep.trials()] == ["ce/seed3", "sgt/seed3", "ce/seed5", "sgt/seed5"]
    assert sweep.trials()[1].overrides == {"method": "sgt", "optim.lr": 0.1}
    assert [trial.key for trial in sweep.trials(["sgt"], [5])] == ["sgt/seed5"]
    with pytest.raises(ValueError, match="did you mean 'sgt'"):
        sweep.trials(["sgtt"])
    with pytest.raises(ValueError, match="--seeds = 4"):
        sweep.trials((), [4])
    assert plan.parse_seeds("0:3") == (0, 1, 2) and plan.parse_seeds("0,2") == (0, 2)
    with pytest.raises(ValueError, match="0:3"):
        plan.parse_seeds("0-3")


def test_command_lines_are_those_of_train_and_evaluate(tmp_path):
    overrides = {"method": "sgt", "runlocal": True, "model.widths": (4, 8), "log.progress": True}
    trial = plan.Trial(
        "sgt", 7, "configs/demo.py", overrides, {"methods": ["gradient", "lrp"], "force": True, "images": 2}
    )
    train, evaluate = (commands.command(trial, stage, tmp_path) for stage in commands.STAGES)
    assert train[1] == str(ROOT / "train.py") and train[-1] == f"--workdir={tmp_path}/sgt/seed7"
    assert train[2] == f"--config={ROOT}/configs/demo.py:method=sgt,runlocal"
    assert {"--config.seed=7", "--config.model.widths=(4, 8)", "--config.log.progress=True"} < set(train)
    assert evaluate[2:-1] == ["--noprogress", "--methods=gradient,lrp", "--force", "--images=2"]


def test_sweep_file_is_read_changed_and_kept(tmp_path):
    path = tmp_path / "file.py"
    path.write_text(f"def get_config(which='a'):\n    return {sweeps.content()!r} | {{'seeds': len(which)}}\n")
    assert plan.load(str(path)).seeds == (0,)
    settings = ("evaluate.split=val", "config.train.epochs=2.0", "evaluate.curve_images=5")
    sweep = plan.load(f"{path}:three", settings)
    assert sweep.seeds == (0, 1, 2, 3, 4)
    assert sweep.evaluate == {"metrics": ["gini"], "split": "val", "curve_images": 5}
    assert all(overrides["train.epochs"] == 2.0 for overrides in sweep.cells.values())
    plan.write(tmp_path / "runs", sweep)
    assert plan.read(tmp_path / "runs") == sweep
    for setting in ("evaluate", "train.epochs=2", "evaluate.split"):
        with pytest.raises(ValueError, match="evaluate.FLAG=VALUE"):
            plan.load(str(path), [setting])
    with pytest.raises(ValueError, match="holds no sweep"):
        plan.read(tmp_path)


@pytest.mark.parametrize("name", ["ablation", "smoke"])
def test_sweep_files_of_the_package_can_be(name):
    sweep = plan.load(str(ROOT / "configs" / "sweeps" / f"{name}.py"))
    assert len(sweep.trials()) == len(sweep.cells) * len(sweep.seeds) and sweep.tests


def test_a_form_is_a_word_of_a_cell():
    sweep = plan.load(str(ROOT / "configs" / "sweeps" / "ablation.py"))
    found = {trial.cell: dry.read_config(commands.train_arguments(trial)) for trial in sweep.trials(seeds=[0])}
    forms = {cell: (config.method, config.decorrelation.form) for cell, config in found.items()}
    assert forms["sdecor"] == ("sdecor", "covariance") and forms["sdecor_density"] == ("sdecor", "density")
    assert found["sdecor_density"].decorrelation.layers == ("activations",)


def test_grids_and_single_changes():
    from configs.sweeps import cells

    axes = {"masking.fraction": [0.25, 0.5], "decorrelation.layers": [(), ("a/c", "b")]}
    assert [name for name, _ in cells.grid(axes)] == [
        "fraction=0.25_layers=",
        "fraction=0.25_layers=a-c+b",
        "fraction=0.5_layers=",
        "fraction=0.5_layers=a-c+b",
    ]
    single = cells.one_factor({"optim.lr": [0.1, 0.2], "masking.order": ["highest"]}, prefix="x", also={"method": "ce"})
    assert single[0] == ("x_lr=0.1", {"method": "ce", "optim.lr": 0.1}) and len(single) == 3
    assert set(cells.factors({"optim.lr": [0.1, 0.2]}, prefix="x")) == {"x_lr=0.1", "x_lr=0.2"}
    assert cells.against(["a", "b"], ["m"], ["a"]) == [("b", "m", "a")]


def test_each_trial_is_done_once_and_a_failed_one_stops_no_other(tmp_path, monkeypatch, capsys):
    sweep = plan.make(sweeps.content())
    sweeps.stand_in(monkeypatch, fails=("ce/seed0",))
    assert local.run_all(sweep.trials(), tmp_path, jobs=3)
    states = local.states(sweep.trials(), tmp_path)
    assert states == {"ce/seed0": "failed", "sgt/seed0": "finished", "ce/seed1": "finished", "sgt/seed1": "finished"}
    failed = trial_folder.read(tmp_path / "ce/seed0")["failed"]
    assert (failed["stage"], failed["status"]) == ("train", 1) and "not finite" in failed["lines"][-1]
    text = local.describe(sweep.trials(), tmp_path)
    assert "3 finished, 0 running, 1 failed, 0 started, 0 left" in text and "not finite" in text
    sweeps.stand_in(monkeypatch)  # failed trials are tried again, finished ones are not
    assert local.run_all(sweep.trials(), tmp_path)
    assert sweeps.starts(tmp_path / "ce/seed0") == ["train", "train", "evaluate"]
    assert sweeps.starts(tmp_path / "sgt/seed1") == ["train", "evaluate"]
    assert "nothing is left" in capsys.readouterr().out


def test_a_fault_of_the_surroundings_is_tried_again(tmp_path, monkeypatch):
    program = "import pathlib, sys; tries = pathlib.Path(sys.argv[1]) / 'tries'; " \
        "tries.write_text((tries.read_text() if tries.exists() else '') + 'x'); " \
        "sys.exit(75 * (len(tries.read_text()) <= int(sys.argv[2])))"  # fmt: skip
    faults = {"ce/seed0": 2, "sgt/seed0": 99}

    def command(trial, stage, folder):
        return [sys.executable, "-S", "-c", program, str(folder / trial.key), str(faults[trial.key])]

    monkeypatch.setattr(commands, "command", command)
    trials = plan.make(sweeps.content(seeds=1)).trials()
    assert local.run_all(trials, tmp_path)
    tries = {trial.key: len((tmp_path / trial.key / "tries").read_text()) for trial in trials}
    assert tries == {"ce/seed0": 4, "sgt/seed0": 1 + job.RETRIES}  # the first is then trained and evaluated
    assert trial_folder.read(tmp_path / "sgt/seed0")["failed"]["status"] == 75


def test_trials_at_a_time_have_devices_of_their_own(tmp_path, monkeypatch):
    sweeps.stand_in(monkeypatch, seconds=0.5)
    trials = plan.make(sweeps.content(seeds=1)).trials()
    assert local.run_all(trials, tmp_path, jobs=2, environments=[{"CUDA_VISIBLE_DEVICES": name} for name in "01"])
    used = [
        {line.split()[1] for line in (tmp_path / trial.key / "starts").read_text().splitlines()} for trial in trials
    ]
    assert used in ([{"0"}, {"1"}], [{"1"}, {"0"}])


def test_other_settings_of_evaluation_evaluate_again(tmp_path, monkeypatch):
    sweeps.stand_in(monkeypatch, seconds=0.0)
    only = plan.make(sweeps.content(seeds=1)).trials(["ce"])
    assert local.run_all(only, tmp_path)
    again = plan.make(sweeps.content(seeds=1, evaluate={"metrics": ["entropy"]})).trials(["ce"])
    assert trial_folder.missing_stages(tmp_path / "ce/seed0", again[0]) == ["evaluate"]
    assert local.run_all(again, tmp_path)
    assert sweeps.starts(tmp_path / "ce/seed0") == ["train", "evaluate", "evaluate"]
    (tmp_path / "ce/seed0/evaluation.json").unlink()
    assert trial_folder.missing_stages(tmp_path / "ce/seed0", again[0]) == ["evaluate"]


DRIVER = """
import pathlib, sys
from sdecor.sweep import local, plan
import sweeps
class Patch:
    setattr = staticmethod(setattr)
sweeps.stand_in(Patch, seconds=float(sys.argv[2]))
done = local.run_all(plan.make(sweeps.content()).trials(), pathlib.Path(sys.argv[1]))
sys.exit(0 if done else 130)
"""


def drive(folder: pathlib.Path, seconds: float = 1.0) -> subprocess.Popen:
    """Start a sweep of stand-ins in a process of its own."""
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests/helpers'}"}
    return subprocess.Popen([sys.executable, "-c", DRIVER, str(folder), str(seconds)], env=env, text=True)


def wait_for(path: pathlib.Path, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.02)


def test_two_sweeps_share_the_trials_and_do_none_twice(tmp_path):
    processes = [drive(tmp_path, 0.4), drive(tmp_path, 0.4)]
    assert [process.wait(60) for process in processes] == [0, 0]
    for trial in plan.make(sweeps.content()).trials():
        assert sweeps.starts(tmp_path / trial.key) == ["train", "evaluate"], trial.key


def test_killed_sweep_is_continued(tmp_path):
    process = drive(tmp_path, 3.0)
    wait_for(tmp_path / "ce/seed0/metrics.jsonl")
    process.kill()
    process.wait()
    if sys.platform == "linux":  # the orphan is asked to save
        wait_for(tmp_path / "ce/seed0/saved", 10)
    assert drive(tmp_path, 0.1).wait(60) == 0
    assert sweeps.starts(tmp_path / "ce/seed0") == ["train", "train", "evaluate"]
    rows = (tmp_path / "ce/seed0/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, 11))


def test_orphan_keeps_its_claim(tmp_path, monkeypatch):
    monkeypatch.setattr(children, "_LIBC", None)  # as on systems that cannot signal an orphan
    sweeps.stand_in(monkeypatch, seconds=1.0)
    (trial, *_) = plan.make(sweeps.content()).trials()
    started = job.start(job.Group((trial,)), tmp_path)
    os.close(started.held[0].descriptor)  # as if the sweep died while its child lives
    assert (
        trial_folder.take(tmp_path / trial.key) is None
        and trial_folder.holder(tmp_path / trial.key)["process"] == os.getpid()
    )
    assert trial_folder.state(tmp_path / trial.key, trial) == "running"
    started.process.wait(30)
    assert trial_folder.state(tmp_path / trial.key, trial) == "started"
    trial_folder.take(tmp_path / trial.key).release()


def test_interrupt_lets_the_trial_save_and_starts_no_other(tmp_path):
    process = drive(tmp_path, 3.0)
    wait_for(tmp_path / "ce/seed0/metrics.jsonl")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert (tmp_path / "ce/seed0/saved").exists() and not (tmp_path / "sgt").exists()
    assert trial_folder.read(tmp_path / "ce/seed0")["spent"]["train"] > 0


def test_trial_of_another_sweep_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_LOOK_AGAIN", 0.1)
    sweeps.stand_in(monkeypatch, seconds=0.0)
    trials = plan.make(sweeps.content(seeds=1)).trials()
    held = trial_folder.take(tmp_path / trials[0].key)
    threading.Timer(1.0, held.release).start()
    began = time.monotonic()
    assert local.run_all(trials, tmp_path) and time.monotonic() - began > 1
    assert set(local.states(trials, tmp_path).values()) == {"finished"}


def test_time_left_is_that_of_finished_trials(tmp_path):
    sweep = plan.make(sweeps.content())
    sweeps.finished(tmp_path, sweep, {"ce": {0: {}}})  # one minute per stage
    trials = sweep.trials()
    left = [trial for trial in trials if trial.key != "ce/seed0"]
    assert local.seconds_left(trials, left, tmp_path) == 3 * 120
    (tmp_path / "ce/seed1").mkdir()
    (tmp_path / "ce/seed1/metrics.jsonl").write_text(json.dumps({"step": 5, "split": "train"}) + "\n")
    assert local.seconds_left(trials, left, tmp_path) == 3 * 120 - 30  # half of its steps are done
    assert "3 left, about 3 min" in local.remaining(trials, tmp_path, jobs=2)
    assert local.remaining(left, tmp_path / "none") == "3 left; the time is known once one is finished"
    texts = [local.duration(seconds) for seconds in (40, 720, 12_000, 187_200)]
    assert texts == ["40 s", "12 min", "3 h 20 min", "2 d 4 h"]


def test_every_cell_is_checked_before_the_first_trial(tmp_path):
    """The data set is an image folder, because the import of TFDS takes seconds."""
    images = {"data.name": "folder", "data.path": str(trained.draw_images(tmp_path / "images"))}
    cells = [
        ("good", {"method": "ce", "data.limit": 64, "train.batch_size": 8}),
        ("field", {"method": "ce", "optim.learning_rate": 0.1}),
        ("value", {"method": "sgt", "masking.fraction": 1.5}),
        ("word", {"method": "sgdt"}),
        ("layer", {"method": "decor", "decorrelation.layers": ("stage9",)}),
    ]
    sweep = plan.make(
        {
            "base": {"overrides": images},
            "cells": cells,
            "evaluate": {"methods": ["smothgrad"]},
            "tests": [("good", "gradient/ginni", "field")],
        }
    )
    with pytest.raises(ValueError) as error:
        check.check(sweep, sweep.trials(), tmp_path / "runs", os.environ)
    lines = str(error.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == [
        "cell 'field'", "cell 'value'", "cell 'word'", "cell 'layer'", "evaluate"
    ]  # fmt: skip
    for line, words in zip(
        lines, ("learning_rate", "masking.fraction", "method=ce|sgt", "stage9", "'smoothgrad'"), strict=True
    ):
        assert words in line


def test_same_cells_and_foreign_folders_are_found(tmp_path):
    configs = {
        "a": {"seed": 0, "optim": {"lr": 1.0}},
        "b": {"seed": 0, "optim": {"lr": 1.0}},
        "c": {"seed": 0, "optim": {"lr": 2.0}},
    }
    assert check.same_cells(configs) == ["the cells a, b have the same config: leave all but one out"]
    sweep = plan.make(sweeps.content(seeds=1))
    sweeps.finished(tmp_path, sweep, {"ce": {0: {}}})
    config = json.loads((tmp_path / "ce/seed0/config.json").read_text())["config"]
    trials = sweep.trials(["ce"])
    newer = config | {"added": 1, "log": {"every_steps": 3}}
    assert check.conflicts(trials, tmp_path, {"ce": newer}) == []
    (found,) = check.conflicts(trials, tmp_path, {"ce": config | {"method": "sgt"}})
    assert "method = 'ce' there, 'sgt' here" in found


def test_command_line_lists_and_refuses(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = ["--config=configs/sweeps/smoke.py", f"--workdir={tmp_path}", "--seeds=0:1", "--only=ce"]
    with pytest.raises(SystemExit) as ended:
        command_line.main([*arguments, "--list"])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0 and len(lines) == 2 and "train.py" in lines[0] and "evaluate.py" in lines[1]
    for wrong, message in (
        (["--config=configs/sweeps/smoke.py"], "--workdir is missing"),
        (["--config=none.py", f"--workdir={tmp_path}"], "is no file"),
        ([*arguments, "--only=cee"], "did you mean 'ce'"),
        (["--config=configs/sweeps/smoke.py", "--workdir=gs://b/x"], "remote"),
        ([arguments[0], "--workdir=/proc/sweep"], "--workdir = '/proc/sweep': no file can be written in /proc"),
        ([*arguments, "--jobs=0"], "--jobs = 0"),
        ([*arguments, "--gpus=0,1", "--jobs=3"], "more than the devices"),
    ):
        with pytest.raises(SystemExit, match=message):
            command_line.main(wrong)


@pytest.mark.full
def test_smoke_sweep_really(tmp_path):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "Agg"}
    start = [sys.executable, "-m", "sdecor.sweep", f"--workdir={tmp_path}", "--config=configs/sweeps/smoke.py"]
    report = [sys.executable, "-m", "sdecor.sweep", "--report", str(tmp_path)]
    for command in (start, start, report):
        process = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
        assert process.returncode == 0, process.stdout + process.stderr
    assert "4 of 4 trials are finished" in process.stdout
    assert (tmp_path / "report" / "pareto_gradient.pdf").stat().st_size > 0
