"""Threads that compute results ahead of the loop that uses them: in order, bounded, and ended with that loop.

A thread may be stuck in a read that never returns. So the caller waits in slices, between which it calls `check`, and
the threads are daemons, which do not keep the process from ending.
"""

import atexit
import collections
import concurrent.futures
import contextlib
import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from sdecor.core import interrupt

Check = Callable[[], None]

_SLICE = 0.2  # seconds between two calls of `check`
_LAST_WAIT = 2.0  # seconds that the end of the process waits for calls in threads

_calls: set[Future] = set()  # that threads compute at the moment
_ending = threading.Event()


def map_ahead(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    *,
    threads: int,
    ahead: int,
    name: str,
    check: Check = interrupt.check,
) -> Iterator[Any]:
    """Yield `function(item)` of each item, in order, computed by threads while earlier results are in use.

    Closing the iterator, an error or Ctrl-C cancels calls that have not begun, and does not wait for others.

    Args:
      function: function called in a thread. Its exception is raised where its result would be yielded.
      items: items, possibly without end. The caller's thread takes `ahead` of them before it yields the first result.
      threads: number of threads.
      ahead: number of results that are ready or being computed while one is in use; at least 1.
      name: name of the threads, for debuggers.
      check: function that the caller's thread calls several times a second while it waits; an exception of it ends
        the iterator.
    """
    items, tasks = iter(items), queue.SimpleQueue()

    def submit(item: Any) -> Future:
        future: Future = Future()
        tasks.put((future, item))
        return future

    def work() -> None:
        while (task := tasks.get()) is not None:
            _compute(function, *task)
            del task  # the result would stay in memory until the next task

    pending = collections.deque(submit(item) for item in itertools.islice(items, ahead))
    for number in range(threads):
        _start(work, f"{name}_{number}")
    try:
        while pending:
            result = _wait(pending[0], check)
            pending.popleft()
            pending.extend(submit(item) for item in itertools.islice(items, 1))
            yield result
            del result
    finally:
        for future in pending:
            future.cancel()
        for _ in range(threads):
            tasks.put(None)


def in_background(items: Iterator[Any], *, ahead: int, name: str, check: Check = interrupt.check) -> Iterator[Any]:
    """Yield the items of an iterator, which one thread produces `ahead` of their use; it ends as `map_ahead` does.

    If `items` has a method `close`, the same thread calls it at the end, also when that is early.
    """
    room, produced, stop = threading.Semaphore(ahead), queue.SimpleQueue(), threading.Event()
    end = object()

    def produce() -> None:
        with contextlib.closing(items) if hasattr(items, "close") else contextlib.nullcontext():
            while room.acquire() and not stop.is_set():
                future: Future = Future()
                _compute(lambda _: next(items, end), future, None)
                produced.put(future)
                if not future.done() or future.exception() is not None or future.result() is end:
                    return

    _start(produce, name)
    try:
        while (item := _wait(_take(produced, check), check)) is not end:
            room.release()
            yield item
            del item
    finally:
        stop.set()
        room.release()


def call(function: Callable[[], Any], *, name: str, check: Check = interrupt.check) -> Any:
    """Return `function()`, called in a thread, so that a signal can end the wait for it."""
    return next(map_ahead(lambda _: function(), [None], threads=1, ahead=1, name=name, check=check))


def _compute(function: Callable[[Any], Any], future: Future, item: Any) -> None:
    if _ending.is_set() or not future.set_running_or_notify_cancel():
        return
    _calls.add(future)
    try:
        result = function(item)
    except BaseException as error:  # raised where the result is due
        future.set_exception(error)
    else:
        future.set_result(result)
    finally:
        _calls.discard(future)


def _wait(future: Future, check: Check) -> Any:
    while not future.done():
        concurrent.futures.wait([future], timeout=_SLICE)
        if not future.done():
            check()
    return future.result()


def _take(produced: queue.SimpleQueue, check: Check) -> Future:
    while True:
        with contextlib.suppress(queue.Empty):
            return produced.get(timeout=_SLICE)
        check()


def _start(target: Callable[[], None], name: str) -> None:
    threading.Thread(target=target, name=name, daemon=True).start()


def _wait_at_exit() -> None:
    """Wait a moment for calls in threads: a library's thread that returns while Python shuts down may abort it."""
    _ending.set()
    concurrent.futures.wait(list(_calls), timeout=_LAST_WAIT)


atexit.register(_wait_at_exit)
