"""A sweep on this machine: a few trials at a time until nothing is left, and how far it is."""

import collections
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sdecor.core.interrupt import Interrupt
from sdecor.sweep import job, trial_folder
from sdecor.sweep.job import Group
from sdecor.sweep.plan import Run


def states(runs: Sequence[Run], folder: pathlib.Path) -> dict[str, str]:
    """Return the state of every run, by its key."""
    return {run.key: trial_folder.state(folder / run.key, run) for run in runs}


def describe(runs: Sequence[Run], folder: pathlib.Path, jobs: int = 1) -> str:
    """Return some lines: how many runs are in which state, those that run or failed by name, and the time left."""
    found = states(runs, folder)
    counts = {state: list(found.values()).count(state) for state in trial_folder.STATES}
    lines = [f"{folder}: {len(runs)} runs", "  " + ", ".join(f"{count} {state}" for state, count in counts.items())]
    for key, state in found.items():
        if state == trial_folder.RUNNING:
            who = trial_folder.holder(folder / key) or {"process": "?", "host": "?", "since": "?"}
            step = trial_folder.last_step(folder / key)
            held = f"since {who['since']} by process {who['process']} on {who['host']}"
            lines.append(f"  {trial_folder.RUNNING} {key}: at step {step}, {held}")
        elif state == trial_folder.STARTED:
            lines.append(f"  {trial_folder.STARTED} {key}: at step {trial_folder.last_step(folder / key)}")
        elif state == trial_folder.FAILED:
            failed = trial_folder.read(folder / key)["failed"]
            lines.append(f"  {trial_folder.FAILED} {key}: {failed['stage']}.py, exit status {failed['status']}")
            lines += [f"    {line}" for line in failed["lines"][-3:]]
    return "\n".join([*lines, "  " + remaining(runs, folder, jobs)])


def remaining(runs: Sequence[Run], folder: pathlib.Path, jobs: int = 1) -> str:
    """Return how many runs are left and how long they will take, from the time that the finished ones took."""
    found = states(runs, folder)
    left = [run for run in runs if found[run.key] != trial_folder.FINISHED]
    if not left:
        return "nothing is left to do"
    seconds = seconds_left(runs, left, folder)
    if seconds is None:
        return f"{len(left)} left; the time is known once one is finished"
    at = time.strftime("%a %H:%M", time.localtime(time.time() + seconds / jobs))
    return f"{len(left)} left, about {duration(seconds / jobs)} (until {at}, {jobs} at a time)"


def seconds_left(runs: Sequence[Run], left: Sequence[Run], folder: pathlib.Path) -> float | None:
    """Estimate the time for the runs that are left, in turn: by finished ones of the same cell, else by all.

    None before a stage that is needed was finished anywhere.
    """
    spent = {run.key: _stage_seconds(folder / run.key) for run in runs}
    total = 0.0
    for run in left:
        for stage in trial_folder.missing_stages(folder / run.key, run):
            usual = _mean_for(run, runs, spent, stage)
            if usual is None:
                return None
            done = _share_done(run, runs, folder) if stage == "train" else 0.0
            total += usual * (1 - done)
    return total


