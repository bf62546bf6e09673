"""Tests of an abort of the native runtime in a job of one process."""

import os
import signal
import socket
import subprocess
import sys

import tiny_runs

ABORT = """
import os, sys
from sdecor.core import interrupt, processes
interrupt.install()
processes.join(sys.argv[1], 1, 0)
os.abort()
"""


def test_an_abort_of_a_single_process_is_its_own():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    program = [sys.executable, "-c", ABORT, address]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tiny_runs.ROOT)}
    ended = subprocess.run(program, env=env, capture_output=True, text=True, timeout=100)
    assert ended.returncode == -signal.SIGABRT and "another process" not in ended.stderr, ended.stderr
