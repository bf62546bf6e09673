"""A sweep as a Slurm array, one task a run, by submitit.

Some time before its limit Slurm warns a task, or preempts it: train.py is asked to stop, saves its state, and the task
is put back into the queue, where it goes on. A task whose run is finished or claimed elsewhere ends at once.
"""

import ast
import importlib
import pathlib
import signal
import time
from collections.abc import Sequence
from typing import Any

from sdecor.core.interrupt import Interrupt
from sdecor.sweep import job, trial_folder
from sdecor.sweep.plan import SLURM, Run

SHARED = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")
DEFAULTS = {"timeout_min": 60, "name": "sdecor_sweep"}
RESTARTS = 50  # of a task that reached its limit
_PAUSE, _TRIES = 0.5, 10


class Task:
    """What a task of the array does; submitit calls `checkpoint` when the task is warned."""

    def __init__(self):
        self.job: job.Job | None = None

    def __call__(self, run: dict[str, Any], folder: str) -> str:
        """Do a run; return its outcome.

        Raises:
          RuntimeError: when it failed, so that Slurm counts the task as failed.
        """
        run, place = Run(**run), pathlib.Path(folder)
        if not trial_folder.missing_stages(place / run.key, run):
            return job.FINISHED
        with Interrupt() as interrupt:
            self.job = job.start(run, place, tries=_TRIES)
            if self.job is None:
                return f"{run.key} is claimed by another process"
            while not job.poll(self.job):
                if interrupt and not self.job.stopping:
                    job.stop(self.job, signal.SIGTERM)
                time.sleep(_PAUSE)
        if self.job.outcome == job.FAILED:
            failed = trial_folder.read(self.job.folder)["failed"]
            raise RuntimeError(f"{failed['stage']}.py of {run.key} failed:\n" + "\n".join(failed["lines"]))
        return self.job.outcome

    def checkpoint(self, run: dict[str, Any], folder: str) -> Any:
        """Have the run save its state, and return what is to be queued again."""
        if self.job is not None:
            job.stop(self.job, signal.SIGTERM)
            job.wait_until_ended(self.job)
        return _submitit().helpers.DelayedSubmission(Task(), run, folder)


def submit(runs: Sequence[Run], folder: pathlib.Path, options: dict[str, Any], jobs: int | None = None) -> list[Any]:
    """Submit the runs that are not finished and that nobody works at; return submitit's jobs.

    Args:
      runs: which.
      folder: the sweep's, on a file system that the nodes share.
      options: submitit's parameters, see `parse`; `cluster` may be "local" instead of "slurm".
      jobs: tasks at a time; None = as many as Slurm will run.

    Raises:
      ValueError: when submitit is missing, or does not know an option.
    """
    submitit, left = (
        _submitit(),
        [run for run in runs if trial_folder.state(folder / run.key, run) not in _NOT_SUBMITTED],
    )
    if not left:
        return []
    options = DEFAULTS | options
    cluster = options.pop("cluster", "slurm")
    try:
        executor = submitit.AutoExecutor(
            folder / SLURM / "%j",
            cluster=cluster,
            slurm_max_num_timeout=RESTARTS,
            local_max_num_timeout=RESTARTS,
        )
        parallelism = {} if jobs is None else {"slurm_array_parallelism": jobs}
        executor.update_parameters(**options, **parallelism)
        return executor.map_array(Task(), [run._asdict() for run in left], [str(folder.absolute())] * len(left))
    except (RuntimeError, ValueError, NameError) as error:
        raise ValueError(f"--slurm: {error}") from error


def parse(words: Sequence[str]) -> dict[str, Any]:
    """Return the options that `timeout_min=240 partition=gpu …` stand for, by submitit's names.

    Raises:
      ValueError: for a word of another form.
    """
    options = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--slurm has {word!r}: options have the form name=value, for example timeout_min=240")
        plain = name in (*SHARED, "cluster") or name.startswith(("slurm_", "local_"))
        options[name if plain else f"slurm_{name}"] = _value(text)
    return options


_NOT_SUBMITTED = (trial_folder.FINISHED, trial_folder.RUNNING)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _submitit() -> Any:
    try:
        return importlib.import_module("submitit")
    except ImportError as error:
        raise ValueError("--slurm needs the package submitit: pip install submitit") from error
