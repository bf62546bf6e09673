"""Tests of work ahead in threads: results in order, a bounded number ahead, an end on errors and on closing."""

import itertools
import os
import subprocess
import sys
import threading
import time

import pytest

from sdecor.core.threads import call, in_background, map_ahead


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


class Asked(Exception):
    """What `check` raises."""


def ask_later(*, calls: int = 2):
    """Return a check that raises at its last call."""
    left = itertools.count(calls - 1, -1)

    def check():
        if next(left) == 0:
            raise Asked

    return check


@pytest.mark.parametrize("wait", ["map_ahead", "in_background", "call"])
def test_a_wait_for_a_stuck_call_ends_when_the_check_raises(wait):
    go = threading.Event()

    def stuck():
        yield go.wait()

    waits = {
        "map_ahead": lambda: next(map_ahead(lambda _: go.wait(), [0], threads=1, ahead=1, name="stuck", check=asked)),
        "in_background": lambda: next(in_background(stuck(), ahead=1, name="stuck", check=asked)),
        "call": lambda: call(go.wait, name="stuck", check=asked),
    }
    asked, began = ask_later(), time.monotonic()
    with pytest.raises(Asked):
        waits[wait]()
    assert 0.3 < time.monotonic() - began < 5
    go.set()
    assert ended("stuck")


def test_an_iterator_that_is_left_early_is_closed_in_its_thread():
    closed = []

    def items():
        try:
            yield from itertools.count()
        finally:
            closed.append(threading.current_thread().name)

    found = in_background(items(), ahead=2, name="left")
    assert [next(found), next(found)] == [0, 1]
    found.close()
    assert ended("left") and closed == ["left"]


def test_a_process_ends_while_a_thread_is_stuck_in_a_read(tmp_path):
    os.mkfifo(tmp_path / "silent")
    program = """
import sys, time
from sdecor.core.threads import call
def check():
    raise SystemExit(f"left after {time.monotonic() - began:.0f} s")
began = time.monotonic()
call(lambda: open(sys.argv[1]).read(), name="stuck", check=check)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "silent")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.strip() == "left after 0 s"
