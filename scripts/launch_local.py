"""Run a program as a job of several processes on this machine, each with CPU devices of its own.

    python scripts/launch_local.py --processes=2 --devices=4 -- train.py --config=… --workdir=runs/two
    python scripts/launch_local.py --processes=2 -- evaluate.py --workdir=runs/two [--export=maps.zarr]

The program is train.py, evaluate.py or another that takes --coordinator, --processes and --process. Process 0 writes
to the terminal. The lines of the others go to standard error, after their number in brackets.

SIGTERM and Ctrl-C are passed on once, to all processes; a second one, more than a second later, kills them. When a
process fails, the others have --grace seconds to end; then they are killed. All end when this program is killed.
The exit status is the job's (docs/cluster.md): an error of any process comes first, then 75, then 130.
"""

import argparse
import contextlib
import functools
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from sdecor.core import children  # noqa: E402
from sdecor.core.commands import INTERRUPTED, RETRY  # noqa: E402

GRACE = 90.0  # seconds: more than the --heartbeat after which a process ends by itself
_PAUSE = 0.05  # seconds between two looks at the processes
_SAME = 1.0  # seconds within which a repeated signal is the same request


def job_status(statuses: Sequence[int]) -> int:
    """Return the exit status of a job from those of its processes; launchers/job_status.sh has the same rule.

    An error (1 to 127, not 75) comes first, then 75, then 130. A process that signal n killed counts as 75 beside
    another 75 or 130; alone it makes 128 + n.

    Args:
      statuses: exit statuses; −n for a process that signal n killed, as `subprocess` has it.
    """
    errors = [status for status in statuses if 0 < status < 128 and status != RETRY]
    killed = [128 - status for status in statuses if status < 0]
    if errors:
        return min(errors)
    if RETRY in statuses or (killed and INTERRUPTED in statuses):
        return RETRY
    return max([0, *killed, *statuses])


def main() -> int:
    """Run the job that the command line specifies, and return its exit status."""
    options, command = _parse(sys.argv[1:])
    received: list[tuple[int, float]] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: received.append((number, time.monotonic())))
    job = _start(command, options.processes, options.devices)
    readers = [
        threading.Thread(target=_copy, args=(process.stdout, number), daemon=True)
        for number, process in enumerate(job)
        if process.stdout is not None
    ]
    for reader in readers:
        reader.start()
    killed = _watch(job, received, options.grace)
    for reader in readers:
        reader.join(_SAME)  # a grandchild may hold the pipe
    ended = [process.returncode for process in job if process not in killed]
    status = job_status(ended) if ended else RETRY
    if killed and not 0 < status < 128:
        status = RETRY  # some could not save
    if any(process.returncode for process in job):
        _say(f"status {status}; processes: {', '.join(_shown(process, killed) for process in job)}")
    return status


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    at = arguments.index("--") if "--" in arguments else len(arguments)
    own, command = arguments[:at], list(arguments[at + 1 :])
    parser = argparse.ArgumentParser(
        prog="launch_local.py",
        description="Run a program as a job of several processes on this machine.",
        usage="launch_local.py [--processes=N] [--devices=N] [--grace=SECONDS] -- PROGRAM [FLAG …]",
        allow_abbrev=False,
    )
    parser.add_argument("--processes", type=int, default=2, help="number of processes (default: 2)")
    parser.add_argument("--devices", type=int, default=1, help="CPU devices of each process (default: 1)")
    parser.add_argument(
        "--grace", type=float, default=GRACE, help=f"seconds from a failure until the others are killed ({GRACE:.0f})"
    )
    options, unknown = parser.parse_known_args(own)
    if unknown:
        known = "--processes, --devices and --grace stand before --, the program and its flags after it"
        parser.error(f"unknown argument {unknown[0]!r}: {known}")
    for name in ("processes", "devices"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} = {getattr(options, name)}: must be at least 1")
    if options.grace < 0:
        parser.error(f"--grace = {options.grace:g}: must be at least 0")
    if not command:
        parser.error("name the program after --, for example -- train.py --config=configs/default.py --workdir=runs/a")
    if command[0] != "-m" and not os.path.isfile(command[0]):
        parser.error(f"there is no program {command[0]!r}")
    return options, command


def _start(command: Sequence[str], count: int, devices: int) -> list[subprocess.Popen]:
    """Start the processes of a job; those after the first write to a pipe."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),  # instead of XLA_FLAGS, which may hold other flags
    }
    coordinator = f"127.0.0.1:{_free_port()}"
    started = []
    for number in range(count):
        joins = [f"--coordinator={coordinator}", f"--processes={count}", f"--process={number}"] if count > 1 else []
        started.append(
            subprocess.Popen(
                [sys.executable, *command, *joins],
                env=environment | ({"PYTHONUNBUFFERED": "1"} if number else {}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if number else None,
                stderr=subprocess.STDOUT if number else None,
                start_new_session=True,  # the terminal would send Ctrl-C to the processes as well
                preexec_fn=functools.partial(children.end_with_parent, os.getpid()),
            )
        )
    return started


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _watch(job: Sequence[subprocess.Popen], received: list[tuple[int, float]], grace: float) -> list[subprocess.Popen]:
    """Wait for all processes, pass signals on, and end the others after a failure; return the killed processes."""
    passed, deadline = None, None
    while left := [process for process in job if process.poll() is None]:
        now = time.monotonic()
        number, last = received[-1] if received else (None, None)
        if received and passed is None:
            passed = now
            for process in left:
                _signal(process, number)
        if deadline is None and (failed := [process for process in job if process.returncode]):
            deadline = now + grace
            _say(f"process {job.index(failed[0])} ended: {_shown(failed[0])}; the others have {grace:g} s to end")
        again = last is not None and last > passed + _SAME
        if again or (deadline is not None and now > deadline):
            _say(f"killing {', '.join(f'process {job.index(process)}' for process in left)}")
            for process in left:
                _signal(process, signal.SIGKILL)
            for process in left:
                process.wait()
            return left
        time.sleep(_PAUSE)
    return []


def _signal(process: subprocess.Popen, number: int) -> None:
    """Send a signal to a process; SIGKILL goes to its data workers too."""
    with contextlib.suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)


def _copy(stream: IO[bytes], number: int) -> None:
    for line in stream:
        os.write(sys.stderr.fileno(), b"[%d] %s\n" % (number, line.rstrip()))  # one write: lines stay whole


def _shown(process: subprocess.Popen, killed: Sequence[subprocess.Popen] = ()) -> str:
    status = process.returncode
    if process in killed:
        return "killed here"
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"


def _say(text: str) -> None:
    print(f"launch_local.py: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
