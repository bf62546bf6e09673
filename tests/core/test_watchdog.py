"""Tests of the watchdog: it ends a program that hangs in Python or in C, and leaves one that makes progress."""

import os
import subprocess
import sys
import time

import pytest
import tiny_runs

from sdecor.core import watchdog
from sdecor.core.commands import RETRY


def watch(seconds: float, left: list[int]) -> watchdog.Watchdog:
    return watchdog.Watchdog(seconds, "test", leave=left.append)


def test_a_program_with_progress_or_an_untimed_part_goes_on(capfd):
    left = []
    with watch(0.3, left):
        for _ in range(5):
            watchdog.beat("a part")
            time.sleep(0.1)
        watchdog.beat("compilation", timed=False)
        time.sleep(0.6)
    assert not left
    watchdog.beat("a part outside of a watchdog")
    with watch(0, left):
        time.sleep(0.1)
    assert not left and capfd.readouterr().err == ""


def test_a_negative_time_is_refused():
    with pytest.raises(ValueError, match="--watchdog = -1 is out of range"):
        watch(-1, [])


HANGS = {
    "fifo": "open(sys.argv[1]).read()",
    "sleep": "time.sleep(600)",
    "collective": "threading.Event().wait()",
    "interpreter": "ctypes.PyDLL(None).sleep(600)",
}


@pytest.mark.parametrize("how", HANGS)
def test_a_program_that_hangs_ends_with_the_stacks_and_the_status_for_another_try(tmp_path, how):
    os.mkfifo(tmp_path / "fifo")  # nobody writes to it
    code = (
        "import ctypes, sys, threading, time\nfrom sdecor.core import watchdog\n"
        "def read_an_image():\n"
        f"    {HANGS[how]}\n"
        "watchdog.GRACE = 0.5\n"
        "with watchdog.Watchdog(0.5, 'program.py'):\n"
        "    watchdog.beat('step 12')\n    print('before', end='')\n    read_an_image()\n"
    )
    options = {"cwd": tiny_runs.ROOT, "capture_output": True, "text": True, "timeout": 60}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "fifo")], **options)
    assert "in read_an_image" in done.stderr, done.stderr
    if how == "interpreter":  # no Python thread can run, so that the status cannot be chosen
        assert done.returncode == 1
        return
    assert done.returncode == RETRY and done.stdout == "before"
    *_, last = done.stderr.splitlines()
    assert last.startswith("program.py: no progress for ") and "during step 12: the same command continues" in last
