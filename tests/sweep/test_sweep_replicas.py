"""Tests of sweeps that train several trials in one program: their groups, and that each trial is an ordinary run."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import sweeps

from sdecor.core import files
from sdecor.sweep import __main__ as command_line, commands, job, local, plan, trial_folder
from sdecor.training import logbook, run_folder

ROOT = pathlib.Path(__file__).parents[2]
CELLS = [
    ("ce", {"method": "ce"}),
    ("sgt", {"method": "sgt"}),
    ("low", {"method": "sgt", "masking.fraction": 0.25}),
    ("fill", {"method": "sgt", "masking.fill": "zero"}),
    ("points", {"method": "ce", "evaluation.curve_steps": 4}),  # evaluation reads this from the run's folder
]

# argv: the exit status, whether the last replica fails, folders. A step is a row in each folder.
STAND_IN = """
import json, pathlib, sys
status, fails, folders = int(sys.argv[1]), sys.argv[2] == "True", [pathlib.Path(name) for name in sys.argv[3:]]
for folder in folders:
    with (folder / "starts").open("a") as file:
        file.write("together\\n")
    rows = [{"step": 1, "split": "train", "images_per_second": 2.0}]
    rows += [{"step": 2, "split": "failed"}] if fails and folder == folders[-1] else []
    content = {"config": {"train": {"batch_size": 2}}, "dataset": {}, "versions": {}}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
