"""Tests of worker processes: killed ones start again, all end with their stream, and no shared memory stays."""

import itertools
import logging
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time
from multiprocessing import resource_tracker, shared_memory

import numpy as np
import pytest
from input_job import Source
from test_loader import FakeSource, assert_equal, take

from sdecor.core.commands import TemporaryFailure
from sdecor.data import Skipping, workers
from sdecor.data.loader import create_loader

ROOT = pathlib.Path(__file__).parents[2]
SHARED = pathlib.Path("/dev/shm")
ON_LINUX = pytest.mark.skipif(not SHARED.is_dir(), reason="shared memory is listed on Linux only")


def within(seconds: float, holds) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def segments() -> set[str]:
    return {path.name for path in SHARED.glob("sdecor-*")}


def segment(name: str) -> None:
    made = shared_memory.SharedMemory(name, create=True, size=8)
    made.close()
    resource_tracker.unregister(made._name, "shared_memory")  # as if its process had been killed


# --- shared memory ---


@ON_LINUX
def test_segments_of_a_dead_stream_are_unlinked_and_others_stay():
    cleaned_up(set())()  # segments of other programs that were killed
    before = segments()
    with workers.stream() as (living, _):
        segment(f"{living}-1")
        segment("sdecor-00000000-1")
        (SHARED / "sdecor-00000000-2").write_text("")  # its process was killed before it had a size
        (SHARED / "sdecor-00000000.lock").write_text("")  # nobody holds it
        segment("sdecor-00000001-1")  # its lock file is gone
        with workers.stream() as (other, _):
            assert segments() - before == {f"{living}.lock", f"{living}-1", f"{other}.lock"}
        assert segments() - before == {f"{living}.lock", f"{living}-1"}
    assert segments() == before


def test_a_batch_in_shared_memory_is_the_batch():
    batch = {"image": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "label": np.int32([1, 2]), "report": "text"}
    with workers.stream() as (name, _):
        moved = workers.to_shared_memory(batch, name)
        assert moved["report"] == "text"
        for field in ("image", "label"):
            np.testing.assert_array_equal(moved[field], batch[field])
            assert moved[field].metadata.name.startswith(f"{name}-")
        del moved


# --- processes ---


def cleaned_up(before: set[str]):
    """Return a function that opens a stream, and then returns whether only the segments `before` are left."""

    def look() -> bool:
        with workers.stream():
            pass
        return segments() == before

    return look


def start(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "tests/helpers/input_job.py"), *arguments]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True, **streams)


def group(leader: int) -> dict[int, str]:
    """Return the command lines of the processes of a group."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            stat, line = (path / "stat").read_text(), (path / "cmdline").read_text()
        except OSError:  # it has just ended
            continue
        fields = stat.rpartition(")")[2].split()
        if int(fields[2]) == leader and fields[0] != "Z":
            found[int(path.name)] = line
    return found


def workers_of(leader: int) -> list[int]:
    return [process for process, line in group(leader).items() if "spawn_main" in line]


@pytest.fixture
def job(tmp_path):
    """Yield a function that starts the program, and end all of its processes afterwards."""
    started = []

    def begin(*arguments: str) -> subprocess.Popen:
        started.append(start(str(tmp_path), *arguments))
        return started[-1]

    yield begin
    for process in started:
        for each in group(process.pid):
            os.kill(each, signal.SIGKILL)
        process.communicate()


@ON_LINUX
@pytest.mark.full
def test_workers_and_their_shared_memory_end_with_a_killed_process(job):
    before = segments()
    main = job()
    assert main.stdout.readline() == "ready\n"
    assert len(workers_of(main.pid)) == 2 and within(10, lambda: len(segments() - before) > 2)
    main.kill()
    assert within(5, lambda: not workers_of(main.pid))
    assert within(5, lambda: not any("-" in name[8:] for name in segments() - before))  # the lock file may stay
    assert within(5, cleaned_up(before))


@ON_LINUX
@pytest.mark.full
def test_the_next_stream_cleans_up_after_a_killed_group(job):
    before = segments()
    main = job()
    assert main.stdout.readline() == "ready\n" and within(10, lambda: len(segments() - before) > 2)
    os.killpg(main.pid, signal.SIGKILL)
    assert within(5, lambda: not group(main.pid)) and len(segments() - before) > 2
    assert within(5, cleaned_up(before))


@ON_LINUX
@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_group_ends_no_worker(job, number):
    main = job()
    assert main.stdout.readline() == "ready\n"
    before = workers_of(main.pid)
    for process in before:
        os.kill(process, number)
    time.sleep(1)
    assert len(before) == 2 and workers_of(main.pid) == before
    output, errors = main.communicate("\n", timeout=60)
    assert (output, main.returncode) == ("served\n", 0) and "start again" not in errors


@ON_LINUX
@pytest.mark.full
def test_a_process_with_stuck_workers_ends_at_a_signal(job, tmp_path):
    os.mkfifo(tmp_path / "silent")
    main = job("silent")
    assert main.stdout.readline() == "waiting\n" and within(60, lambda: len(workers_of(main.pid)) == 2)
    time.sleep(8)  # until the workers read
    began = time.monotonic()
    main.terminate()
    _, errors = main.communicate(timeout=60)
    assert main.returncode == 1 and "stopped" in errors and time.monotonic() - began < 15
    assert within(5, lambda: not group(main.pid))


def kill_a_worker() -> None:
    os.kill(multiprocessing.active_children()[-1].pid, signal.SIGKILL)


@pytest.mark.full
def test_killed_workers_start_again_with_the_same_batches(caplog):
    caplog.set_level(logging.WARNING)
    fields = {"batch_size": 4, "seed": 0, "kind": "grain"}
    expected = take(create_loader(Source(), **fields), 5, 60)
    batches = create_loader(Source(), num_workers=2, **fields).iterate(5)
    found = []
    for killed in (1, 2, 3):
        found += itertools.islice(batches, 5)
        kill_a_worker()
        until = f"({killed} of 3 times)"
        while until not in caplog.text:
            found.append(next(batches))
    found += itertools.islice(batches, 5)
    assert_equal(found, expected[: len(found)])
    told = [each.getMessage() for each in caplog.records if "ended unexpectedly" in each.getMessage()]
    assert len(told) == 3 and all("exit code -9" in text and "\n" not in text for text in told)
    kill_a_worker()
    with pytest.raises(TemporaryFailure, match="ended unexpectedly before step .*, after 3 restarts"):
        list(batches)


@pytest.mark.full
def test_workers_report_what_they_leave_out():
    broken = (0, 11, 38, 39)
    fields = {"batch_size": 8, "seed": 3, "kind": "grain"}
    sources = [Skipping(FakeSource(n=40, broken=broken), split="train") for _ in range(2)]
    expected = take(create_loader(sources[0], **fields), 0, 10)
    loader = create_loader(sources[1], num_workers=2, **fields)
    assert_equal(take(loader, 0, 10), expected)
    assert sorted(sources[1].found) == list(broken) and loader.left_out == 4
    assert sources[1].found == sources[0].found
