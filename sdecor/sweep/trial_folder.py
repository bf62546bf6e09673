"""A trial's folder: sweep.json with its state, and the lock that lets one process at a time work in it."""

import contextlib
import json
import pathlib
import time
from typing import Any

from sdecor.core import files, locks
from sdecor.sweep import commands
from sdecor.sweep.plan import Run
from sdecor.training import logbook, run_folder

LOCK = "sweep.lock"
_PAUSE = 0.1  # seconds between two tries


def take(folder: pathlib.Path, *, tries: int = 1) -> locks.Lock | None:
    """Claim a run's folder, created where missing; None when another process holds it.

    A process that the lock's descriptor is passed to holds the folder as well: nobody joins an orphan.

    Args:
      folder: the run's.
      tries: more than one where it is not tried again later: whoever asks for the state holds the lock for an instant.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for attempt in range(tries):
        with contextlib.suppress(locks.Taken):
            return locks.acquire(folder / LOCK, inherited=True)
        if attempt + 1 < tries:
            time.sleep(_PAUSE)
    return None


def holder(folder: pathlib.Path) -> dict[str, Any] | None:
    """Return who holds a run's folder: process, host and since when; None when nobody does."""
    return locks.holder(folder / LOCK)


RECORD, LOG = "sweep.json", "sweep.log"
FINISHED, RUNNING, FAILED, STARTED, LEFT = "finished", "running", "failed", "started", "left"
STATES = (FINISHED, RUNNING, FAILED, STARTED, LEFT)  # started: stopped or killed on its way


def read(folder: pathlib.Path) -> dict[str, Any]:
    """Return a run's record; empty where there is none."""
    path = folder / RECORD
    return json.loads(path.read_text()) if path.is_file() else {}


def open_record(folder: pathlib.Path, run: Run) -> None:
    """Write down what the run is, as it starts; what is known of its finished stages is kept, a failure forgotten."""
    known = {name: value for name, value in read(folder).items() if name != "failed"}
    files.write_json(folder / RECORD, known | files.plain(run._asdict()))


def add(folder: pathlib.Path, stage: str, arguments: list[str], seconds: float) -> None:
    """Record that a stage is finished."""
    record = read(folder)
    spent = record.get("spent", {}).get(stage, 0.0) + seconds
    record["spent"] = {name: value for name, value in record.get("spent", {}).items() if name != stage}
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    done = {"arguments": arguments, "seconds": round(spent, 2), "finished": now}
    files.write_json(folder / RECORD, record | {"done": record.get("done", {}) | {stage: done}})


def add_failure(folder: pathlib.Path, stage: str, status: int, lines: list[str]) -> None:
    """Record that a stage failed, with the last lines that it wrote."""
    failed = {"stage": stage, "status": status, "lines": lines, "time": time.time()}
    files.write_json(folder / RECORD, read(folder) | {"failed": failed})


def add_time(folder: pathlib.Path, stage: str, seconds: float) -> None:
    """Record time spent in a stage that was stopped."""
    record = read(folder)
    spent = record.get("spent", {})
    record["spent"] = spent | {stage: round(spent.get(stage, 0.0) + seconds, 2)}
    files.write_json(folder / RECORD, record)


def is_done(folder: pathlib.Path, run: Run, stage: str) -> bool:
    """Tell whether a stage is finished; evaluation, with the same settings."""
    done = read(folder).get("done", {}).get(stage)
    if stage == "train" or done is None:
        return done is not None
    return done["arguments"] == commands.arguments(run, stage) and (folder / "evaluation.json").is_file()


def missing_stages(folder: pathlib.Path, run: Run) -> list[str]:
    """Return the stages that are still to do, in order."""
    return [stage for stage in commands.STAGES if not is_done(folder, run, stage)]


def state(folder: pathlib.Path, run: Run) -> str:
    """Return which of `STATES` a run is in."""
    if not missing_stages(folder, run):
        return FINISHED
    if holder(folder) is not None:
        return RUNNING
    record = read(folder)
    if "failed" in record:
        return FAILED
    return STARTED if record else LEFT


def last_step(folder: pathlib.Path) -> int:
    """Return the last training step that a run logged; 0 before the first."""
    rows = logbook.read_rows(folder)
    return rows[-1]["step"] if rows else 0


def training_seconds(folder: pathlib.Path) -> float | None:
    """Return the time that training took, by the run's own count: images over images per second at its last row.

    What the rate does not know, such as building the data, is left out; of a run that was continued the rate is that
    of the last start.
    """
    rows = [row for row in logbook.read_rows(folder) if row.get("images_per_second")]
    if not rows:
        return None
    batch_size = run_folder.read(folder)["config"]["train"]["batch_size"]
    return rows[-1]["step"] * batch_size / rows[-1]["images_per_second"]


def tail(path: pathlib.Path, *, start: int = 0, count: int = 15) -> list[str]:
    """Return the last lines of a log from byte `start` on; of a line that a bar rewrote, what it last said."""
    with path.open("rb") as file:
        file.seek(max(start, path.stat().st_size - 20_000))
        lines = file.read().decode(errors="replace").splitlines()
    return [line.rstrip() for line in lines if line.strip()][-count:]
