"""The log of a run: metrics.jsonl, TensorBoard event files and the text of the progress bar."""

import contextlib
import json
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np
from absl import logging
from etils import epath

from sdecor.core.files import write_file

FLUSH_SECONDS = 30.0  # after which TensorBoard sees new values, if no checkpoint comes before


class Logbook:
    """The log of a run: rows of named numbers, one JSON object per line, ascending by step and without duplicates.

    Rows that cannot be written, for example on a full disk, are kept and written later. This is reported once.

    Args:
      workdir: folder of the run, local or remote.
      step: step at which the run continues; later rows are removed, since they will be written again.
      tensorboard: whether to write event files beside metrics.jsonl (local folders only).
      enabled: whether this process writes.
      send: function that is also given each new row; it returns at once.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        step: int = 0,
        tensorboard: bool = True,
        enabled: bool = True,
        send: Callable[[dict[str, Any]], None] | None = None,
    ):
        self._enabled = enabled
        self._events = None
        self._send = send
        self.behind = ""  # why the file lacks rows; empty if it has them all
        if not enabled:
            return
        workdir = epath.Path(workdir)
        self.path = workdir / "metrics.jsonl"
        rows = [row for row in read_rows(workdir) if row["step"] <= step]
        self._rows = [json.dumps(row) for row in rows]
        self._written = {(row["step"], row["split"]) for row in rows}
        self._write_all()
        self._appends = not _is_remote(workdir)
        if tensorboard and self._appends:
            self._events = _Events(workdir / "tensorboard", step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
        if self._events is not None:
            self._events.close()

    def write(self, step: int, split: str, values: dict[str, Any]) -> None:
        """Add the row `{"step": …, "split": …, **values}`, unless it exists; values that are not finite become null."""
        if not self._enabled or (step, split) in self._written:
            return
        self._written.add((step, split))
        values = self._add(step, split, values)
        if self._events is not None:
            self._events.add(step, {f"{split}/{name}": value for name, value in values.items()})

    def record(self, step: int, split: str, values: dict[str, Any]) -> None:
        """Add a row about an event, such as a rollback, unless an equal one exists; a step may have several.

        A run that is resumed and meets the same event again writes the same row.
        """
        if self._enabled and json.dumps(_row(step, split, values)) not in self._rows:
            self._written.add((step, split))
            self._add(step, split, values)

    def _add(self, step: int, split: str, values: dict[str, Any]) -> dict[str, float | None]:
        row = _row(step, split, values)
        self._rows.append(json.dumps(row))
        if self.behind:
            self._write_all()
        elif self._appends:
            self._attempt(self._append)
        if self._send is not None:
            self._send(row)
        return {name: row[name] for name in values}

    def rewind(self, step: int) -> None:
        """Remove the rows after `step`, because the steps after it will be taken again."""
        if not self._enabled:
            return
        rows = [row for row in map(json.loads, self._rows) if row["step"] <= step]
        self._rows = [json.dumps(row) for row in rows]
        self._written = {(row["step"], row["split"]) for row in rows}
        self._write_all()
        if self._events is not None:
            self._events.close()
            self._events = _Events(self.path.parent / "tensorboard", step)

    def flush(self) -> None:
        """Make the rows so far durable; on object stores, which cannot append, write the whole file."""
        if not self._enabled:
            return
        if self.behind or not self._appends:
            self._write_all()
        if self._events is not None:
            self._events.flush()

    def _append(self) -> None:
        with self.path.open("a") as file:
            file.write(self._rows[-1] + "\n")

    def _write_all(self) -> None:
        self._attempt(lambda: write_file(self.path, "".join(row + "\n" for row in self._rows)))

    def _attempt(self, write: Callable[[], None]) -> None:
        try:
            write()
            self.behind = ""
        except OSError as error:
            if not self.behind:
                logging.warning("%s cannot be written: %s. Its rows are kept and written later", self.path, error)
            self.behind = error.strerror or str(error)


def read_rows(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl, without damaged lines.

    A warning names the damaged lines. A last line that a kill cut off is left out silently.
    """
    path = epath.Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return []
    content = path.read_bytes()
    lines = content.split(b"\n")
    found = [_parse(line) for line in lines]
    # The last line ends with a newline, so that the part after it is empty; otherwise a kill cut it off.
    damaged = [number for number, row in enumerate(found[:-1], 1) if row is None and lines[number - 1].strip()]
    if damaged:
        listed = ", ".join(map(str, damaged[:5])) + (", …" if len(damaged) > 5 else "")
        text = "1 damaged line is" if len(damaged) == 1 else f"{len(damaged)} damaged lines are"
        logging.warning("%s: %s left out: %s", path, text, listed)
    return [row for row in found if row is not None]


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the row in a line; None if it is damaged."""
    try:
        row = json.loads(line)
        return row if isinstance(row["step"], int) and isinstance(row["split"], str) else None
    except (ValueError, KeyError, TypeError):
        return None


class _Events:
    """TensorBoard's event file, written at once; what cannot be written is dropped.

    tensorboardX's own `SummaryWriter` passes each value to a thread, which takes more time than writing it, and waits
    for ever for that thread once an error has ended it.

    Args:
      folder: folder of the file, created if missing.
      step: step at which the run continues; TensorBoard forgets the values after it.
    """

    def __init__(self, folder: epath.Path, step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._flushed = time.monotonic()
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(self._event(wall_time=time.time(), step=step + 1, file_version="brain.Event:2"))
        self._write(self._event(wall_time=time.time(), step=step + 1, session_log=start))

    def add(self, step: int, values: dict[str, float | None]) -> None:
        """Add a step's values, by the name of their curve."""
        numbers = {name: np.nan if value is None else value for name, value in values.items()}
        summary = self._summary(value=[self._summary.Value(tag=name, simple_value=x) for name, x in numbers.items()])
        self._write(self._event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._flushed = time.monotonic()
        with contextlib.suppress(OSError):
            self._file.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def _write(self, event: Any) -> None:
        with contextlib.suppress(OSError):
            self._file.write_event(event)


def _row(step: int, split: str, values: dict[str, Any]) -> dict[str, Any]:
    values = {name: float(value) if np.isfinite(value) else None for name, value in values.items()}
    return {"step": step, "split": split, **values}


def _is_remote(path: epath.Path) -> bool:
    return "://" in str(path)


def describe(values: dict[str, Any], names: tuple[str, ...]) -> str:
    """Return a short text of the named values for the progress bar, for example `loss 1.23 acc 56.1%`."""
    words = []
    for name in names:
        if name in values:
            value = float(np.asarray(values[name]))
            words.append(f"acc {value:.1%}" if name == "accuracy" else f"{name[:7]} {value:.3g}")
    return " ".join(words)
