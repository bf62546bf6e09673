"""Tests of scripts/launch_local.py: a real job of two processes, and the statuses and signals of pretended ones."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import pytest
import tiny_runs

import train
from scripts import launch_local
from sdecor.core.commands import FAILED, INTERRUPTED, PARTLY, RETRY

LAUNCH = [sys.executable, str(tiny_runs.ROOT / "scripts" / "launch_local.py")]
# A program with the flags of a job; {process: what it does} is its first argument.
PRETENDED = """
import json, os, signal, sys, time
flags = dict(word[2:].split("=", 1) for word in sys.argv[2:])
number = int(flags.get("process", 0))
def say(text):  # one write: print makes two where nothing is buffered, and lines of two processes mix
    sys.stdout.write(text + "\\n")
    sys.stdout.flush()
say(json.dumps({"flags": flags, "devices": os.environ["JAX_NUM_CPU_DEVICES"], "pid": os.getpid()}))
action = json.loads(sys.argv[1])[number]
def stop(*_):
    say("stopping")
    sys.exit(130)
if action == "save":
    signal.signal(signal.SIGTERM, stop)
if action == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
say("ready")
if isinstance(action, int) and action < 0:
    os.kill(os.getpid(), -action)
if isinstance(action, int):
    sys.exit(action)
time.sleep(60)
"""


def launch(tmp_path: pathlib.Path, actions: list, *options: str) -> subprocess.Popen:
    program = tmp_path / "pretended.py"
    program.write_text(PRETENDED)
    own = [f"--processes={len(actions)}", *options]
    return tiny_runs.start([*LAUNCH, *own, "--", str(program), json.dumps(actions)])


@pytest.mark.parametrize(
    "statuses, job",
    [
        ([0, 0], 0),
        ([RETRY, FAILED], FAILED),
        ([PARTLY, PARTLY], PARTLY),
        ([INTERRUPTED, RETRY], RETRY),
        ([INTERRUPTED, 0], INTERRUPTED),
        ([RETRY, -signal.SIGKILL], RETRY),
        ([-signal.SIGABRT, FAILED], FAILED),
        ([0, -signal.SIGKILL], 137),
        ([INTERRUPTED, -signal.SIGKILL], RETRY),
        ([2, RETRY], 2),
    ],
)
def test_the_decisive_status_of_a_job(statuses, job):
    assert launch_local.job_status(statuses) == launch_local.job_status(statuses[::-1]) == job


def test_processes_get_their_numbers_and_devices(tmp_path):
    process = launch(tmp_path, [0, 0, 0], "--devices=4")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    lines = [line for line in output.splitlines() if '"flags"' in line]
    told = [json.loads(line[line.index("{") :]) for line in lines]
    assert {each["flags"]["process"] for each in told} == {"0", "1", "2"}
    assert {(each["flags"]["processes"], each["devices"]) for each in told} == {("3", "4")}
    assert len({each["flags"]["coordinator"] for each in told}) == 1
    assert sorted(line[:3] for line in lines) == ["[1]", "[2]", '{"f']


def test_a_failure_ends_the_others_with_its_status(tmp_path):
    begun = time.monotonic()
    process = launch(tmp_path, ["deaf", FAILED], "--grace=0.5")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == FAILED and time.monotonic() - begun < 10
    assert "process 1 ended: status 1; the others have 0.5 s" in output and "killing process 0" in output


def test_a_killed_process_means_retry(tmp_path):
    process = launch(tmp_path, [-signal.SIGKILL, RETRY])
    output, _ = process.communicate(timeout=30)
    assert process.returncode == RETRY and "killed by SIGKILL" in output


def wait_until_ready(process: subprocess.Popen, count: int) -> list[int]:
    """Return the process ids that a job of pretended processes prints, once all are ready."""
    found, ready = [], 0
    while ready < count:
        line = process.stdout.readline()
        assert line, "the job ended"
        ready += "ready" in line
        if '"pid"' in line:
            found.append(json.loads(line[line.index("{") :])["pid"])
    return found


@pytest.mark.parametrize("times", [1, 2])
def test_sigterm_is_passed_on_once(tmp_path, times):
    process = launch(tmp_path, ["save", "save"])
    wait_until_ready(process, 2)
    for _ in range(times):
        process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == INTERRUPTED and output.count("stopping") == 2


def test_a_second_signal_kills_what_does_not_end(tmp_path):
    process = launch(tmp_path, ["deaf", "save"])
    wait_until_ready(process, 2)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == RETRY  # process 0 could not save


def test_no_process_survives_the_launcher(tmp_path):
    process = launch(tmp_path, ["wait", "wait"])
    pids = wait_until_ready(process, 2)
    process.kill()
    process.wait(timeout=10)
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--processes=0", "--", "train.py"], "--processes = 0"),
        (["--processes=2"], "name the program after --"),
        (["train.py", "--workdir=a"], "unknown argument 'train.py'"),
        (["--", "trian.py"], "there is no program 'trian.py'"),
    ],
)
def test_wrong_command_lines(arguments, text):
    done = subprocess.run([*LAUNCH, *arguments], cwd=tiny_runs.ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and text in done.stderr and "Traceback" not in done.stderr


def test_two_processes_train_as_one(tmp_path):
    """Two processes with one device each log the rows of one process with eight devices, up to rounding."""
    images = tiny_runs.draw_images(tmp_path / "images")
    fields = {"train.epochs": 1.0, "model.widths": (4,)}
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{jax.config.jax_compilation_cache_dir}-two"}
    env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    command = tiny_runs.command(images, tmp_path / "two", *flags, method="ce")[1:]
    process = tiny_runs.start([*LAUNCH, "--processes=2", "--devices=1", "--grace=20", "--", *command], env)
    assert train.train(tiny_runs.tiny_config(images, "ce", **fields), str(tmp_path / "one"))
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    one, two = (tiny_runs.rows_without_times(tmp_path / name) for name in ("one", "two"))
    assert [(row["step"], row["split"]) for row in one] == [(row["step"], row["split"]) for row in two] and len(one) > 3
    for row, other in zip(one, two, strict=True):
        name = "loss" if row["split"] == "train" else "cross_entropy"
        assert other[name] == pytest.approx(row[name], rel=1e-4), row["step"]
