"""One run on its way: train.py and then evaluate.py, each as a process of its own, watched without waiting."""

import contextlib
import ctypes
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

from sdecor.sweep import claim, commands, record
from sdecor.sweep.plan import ROOT, Run

FINISHED, FAILED, STOPPED = "finished", "failed", "stopped"
INTERRUPTED = 130  # exit status of train.py when a signal stopped it and its state is saved
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclasses.dataclass
class Job:
    """A claimed run.

    Attributes:
      run: which.
      folder: the run's.
      held: the claim.
      stages: those still to do; the first is the one at work.
      slot: environment variables of its processes.
      process: at work; None once the job has ended.
      outcome: "finished", "failed" or "stopped" once it has ended.
      stopping: whether it was asked to stop.
      began: when the process started.
      log_start: where the process's lines begin in the log.
    """

    run: Run
    folder: pathlib.Path
    held: claim.Claim
    stages: list[str]
    slot: Mapping[str, str]
    process: subprocess.Popen | None = None
    outcome: str | None = None
    stopping: bool = False
    began: float = 0.0
    log_start: int = 0


def start(
    run: Run, sweep_folder: pathlib.Path, environment: Mapping[str, str] | None = None, *, tries: int = 1
) -> Job | None:
    """Claim a run and start its first missing stage; None when another process holds it.

    Args:
      run: which.
      sweep_folder: the sweep's.
      environment: variables for its processes, beside this process's own.
      tries: how often to try the claim.
    """
    folder = sweep_folder / run.key
    held = claim.take(folder, tries=tries)
    if held is None:
        return None
    record.open_record(folder, run)
    job = Job(run, folder, held, record.missing_stages(folder, run), environment or {})
    _go_on(job)
    return job


def poll(job: Job) -> bool:
    """Look after a job: note what its process came to, start the next; tell whether it has ended."""
    if job.outcome is None and (status := job.process.poll()) is not None:
        _ended(job, status)
    return job.outcome is not None


def stop(job: Job, number: int = signal.SIGINT) -> None:
    """Ask a job to stop as soon as its state is saved."""
    job.stopping = True
    if job.process is not None and job.process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            job.process.send_signal(number)


def wait_until_ended(job: Job) -> None:
    """Wait for the process without looking after the job, as a signal handler may that interrupted just this."""
    if job.process is not None:
        with contextlib.suppress(ChildProcessError):  # it had ended, and was seen to
            os.waitid(os.P_PID, job.process.pid, os.WEXITED | os.WNOWAIT)


def _go_on(job: Job) -> None:
    """Start the next stage, or end the job where there is none."""
    if not job.stages or job.stopping:
        _end(job, STOPPED if job.stages else FINISHED)
        return
    command = commands.command(job.run, job.stages[0], job.folder.parent.parent)
    with (job.folder / record.LOG).open("ab") as log:
        log.write(f"\n$ {commands.shown(command)}\n".encode())
        log.flush()
        job.log_start, job.began = log.tell(), time.monotonic()
        # In a session of its own, for the terminal would send Ctrl-C to it as well, and a second one stops at once.
        job.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | job.slot,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(job.held.descriptor,),
            preexec_fn=_prepare,
        )


def _prepare() -> None:
    """In the child: have it asked to stop when the sweep dies, and let it take Ctrl-C even if the sweep may not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm's warning may reach it as well; its answer is slurm.py's
    if _LIBC is not None:
        _LIBC.prctl(_DEATH_SIGNAL, signal.SIGTERM)


def _ended(job: Job, status: int) -> None:
    stage, seconds = job.stages[0], time.monotonic() - job.began
    if status == 0:
        record.add(job.folder, stage, commands.arguments(job.run, stage), seconds)
        job.stages.pop(0)
        _go_on(job)
    elif job.stopping or (stage == "train" and status == INTERRUPTED):
        record.add_time(job.folder, stage, seconds)
        _end(job, STOPPED)
    else:
        lines = record.tail(job.folder / record.LOG, start=job.log_start)
        if status < 0:
            lines.append(f"{stage}.py was killed by {signal.Signals(-status).name}")
        record.add_failure(job.folder, stage, status, lines)
        _end(job, FAILED)


def _end(job: Job, outcome: str) -> None:
    job.process, job.outcome = None, outcome
    job.held.release()
