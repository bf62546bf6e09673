"""One trial on its way: train.py and then evaluate.py, a process each; and which trials train as replicas."""

import contextlib
import ctypes
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sdecor.core import locks
from sdecor.sweep import check, commands, trial_folder
from sdecor.sweep.plan import ROOT, Run
from sdecor.training import logbook, replicas


class Group(NamedTuple):
    """Runs that are trained at once, or one run; `replicas` are what each of several has of its own, by key."""

    runs: tuple[Run, ...]
    replicas: Mapping[str, str] = {}

    def of(self, chosen: Sequence[Run]) -> "Group":
        """Return the group of these runs alone."""
        return Group(tuple(chosen), self.replicas)


def singly(runs: Sequence[Run]) -> list[Group]:
    """Return each run by itself."""
    return [Group((run,)) for run in runs]


def together(runs: Sequence[Run], folder: pathlib.Path, configs: Mapping[str, Any], size: int) -> list[Group]:
    """Put up to `size` runs into a group, in the order of the runs, where they can be trained at once.

    A run that is trained, or whose training failed, alone or in an earlier group, is by itself.

    Args:
      runs: of the sweep.
      folder: the sweep's.
      configs: of every cell, as of `check.check`.
      size: the most runs of a group.
    """
    found: list[list[Run]] = []
    open_groups: dict[str, list[Run]] = {}
    for run in runs:
        place = folder / run.key
        failed = trial_folder.read(place).get("failed", {}).get("stage") == "train"
        alone = (
            failed
            or trial_folder.is_done(place, run, "train")
            or replicas.failed_at(logbook.read_rows(place)) is not None
        )
        kind = _kind(configs[run.cell])
        group = open_groups.get(kind)
        if alone or group is None or len(group) >= size or not _at_the_same_step([*group, run], folder):
            group = []
            found.append(group)
            if not alone:
                open_groups[kind] = group
        group.append(run)
    return [_group(group, configs) for group in found]


def _kind(config: Mapping[str, Any]) -> str:
    """Return what the replicas of a program have in common, as text."""
    return json.dumps(replicas.common(check.flat(config)), sort_keys=True)


def _at_the_same_step(runs: Sequence[Run], folder: pathlib.Path) -> bool:
    saved = {
        run.key: [int(path.name) for path in (folder / run.key / "checkpoints").glob("*") if path.name.isdigit()]
        for run in runs
    }
    begun = [run.key for run in runs if logbook.read_rows(folder / run.key)]
    try:
        replicas.common_steps(saved, begun)
    except ValueError:
        return False
    return True


def _group(runs: Sequence[Run], configs: Mapping[str, Any]) -> Group:
    if len(runs) == 1:
        return Group(tuple(runs))
    values = {run.key: check.flat(configs[run.cell]) | {"seed": run.seed} for run in runs}
    own = [field for field in replicas.FIELDS if len({fields[field] for fields in values.values()}) > 1]
    texts = {key: replicas.text(replicas.Replica(key, {f: fields[f] for f in own})) for key, fields in values.items()}
    return Group(tuple(runs), texts)


def group_command(group: Group, stage: str, folder: pathlib.Path) -> list[str]:
    """Return the whole command line of a stage of a group in the sweep's `folder`."""
    first = group.runs[0]
    if len(group.runs) == 1:
        return commands.command(first, stage, folder)
    return commands.together(first, [group.replicas[run.key] for run in group.runs], folder)


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
    held: list[locks.Lock]
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
    taken = [(run, trial_folder.take(sweep_folder / run.key, tries=tries)) for run in group.runs]
    claimed = [(run, held) for run, held in taken if held is not None]
    if not claimed:
        return None
    # Another sweep may have trained some of them meanwhile.
    chosen = [each for each in claimed if not trial_folder.is_done(sweep_folder / each[0].key, each[0], "train")]
    chosen = chosen or claimed[:1]
    for each in claimed:
        if each not in chosen:
            each[1].release()
    runs, held = [run for run, _ in chosen], [held for _, held in chosen]
    for run in runs:
        trial_folder.open_record(sweep_folder / run.key, run)
    stages = ["train"] if len(runs) > 1 else trial_folder.missing_stages(sweep_folder / runs[0].key, runs[0])
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
    command = group_command(job.group, job.stages[0], job.root)
    for run in job.group.runs[1:]:
        with (job.root / run.key / trial_folder.LOG).open("a") as log:
            log.write(f"\ntrained together with {job.group.runs[0].key}: see {job.folder / trial_folder.LOG}\n")
    with (job.folder / trial_folder.LOG).open("ab") as log:
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
            trial_folder.add_time(folder, stage, seconds)
        elif run not in failed:
            trial_folder.add(folder, stage, commands.arguments(run, stage), seconds)
        else:
            lines = trial_folder.tail(job.folder / trial_folder.LOG, start=job.log_start)
            if status < 0:
                lines.append(f"{stage}.py was killed by {signal.Signals(-status).name}")
            trial_folder.add_failure(folder, stage, status, lines)
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
