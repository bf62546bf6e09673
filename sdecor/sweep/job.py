"""Run train.py and then evaluate.py of a trial, and train several trials by one program as replicas.

Each stage is a process of its own, which `poll` watches without waiting. One process trains a group of replicas, which
are trials that differ only in numbers. Each of these trials is then evaluated by itself.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sdecor.core import children, files, locks
from sdecor.core.commands import INTERRUPTED, PARTLY, RETRY
from sdecor.sweep import commands, trial_folder
from sdecor.sweep.plan import ROOT, Trial
from sdecor.sweep.trial_folder import FAILED, FINISHED
from sdecor.training import logbook, replicas


class Group(NamedTuple):
    """Trials that one program trains at once, or a single trial.

    Attributes:
      trials: the trials.
      replicas: trial key → the text of its replica, the fields in which the trials of the group differ; empty for a
        single trial.
    """

    trials: tuple[Trial, ...]
    replicas: Mapping[str, str] = {}

    def of(self, chosen: Sequence[Trial]) -> "Group":
        """Return the group with the chosen trials alone."""
        return Group(tuple(chosen), self.replicas)


def singly(trials: Sequence[Trial]) -> list[Group]:
    """Return a group for each trial."""
    return [Group((trial,)) for trial in trials]


def together(trials: Sequence[Trial], folder: pathlib.Path, configs: Mapping[str, Any], size: int) -> list[Group]:
    """Group the trials that one program can train at once.

    A trial is alone when it is trained already, or when its training failed.

    Args:
      trials: the trials, in the order in which they start.
      folder: the sweep's folder.
      configs: cell → config, from `check.check`.
      size: the largest number of trials in a group.
    """
    found: list[list[Trial]] = []
    open_groups: dict[str, list[Trial]] = {}
    for trial in trials:
        place = folder / trial.key
        failed = trial_folder.read(place).get("failed", {}).get("stage") == "train"
        alone = (
            failed
            or trial_folder.is_done(place, trial, "train")
            or replicas.failed_at(logbook.read_rows(place)) is not None
        )
        kind = _kind(configs[trial.cell])
        group = open_groups.get(kind)
        if alone or group is None or len(group) >= size or not _at_the_same_step([*group, trial], folder):
            group = []
            found.append(group)
            if not alone:
                open_groups[kind] = group
        group.append(trial)
    return [_group(group, configs) for group in found]


def _kind(config: Mapping[str, Any]) -> str:
    """Return the fields that the replicas of one program share, as text."""
    return json.dumps(replicas.common(files.flat(config)), sort_keys=True)


def _at_the_same_step(trials: Sequence[Trial], folder: pathlib.Path) -> bool:
    saved = {
        trial.key: [int(path.name) for path in (folder / trial.key / "checkpoints").glob("*") if path.name.isdigit()]
        for trial in trials
    }
    begun = [trial.key for trial in trials if logbook.read_rows(folder / trial.key)]
    try:
        replicas.common_steps(saved, begun)
    except ValueError:
        return False
    return True


def _group(trials: Sequence[Trial], configs: Mapping[str, Any]) -> Group:
    if len(trials) == 1:
        return Group(tuple(trials))
    values = {trial.key: files.flat(configs[trial.cell]) | {"seed": trial.seed} for trial in trials}
    own = [field for field in replicas.own_fields() if len({fields[field] for fields in values.values()}) > 1]
    texts = {key: replicas.text(replicas.Replica(key, {f: fields[f] for f in own})) for key, fields in values.items()}
    return Group(tuple(trials), texts)


def group_command(group: Group, stage: str, folder: pathlib.Path) -> list[str]:
    """Return the command line of one stage of a group, in the sweep's `folder`."""
    first = group.trials[0]
    if len(group.trials) == 1:
        return commands.command(first, stage, folder)
    return commands.replica_command(first, [group.replicas[trial.key] for trial in group.trials], folder)


STOPPED = "stopped"
RETRIES = 3  # of a job whose processes end by faults of the surroundings


