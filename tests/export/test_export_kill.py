"""Tests that an export, killed or stopped at any moment, continues with the same command to the same bytes."""

import itertools
import multiprocessing
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import export_program
import jax
import numpy as np
import pytest
import tiny_runs

KILLS = 24  # for each layout, at random moments
LAYOUTS = list(export_program.LAYOUTS)
State = dict[str, tuple[int, int]]


def tree(path: pathlib.Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def records(path: pathlib.Path) -> list[str]:
    return sorted(file.stem for file in path.glob(".sdecor/ranges/*.json"))


def finished(path: pathlib.Path, layout: str) -> State:
    """Return the files of committed ranges with inode and time, which differ for a file that was written again."""
    rows = max(export_program.LAYOUTS[layout].values())
    numbers = [int(start) // rows for start in records(path)]
    found = [file for number in numbers for file in path.glob(f"*/c.{number}*") if file.suffix != ".partial"]
    found = [file for file in found if file.name.split(".")[1] in map(str, numbers)]
    found += path.glob(".sdecor/ranges/*.json")
    return {str(file): (file.stat().st_ino, file.stat().st_mtime_ns) for file in found}


@pytest.fixture(scope="module")
def start() -> Iterator[Callable]:
    """Return a function that starts an export in its own process, forked from a server with all imports done."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["export_program"])

    def begin(path: pathlib.Path, layout: str, pause: float = 0.02) -> multiprocessing.Process:
        cache = f"{jax.config.jax_compilation_cache_dir}-export"  # holds all programs, even those that compile quickly
        process = server.Process(target=export_program.run, args=(str(path), layout, pause, cache), daemon=True)
        process.start()
        return process

    return begin


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory) -> dict[str, tuple[dict[str, bytes], float]]:
    """Return the files of an undisturbed export and its seconds, by layout."""
    found = {}
    for layout, _ in itertools.product(LAYOUTS, range(2)):  # the first one compiles
        path = tmp_path_factory.mktemp("whole") / "out.zarr"
        began, process = time.monotonic(), start(path, layout)
        process.join(120)
        assert process.exitcode == 0
        found[layout] = tree(path), time.monotonic() - began
    return found


def kill(process: multiprocessing.Process, moment: Callable[[], bool]) -> bool:
    """Kill the process once `moment` returns True; return whether it was still running."""
    while process.is_alive() and not moment():
        time.sleep(0.0005)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def after(seconds: float, begun: Callable[[], bool] = lambda: True) -> Callable[[], bool]:
    """Return a function that tells whether `seconds` have passed since its first call at which `begun` was true."""
    since: list[float] = []

    def passed() -> bool:
        if not since and begun():
            since.append(time.monotonic())
        return bool(since) and time.monotonic() >= since[0] + seconds

    return passed


def check_kept(before: State, path: pathlib.Path, layout: str) -> None:
    """Check that no committed file was written again."""
    assert before.items() <= finished(path, layout).items()


@pytest.mark.full
@pytest.mark.parametrize("layout", LAYOUTS)
def test_killed_at_random_moments(start, undisturbed, tmp_path, layout):
    """Kill after any number of ranges and a random time: times alone would depend on the machine's load."""
    (expected, duration), rng, kills = undisturbed[layout], np.random.default_rng(0), []
    total = sum(key.startswith(".sdecor/ranges/") for key in expected)
    for number in itertools.count():
        path, done = tmp_path / f"{number}", False
        while not done:
            before = finished(path, layout)
            process = start(path, layout)
            # The first kill comes before any range; more ranges than there are let the process end.
            count = rng.integers(len(records(path)), total + 2) if kills else 0
            killed = kill(process, after(rng.uniform(0, duration / total), lambda: len(records(path)) >= count))  # noqa: B023
            done = not killed
            assert killed or process.exitcode == 0
            kills += [len(records(path))] if killed else []
            check_kept(before, path, layout)
        assert tree(path) == expected
        if len(kills) >= KILLS:
            break
    assert {0} < {*kills} and len({*kills}) > 3, kills  # kills before the first range and at many later points


@pytest.mark.full
@pytest.mark.parametrize("layout", LAYOUTS)
def test_killed_right_after_a_file_appears(start, undisturbed, tmp_path, layout):
    expected, _ = undisturbed[layout]
    starts = sorted(key for key in expected if key.startswith(".sdecor/ranges/"))
    moments = ["zarr.json", ".sdecor/group.json", "logits/zarr.json", starts[0], starts[1], starts[-2], starts[-1]]
    for number, key in enumerate([*moments, "ids.jsonl"]):
        path = tmp_path / f"{number}"
        kill(start(path, layout, pause=0.002), (path / key).exists)
        before = finished(path, layout)
        process = start(path, layout, pause=0.002)
        process.join(120)
        assert process.exitcode == 0
        check_kept(before, path, layout)
        assert tree(path) == expected, key


@pytest.mark.full
def test_eight_devices_give_the_bytes_of_one(undisturbed, tmp_path):
    assert jax.local_device_count() == 8
    for layout in LAYOUTS:
        assert export_program.run(str(tmp_path / layout), layout, pause=0).complete
        assert tree(tmp_path / layout) == undisturbed[layout][0]


@pytest.mark.full
def test_killed_twice(start, undisturbed, tmp_path):
    (expected, _), path = undisturbed["plain"], tmp_path / "out.zarr"
    for count in (3, 20):
        assert kill(start(path, "plain"), lambda: len(records(path)) >= count)  # noqa: B023
        before = finished(path, "plain")
        assert len(records(path)) >= count
    process = start(path, "plain")
    process.join(120)
    assert process.exitcode == 0
    check_kept(before, path, "plain")
    assert tree(path) == expected


# Stopped by a signal


def command(path: pathlib.Path, *job: object) -> subprocess.Popen:
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(tiny_runs.ROOT)}
    env |= {"JAX_COMPILATION_CACHE_DIR": f"{jax.config.jax_compilation_cache_dir}-export"}
    env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    program = [
        sys.executable,
        str(tiny_runs.ROOT / "tests/helpers/export_program.py"),
        str(path),
        "plain",
        *map(str, job),
    ]
    return tiny_runs.start(program, env)


def wait_for(path: pathlib.Path, count: int, process: subprocess.Popen) -> None:
    while len(records(path)) < count:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def computed(output: str) -> int:
    return int(output.partition("computed: ")[2].split()[0])


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.full)])
def test_a_signal_stops_it_and_the_same_command_goes_on(undisturbed, tmp_path, number):
    path = tmp_path / "out.zarr"
    process = command(path)
    wait_for(path, 2, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    there = 4 * len(records(path))
    assert process.returncode == export_program.STOPPED, output
    assert f"stopped, {there} of 150 examples are finished. Run the same command to continue." in output
    assert there < export_program.COUNT and not (path / ".sdecor/lock").exists() and "Traceback" not in output
    process = command(path)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and computed(output) == export_program.COUNT - there, output
    assert tree(path) == undisturbed["plain"][0]


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_to_one_process_stops_both(undisturbed, tmp_path, number, told):
    path = tmp_path / "out.zarr"

    def job() -> list[subprocess.Popen]:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{listener.getsockname()[1]}"
        return [command(path, address, 2, process) for process in range(2)]

    processes = job()
    wait_for(path, 2, processes[0])
    processes[told].send_signal(number)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == export_program.STOPPED, "\n".join(outputs)
        assert "run the same command to continue" in output.lower() and "Traceback" not in output, output
    assert 2 <= len(records(path)) < 38 and not (path / ".sdecor/lock").exists()
    there = sum(min(4, 150 - int(start)) for start in records(path))
    processes = job()
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(outputs)
    assert sum(map(computed, outputs)) == export_program.COUNT - there
    assert tree(path) == undisturbed["plain"][0]
