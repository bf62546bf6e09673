"""The processes of a job: how they join, agree to stop, compare what they were given, and end together.

JAX's coordination service does the work. A process that ends with an error tells the others, which end too: without
this they would wait for it in a collective. The death of a process is found by JAX's heartbeats.
"""

import contextlib
import functools
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from sdecor.core import interrupt, native, parallel, watchdog
from sdecor.core.commands import RETRY, TemporaryFailure, leave, program_name
from sdecor.core.files import differing_fields, plain_settings

HEARTBEAT_SECONDS = 60  # default time within which a dead process ends the others
START_SECONDS = 300  # default time within which all processes must have started
_TOGETHER_SECONDS = 5  # that a process which ends waits for the others to hear of it
_ABORT_SECONDS = 1  # within which the runtime aborts, if it does after an error
_DAY = 86400
_END = "sdecor/end"  # key of the coordination service


class _Job:
    """The job that this process has joined."""

    def __init__(self) -> None:
        self.polls = 0
        self.comparisons = 0
        self.ending: int | None = None  # exit status, once this process has begun to end
        self.abort: Any = None  # keeps the native callback alive
        self.listener: threading.Thread | None = None  # hears that another process ends


_job = _Job()


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    heartbeat: int = HEARTBEAT_SECONDS,
    start_timeout: int = START_SECONDS,
) -> None:
    """Join the processes of a job, before anything touches a device.

    Args:
      coordinator: address `host:port` of process 0. The cluster (TPU, Slurm, Kubernetes, Open MPI) provides this and
        the next two if they are missing. The devices of a process may be named in `JAX_LOCAL_DEVICE_IDS`.
      processes: number of processes.
      process: number of this process, from 0.
      heartbeat: seconds without a sign of life after which a process counts as dead.
      start_timeout: seconds to wait for all processes.

    Raises:
      ValueError: if the arguments are incomplete, or a package is missing that the cluster needs.
      TemporaryFailure: if the other processes cannot be reached.
    """
    if jax.config.jax_platforms == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    _end_at_abort()
    late = f"not all processes of the job started within {start_timeout} s (--start_timeout)"
    timer = threading.Timer(start_timeout + _TOGETHER_SECONDS, _leave, (RETRY, late))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=start_timeout,
            heartbeat_timeout_seconds=heartbeat,
            shutdown_timeout_seconds=_DAY,  # one process may write a report while the others have nothing left to do
        )
    except ValueError as error:
        if "should be defined" not in str(error) and "must be defined" not in str(error):
            raise
        raise ValueError(
            "--distributed: no cluster was found. JAX knows TPU VMs, Slurm, Open MPI, and Kubernetes with the package "
            "kubernetes (pip install kubernetes); elsewhere give --coordinator, --processes and --process"
        ) from error
    except RuntimeError as error:
        if "DEADLINE" not in str(error) and "UNAVAILABLE" not in str(error):
            raise
        raise TemporaryFailure(f"{late}: {_first_line(error)}") from error
    finally:
        timer.cancel()
    announce = native.replace_handler(signal.SIGTERM, None)  # of JAX's preemption service
    alone = jax.process_count() == 1  # this starts the devices, and their libraries may take signals too
    interrupt.install()
    if alone:
        signal.signal(signal.SIGABRT, signal.SIG_DFL)  # no other process can be the reason of an abort
        return
    interrupt.join_job(functools.partial(announce, signal.SIGTERM) if announce else lambda: None, end_together)
    _job.listener = threading.Thread(target=_hear_of_the_end, name="end-of-job", daemon=True)
    _job.listener.start()


def agree_to_stop(interrupted: bool) -> bool:
    """Return whether all processes stop here, because of a signal to one of them.

    All processes call this at the same points of the program.
    """
    if jax.process_count() == 1:
        return interrupted
    _job.polls += 1
    manager = _state().preemption_sync_manager
    if manager is None:  # the user has switched JAX's preemption service off
        return parallel.any_process(interrupted)
    return manager.reached_sync_point(_job.polls)


def compare(what: str, values: Callable[[], Mapping[str, Any]]) -> None:
    """Compare values with those of process 0; all processes call this at the same point.

    Args:
      what: name of the values for the error.
      values: function that returns nested dicts of settings; a single process does not call it.

    Raises:
      ValueError: in all processes if the values of one differ, with the names of its differing fields.
    """
    if jax.process_count() == 1:
        return
    _job.comparisons += 1
    key, client = f"sdecor/same/{_job.comparisons}", _state().client
    own = plain_settings(values())
    if parallel.is_main_process():
        client.key_value_set(key, json.dumps(own))
    first = json.loads(client.blocking_key_value_get(key, _DAY * 1000))
    text = ""
    if differences := differing_fields(first, own):
        listed = ", ".join(
            f"{name} is {here!r} here and {there!r} in process 0" for name, (there, here) in differences.items()
        )
        text = f"{what} differs in process {jax.process_index()}: {listed}. Start all with the same command"
        with contextlib.suppress(Exception):  # another process was first
            client.key_value_set(f"{key}/differs", text)
    client.wait_at_barrier(f"{key}/all", _DAY * 1000)
    if text := text or _found(client, f"{key}/differs"):
        raise ValueError(text)


