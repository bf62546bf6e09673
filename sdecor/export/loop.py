"""The export loop: it reads, explains and writes examples at the same time, in bounded memory.

The order of the loop:

1. The next batch is dispatched to the devices.
2. The results of the previous batch are fetched and put into their ranges.
3. A range that is full starts to be written.

Meanwhile threads read examples ahead. A range is committed when it is durable. After any stop, the same command
continues after the committed ranges.
"""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from sdecor.core import commands, files, parallel, processes, watchdog
from sdecor.core.interrupt import Interrupt, Stopped
from sdecor.export import lock, programs
from sdecor.export.encode import COUNTS
from sdecor.export.feed import Batch, DeviceBatch, Reader, validate_labels
from sdecor.export.layout import Layout, fill_of
from sdecor.export.plan import Options, make_plan
from sdecor.export.resume import recorded
from sdecor.export.store import Pending, Store, how_many


class Ranges:
    """The ranges that this process fills and writes.

    Attributes:
      bytes: number of bytes written so far.

    Args:
      store: store that writes the ranges.
      layout: the export's layout.
      count: number of examples; None if unknown.
    """

    def __init__(self, store: Store, layout: Layout, count: int | None):
        self.bytes = 0
        self._store, self._layout, self._count = store, layout, count
        self._open: dict[int, dict[str, np.ndarray]] = {}
        self._records: dict[int, dict[str, Any]] = {}
        self._pending: collections.deque[Pending] = collections.deque()

    def add(self, batch: DeviceBatch, arrays: Mapping[str, np.ndarray], counts: Mapping[str, np.ndarray]) -> None:
        """Add the results of a device's batch; if they complete a range, start to write it.

        Args:
          batch: the device's batch.
          arrays: results `[device_batch, …]` by array; the first rows are the batch's examples.
          counts: counts of `encode`, `[device_batch, 3]` by method.
        """
        n, first = len(batch.names), batch.start - batch.start % self._layout.range_rows
        if first not in self._open:
            self._open[first] = {
                spec.name: np.empty((self._layout.range_rows, *spec.tail), spec.dtype) for spec in self._layout.arrays
            }
            nothing = {name: dict.fromkeys(COUNTS, 0) for name in counts}
            self._records[first] = {"names": [], "skipped": [], "counts": nothing}
        rows, record = slice(batch.start - first, batch.start - first + n), self._records[first]
        skipped = [each.index - first for each in batch.skipped]
        real = np.ones(n, bool)
        real[[place - rows.start for place in skipped]] = False
        for spec in self._layout.arrays:
            target = self._open[first][spec.name]
            if spec.name == "example_id":
                target[rows] = np.arange(batch.start, batch.start + n)
                continue
            target[rows] = arrays[spec.name][:n]
            if skipped:
                target[skipped] = fill_of(spec)
        for name, values in counts.items():
            for column, total in zip(COUNTS, values[:n][real].sum(0), strict=True):
                record["counts"][name][column] += int(total)
        record["names"] += batch.names
        record["skipped"] += [each._asdict() for each in batch.skipped]
        stop = batch.start + n
        if stop == first + self._layout.range_rows or stop == self._count:
            self._write(first, stop)

    def write_rest(self) -> None:
        """Start to write the last range of data whose number of examples was unknown."""
        for first in list(self._open):
            self._write(first, first + len(self._records[first]["names"]))

    def wait(self) -> None:
        """Wait until all ranges being written are durable."""
        while self._pending:
            self.bytes += self._pending.popleft().result()

    def _write(self, start: int, stop: int) -> None:
        arrays = {name: values[: stop - start] for name, values in self._open.pop(start).items()}
        self._pending.append(self._store.write(start, stop, arrays, self._records.pop(start)))
        while len(self._pending) > 2:
            self.bytes += self._pending.popleft().result()


POLL_SECONDS = 1.0  # between two checks of other processes


class Job(NamedTuple):
    """Everything that the export loop uses."""

    task: programs.Task
    reader: Reader
    layout: Layout
    store: Store
    ranges: Ranges
    stop: Callable[[], bool]
    advance: Callable[[int], Any]


