"""A sweep as a Slurm array, one task per trial, by submitit.

Slurm warns a task some time before its limit, or preempts it. train.py is then asked to stop and saves its state, and
the task goes back into the queue. A task whose trial is finished, or claimed by another process, ends at once.
"""

import importlib
import pathlib
import signal
import time
from collections.abc import Sequence
from typing import Any

from sdecor.core.commands import parse_value
from sdecor.core.interrupt import Interrupt
from sdecor.sweep import job, trial_folder
from sdecor.sweep.plan import SLURM, Trial

SHARED = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")
DEFAULTS = {"timeout_min": 60, "name": "sdecor_sweep"}
RESTARTS = 50  # of a task that reached its limit
_PAUSE, _TRIES = 0.5, 10


class Task:
    """A task of the array; submitit calls `checkpoint` when Slurm warns the task."""

    def __init__(self):
        self.job: job.Job | None = None

    def __call__(self, trial: dict[str, Any], folder: str) -> str:
        """Run a trial and return its outcome.

        Args:
          trial: the fields of a `Trial`.
          folder: the sweep's folder.

        Raises:
          RuntimeError: when the trial failed, so that Slurm counts the task as failed.
        """
        trial, place = Trial(**trial), pathlib.Path(folder)
        if not trial_folder.missing_stages(place / trial.key, trial):
            return trial_folder.FINISHED
        with Interrupt() as interrupt:
            self.job = job.start(job.Group((trial,)), place, tries=_TRIES)
            if self.job is None:
                return f"{trial.key} is claimed by another process"
            while not job.poll(self.job):
                if interrupt and not self.job.stopping:
                    job.stop(self.job, signal.SIGTERM)
                time.sleep(_PAUSE)
        if self.job.outcome == trial_folder.FAILED:
            failed = trial_folder.read(self.job.folder)["failed"]
            raise RuntimeError(f"{failed['stage']}.py of {trial.key} failed:\n" + "\n".join(failed["lines"]))
        return self.job.outcome

    def checkpoint(self, trial: dict[str, Any], folder: str) -> Any:
        """Wait until the trial's state is saved, and return the task to queue again."""
        if self.job is not None:
            job.stop(self.job, signal.SIGTERM)
            job.wait_until_ended(self.job)
        return _submitit().helpers.DelayedSubmission(Task(), trial, folder)


def submit(
    trials: Sequence[Trial], folder: pathlib.Path, options: dict[str, Any], jobs: int | None = None
) -> list[Any]:
    """Submit the trials that are neither finished nor running; return submitit's jobs.

    Args:
      trials: the trials.
      folder: the sweep's folder, on a file system that the nodes share.
      options: submitit's parameters, see `parse`; `cluster` may be "local" instead of "slurm".
      jobs: tasks at a time; None = as many as Slurm runs.

    Raises:
      ValueError: when submitit is missing, or does not know an option.
    """
    submitit = _submitit()
    at_rest = (trial_folder.FAILED, trial_folder.STARTED, trial_folder.LEFT)
    left = [trial for trial in trials if trial_folder.state(folder / trial.key, trial) in at_rest]
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
        return executor.map_array(Task(), [trial._asdict() for trial in left], [str(folder.absolute())] * len(left))
    except (RuntimeError, ValueError, NameError) as error:
        raise ValueError(f"--slurm: {error}") from error


def parse(words: Sequence[str]) -> dict[str, Any]:
    """Return the options of `timeout_min=240 partition=gpu …`, by submitit's names.

    Raises:
      ValueError: for a word that is not `name=value`.
    """
    options = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--slurm has {word!r}: options have the form name=value, for example timeout_min=240")
        plain = name in (*SHARED, "cluster") or name.startswith(("slurm_", "local_"))
        options[name if plain else f"slurm_{name}"] = parse_value(text)
    return options


def _submitit() -> Any:
    try:
        return importlib.import_module("submitit")
    except ImportError as error:
        raise ValueError("--slurm needs the package submitit: pip install submitit") from error