print("the last words")
sys.exit(status)
"""


@pytest.fixture
def sweep():
    return plan.make(sweeps.content(cells=CELLS))


@pytest.fixture
def configs():
    """Return the configs that a dry start finds."""
    from configs import default

    found = {}
    for name, overrides in CELLS:
        config = default.get_config(f"method={overrides['method']}")
        config.update_from_flattened_dict({field: value for field, value in overrides.items() if "." in field})
        found[name] = files.plain(config)
    return found


def keys(found):
    return [[trial.key for trial in group.trials] for group in found]


def test_trials_that_differ_in_numbers_alone_are_together(sweep, configs, tmp_path):
    found = job.together(sweep.trials(), tmp_path, configs, 3)
    assert keys(found) == [
        ["ce/seed0", "ce/seed1"],
        ["sgt/seed0", "low/seed0", "sgt/seed1"],
        ["fill/seed0", "fill/seed1"],
        ["points/seed0", "points/seed1"],
        ["low/seed1"],
    ]
    assert found[0].replicas["ce/seed1"] == "ce/seed1:seed=1"  # with the fields that differ within the group
    assert found[1].replicas["low/seed0"] == "low/seed0:seed=0,masking.fraction=0.25"
    assert keys(job.together(sweep.trials(), tmp_path, configs, 1)) == [[trial.key] for trial in sweep.trials()]
    command = job.group_command(found[1], "train", tmp_path)
    assert command[1:3] == [str(ROOT / "train.py"), f"--config={ROOT}/configs/default.py:method=sgt"]
    assert command[-4:] == [
        *(f"--replica={key}:seed={key[-1]},masking.fraction={fraction}"
          for key, fraction in (("sgt/seed0", 0.5), ("low/seed0", 0.25), ("sgt/seed1", 0.5))),
        f"--workdir={tmp_path}",
    ]  # fmt: skip
    assert job.group_command(found[4], "train", tmp_path)[-1] == f"--workdir={tmp_path}/low/seed1"


def test_trials_that_are_trained_failed_or_at_another_step_are_not_grouped(sweep, configs, tmp_path):
    trials = sweep.trials(["sgt", "low"])
    for step in (2, 4):
        (tmp_path / "sgt/seed0/checkpoints" / str(step)).mkdir(parents=True)
    (tmp_path / "low/seed0").mkdir(parents=True)
    trial_folder.add_finished(tmp_path / "low/seed0", "train", [], 1.0)
    (tmp_path / "sgt/seed1").mkdir()
    (tmp_path / "sgt/seed1/metrics.jsonl").write_text('{"step": 3, "split": "failed"}\n')
    found = job.together(trials, tmp_path, configs, 4)
    assert keys(found) == [["sgt/seed0"], ["low/seed0"], ["sgt/seed1"], ["low/seed1"]]


def stand_in(monkeypatch, *, code: int = 0, fails: bool = False):
    sweeps.stand_in(monkeypatch, seconds=0.0)

    def together(trial, replicas, folder):
        places = [str(folder / replica.partition(":")[0]) for replica in replicas]
        return [sys.executable, "-S", "-c", STAND_IN, str(code), str(fails), *places]

    monkeypatch.setattr(commands, "replica_command", together)


def starts(folder, trials):
    return {trial.key: sweeps.starts(folder / trial.key) for trial in trials}


def test_trained_at_once_and_evaluated_each(sweep, configs, tmp_path, monkeypatch):
    stand_in(monkeypatch)
    trials = sweep.trials(["ce"])
    assert local.run_all(trials, tmp_path, grouped=job.together(trials, tmp_path, configs, 2))
    assert all(stages == ["together", "evaluate"] for stages in starts(tmp_path, trials).values())
    assert set(local.states(trials, tmp_path).values()) == {"finished"}
    done = [trial_folder.read(tmp_path / trial.key)["done"]["train"] for trial in trials]
    assert done[1]["arguments"] == commands.arguments(trials[1], "train")
    assert "trained together with ce/seed0" in (tmp_path / "ce/seed1/sweep.log").read_text()


@pytest.mark.parametrize(("code", "failed"), [(3, ["ce/seed1"]), (1, ["ce/seed0", "ce/seed1"])])
def test_failed_replicas_are_noted_and_tried_again_alone(sweep, configs, tmp_path, monkeypatch, code, failed):
    stand_in(monkeypatch, code=code, fails=code == 3)
    trials = sweep.trials(["ce"])
    assert local.run_all(trials, tmp_path, grouped=job.together(trials, tmp_path, configs, 2))
    states = local.states(trials, tmp_path)
    assert [key for key, state in states.items() if state == "failed"] == failed
    assert trial_folder.read(tmp_path / "ce/seed1")["failed"]["lines"][-1] == "the last words"
    again = job.together(trials, tmp_path, configs, 2)
    assert len(again) == 2
    stand_in(monkeypatch)
    assert local.run_all(trials, tmp_path, grouped=again)
    assert set(local.states(trials, tmp_path).values()) == {"finished"}
    assert starts(tmp_path, trials)["ce/seed1"] == ["together", "train", "evaluate"]


def test_what_another_sweep_holds_is_left_out_of_the_group(sweep, configs, tmp_path, monkeypatch):
    stand_in(monkeypatch)
    monkeypatch.setattr(local, "_LOOK_AGAIN", 0.1)
    trials = sweep.trials(["sgt", "low"])
    held = trial_folder.take(tmp_path / trials[0].key)
    grouped = job.together(trials, tmp_path, configs, 4)
    still_held = [held]
    monkeypatch.setattr(local, "_print_outcome", lambda *arguments: still_held and still_held.pop().release())
    assert local.run_all(trials, tmp_path, grouped=grouped)
    found = starts(tmp_path, trials)
    assert found.pop(trials[0].key) == ["train", "evaluate"]
    assert all(stages == ["together", "evaluate"] for stages in found.values())


def test_not_with_slurm(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = ["--config=configs/sweeps/smoke.py", f"--workdir={tmp_path}"]
    for wrong, message in ((["--replicas=2", "--slurm"], "a task of --slurm is one trial"), (["--replicas=0"], "= 0")):
        with pytest.raises(SystemExit, match=message):
            command_line.main([*arguments, *wrong])


@pytest.mark.full
def test_smoke_sweep_really(tmp_path):
    """The same sweep, trained together and in turn, has equal steps and about equal numbers."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "Agg"}
    start = [sys.executable, "-m", "sdecor.sweep", "--config=configs/sweeps/smoke.py"]
    for name, extra in (("together", ["--replicas=2"]), ("in_turn", [])):
        process = subprocess.run(
            [*start, f"--workdir={tmp_path / name}", *extra], cwd=ROOT, env=env, capture_output=True, text=True
        )
        assert process.returncode == 0, process.stdout + process.stderr
    for trial in plan.make(sweeps.content(cells=[("ce", {}), ("sgt_fraction=0.5", {})])).trials():
        one, other = (tmp_path / name / trial.key for name in ("together", "in_turn"))
        assert run_folder.read(one) == run_folder.read(other)
        rows = [[row for row in logbook.read_rows(place) if row["split"] == "val"] for place in (one, other)]
        for row, same in zip(*rows, strict=True):
            assert row["step"] == same["step"]
            assert row["cross_entropy"] == pytest.approx(same["cross_entropy"], rel=0.01)
        ginis = [
            json.loads((place / "evaluation.json").read_text())["metrics"]["gradient/gini"] for place in (one, other)
        ]
        assert ginis[0]["mean"] == pytest.approx(ginis[1]["mean"], rel=0.05)
