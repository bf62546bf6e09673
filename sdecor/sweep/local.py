"""A sweep on this machine: a few runs at a time, until nothing is left."""

import collections
import pathlib
import time
from collections.abc import Mapping, Sequence

from sdecor.core.interrupt import Interrupt
from sdecor.sweep import groups, job, record, status
from sdecor.sweep.groups import Group
from sdecor.sweep.plan import Run

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
    to_do = [run for run in runs if record.missing_stages(folder / run.key, run)]
    left = collections.deque(groups.singly(to_do) if grouped is None else grouped)
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
                    left.extendleft(reversed(groups.singly(each.group.runs)))
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
    return not record.missing_stages(place, run) or record.read(place).get("failed", {}).get("time", 0) >= began


def _doing(started: job.Job) -> str:
    step = record.last_step(started.folder)
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
        print(f"{_names(each.group.runs)}: {outcome} · {status.remaining(runs, folder, jobs)}", flush=True)
        return
    for run in each.group.runs:
        failed = record.read(folder / run.key).get("failed")
        if failed is not None:
            last = failed["lines"][-1] if failed["lines"] else "it wrote nothing"
            print(f"{run.key}: {failed['stage']}.py failed: {last}", flush=True)


def _names(runs: Sequence[Run]) -> str:
    names = [run.key for run in runs]
    return ", ".join(names if len(names) <= 4 else [*names[:3], f"… {len(names) - 3} more"])
