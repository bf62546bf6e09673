"""A trial's folder: its lock, which one process at a time holds, and sweep.json, the state of the trial.

The process that holds the lock writes sweep.json. It holds the fields of the trial (`plan.Trial`), and

  done     stage → its arguments, seconds and time, once the stage is finished
  spent    stage → seconds of the starts that were stopped
  failed   stage, exit status, last lines and time of a failure, until the next start
"""

import contextlib
import functools
import pathlib
import time
from typing import Any

from absl import logging

from sdecor.core import files, locks
from sdecor.sweep import commands
from sdecor.sweep.plan import Trial
from sdecor.training import logbook, run_folder

LOCK = "sweep.lock"
_PAUSE = 0.1  # seconds between two tries


def take(folder: pathlib.Path, *, tries: int = 1) -> locks.Lock | None:
    """Claim a trial's folder; return None when another process holds it.

    A process that the lock's descriptor is passed to holds the folder as well: nobody joins an orphan.

    Args:
      folder: the trial's folder, created where missing.
      tries: how often to try. Give more than one where a failure is final: `holder` takes the lock for an instant.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for attempt in range(tries):
        with contextlib.suppress(locks.Taken):
            return locks.acquire(folder / LOCK, inherited=True)
        if attempt + 1 < tries:
            time.sleep(_PAUSE)
    return None


def holder(folder: pathlib.Path) -> dict[str, Any] | None:
    """Return the process, host and start time of the holder of a trial's folder; None when nobody holds it."""
    return locks.holder(folder / LOCK)


STATE_FILE, LOG, EVALUATION = "sweep.json", "sweep.log", "evaluation.json"
FINISHED, RUNNING, FAILED, STARTED, LEFT = "finished", "running", "failed", "started", "left"
STATES = (FINISHED, RUNNING, FAILED, STARTED, LEFT)  # started: stopped or killed before its end


def read(folder: pathlib.Path) -> dict[str, Any]:
    """Return the content of a trial's sweep.json; empty where the file is missing, or damaged, with a warning.

    A trial without a state is started again, and each stage continues from what it stored itself.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return {}
    try:
        found = files.read_json(path, remedy="the trial counts as not run, and its stages are started again")
    except ValueError as error:
        _warn_once(str(error))
        return {}
    return found


@functools.cache
def _warn_once(text: str) -> None:
    logging.warning(text)


def put_damaged_aside(folder: pathlib.Path) -> None:
    """Rename a trial's evaluation.json if it is damaged, with a warning, so that the trial is evaluated again."""
    path = folder / EVALUATION
    try:
        if path.is_file():
            files.read_json(path, remedy=f"it is renamed {path.name}.damaged, and the trial is evaluated again")
    except ValueError as error:
        path.rename(path.with_name(f"{path.name}.damaged"))
        logging.warning(str(error))


def add_start(folder: pathlib.Path, trial: Trial) -> None:
    """Write the fields of a trial that starts; keep its finished stages, and delete a former failure."""
    known = {name: value for name, value in read(folder).items() if name != "failed"}
    files.write_json(folder / STATE_FILE, known | files.plain(trial._asdict()))


def add_finished(folder: pathlib.Path, stage: str, arguments: list[str], seconds: float) -> None:
    """Write that a stage is finished, with the time of all its starts."""
    stored = read(folder)
    spent = stored.get("spent", {}).get(stage, 0.0) + seconds
    stored["spent"] = {name: value for name, value in stored.get("spent", {}).items() if name != stage}
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    done = {"arguments": arguments, "seconds": round(spent, 2), "finished": now}
    files.write_json(folder / STATE_FILE, stored | {"done": stored.get("done", {}) | {stage: done}})


def add_failure(folder: pathlib.Path, stage: str, status: int, lines: list[str]) -> None:
    """Write that a stage failed, with the last lines of its log."""
    failed = {"stage": stage, "status": status, "lines": lines, "time": time.time()}
    files.write_json(folder / STATE_FILE, read(folder) | {"failed": failed})


def add_time(folder: pathlib.Path, stage: str, seconds: float) -> None:
    """Add the time of a start that was stopped."""
    stored = read(folder)
    spent = stored.get("spent", {})
    stored["spent"] = spent | {stage: round(spent.get(stage, 0.0) + seconds, 2)}
    files.write_json(folder / STATE_FILE, stored)


def is_done(folder: pathlib.Path, trial: Trial, stage: str) -> bool:
    """Tell whether a stage is finished. An evaluation counts only with the trial's own settings."""
    done = read(folder).get("done", {}).get(stage)
    if stage == "train" or done is None:
        return done is not None
    return done["arguments"] == commands.arguments(trial, stage) and (folder / EVALUATION).is_file()


def missing_stages(folder: pathlib.Path, trial: Trial) -> list[str]:
    """Return the stages that are not finished, in order."""
    return [stage for stage in commands.STAGES if not is_done(folder, trial, stage)]


def state(folder: pathlib.Path, trial: Trial) -> str:
    """Return the state of a trial, one of `STATES`."""
    if not missing_stages(folder, trial):
        return FINISHED
    if holder(folder) is not None:
        return RUNNING
    stored = read(folder)
    if "failed" in stored:
        return FAILED
    return STARTED if stored else LEFT


def last_step(folder: pathlib.Path) -> int:
    """Return the last training step in a run's log; 0 before the first."""
    rows = logbook.read_rows(folder)
    return rows[-1]["step"] if rows else 0


def training_seconds(folder: pathlib.Path) -> float | None:
    """Return the training time of a run from its log: all images over the last images per second.

    This leaves out the start of the program. In a run that was resumed, the rate is that of the last start.
    """
    rows = [row for row in logbook.read_rows(folder) if row.get("images_per_second")]
    if not rows:
        return None
    batch_size = run_folder.read(folder)["config"]["train"]["batch_size"]
    return rows[-1]["step"] * batch_size / rows[-1]["images_per_second"]


def tail(path: pathlib.Path, *, start: int = 0, count: int = 15) -> list[str]:
    """Return the last lines of a log, from byte `start` on."""
    with path.open("rb") as file:
        file.seek(max(start, path.stat().st_size - 20_000))
        lines = file.read().decode(errors="replace").splitlines()
    return [line.rstrip() for line in lines if line.strip()][-count:]
