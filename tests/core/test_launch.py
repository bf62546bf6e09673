"""Tests of the end of a program."""

import subprocess
import sys

import tiny_runs

PROGRAM = """
import atexit, os, sys
from sdecor.core import launch

def main():
    atexit.register(os.abort)  # as a shutdown of Python that crashes
    print("a line in the buffer")
    raise KeyboardInterrupt

launch.run(main, kept="All is kept.")
"""


def test_a_stopped_program_keeps_its_status_where_the_shutdown_of_python_would_crash():
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=tiny_runs.ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 130, done
    assert done.stdout == "a line in the buffer\n" and done.stderr == "-c: stopped. All is kept.\n"
