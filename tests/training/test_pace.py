"""Tests of the time between two checkpoints, with a clock of their own."""

import numpy as np
import pytest

from sdecor.core import parallel
from sdecor.training.pace import Pace


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def times_of_saving(monkeypatch, *, seconds, minutes=10.0, otherwise=()):
    """Return the time in seconds and the step of each save, and how often the main process was asked."""
    clock, asked, found = Clock(), [], []
    monkeypatch.setattr(parallel, "gather", lambda value: asked.append(value) or value)
    pace = Pace(minutes, 0, clock)
    for step, duration in enumerate(seconds, 1):
        clock.now += duration
        if pace.due(step, otherwise=step in otherwise):
            found.append((clock.now - 100, step))
    return found, len(asked)


@pytest.mark.parametrize(("seconds", "steps"), [(0.01, 400_000), (0.7, 6000), (45.0, 100), (900.0, 5)])
def test_a_checkpoint_is_due_about_every_ten_minutes(monkeypatch, seconds, steps):
    found, asked = times_of_saving(monkeypatch, seconds=[seconds] * steps)
    gaps = np.diff([0] + [time for time, _ in found])
    np.testing.assert_allclose(gaps, max(600, seconds), rtol=0.05, atol=seconds)
    assert len(found) == pytest.approx(seconds * steps / max(600, seconds), abs=1)
    assert asked <= 20 * (1 + len(found)) and asked <= steps


def test_a_slow_first_step_and_a_run_that_slows_down(monkeypatch):
    seconds = [120.0] + [0.1] * 12_000 + [2.0] * 2000
    found, _ = times_of_saving(monkeypatch, seconds=seconds)
    gaps = np.diff([0] + [time for time, _ in found])
    assert gaps.max() < 2 * 600 + 150 * 20 and gaps.min() > 500  # a question is at most 150 s of the former pace away


def test_other_saves_count(monkeypatch):
    found, _ = times_of_saving(monkeypatch, seconds=[1.0] * 2000, otherwise=range(500, 2001, 500))
    assert [step for _, step in found] == [500, 1000, 1500, 2000]


def test_no_bound(monkeypatch):
    assert times_of_saving(monkeypatch, seconds=[1.0] * 2000, minutes=0.0, otherwise={7}) == ([(7.0, 7)], 0)


def test_processes_with_other_clocks_save_at_the_same_steps(monkeypatch):
    """The answers of the main process are the answers of all."""
    clocks, answers = (Clock(), Clock()), []
    paces = [Pace(10.0, 0, clock) for clock in clocks]
    main = lambda value: answers.append(value) or value  # noqa: E731
    due = []
    for step in range(1, 3000):
        for clock, seconds in zip(clocks, (1.0, 0.3 + step % 5), strict=True):
            clock.now += seconds
        other = step % 700 == 0
        answers.clear()
        monkeypatch.setattr(parallel, "gather", main)
        first = paces[0].due(step, otherwise=other)
        monkeypatch.setattr(parallel, "gather", lambda value: answers.pop())  # fails if it asks at another step
        assert paces[1].due(step, otherwise=other) == first
        assert not answers
        due += [step] * first
    assert set(range(700, 3000, 700)) < set(due) and len(due) > 4
