"""Exporting: examples are read, explained on all devices and written, all at the same time and in bounded memory.

The order of the loop: the next batch is dispatched, then the previous one's results are fetched and put into their
ranges, a full range starts to be written, and reading goes on in threads throughout. A range is recorded when it is
durable; whatever stops the program, the same command continues after the recorded ranges.
"""

import contextlib
import time
from typing import Any, NamedTuple

import jax
from etils import epath

from sdecor.core import files, parallel
from sdecor.core.interrupt import Interrupt
from sdecor.export import device, lock
from sdecor.export.blocks import FeedBatch, Reader
from sdecor.export.job import POLL_SECONDS, Job, check_batch, kept, progressing, stopping, wanted
from sdecor.export.layout import Layout
from sdecor.export.plan import Options, make_plan
from sdecor.export.ranges import Ranges
from sdecor.export.store import Store, recorded


class Summary(NamedTuple):
    """What an export did.

    Attributes:
      path: where it is.
      examples: how many examples there are, None while that is unknown.
      finished: how many of them are durable, by all processes.
      computed: how many this process computed in this start.
      bytes: how much it wrote.
      seconds: how long it took.
      complete: whether all examples are exported and the store is finished.
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
        known = "" if self.examples is None else f" of {self.examples}"
        return f"{self.path}: stopped, {self.finished}{known} examples are finished. Run the same command to continue."


def run(
    task: device.Task, variables: Any, reader: Reader, path: epath.PathLike, *, provenance: Any, options: Options
) -> Summary:
    """Export what `reader` reads as `task` says; see `export` for what it raises."""
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
    """Return the lock, None but in the main process, and the store; where one process cannot open it, all raise."""
    place = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    held = store = error = None
    for mains_turn in (True, False):  # it creates what the others open
        if mains_turn == parallel.is_main_process():
            try:
                held = stack.enter_context(lock.hold(path)) if mains_turn else None
                store = stack.enter_context(Store(path, layout, num_examples=count, check=check, **place))
            except Exception as problem:
                error = problem
        if parallel.any_process(error is not None):
            raise error or ValueError(f"another process of this job could not open {path}: its message says why")
    return held, store


def _compute(job: Job, variables: Any, key: jax.Array) -> tuple[int, int | None]:
    """Compute and write this process's ranges.

    Returns:
      How many examples were computed, and how many there are in all; None for the latter where it was stopped.
    """
    programs, size = device.compiled(job.task), job.layout.attributes["device_batch"]
    feed = job.reader.feed(wanted(job), size, jax.local_device_count())
    computed, count, pending, failure = 0, job.reader.count, None, None
    with kept(job), contextlib.closing(feed) as batches:
        while not (stopped := job.stop()):
            try:
                if (batch := next(batches, None)) is None:
                    break
                count = batch.total if count is None else count
                check_batch(job, batch, count)
            except Exception as error:
                failure = error  # raised when the batch before it is in its range
                break
            if batch.blocks:
                outputs = programs(variables, parallel.put(batch.arrays), key)
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


def _collect(job: Job, batch: FeedBatch, outputs: Any) -> int:
    """Put a batch's results into their ranges; return the number of examples."""
    size = job.layout.attributes["device_batch"]
    for place, (arrays, counts) in enumerate(parallel.parts(outputs)[: len(batch.blocks)]):
        label = batch.arrays["label"][place * size : (place + 1) * size]
        job.ranges.add(batch.blocks[place], arrays | {"label": label}, counts)
    done = sum(len(block.names) for block in batch.blocks)
    job.advance(done)
    return done


def _finish(job: Job, count: int) -> bool:
    """Wait for the other processes' ranges and finish the store; return False when asked to stop."""
    while jax.process_count() > 1 and job.store.finished < count:
        if job.stop():
            return False
        time.sleep(POLL_SECONDS)
    return job.store.wait_and_finish(count) or not parallel.is_main_process()
