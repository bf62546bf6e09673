"""A program for jobs that does in each process what its flag says, and trains nothing.

PYTHONPATH=. python tests/helpers/small_job.py --do=train,error [--coordinator=… --processes=2 --process=0]
"""

import ctypes
import time

import jax
from absl import flags

from sdecor.core import interrupt, launch, parallel, processes, watchdog
from sdecor.core.commands import INTERRUPTED, TemporaryFailure

_DO = flags.DEFINE_list("do", [], "What each process does: a name of `ACTIONS`.")
_SECONDS = flags.DEFINE_float("seconds", 3.0, "Time of a report or a save.")


def loop(pause: float, *, together: bool, saving: float = 0.0) -> None:
    """Make steps until all processes agree to stop, then save.

    Args:
      pause: seconds of a step.
      together: whether each step has a collective; without one, the processes drift apart.
      saving: seconds of a save.
    """
    with interrupt.Interrupt() as flag:
        for step in range(10**6):
            watchdog.beat(f"step {step}")
            if together:
                parallel.any_process(False)
            time.sleep(pause)
            if step == 3:
                print("trains", flush=True)
            if processes.agree_to_stop(bool(flag)):
                print(f"stops at {step}", flush=True)
                time.sleep(saving)
                print("saved", flush=True)
                raise SystemExit(INTERRUPTED)


def wait_for_others() -> None:
    """Wait in a collective that the others never enter."""
    watchdog.beat("step 7")
    print("waits", flush=True)
    parallel.any_process(False)


def wait_natively() -> None:
    """Wait in native code, outside any collective."""
    print("waits", flush=True)
    mutex, library = ctypes.create_string_buffer(256), ctypes.CDLL(None)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


def fail(error: Exception) -> None:
    watchdog.beat("step 5")
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
    "train": lambda: loop(0.01, together=True),
    "save": lambda: loop(0.01, together=True, saving=_SECONDS.value),
    "loose": lambda: loop(0.005, together=False),
    "loose_slow": lambda: loop(0.02, together=False),
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