def wanted(job: Job) -> Callable[[int], bool]:
    """Return a function that says whether this process has to compute the device's batch from an example."""
    rows, process, processes = job.layout.range_rows, jax.process_index(), jax.process_count()

    def is_wanted(start: int) -> bool:
        inside = job.reader.count is None or start < job.reader.count
        return inside and start // rows % processes == process and not job.store.done(start - start % rows)

    return is_wanted


def validate_batch(job: Job, batch: Batch, count: int | None) -> None:
    """Raise `ValueError` for a label that is no class, or if `count` is not the number of examples."""
    if batch.total is not None and batch.total != count:
        raise ValueError(f"num_examples = {count}: data has {batch.total} examples")
    attributes = job.layout.attributes
    size, classes, needed = attributes["device_batch"], attributes["num_classes"], job.task.target == "label"
    for device, own in enumerate(batch.by_device):
        labels = batch.arrays["label"][device * size : device * size + len(own.names)]
        validate_labels(labels, classes, start=own.start, needed=needed)


@contextlib.contextmanager
def kept(job: Job) -> Iterator[None]:
    """After an error, finish the pending writes, stop the other processes, and add to the error how to continue."""
    try:
        yield
    except Exception as error:
        with contextlib.suppress(Exception):
            job.ranges.wait()
        with contextlib.suppress(Exception):
            job.store.ask_to_stop()
        told = f"{how_many(job.store.finished, job.reader.count)} finished and kept: run the same command to continue"
        if "cannot be read" in str(error):
            told += ", with on_error=skip to leave out and record what cannot be read"
        if isinstance(error, ValueError):
            raise ValueError(f"{error}\n{told}") from error
        error.add_note(told)
        raise


def stopping(store: Store, interrupt: Interrupt, held: Any) -> Callable[[], bool]:
    """Return a function that says whether to stop, after a signal to this or another process of the job."""
    alone, looked, found = jax.process_count() == 1, -POLL_SECONDS, False

    def stop() -> bool:
        nonlocal looked, found
        if held is not None:
            held.raise_if_lost()
        if interrupt and not found:
            found = True
            if not alone:
                store.ask_to_stop()
        if not alone and not found and time.monotonic() - looked >= POLL_SECONDS:
            looked, found = time.monotonic(), store.asked_to_stop()
        return found

    return stop


@contextlib.contextmanager
def progressing(
    progress: bool | Callable[[int], Any], path: str, count: int | None, store: Store, ranges: Ranges
) -> Iterator[Callable[[int], Any]]:
    """Yield the function to call with the number of examples done: the caller's, or one that moves a progress bar."""
    if callable(progress):
        yield progress
        return
    shown = bool(progress) and parallel.is_main_process()
    initial = store.finished if shown else 0
    with commands.progress_bar(total=count, initial=initial, description=path, enabled=shown) as bar:

        def advance(done: int) -> None:
            everywhere = done * jax.process_count()
            bar.set_postfix_str(f"{ranges.bytes / 1e6:.1f} MB written", refresh=False)
            bar.update(everywhere if count is None else min(everywhere, count - bar.n))

        yield advance


class Summary(NamedTuple):
    """Summary of one start of an export.

    Attributes:
      path: the export's path.
      examples: number of examples; None while unknown.
      finished: number of committed examples, by all processes.
      computed: number of examples that this process computed in this start.
      bytes: number of bytes that it wrote.
      seconds: duration of this start.
      complete: whether all examples are exported and the export is finished.
    """

    path: str
    examples: int | None
    finished: int
    computed: int
    bytes: int
    seconds: float
    complete: bool

    def __str__(self) -> str:
        if self.complete:
            before = "" if self.computed else ", finished before: nothing to do"
            return f"{self.path}: {self.examples} examples{before}"
        finished = how_many(self.finished, self.examples)
        return f"{self.path}: stopped, {finished} finished. Run the same command to continue."