@dataclasses.dataclass
class Job:
    """A claimed group of trials and the process that works on it.

    Attributes:
      group: the trials.
      root: the sweep's folder.
      held: the claims on the trials' folders.
      stages: the stages that are left; the first is at work.
      slot: environment variables of the processes.
      process: the process at work; None once the job has ended.
      outcome: "finished", "failed" or "stopped" once the job has ended.
      stopping: whether the job was asked to stop.
      began: start time of the process.
      log_start: where the lines of the process begin in the log.
      retries: number of stages that were started again after a fault of the surroundings.
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
    retries: int = 0

    @property
    def folder(self) -> pathlib.Path:
        """The folder of the first trial, which has the log."""
        return self.root / self.group.trials[0].key


def start(
    group: Group, folder: pathlib.Path, environment: Mapping[str, str] | None = None, *, tries: int = 1
) -> Job | None:
    """Claim the free trials of a group and start their first stage; return None when other processes hold them all.

    Trials that another sweep has trained meanwhile are left out, unless all are trained: then the first is chosen.
    Several trials are only trained. A single trial, also one that is left of several, goes through its missing stages.

    Args:
      group: the trials.
      folder: the sweep's folder.
      environment: variables for the processes, added to those of this process.
      tries: how often to try each claim.
    """
    taken = [(trial, trial_folder.take(folder / trial.key, tries=tries)) for trial in group.trials]
    claimed = [(trial, held) for trial, held in taken if held is not None]
    if not claimed:
        return None
    untrained = [each for each in claimed if not trial_folder.is_done(folder / each[0].key, each[0], "train")]
    chosen = untrained or claimed[:1]
    for each in claimed:
        if each not in chosen:
            each[1].release()
    trials, held = [trial for trial, _ in chosen], [held for _, held in chosen]
    for trial in trials:
        trial_folder.add_start(folder / trial.key, trial)
    stages = ["train"] if len(trials) > 1 else trial_folder.missing_stages(folder / trials[0].key, trials[0])
    job = Job(group.of(trials), folder, held, stages, environment or {})
    _start_stage(job)
    return job


def poll(job: Job) -> bool:
    """Handle the end of a job's process and start the next stage; tell whether the job has ended."""
    if job.outcome is None and (status := job.process.poll()) is not None:
        _end_stage(job, status)
    return job.outcome is not None


def stop(job: Job, number: int = signal.SIGINT) -> None:
    """Ask a job to stop as soon as its state is saved."""
    job.stopping = True
    if job.process is not None and job.process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            job.process.send_signal(number)


def wait_until_ended(job: Job) -> None:
    """Wait for a job's process without reaping it, so that a signal handler may call this within `poll`."""
    if job.process is not None:
        with contextlib.suppress(ChildProcessError):  # it had ended, and `poll` has seen it
            os.waitid(os.P_PID, job.process.pid, os.WEXITED | os.WNOWAIT)


def _start_stage(job: Job) -> None:
    """Start the next stage, or end the job where none is left."""
    if not job.stages or job.stopping:
        _end(job, STOPPED if job.stages else FINISHED)
        return
    command = group_command(job.group, job.stages[0], job.root)
    for trial in job.group.trials[1:]:
        with (job.root / trial.key / trial_folder.LOG).open("a") as log:
            log.write(f"\ntrained together with {job.group.trials[0].key}: see {job.folder / trial_folder.LOG}\n")
    with (job.folder / trial_folder.LOG).open("ab") as log:
        log.write(f"\n$ {commands.shown(command)}\n".encode())
        log.flush()
        job.log_start, job.began = log.tell(), time.monotonic()
        # A session of its own: the terminal would send Ctrl-C to the process as well, and a second one stops at once.
        job.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | job.slot,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[held.descriptor for held in job.held],
            preexec_fn=functools.partial(_prepare, os.getpid()),
        )


def _prepare(parent: int) -> None:
    """Set the child's signals: SIGTERM when the sweep dies, and Ctrl-C accepted even where the sweep ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm may send its warning here too; slurm.py answers it
    children.end_with_parent(parent)


def _end_stage(job: Job, status: int) -> None:
    stage, seconds = job.stages[0], (time.monotonic() - job.began) / len(job.group.trials)
    stopped = job.stopping or status == INTERRUPTED
    if status == RETRY and not stopped and job.retries < RETRIES:
        job.retries += 1
        trial_folder.add_time(job.folder, stage, seconds)
        _start_stage(job)
        return
    failed = [] if status == 0 or stopped else _failed_trials(job, status)
    for trial in job.group.trials:
        folder = job.root / trial.key
        if stopped and status != 0:
            trial_folder.add_time(folder, stage, seconds)
        elif trial not in failed:
            trial_folder.add_finished(folder, stage, commands.arguments(trial, stage), seconds)
        else:
            lines = trial_folder.tail(job.folder / trial_folder.LOG, start=job.log_start)
            if status < 0:
                lines.append(f"{stage}.py was killed by {signal.Signals(-status).name}")
            trial_folder.add_failure(folder, stage, status, lines)
    if status == 0:
        job.stages.pop(0)
        _start_stage(job)
    else:
        _end(job, STOPPED if stopped else FAILED)


def _failed_trials(job: Job, status: int) -> list[Trial]:
    """Return the trials that failed: some of the replicas, or all."""
    if status != PARTLY or len(job.group.trials) == 1:
        return list(job.group.trials)
    return [each for each in job.group.trials if replicas.failed_at(logbook.read_rows(job.root / each.key)) is not None]


def _end(job: Job, outcome: str) -> None:
    job.process, job.outcome = None, outcome
    for held in job.held:
        held.release()
