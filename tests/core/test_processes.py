"""Tests of the processes of a job: real jobs of a small program that trains nothing."""

import pathlib
import signal
import sys
import time

import pytest
from jobs import Job

from sdecor.core import processes
from sdecor.core.commands import FAILED, INTERRUPTED, RETRY

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = [sys.executable, str(ROOT / "tests/helpers/small_job.py")]
HEARTBEAT = 6
PATIENCE = 25  # seconds beyond the promised time, for a machine that does other work


def start(tmp_path: pathlib.Path, *actions: str, flags: tuple[str, ...] = (), **env: str) -> Job:
    command = [*PROGRAM, f"--do={','.join(actions)}", *flags]
    return Job([command] * len(actions), tmp_path, PYTHONPATH=str(ROOT), **env)


def wait_for(job: Job, word: str, who: tuple[int, ...]) -> None:
    job.wait_until(lambda: all(word in job.output(process) for process in who), word)


def seconds_to_end(job: Job) -> tuple[float, list[int]]:
    begun = time.monotonic()
    statuses = job.wait()
    return time.monotonic() - begun, statuses


def last_line(job: Job, process: int) -> str:
    return job.output(process).splitlines()[-1]


# The same command for all


def test_a_difference_is_refused_by_all_and_named(tmp_path):
    job = start(tmp_path, "compare", "compare")
    assert job.wait() == [FAILED, FAILED]
    wrong = "the run differs in process 1: config.optim.lr is 0.5 here and 0.1 in process 0. Start all with the same"
    assert wrong in last_line(job, 0) and wrong in last_line(job, 1)
    for process in range(2):
        output = job.output(process)
        assert "compared" not in output and "Traceback" not in output and "optim.name" not in output, output


# An error in one process


@pytest.mark.parametrize(
    "action, other, status, text",
    [
        ("request", "waits", FAILED, "data.path = 'a.png': this is no image"),
        pytest.param("request", "native", FAILED, "data.path = 'a.png': this is no image", marks=pytest.mark.full),
        pytest.param("bug", "waits", FAILED, "KeyError: 'a bug'", marks=pytest.mark.full),
        pytest.param("fault", "waits", RETRY, "the disk is full", marks=pytest.mark.full),
        pytest.param("fault", "native", RETRY, "the disk is full", marks=pytest.mark.full),
    ],
)
@pytest.mark.parametrize("who", [1, pytest.param(0, marks=pytest.mark.full)])
def test_an_error_in_one_process_ends_all(tmp_path, action, other, status, text, who):
    job = start(tmp_path, *((action, other) if who == 0 else (other, action)))
    wait_for(job, "waits", (1 - who,))
    seconds, statuses = seconds_to_end(job)
    assert statuses == [status, status] and seconds < PATIENCE, (seconds, job.output(0), job.output(1))
    assert text in job.output(who)
    line = last_line(job, 1 - who)
    assert line.startswith(f"small_job.py: process {who} of the job ended: ") and "during step 5" in line, line
    if action != "bug":
        assert text in line and "Traceback" not in job.output(0) + job.output(1)


@pytest.mark.full
def test_an_error_in_one_of_four_processes_ends_all(tmp_path):
    job = start(tmp_path, "waits", "waits", "request", "waits")
    assert job.wait() == [FAILED] * 4
    for process in (0, 1, 3):
        assert "process 2 of the job ended: " in last_line(job, process)


# A dead process


@pytest.mark.full
@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("other", ["train", "native"])
def test_a_killed_process_ends_the_other_in_bounded_time(tmp_path, killed, other):
    actions = ["train", "train"] if other == "train" else ["native", "native"]
    job = start(tmp_path, *actions, flags=(f"--heartbeat={HEARTBEAT}",))
    wait_for(job, "trains" if other == "train" else "waits", (0, 1))
    job.processes[killed].kill()
    seconds, statuses = seconds_to_end(job)
    left = 1 - killed
    assert statuses[left] == RETRY and seconds < HEARTBEAT + PATIENCE, (seconds, statuses, job.output(left))
    line = last_line(job, left)
    assert line.startswith("small_job.py: another process of the job died"), job.output(left)
    assert "run the same command to continue" in line
    if other == "train":
        assert "during step " in line
        assert "Traceback" not in job.output(left)