def run(
    task: programs.Task, variables: Any, reader: Reader, path: epath.PathLike, *, provenance: Any, options: Options
) -> Summary:
    """Export the examples of `reader` by `task`; it raises the errors of `export`."""
    began = time.monotonic()
    files.check_output("path", path)
    found = recorded(path) or {}
    task, layout = make_plan(task, variables, reader, provenance, options, found)
    with contextlib.ExitStack() as stack:
        held, store = _open(stack, path, layout, reader.count, options.check)
        ranges = Ranges(store, layout, reader.count)
        computed, count, complete = 0, found.get("num_examples"), store.complete
        if not complete:
            stop = stopping(store, stack.enter_context(Interrupt()), held)
            advance = stack.enter_context(progressing(options.progress, str(path), reader.count, store, ranges))
            job = Job(task, reader, layout, store, ranges, stop, advance)
            variables, key = parallel.replicate((variables, jax.random.key(options.seed)))
            computed, count = _compute(job, variables, key)
            complete = count is not None and _finish(job, count)
        seconds, finished = time.monotonic() - began, store.finished
        return Summary(str(path), count or reader.count, finished, computed, ranges.bytes, seconds, complete)


def _open(
    stack: contextlib.ExitStack, path: epath.PathLike, layout: Layout, count: int | None, check: str
) -> tuple[Any, Store]:
    """Return the lock (None outside the main process) and the store; if one process fails, all raise."""
    place = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    held = store = error = None
    for mains_turn in (True, False):  # the main process creates the files that the others open
        if mains_turn == parallel.is_main_process():
            try:
                held = stack.enter_context(lock.hold(path)) if mains_turn else None
                store = stack.enter_context(Store(path, layout, num_examples=count, check=check, **place))
            except Exception as problem:
                error = problem
        if parallel.any_process(error is not None):
            raise error or ValueError(f"another process of this job could not open {path}: its message says why")
    processes.compare(f"what is finished of {path}", lambda: {"complete": store.complete, "finished": store.finished})
    return held, store


def _compute(job: Job, variables: Any, key: jax.Array) -> tuple[int, int | None]:
    """Compute and write this process's ranges.

    Returns:
      `(computed, count)`: the number of examples computed, and of all examples; `count` is None after a stop.
    """
    compiled, size = programs.compiled(job.task), job.layout.attributes["device_batch"]
    feed = job.reader.feed(wanted(job), size, jax.local_device_count())
    computed, count, pending, failure = 0, job.reader.count, None, None
    with kept(job), contextlib.closing(feed) as batches:
        while not (stopped := job.stop()):
            watchdog.beat("the input of the export")
            try:
                if (batch := next(batches, None)) is None:
                    break
                count = batch.total if count is None else count
                validate_batch(job, batch, count)
            except Stopped:  # a signal, while the input does not answer
                stopped = job.stop()
                break
            except Exception as error:
                failure = error  # raised after the previous batch's results are in their ranges
                break
            if batch.by_device:
                watchdog.beat("a batch of the export", timed=pending is not None)  # the first one compiles
                outputs = compiled(variables, parallel.put(batch.arrays), key)
                parallel.fetch_ahead(outputs)
                computed += _collect(job, *pending) if pending else 0
                pending = batch, outputs
        computed += _collect(job, *pending) if pending else 0
        if failure is not None:
            raise failure
        if not stopped:
            job.ranges.write_rest()
        job.ranges.wait()
    return computed, None if stopped else count


def _collect(job: Job, batch: Batch, outputs: Any) -> int:
    """Add a batch's results to their ranges; return the number of examples."""
    size = job.layout.attributes["device_batch"]
    for device, (arrays, counts) in enumerate(parallel.parts(outputs)[: len(batch.by_device)]):
        label = batch.arrays["label"][device * size : (device + 1) * size]
        job.ranges.add(batch.by_device[device], arrays | {"label": label}, counts)
    done = sum(len(own.names) for own in batch.by_device)
    job.advance(done)
    return done


def _finish(job: Job, count: int) -> bool:
    """Wait for the other processes' ranges and finish the export; return False when asked to stop."""
    before = -1
    while jax.process_count() > 1 and (finished := job.store.finished) < count:
        if job.stop():
            return False
        if finished > before:
            watchdog.beat("the wait for other processes of the export")
        before = finished
        time.sleep(POLL_SECONDS)
    return job.store.wait_and_finish(count) or not parallel.is_main_process()
