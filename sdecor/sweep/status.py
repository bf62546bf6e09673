"""What of a sweep is finished, running, failed and left, and how long the rest will take."""

import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sdecor.sweep import claim, record
from sdecor.sweep.plan import Run


def states(runs: Sequence[Run], folder: pathlib.Path) -> dict[str, str]:
    """Return the state of every run, by its key."""
    return {run.key: record.state(folder / run.key, run) for run in runs}


def describe(runs: Sequence[Run], folder: pathlib.Path, jobs: int = 1) -> str:
    """Return some lines: how many runs are in which state, those that run or failed by name, and the time left."""
    found = states(runs, folder)
    counts = {state: list(found.values()).count(state) for state in record.STATES}
    lines = [f"{folder}: {len(runs)} runs", "  " + ", ".join(f"{count} {state}" for state, count in counts.items())]
    for key, state in found.items():
        if state == record.RUNNING:
            who = claim.holder(folder / key) or {"process": "?", "host": "?", "since": "?"}
            step = record.last_step(folder / key)
            held = f"since {who['since']} by process {who['process']} on {who['host']}"
            lines.append(f"  {record.RUNNING} {key}: at step {step}, {held}")
        elif state == record.STARTED:
            lines.append(f"  {record.STARTED} {key}: at step {record.last_step(folder / key)}")
        elif state == record.FAILED:
            failed = record.read(folder / key)["failed"]
            lines.append(f"  {record.FAILED} {key}: {failed['stage']}.py, exit status {failed['status']}")
            lines += [f"    {line}" for line in failed["lines"][-3:]]
    return "\n".join([*lines, "  " + remaining(runs, folder, jobs)])


def remaining(runs: Sequence[Run], folder: pathlib.Path, jobs: int = 1) -> str:
    """Return how many runs are left and how long they will take, from the time that the finished ones took."""
    found = states(runs, folder)
    left = [run for run in runs if found[run.key] != record.FINISHED]
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
        for stage in record.missing_stages(folder / run.key, run):
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
    seconds = {stage: done["seconds"] for stage, done in record.read(folder).get("done", {}).items()}
    if "train" in seconds:  # what a killed start spent is only known to the run itself
        seconds["train"] = max(seconds["train"], record.training_seconds(folder) or 0.0)
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
        if other.cell == run.cell and record.is_done(folder / other.key, other, "train"):
            return min(1.0, record.last_step(folder / run.key) / max(1, record.last_step(folder / other.key)))
    return 0.0