def _found(client: Any, key: str) -> str:
    try:
        return client.key_value_try_get(key)
    except Exception:  # JAX raises an error of its runtime where there is no such key
        return ""


def finish() -> None:
    """Wait until all processes have finished, and leave the job. A single process returns.

    Hold an `Interrupt` meanwhile, because another process may still save.
    """
    if not _joined():
        return
    client = _state().client
    client.wait_at_barrier("sdecor/finished", _DAY * 1000)
    _job.ending = 0
    with contextlib.suppress(Exception):  # another process was first
        client.key_value_set(_END, json.dumps(None))
    _job.listener.join()  # a thread in native code would crash the end of the interpreter
    jax.distributed.shutdown()
    native.replace_handler(signal.SIGABRT, None)


def end_together(status: int, text: str) -> None:
    """End this process, and tell the other processes why, so that they end too.

    A single process returns.
    """
    if not _joined():
        return
    _job.ending = status
    told = json.dumps({"process": jax.process_index(), "status": status, "text": _located(text)})
    with contextlib.suppress(Exception):  # another process was first, or the coordinator is dead
        _state().client.key_value_set(_END, told)
    _leave_together(status)


def is_lost_process(error: BaseException) -> bool:
    """Return whether an error of the JAX runtime means that another process of the job is gone."""
    text = str(error)
    return _joined() and isinstance(error, ValueError | RuntimeError) and any(sign in text for sign in _SIGNS)


def end_alone() -> None:
    """End this process after `is_lost_process`, unless the abort of the runtime is faster."""
    time.sleep(_ABORT_SECONDS)
    if _job.ending is None:
        _job.ending = RETRY
        _leave(RETRY, LOST)
    time.sleep(_TOGETHER_SECONDS)  # another thread ends the process
    _leave(RETRY)


LOST = "another process of the job died or lost its connection: run the same command to continue"
_SIGNS = ("Gloo", "UNAVAILABLE", "Connection reset by peer", "Connection closed by peer", "Socket closed", "NCCL")


def _state() -> Any:
    from jax._src import distributed  # the public module does not give the client

    return distributed.global_state


def _joined() -> bool:
    return jax.distributed.is_initialized() and _state().num_processes > 1  # no private name outside of a job


def _hear_of_the_end() -> None:
    """Wait until a process says that it ends, and end this process with the same status."""
    client = _state().client
    while _job.ending is None:
        try:
            told = json.loads(client.blocking_key_value_get(_END, 60_000))
        except Exception as error:
            if "DEADLINE" in str(error):
                continue
            return  # the coordinator is gone; the abort of the runtime ends this process
        if told is None:
            return  # all have finished
        if threading.Event().wait(0.5) or _job.ending is not None:
            return  # this process ends by itself, with its own message
        _job.ending = told["status"]
        _say(f"process {told['process']} of the job ended: {told['text']}", where=False)
        _leave_together(told["status"])


def _leave_together(status: int) -> None:
    """End this process when all others have heard of the end, so that the coordinator is the last to go."""
    with contextlib.suppress(Exception):
        _state().client.wait_at_barrier("sdecor/left", _TOGETHER_SECONDS * 1000)
        if _state().process_id == 0:
            time.sleep(0.5)  # the others leave first: without the coordinator, their runtime would abort
    _leave(status)


def _leave(status: int, text: str = "") -> None:
    """End the process at once, without the barrier at which JAX would wait for dead processes."""
    if text:
        _say(text)
    leave(status)


def _say(text: str, *, where: bool = True) -> None:
    print(f"{program_name()}: {_located(text) if where else text}", file=sys.stderr, flush=True)


def _located(text: str) -> str:
    where = watchdog.last()
    return f"{text} · during {where}" if where else text


def _end_at_abort() -> None:
    """Let an abort of the native runtime end this process with one line and the status `RETRY`.

    JAX's runtime aborts a process when the coordination service tells it that another process is dead. Python cannot
    catch this; a native handler can.
    """

    def aborted(number: int) -> None:
        if _job.ending is not None:
            _leave(_job.ending)
        _job.ending = RETRY
        _leave(RETRY, LOST)

    _job.abort = native.CALLBACK(aborted)
    native.replace_handler(signal.SIGABRT, _job.abort)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
