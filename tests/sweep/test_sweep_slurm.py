"""Tests of a sweep as a Slurm array: the submitted tasks, and a warned task that saves and is queued again."""

import os
import pathlib
import signal
import subprocess
import sys
import types

import pytest
import sweeps

from sdecor.sweep import plan, slurm, trial_folder

ROOT = pathlib.Path(__file__).parents[2]


class Executor:
    """A stand-in for submitit's executor that keeps its options and tasks."""

    def __init__(self, folder, **options):
        self.told = {"folder": folder, **options}

    def update_parameters(self, **options):
        self.told |= options

    def map_array(self, function, *arguments):
        self.tasks = list(zip(*arguments, strict=True))
        Executor.last = self
        return [types.SimpleNamespace(job_id=f"1_{k}") for k in range(len(self.tasks))]


@pytest.fixture
def submitit(monkeypatch):
    """Return a stand-in for submitit, installed or not."""
    module = types.ModuleType("submitit")
    module.AutoExecutor = Executor
    module.helpers = types.SimpleNamespace(DelayedSubmission=lambda *arguments: arguments)
    monkeypatch.setitem(sys.modules, "submitit", module)
    return module


def test_one_task_for_each_trial_that_is_left(tmp_path, submitit):
    sweep = plan.make(sweeps.content())
    sweeps.finished(tmp_path, sweep, {"ce": {0: {}}})
    held = trial_folder.take(tmp_path / "sgt/seed1")
    options = slurm.parse(["partition=gpu", "timeout_min=240", "gpus_per_node=1", "slurm_qos=low"])
    jobs = slurm.submit(sweep.trials(), tmp_path, options, jobs=4)
    held.release()
    told = Executor.last.told
    assert (told["cluster"], told["slurm_partition"], told["timeout_min"], told["gpus_per_node"]) == (
        "slurm", "gpu", 240, 1
    )  # fmt: skip
    assert told["slurm_array_parallelism"] == 4 and told["slurm_qos"] == "low"
    assert [f"{trial['cell']}/seed{trial['seed']}" for trial, _ in Executor.last.tasks] == ["sgt/seed0", "ce/seed1"]
    assert len(jobs) == 2
    sweeps.finished(tmp_path / "all", sweep, {cell: {0: {}, 1: {}} for cell in sweep.cells})
    assert slurm.submit(sweep.trials(), tmp_path / "all", {}) == []


def test_missing_submitit_and_wrong_options_are_clear(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match="pip install submitit"):
        slurm.submit(plan.make(sweeps.content()).trials(), tmp_path, {})
    with pytest.raises(ValueError, match="name=value"):
        slurm.parse(["gpu"])


def test_task_does_a_trial_and_fails_with_it(tmp_path, monkeypatch, submitit):
    trials = plan.make(sweeps.content(seeds=1)).trials()
    sweeps.stand_in(monkeypatch, seconds=0.0, fails=("sgt/seed0",))
    assert slurm.Task()(trials[0]._asdict(), str(tmp_path)) == "finished"
    assert slurm.Task()(trials[0]._asdict(), str(tmp_path)) == "finished"
    assert sweeps.starts(tmp_path / "ce/seed0") == ["train", "evaluate"]
    with pytest.raises(RuntimeError, match="not finite"):
        slurm.Task()(trials[1]._asdict(), str(tmp_path))
    assert trial_folder.state(tmp_path / "sgt/seed0", trials[1]) == "failed"
    monkeypatch.setattr(slurm, "_TRIES", 1)
    held = trial_folder.take(tmp_path / "sgt/seed0")
    assert "claimed" in slurm.Task()(trials[1]._asdict(), str(tmp_path))
    held.release()


DRIVER = """
import pathlib, signal, sys, types
submitit = types.ModuleType("submitit")
submitit.helpers = types.SimpleNamespace(DelayedSubmission=lambda *arguments: arguments)
sys.modules["submitit"] = submitit
from sdecor.sweep import plan, slurm
import sweeps
class Patch:
    setattr = staticmethod(setattr)
sweeps.stand_in(Patch, seconds=float(sys.argv[2]))
task, arguments = slurm.Task(), (plan.make(sweeps.content()).trials()[0]._asdict(), sys.argv[1])
def warned(number, frame):  # as submitit does
    again, *same = task.checkpoint(*arguments)
    sys.exit(7 if isinstance(again, slurm.Task) and tuple(same) == arguments else 1)
signal.signal(signal.SIGUSR2, warned)
print(task(*arguments))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR2, 7), (signal.SIGTERM, 0)])
def test_warned_task_saves_and_goes_on_when_queued_again(tmp_path, number, status):
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests/helpers'}"}
    start = [sys.executable, "-c", DRIVER, str(tmp_path)]
    process = subprocess.Popen([*start, "3.0"], env=env)
    rows = tmp_path / "ce/seed0/metrics.jsonl"
    while not rows.exists():
        assert process.poll() is None
    process.send_signal(number)
    assert process.wait(30) == status
    assert (tmp_path / "ce/seed0/saved").exists()
    assert subprocess.run([*start, "0.1"], env=env, capture_output=True, text=True).stdout == "finished\n"
    assert sweeps.starts(tmp_path / "ce/seed0") == ["train", "train", "evaluate"]
