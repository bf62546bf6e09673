"""Run a sweep on this machine, a few trials at a time, and describe its progress."""

import collections
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sdecor.core import locks
from sdecor.core.interrupt import Interrupt
from sdecor.sweep import job, trial_folder
from sdecor.sweep.job import Group
from sdecor.sweep.plan import Trial


def states(trials: Sequence[Trial], folder: pathlib.Path) -> dict[str, str]:
    """Return the state of every trial, by its key."""
    return {trial.key: trial_folder.state(folder / trial.key, trial) for trial in trials}


def describe(trials: Sequence[Trial], folder: pathlib.Path, jobs: int = 1) -> str:
    """Return the number of trials in each state, the trials that run, stopped or failed, and the time left."""
    found = states(trials, folder)
    counts = {state: list(found.values()).count(state) for state in trial_folder.STATES}
    lines = [f"{folder}: {len(trials)} trials", "  " + ", ".join(f"{count} {state}" for state, count in counts.items())]
    for key, state in found.items():
        if state == trial_folder.RUNNING:
            who = trial_folder.holder(folder / key) or locks.NOBODY  # it may have ended meanwhile
            step = trial_folder.last_step(folder / key)
            held = f"since {who['since']} by process {who['process']} on {who['host']}"
            lines.append(f"  {trial_folder.RUNNING} {key}: at step {step}, {held}")
        elif state == trial_folder.STARTED:
            lines.append(f"  {trial_folder.STARTED} {key}: at step {trial_folder.last_step(folder / key)}")
        elif state == trial_folder.FAILED:
            failed = trial_folder.read(folder / key)["failed"]
            lines.append(f"  {trial_folder.FAILED} {key}: {failed['stage']}.py, exit status {failed['status']}")
            lines += [f"    {line}" for line in failed["lines"][-3:]]
    return "\n".join([*lines, "  " + remaining(trials, folder, jobs)])


def remaining(trials: Sequence[Trial], folder: pathlib.Path, jobs: int = 1) -> str:
    """Return the number of trials that are left and the time they need, estimated from finished trials."""
    found = states(trials, folder)
    left = [trial for trial in trials if found[trial.key] != trial_folder.FINISHED]
    if not left:
        return "nothing is left to do"
    seconds = seconds_left(trials, left, folder)
    if seconds is None:
        return f"{len(left)} left; the time is known once one is finished"
    at = time.strftime("%a %H:%M", time.localtime(time.time() + seconds / jobs))
    return f"{len(left)} left, about {duration(seconds / jobs)} (until {at}, {jobs} at a time)"


def seconds_left(trials: Sequence[Trial], left: Sequence[Trial], folder: pathlib.Path) -> float | None:
    """Estimate the time that the trials in `left` need one after the other.

    A stage takes as long as in the finished trials of the same cell, else as in all finished trials.

    Returns:
      Seconds; None while a needed stage is finished in no trial.
    """
    spent = {trial.key: _stage_seconds(folder / trial.key) for trial in trials}
    total = 0.0
    for trial in left:
        for stage in trial_folder.missing_stages(folder / trial.key, trial):
            usual = _mean_for(trial, trials, spent, stage)
            if usual is None:
                return None
            done = _share_done(trial, trials, folder) if stage == "train" else 0.0
            total += usual * (1 - done)
    return total


