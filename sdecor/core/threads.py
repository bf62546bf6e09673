"""Threads that compute results ahead of the loop that uses them: in order, bounded, and ended with that loop."""

import collections
import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def map_ahead(
    function: Callable[[Any], Any], items: Iterable[Any], *, threads: int, ahead: int, name: str
) -> Iterator[Any]:
    """Yield `function(item)` of each item, in order, computed by threads while earlier results are in use.

    Closing the iterator, an error or Ctrl-C cancels calls that have not begun, and does not wait for others.

    Args:
      function: function called in a thread. Its exception is raised where its result would be yielded.
      items: items, possibly without end. The caller's thread takes `ahead` of them before it yields the first result.
      threads: number of threads.
      ahead: number of results that are ready or being computed while one is in use; at least 1.
      name: name of the threads, for debuggers.
    """
    items = iter(items)
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    try:
        pending = collections.deque(pool.submit(function, item) for item in itertools.islice(items, ahead))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
            yield result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def in_background(items: Iterator[Any], *, ahead: int, name: str) -> Iterator[Any]:
    """Yield the items of an iterator, which one thread produces `ahead` of their use; it ends as `map_ahead` does."""
    end = object()
    taken = map_ahead(lambda _: next(items, end), itertools.repeat(None), threads=1, ahead=ahead, name=name)
    with contextlib.closing(taken):
        yield from itertools.takewhile(lambda item: item is not end, taken)
