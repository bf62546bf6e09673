"""Tests of work ahead in threads: results in order, a bounded number ahead, an end on errors and on closing."""

import itertools
import threading
import time

import pytest

from sdecor.core.threads import in_background, map_ahead


def ended(name: str) -> bool:
    """Return whether all threads of this name end within ten seconds."""
    end = time.monotonic() + 10
    while any(name in thread.name for thread in threading.enumerate()):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def test_results_come_in_order_and_items_are_taken_as_needed():
    taken = []

    def items():
        for item in range(20):
            taken.append(item)
            yield item

    def slow_first(item):
        time.sleep(0.05 if item == 0 else 0)
        return item**2

    found = []
    for value in map_ahead(slow_first, items(), threads=3, ahead=4, name="squares"):
        found.append(value)
        assert len(taken) <= len(found) + 4
    assert found == [item**2 for item in range(20)] and ended("squares")


def test_an_error_comes_when_its_result_is_due():
    def invert(item):
        return 1 / item

    found = map_ahead(invert, [1, 2, 0, 4], threads=2, ahead=4, name="inverses")
    assert [next(found), next(found)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert list(found) == [] and ended("inverses")


def test_closing_cancels_what_has_not_begun():
    begun, go = [], threading.Event()

    def wait(item):
        begun.append(item)
        return item == 0 or go.wait(10)

    found = map_ahead(wait, itertools.count(), threads=1, ahead=50, name="waiting")
    assert next(found)
    found.close()  # while one item still waits
    go.set()
    assert ended("waiting") and len(begun) <= 3


def test_an_iterator_is_run_ahead_in_one_thread():
    made, threads = [], set()

    def items():
        for item in range(6):
            made.append(item)
            threads.add(threading.current_thread().name)
            yield item
        raise OSError("broken")

    found = in_background(items(), ahead=2, name="made")
    for expected in range(6):
        assert next(found) == expected and len(made) <= expected + 3
    with pytest.raises(OSError, match="broken"):
        next(found)
    assert len(threads) == 1 and ended("made")
    assert list(in_background(iter([None, 0]), ahead=2, name="made")) == [None, 0]