def duration(seconds: float) -> str:
    """Write a time as people say it: `40 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _stage_seconds(folder: pathlib.Path) -> dict[str, float]:
    seconds = {stage: done["seconds"] for stage, done in trial_folder.read(folder).get("done", {}).items()}
    if "train" in seconds:  # what a killed start spent is only known to the run itself
        seconds["train"] = max(seconds["train"], trial_folder.training_seconds(folder) or 0.0)
    return seconds


def _mean_for(run: Run, runs: Sequence[Run], spent: Mapping[str, Any], stage: str) -> float | None:
    for chosen in ([other for other in runs if other.cell == run.cell], runs):
        seconds = [spent[other.key][stage] for other in chosen if stage in spent[other.key]]
        if seconds:
            return sum(seconds) / len(seconds)
    return None


def _share_done(run: Run, runs: Sequence[Run], folder: pathlib.Path) -> float:
    """Return the share of its steps that an unfinished run has made, by a finished run of the same cell."""
    for other in runs:
        if other.cell == run.cell and trial_folder.is_done(folder / other.key, other, "train"):
            return min(
                1.0, trial_folder.last_step(folder / run.key) / max(1, trial_folder.last_step(folder / other.key))
            )
    return 0.0


_PAUSE, _LOOK_AGAIN = 0.2, 5.0  # seconds between looks at processes, and at runs that other sweeps hold


def run_all(
    runs: Sequence[Run],
    folder: pathlib.Path,
    *,
    jobs: int = 1,
    environments: Sequence[Mapping[str, str]] = (),
    grouped: Sequence[Group] | None = None,
) -> bool:
    """Run what is not finished; print what happens.

    A run that another sweep has claimed is waited for, and taken over should that sweep die. A failed one is recorded
    and not tried again before the next start.

    Args:
      runs: in order.
      folder: the sweep's.
      jobs: processes at a time.
      environments: variables for each place in which a process runs, for example which devices it may use.
      grouped: the runs in groups that are trained at once; None = each by itself.

    Returns:
      False when a signal stopped it.
    """
    to_do = [run for run in runs if trial_folder.missing_stages(folder / run.key, run)]
    left = collections.deque(job.singly(to_do) if grouped is None else grouped)
    print(f"{len(runs) - len(to_do)} of {len(runs)} runs are finished, {len(to_do)} to do · {folder}", flush=True)
    free = collections.deque(environments or [{}] * jobs)
    began, active, waiting, look = time.time(), [], False, 0.0
    with Interrupt() as interrupt:
        while (left and not interrupt) or active:
            if interrupt:
                _pass_on(active)
            if time.monotonic() >= look:
                all_ours = _fill(left, active, free, folder, jobs, began)
                look = 0.0 if all_ours else time.monotonic() + _LOOK_AGAIN
                if not all_ours and not active and left and not waiting:
                    held = [run for group in left for run in group.runs]
                    print(f"waiting for {len(held)} runs that other processes are at: {_names(held)}", flush=True)
                    waiting = True
            for each in [each for each in active if job.poll(each)]:
                active.remove(each)
                free.append(each.slot)
                look = 0.0
                if len(each.group.runs) > 1 and each.outcome != job.STOPPED:  # to be evaluated each by itself
                    left.extendleft(reversed(job.singly(each.group.runs)))
                _tell(each, runs, folder, jobs)
            time.sleep(_PAUSE)
    return not interrupt


def _fill(
    left: collections.deque[Group],
    active: list[job.Job],
    free: collections.deque[Mapping[str, str]],
    folder: pathlib.Path,
    jobs: int,
    began: float,
) -> bool:
    """Start runs in free places; return False where another process holds one that might have been started."""
    held_elsewhere = []
    while left and len(active) < jobs and not any(each.stopping for each in active):
        group = left.popleft()
        group = group.of([run for run in group.runs if not _is_settled(run, folder, began)])
        if not group.runs:
            continue
        started = job.start_group(group, folder, free[0])
        others = [run for run in group.runs if started is None or run not in started.group.runs]
        if others:
            held_elsewhere.append(group.of(others))
        if started is None:
            continue
        free.popleft()
        active.append(started)
        if started.stages:
            print(f"{_names(started.group.runs)}: {_doing(started)}", flush=True)
    left.extendleft(reversed(held_elsewhere))
    return not held_elsewhere


def _is_settled(run: Run, folder: pathlib.Path, began: float) -> bool:
    """Tell whether another sweep finished the run, or failed at it since this one began."""
    place = folder / run.key
    return (
        not trial_folder.missing_stages(place, run)
        or trial_folder.read(place).get("failed", {}).get("time", 0) >= began
    )


def _doing(started: job.Job) -> str:
    step = trial_folder.last_step(started.folder)
    if started.stages[0] == "train":
        return f"training, continuing after step {step}" if step else "training"
    return "evaluating"


def _pass_on(active: Sequence[job.Job]) -> None:
    asked = [each for each in active if not each.stopping]
    for each in asked:
        job.stop(each)
    if asked:
        names = _names([run for each in asked for run in each.group.runs])
        print(f"stopping: {names} will save and end; press Ctrl-C again to stop at once", flush=True)


def _tell(each: job.Job, runs: Sequence[Run], folder: pathlib.Path, jobs: int) -> None:
    if each.outcome != job.FAILED:
        trained = len(each.group.runs) > 1 and each.outcome == job.FINISHED
        outcome = "trained" if trained else each.outcome
        print(f"{_names(each.group.runs)}: {outcome} · {remaining(runs, folder, jobs)}", flush=True)
        return
    for run in each.group.runs:
        failed = trial_folder.read(folder / run.key).get("failed")
        if failed is not None:
            last = failed["lines"][-1] if failed["lines"] else "it wrote nothing"
            print(f"{run.key}: {failed['stage']}.py failed: {last}", flush=True)


def _names(runs: Sequence[Run]) -> str:
    names = [run.key for run in runs]
    return ", ".join(names if len(names) <= 4 else [*names[:3], f"… {len(names) - 3} more"])
