"""A program for jobs that does in each process what its flag says, and trains nothing.

PYTHONPATH=. python tests/helpers/small_job.py --do=train,error [--coordinator=… --processes=2 --process=0]
"""

import ctypes
import time

import jax
from absl import flags

from sdecor.core import interrupt, launch, parallel, processes
from sdecor.core.commands import INTERRUPTED, TemporaryFailure

_DO = flags.DEFINE_list("do", [], "What each process does: a name of `ACTIONS`.")
_SECONDS = flags.DEFINE_float("seconds", 3.0, "Time of a report.")
LONG = 10**6  # steps


def train(pause: float = 0.01) -> None:
    """Make steps, each with a collective, until all processes agree to stop."""
    with interrupt.Interrupt() as flag:
        for step in range(LONG):
            processes.note(f"step {step}")
            parallel.any_process(False)
            time.sleep(pause)
            if step == 3:
                print("trains", flush=True)
            if processes.agree_to_stop(bool(flag)):
                print(f"stopped at {step}", flush=True)
                raise SystemExit(INTERRUPTED)


def loose(pause: float) -> None:
    """Make steps without a collective, so that the processes drift apart."""
    with interrupt.Interrupt() as flag:
        for step in range(LONG):
            time.sleep(pause)
            if step == 3:
                print("trains", flush=True)
            if processes.agree_to_stop(bool(flag)):
                print(f"stopped at {step}", flush=True)
                raise SystemExit(INTERRUPTED)


def wait_for_others() -> None:
    """Wait in a collective that the others never enter."""
    processes.note("step 7")
    print("waits", flush=True)
    parallel.any_process(False)


def wait_natively() -> None:
    """Wait in native code, outside any collective."""
    print("waits", flush=True)
    mutex, library = ctypes.create_string_buffer(256), ctypes.CDLL(None)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


def fail(error: Exception) -> None:
    processes.note("step 5")
    time.sleep(1)
    raise error


def compare() -> None:
    rate = 0.5 if jax.process_index() else 0.1
    processes.compare("an equal thing", lambda: {"seed": 1})
    processes.compare("the run", lambda: {"config": {"optim": {"lr": rate, "name": "sgd"}}, "seed": 0})
    print("compared", flush=True)


def report() -> None:
    time.sleep(_SECONDS.value)
    print("report written", flush=True)


ACTIONS = {
    "train": train,
    "slow": lambda: train(0.1),
    "loose": lambda: loose(0.002),
    "loose_slow": lambda: loose(0.02),
    "waits": wait_for_others,
    "native": wait_natively,
    "request": lambda: fail(ValueError("data.path = 'a.png': this is no image")),
    "bug": lambda: fail(KeyError("a bug")),
    "fault": lambda: fail(TemporaryFailure("the disk is full")),
    "compare": compare,
    "report": report,
    "nothing": lambda: None,
}


def main() -> None:
    ACTIONS[_DO.value[jax.process_index()]]()


if __name__ == "__main__":
    launch.run(main, kept="All is kept.")
