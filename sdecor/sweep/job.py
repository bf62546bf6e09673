"""One run on its way: train.py and then evaluate.py, each as a process of its own, watched without waiting.

A group of replicas is trained by one process; its runs are then evaluated each by itself.
"""

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

from sdecor.sweep import claim, commands, groups, record
from sdecor.sweep.groups import Group
from sdecor.sweep.plan import ROOT, Run
from sdecor.training import logbook, replicas

FINISHED, FAILED, STOPPED = "finished", "failed", "stopped"
INTERRUPTED = 130  # exit status of train.py when a signal stopped it and its state is saved
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclasses.dataclass
class Job:
    """A claimed run, or a claimed group of runs that are trained at once.

    Attributes:
      group: which.
      root: the sweep's folder.
      held: the claims.
      stages: those still to do; the first is the one at work.
      slot: environment variables of its processes.
      process: at work; None once the job has ended.
      outcome: "finished", "failed" or "stopped" once it has ended.
      stopping: whether it was asked to stop.
      began: when the process started.
      log_start: where the process's lines begin in the log.
    """

    group: Group
    root: pathlib.Path
    held: list[claim.Claim]
    stages: list[str]
    slot: Mapping[str, str]
    process: subprocess.Popen | None = None
    outcome: str | None = None
    stopping: bool = False
    began: float = 0.0
    log_start: int = 0

    @property
    def folder(self) -> pathlib.Path:
        """The folder with the log: the run's, or that of the group's first."""
        return self.root / self.group.runs[0].key


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
    return start_group(Group((run,)), sweep_folder, environment, tries=tries)


def start_group(
    group: Group, sweep_folder: pathlib.Path, environment: Mapping[str, str] | None = None, *, tries: int = 1
) -> Job | None:
    """Claim the runs of a group that nobody holds, and start training those that are not trained yet; see `start`.

    What is left of a group may be a single run, which is then evaluated as well; None when all are held.
    """
    taken = [(run, claim.take(sweep_folder / run.key, tries=tries)) for run in group.runs]
    claimed = [(run, held) for run, held in taken if held is not None]
    if not claimed:
        return None
    # Another sweep may have trained some of them meanwhile.
    chosen = [each for each in claimed if not record.is_done(sweep_folder / each[0].key, each[0], "train")]
    chosen = chosen or claimed[:1]
    for each in claimed:
        if each not in chosen:
            each[1].release()
    runs, held = [run for run, _ in chosen], [held for _, held in chosen]
    for run in runs:
        record.open_record(sweep_folder / run.key, run)
    stages = ["train"] if len(runs) > 1 else record.missing_stages(sweep_folder / runs[0].key, runs[0])
    job = Job(group.of(runs), sweep_folder, held, stages, environment or {})
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
    command = groups.command(job.group, job.stages[0], job.root)
    for run in job.group.runs[1:]:
        with (job.root / run.key / record.LOG).open("a") as log:
            log.write(f"\ntrained together with {job.group.runs[0].key}: see {job.folder / record.LOG}\n")
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
            pass_fds=[held.descriptor for held in job.held],
            preexec_fn=_prepare,
        )


def _prepare() -> None:
    """In the child: have it asked to stop when the sweep dies, and let it take Ctrl-C even if the sweep may not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm's warning may reach it as well; its answer is slurm.py's
    if _LIBC is not None:
        _LIBC.prctl(_DEATH_SIGNAL, signal.SIGTERM)


def _ended(job: Job, status: int) -> None:
    stage, seconds = job.stages[0], (time.monotonic() - job.began) / len(job.group.runs)
    stopped = job.stopping or (stage == "train" and status == INTERRUPTED)
    failed = [] if status == 0 or stopped else _failed(job, status)
    for run in job.group.runs:
        folder = job.root / run.key
        if stopped and status != 0:
            record.add_time(folder, stage, seconds)
        elif run not in failed:
            record.add(folder, stage, commands.arguments(run, stage), seconds)
        else:
            lines = record.tail(job.folder / record.LOG, start=job.log_start)
            if status < 0:
                lines.append(f"{stage}.py was killed by {signal.Signals(-status).name}")
            record.add_failure(folder, stage, status, lines)
    if status == 0:
        job.stages.pop(0)
        _go_on(job)
    else:
        _end(job, STOPPED if stopped else FAILED)


def _failed(job: Job, status: int) -> list[Run]:
    """Return which runs failed: of replicas perhaps some alone."""
    if status != replicas.PARTLY or len(job.group.runs) == 1:
        return list(job.group.runs)
    return [run for run in job.group.runs if replicas.failed_at(logbook.read_rows(job.root / run.key)) is not None]


def _end(job: Job, outcome: str) -> None:
    job.process, job.outcome = None, outcome
    for held in job.held:
        held.release()