def duration(seconds: float) -> str:
    """Format a time: `40 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _stage_seconds(folder: pathlib.Path) -> dict[str, float]:
    seconds = {stage: done["seconds"] for stage, done in trial_folder.read(folder).get("done", {}).items()}
    if "train" in seconds:  # only the run's log knows the time of a start that was killed
        seconds["train"] = max(seconds["train"], trial_folder.training_seconds(folder) or 0.0)
    return seconds


def _mean_for(trial: Trial, trials: Sequence[Trial], spent: Mapping[str, Any], stage: str) -> float | None:
    for chosen in ([other for other in trials if other.cell == trial.cell], trials):
        seconds = [spent[other.key][stage] for other in chosen if stage in spent[other.key]]
        if seconds:
            return sum(seconds) / len(seconds)
    return None


def _share_done(trial: Trial, trials: Sequence[Trial], folder: pathlib.Path) -> float:
    """Return the share of its steps that a trial has made, by the steps of a finished trial of the same cell."""
    for other in trials:
        if other.cell == trial.cell and trial_folder.is_done(folder / other.key, other, "train"):
            steps = max(1, trial_folder.last_step(folder / other.key))
            return min(1.0, trial_folder.last_step(folder / trial.key) / steps)
    return 0.0


_PAUSE, _LOOK_AGAIN = 0.2, 5.0  # seconds between looks at processes, and at trials that other sweeps hold


def run_all(
    trials: Sequence[Trial],
    folder: pathlib.Path,
    *,
    jobs: int = 1,
    environments: Sequence[Mapping[str, str]] = (),
    grouped: Sequence[Group] | None = None,
) -> bool:
    """Run the trials that are not finished, and print the progress.

    A trial that another sweep holds is waited for, and run here if that sweep dies. A trial that fails is not tried
    again before the next start.

    Args:
      trials: the trials, in order.
      folder: the sweep's folder.
      jobs: processes at a time.
      environments: environment variables for each process at a time, for example the GPUs it may use.
      grouped: the trials in groups that train at once; None = each alone.

    Returns:
      False when a signal stopped the sweep.
    """
    to_do = [trial for trial in trials if trial_folder.missing_stages(folder / trial.key, trial)]
    left = collections.deque(job.singly(to_do) if grouped is None else grouped)
    print(f"{len(trials) - len(to_do)} of {len(trials)} trials are finished, {len(to_do)} to do · {folder}", flush=True)
    free = collections.deque(environments or [{}] * jobs)
    began, active, waiting, look = time.time(), [], False, 0.0
    with Interrupt() as interrupt:
        while (left and not interrupt) or active:
            if interrupt:
                _stop_all(active)
            if time.monotonic() >= look:
                all_ours = _start_next(left, active, free, folder, jobs, began)
                look = 0.0 if all_ours else time.monotonic() + _LOOK_AGAIN
                if not all_ours and not active and left and not waiting:
                    held = [trial for group in left for trial in group.trials]
                    print(f"waiting for {len(held)} trials that other processes hold: {_names(held)}", flush=True)
                    waiting = True
            for each in [each for each in active if job.poll(each)]:
                active.remove(each)
                free.append(each.slot)
                look = 0.0
                if len(each.group.trials) > 1 and each.outcome != job.STOPPED:  # trained; evaluate each alone
                    left.extendleft(reversed(job.singly(each.group.trials)))
                _print_outcome(each, trials, folder, jobs)
            time.sleep(_PAUSE)
    return not interrupt


def _start_next(
    left: collections.deque[Group],
    active: list[job.Job],
    free: collections.deque[Mapping[str, str]],
    folder: pathlib.Path,
    jobs: int,
    began: float,
) -> bool:
    """Start trials while places are free; return False where another process holds one of them."""
    held_elsewhere = []
    while left and len(active) < jobs and not any(each.stopping for each in active):
        group = left.popleft()
        group = group.of([trial for trial in group.trials if not _is_settled(trial, folder, began)])
        if not group.trials:
            continue
        started = job.start(group, folder, free[0])
        others = [trial for trial in group.trials if started is None or trial not in started.group.trials]
        if others:
            held_elsewhere.append(group.of(others))
        if started is None:
            continue
        free.popleft()
        active.append(started)
        if started.stages:
            print(f"{_names(started.group.trials)}: {_activity(started)}", flush=True)
    left.extendleft(reversed(held_elsewhere))
    return not held_elsewhere


def _is_settled(trial: Trial, folder: pathlib.Path, began: float) -> bool:
    """Tell whether a trial is finished, or has failed since this sweep began."""
    place = folder / trial.key
    return (
        not trial_folder.missing_stages(place, trial)
        or trial_folder.read(place).get("failed", {}).get("time", 0) >= began
    )


def _activity(started: job.Job) -> str:
    step = trial_folder.last_step(started.folder)
    if started.stages[0] == "train":
        return f"training, continuing after step {step}" if step else "training"
    return "evaluating"


def _stop_all(active: Sequence[job.Job]) -> None:
    asked = [each for each in active if not each.stopping]
    for each in asked:
        job.stop(each)
    if asked:
        names = _names([trial for each in asked for trial in each.group.trials])
        print(f"stopping: {names} will save and end; press Ctrl-C again to stop at once", flush=True)


def _print_outcome(each: job.Job, trials: Sequence[Trial], folder: pathlib.Path, jobs: int) -> None:
    if each.outcome != trial_folder.FAILED:
        trained = len(each.group.trials) > 1 and each.outcome == trial_folder.FINISHED
        outcome = "trained" if trained else each.outcome
        print(f"{_names(each.group.trials)}: {outcome} · {remaining(trials, folder, jobs)}", flush=True)
        return
    for trial in each.group.trials:
        failed = trial_folder.read(folder / trial.key).get("failed")
        if failed is not None:
            last = failed["lines"][-1] if failed["lines"] else "it wrote nothing"
            print(f"{trial.key}: {failed['stage']}.py failed: {last}", flush=True)


def _names(trials: Sequence[Trial]) -> str:
    names = [trial.key for trial in trials]
    return ", ".join(names if len(names) <= 4 else [*names[:3], f"… {len(names) - 3} more"])
