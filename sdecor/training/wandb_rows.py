"""Rows of the log sent to Weights & Biases by a thread, so that training never waits for the network."""

import contextlib
import importlib.util
import json
import queue
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

from absl import logging
from etils import epath

from sdecor.core import files, parallel

PATIENCE = 60.0  # seconds that the end of a run waits for the last rows


def check() -> None:
    """Raise `ValueError` unless the package wandb is installed."""
    if importlib.util.find_spec("wandb") is None:
        raise ValueError("--wandb needs the package wandb, which is not installed: pip install wandb, or leave it out")


class Sender:
    """A context that sends rows to one Weights & Biases run, whose id is stored in the folder for the next start.

    After an error of wandb the other rows are not sent; metrics.jsonl has them all.

    Args:
      project: name of the project.
      folder: folder of the run.
      config: config of the run, as plain values.
      patience: seconds that leaving the context waits for rows that are not sent yet.
    """

    def __init__(self, project: str, folder: str, config: dict[str, Any], *, patience: float = PATIENCE):
        self._options = {
            "project": project,
            "id": _stored_id(folder),
            "name": files.absolute(folder).name,
            "config": config,
            "resume": "allow",
        }
        if "://" not in folder:
            self._options["dir"] = str(files.absolute(folder))  # its own files
        self._rows: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="wandb", daemon=True)
        self._patience = patience

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rows.put(None)
        self._thread.join(self._patience)
        if self._thread.is_alive():
            parallel.say(f"wandb: rows are not sent yet after {self._patience:g} s and are left; metrics.jsonl has all")

    def to(self, member: str) -> Callable[[dict[str, Any]], None]:
        """Return a function that takes a row of a member's log and returns at once."""
        return partial(self._put, member)

    def _put(self, member: str, row: dict[str, Any]) -> None:
        prefix = f"{member}/{row['split']}/" if member else f"{row['split']}/"
        values = {prefix + name: value for name, value in row.items() if name not in ("step", "split")}
        self._rows.put({"step": row["step"], **values})

    def _run(self) -> None:
        try:
            import wandb

            run = wandb.init(**self._options)
            # Not wandb's own step, which may not go back as a resumed run's does.
            run.define_metric("*", step_metric="step")
            while (row := self._rows.get()) is not None:
                run.log(row)
            run.finish()
        except Exception as error:  # wandb and the network raise many kinds
            parallel.say(f"wandb: {type(error).__name__}: {error}; training continues, metrics.jsonl has all rows")


@contextlib.contextmanager
def senders(
    project: str | None, folder: str, config: dict[str, Any], members: Sequence[str]
) -> Iterator[list[Callable[[dict[str, Any]], None] | None]]:
    """Yield for each member the function that sends its rows; None without a project, and beside the main process."""
    if project is None or not parallel.is_main_process():
        yield [None] * len(members)
        return
    with Sender(project, folder, config) as sender:
        yield [sender.to(member) for member in members]


def _stored_id(folder: str) -> str:
    """Return the id in the folder's wandb.json; make one at the first start."""
    path = files.make_folder("--workdir", folder) / "wandb.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return json.loads(epath.Path(path).read_text())["id"]
    found = uuid.uuid4().hex[:12]
    try:
        files.write_json(path, {"id": found})
    except OSError as error:  # the next start sends to another run
        logging.warning("%s cannot be written: %s", path, error.strerror or error)
    return found
