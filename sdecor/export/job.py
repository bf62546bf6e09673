"""What one start of an export works with: when it stops, what it keeps, and how it tells of its progress."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from sdecor.core import commands, parallel
from sdecor.core.interrupt import Interrupt
from sdecor.export import device
from sdecor.export.blocks import FeedBatch, Reader, check_labels
from sdecor.export.layout import Layout
from sdecor.export.ranges import Ranges
from sdecor.export.store import Store

POLL_SECONDS = 1.0  # between two looks at what other processes do


class Job(NamedTuple):
    """What the loop works with."""

    task: device.Task
    reader: Reader
    layout: Layout
    store: Store
    ranges: Ranges
    stop: Callable[[], bool]
    advance: Callable[[int], Any]


def wanted(job: Job) -> Callable[[int], bool]:
    """Return whether a block that starts at an example is this process's to compute."""
    rows, process, processes = job.layout.range_rows, jax.process_index(), jax.process_count()

    def is_wanted(start: int) -> bool:
        inside = job.reader.count is None or start < job.reader.count
        return inside and start // rows % processes == process and not job.store.done(start - start % rows)

    return is_wanted


def check_batch(job: Job, batch: FeedBatch, count: int | None) -> None:
    if batch.total is not None and batch.total != count:
        raise ValueError(f"num_examples = {count}: data has {batch.total} examples")
    attributes = job.layout.attributes
    size, classes, needed = attributes["device_batch"], attributes["num_classes"], job.task.target == "label"
    for place, block in enumerate(batch.blocks):
        labels = batch.arrays["label"][place * size : place * size + len(block.names)]
        check_labels(labels, classes, start=block.start, needed=needed)


@contextlib.contextmanager
def kept(job: Job) -> Iterator[None]:
    """Keep what is on its way to the disk when something goes wrong, and say how to continue."""
    try:
        yield
    except Exception as error:
        with contextlib.suppress(Exception):
            job.ranges.wait()
        with contextlib.suppress(Exception):
            job.store.ask_to_stop()
        of = "" if job.reader.count is None else f" of {job.reader.count}"
        told = f"{job.store.finished}{of} examples are finished and kept: run the same command to continue"
        if "cannot be read" in str(error):
            told += ", with on_error=skip to leave out and record what cannot be read"
        if isinstance(error, ValueError):
            raise ValueError(f"{error}\n{told}") from error
        error.add_note(told)
        raise


def stopping(store: Store, interrupt: Interrupt, held: Any) -> Callable[[], bool]:
    """Return whether to stop, for a signal here or in another process of the job."""
    alone, looked, found = jax.process_count() == 1, -POLL_SECONDS, False

    def stop() -> bool:
        nonlocal looked, found
        if held is not None:
            held.check()
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
    """Give the function that is told of examples done: the caller's own, or one that moves a bar."""
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