@pytest.mark.full
@pytest.mark.parametrize("present", [0, 1])
def test_a_process_that_never_comes_ends_the_others_in_bounded_time(tmp_path, present):
    job = start(tmp_path, "train", "train", flags=("--start_timeout=5",))
    job.processes[1 - present].kill()
    seconds, statuses = seconds_to_end(job)
    assert statuses[present] == RETRY and seconds < 5 + PATIENCE, (seconds, job.output(present))
    assert "not all processes of the job started within 5 s (--start_timeout)" in last_line(job, present)
    assert "Traceback" not in job.output(present)


@pytest.mark.full
def test_a_process_that_has_finished_waits_for_one_that_writes(tmp_path):
    """The main process alone writes reports, for longer than a heartbeat."""
    job = start(tmp_path, "report", "nothing", flags=("--heartbeat=3", "--seconds=12"))
    assert job.wait() == [0, 0], job.output(0) + job.output(1)
    assert last_line(job, 0) == "report written"


@pytest.mark.full
def test_an_error_ends_a_process_that_has_finished(tmp_path):
    job = start(tmp_path, "request", "nothing")
    seconds, statuses = seconds_to_end(job)
    assert statuses[0] == FAILED and seconds < PATIENCE, (statuses, job.output(0), job.output(1))


def test_an_error_of_the_runtime_that_means_a_lost_process(monkeypatch):
    lost = RuntimeError("Gloo AllReduce failed: Connection reset by peer [127.0.0.1]:4321")
    assert not processes.is_lost_process(lost)  # a single process
    monkeypatch.setattr(processes, "_joined", lambda: True)
    assert processes.is_lost_process(lost) and processes.is_lost_process(ValueError("UNAVAILABLE: Socket closed"))
    assert not processes.is_lost_process(ValueError("optim.lr = -1: must be at least 0"))
    assert not processes.is_lost_process(OSError("UNAVAILABLE"))


# A signal to one process


@pytest.mark.full
@pytest.mark.parametrize(
    "number, told, times, actions",
    [
        (signal.SIGTERM, 0, 1, ("loose", "loose_slow")),
        (signal.SIGTERM, 1, 1, ("loose", "loose_slow")),
        (signal.SIGTERM, 1, 2, ("train", "train")),
        (signal.SIGINT, 0, 2, ("loose", "loose_slow")),
        (signal.SIGINT, 1, 1, ("train", "train")),
    ],
)
def test_all_agree_on_the_step_to_stop_at(tmp_path, number, told, times, actions):
    job = start(tmp_path, *actions)
    wait_for(job, "trains", (0, 1))
    for _ in range(times):
        job.processes[told].send_signal(number)
        time.sleep(0.05)
    seconds, statuses = seconds_to_end(job)
    assert statuses == [INTERRUPTED, INTERRUPTED] and seconds < PATIENCE, (statuses, job.output(0), job.output(1))
    stopped = [[line for line in job.output(i).splitlines() if "stops at" in line] for i in range(2)]
    assert stopped[0] == stopped[1] and len(stopped[0]) == 1


@pytest.mark.full
@pytest.mark.parametrize("actions", [("save", "train"), ("train", "save")])
def test_one_process_saves_for_longer_than_the_other_waits_for_it(tmp_path, actions):
    """Signals that are sent again, as schedulers do, disturb neither."""
    job = start(tmp_path, *actions, flags=("--seconds=8", "--heartbeat=3"))
    wait_for(job, "trains", (0, 1))
    for pause in (1.5, 0.0):
        for process in job.processes:
            process.terminate()
        time.sleep(pause)
    assert job.wait() == [INTERRUPTED, INTERRUPTED], job.output(0) + job.output(1)
    assert all(last_line(job, process) == "saved" for process in range(2)), job.output(0) + job.output(1)


@pytest.mark.full
def test_all_agree_without_the_preemption_service_of_jax(tmp_path):
    job = start(tmp_path, "train", "train", JAX_ENABLE_PREEMPTION_SERVICE="0")
    wait_for(job, "trains", (0, 1))
    job.processes[1].terminate()
    assert job.wait() == [INTERRUPTED, INTERRUPTED], job.output(0) + job.output(1)
    assert "stops at" in job.output(0)


@pytest.mark.full
@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_while_nothing_is_to_be_saved_ends_all(tmp_path, told):
    job = start(tmp_path, "native", "native")
    wait_for(job, "waits", (0, 1))
    job.processes[told].terminate()
    seconds, statuses = seconds_to_end(job)
    assert statuses == [INTERRUPTED, INTERRUPTED] and seconds < PATIENCE, (statuses, job.output(0), job.output(1))
