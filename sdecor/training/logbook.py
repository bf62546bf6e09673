"""The log of a run: metrics.jsonl, TensorBoard event files and the text of the progress bar."""

import json
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np
from etils import epath

from sdecor.core.files import write_file


class Logbook:
    """The log of a run: rows of named numbers, one JSON object per line, ascending by step and without duplicates.

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
            self._events = _open_events(workdir, step)

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
        values = self._append(step, split, values)
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(f"{split}/{name}", np.nan if value is None else value, step)

    def record(self, step: int, split: str, values: dict[str, Any]) -> None:
        """Add a row about an event, such as a rollback, unless an equal one exists; a step may have several.

        A run that is resumed and meets the same event again writes the same row.
        """
        if self._enabled and json.dumps(_row(step, split, values)) not in self._rows:
            self._written.add((step, split))
            self._append(step, split, values)

    def _append(self, step: int, split: str, values: dict[str, Any]) -> dict[str, float | None]:
        row = _row(step, split, values)
        self._rows.append(json.dumps(row))
        if self._appends:
            with self.path.open("a") as file:
                file.write(self._rows[-1] + "\n")
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
            self._events = _open_events(self.path.parent, step)

    def flush(self) -> None:
        """Make the rows so far durable; on object stores, which cannot append, write the whole file."""
        if not self._enabled:
            return
        if not self._appends:
            self._write_all()
        if self._events is not None:
            self._events.flush()

    def _write_all(self) -> None:
        write_file(self.path, "".join(row + "\n" for row in self._rows))


def read_rows(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl, without a last line that a kill cut off."""
    path = epath.Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _open_events(workdir: epath.Path, step: int) -> Any:
    """Open TensorBoard's event files; it forgets the values after `step`."""
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)


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
