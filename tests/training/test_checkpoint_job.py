"""Tests of checkpoints in a job of two processes, where the main process alone writes."""

import os
import signal
import socket
import sys
import time

import pytest
import tiny_runs

from sdecor.core import commands
from sdecor.training import record

pytestmark = pytest.mark.full

# Faults of the background part of a save, in the process that writes.
FAULTS = {
    "none": "",
    "full for a while": "if content['step'] in (4, 6): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))",
    "full": "if content['step'] >= 4: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))",
    "killed": "if content['step'] == 4: os.kill(os.getpid(), signal.SIGKILL)",
}
PROGRAM = """
import errno, os, runpy, signal, sys
from sdecor.training import record
sealed = record.sealed
def faulty(content):
    {fault}
    return sealed(content)
record.sealed = faulty
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny_runs.draw_images(tmp_path_factory.mktemp("images") / "data")


def train(images, folder, fault="none", places=(None, None)):
    """Train in two processes; return their statuses and outputs. A process left by a killed one is killed too.

    `places` are their working folders.
    """
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tiny_runs.ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = PROGRAM.format(fault=FAULTS[fault] or "pass")
    pair = []
    for i in range(2):
        job = (f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process={i}")
        _, script, *arguments = tiny_runs.command(images, folder, *job)
        place = places[i] or tiny_runs.ROOT
        pair.append(tiny_runs.start([sys.executable, "-c", program, script, *arguments], env, place))
    if fault == "killed":
        pair[0].wait(timeout=400)
        time.sleep(0.5)
        pair[1].kill()
    outputs = [process.communicate(timeout=400)[0] for process in pair]
    return [process.returncode for process in pair], outputs


def final(folder):
    """Return the checksums of the last state, and the log without times."""
    return record.read(folder / "checkpoints", 12)["crc32"], tiny_runs.rows_without_times(folder)


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("job") / "undisturbed"
    statuses, outputs = train(images, folder)
    assert statuses == [0, 0], outputs
    assert "tracked_metric" not in "".join(outputs) and "orbax" not in "".join(outputs), outputs
    return folder


def test_a_disk_that_is_full_for_a_while_changes_nothing(images, undisturbed, tmp_path):
    statuses, outputs = train(images, tmp_path / "run", "full for a while")
    assert statuses == [0, 0], outputs
    assert outputs[0].count("could not be saved: No space left on device") == 2, outputs[0]
    assert "could not be saved" not in outputs[1] and "Traceback" not in "".join(outputs), outputs
    assert final(tmp_path / "run") == final(undisturbed)


def test_a_disk_that_stays_full_ends_both_processes_and_loses_nothing(images, undisturbed, tmp_path):
    statuses, outputs = train(images, tmp_path / "run", "full")
    assert statuses == [commands.RETRY] * 2, outputs
    assert "3 checkpoints in a row could not be saved" in outputs[0] and "Traceback" not in "".join(outputs), outputs
    assert record.steps(tmp_path / "run" / "checkpoints") == [2, 3]
    assert train(images, tmp_path / "run")[0] == [0, 0]
    assert final(tmp_path / "run") == final(undisturbed)


def test_a_process_killed_within_a_save_leaves_the_former_checkpoint(images, undisturbed, tmp_path):
    statuses, outputs = train(images, tmp_path / "run", "killed")
    assert statuses[0] == -signal.SIGKILL, outputs
    assert record.steps(tmp_path / "run" / "checkpoints") == [2, 3]
    statuses, outputs = train(images, tmp_path / "run")
    assert statuses == [0, 0], outputs
    assert not list((tmp_path / "run" / "checkpoints").glob("*tmp*"))
    assert final(tmp_path / "run") == final(undisturbed)


def test_damaged_checkpoints_are_passed_over_by_both_processes(images, undisturbed, tmp_path):
    """The last checkpoint has a damaged record, the one before a damaged array."""
    folder = tmp_path / "run"
    statuses, outputs = train(images, folder)
    assert statuses == [0, 0], outputs
    *_, before, last = record.steps(folder / "checkpoints")
    whole = max(record.steps(folder / "checkpoints")[:-2], default=0)  # the best one, or none
    (folder / "checkpoints" / str(last) / "meta" / "metadata").write_bytes(b"")
    if whole:
        data = (folder / "checkpoints" / str(before) / "state").rglob("d/*")
        max(data, key=lambda path: path.stat().st_size).write_bytes(b"")
    statuses, outputs = train(images, folder)
    assert statuses == [0, 0], outputs
    assert "Traceback" not in "".join(outputs)
    assert all(f"checkpoint of step {last} is damaged" in output for output in outputs), outputs
    assert (folder / "checkpoints" / f"damaged-{last}").is_dir()
    assert final(folder) == final(undisturbed)


def test_a_folder_that_one_process_does_not_see_is_refused(images, undisturbed, tmp_path):
    places = [undisturbed.parent, tmp_path]  # the same relative path leads each process elsewhere
    statuses, outputs = train(images, undisturbed.name, places=places)
    assert statuses == [commands.FAILED] * 2, outputs
    assert f"checkpoints in the shared folder {undisturbed.name} is [] here and [" in outputs[1], outputs
    assert "is [] here and [" in outputs[0]  # a difference is an error in all processes
    assert record.steps(undisturbed / "checkpoints") and not (tmp_path / undisturbed.name / "checkpoints").exists()
