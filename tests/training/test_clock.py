"""Tests of the training clock: the statistics of steps and goodput, with clocks that the tests set."""

import numpy as np
import pytest

from sdecor.training import clock


class Hands:
    """Two clocks that a test moves."""

    def __init__(self):
        self.time, self.calendar = 0.0, 1000.0

    def new_clock(self) -> clock.Clock:
        return clock.Clock(seconds=lambda: self.time, now=lambda: self.calendar)

    def move(self, seconds: float) -> None:
        self.time += seconds
        self.calendar += seconds

    def step(self, watch: clock.Clock, waiting: float, computing: float) -> None:
        with watch.input():
            self.move(waiting)
        self.move(computing)
        watch.stepped()


def test_times_of_steps_without_the_first_and_without_what_is_between():
    hands = Hands()
    watch = hands.new_clock()
    assert watch.begin([]) == {"started": 1000.0}
    hands.step(watch, 1.0, 50.0)  # compiles
    computing = np.linspace(0.5, 1.5, 100)
    for each in computing:
        hands.step(watch, 0.25, each)
        if each == computing[40]:
            hands.move(30.0)  # a validation
            watch.rest()
    row = watch.row(images=8)
    steps = 0.25 + computing
    assert row["step_seconds_median"] == pytest.approx(np.median(steps))
    assert row["step_seconds_p99"] == pytest.approx(np.quantile(steps, 0.99))
    assert row["input_share"] == pytest.approx(0.25 / 1.25)
    assert row["images_per_step_second"] == pytest.approx(8 / 1.25)
    assert row["productive_seconds"] == pytest.approx(steps.sum())
    assert row["goodput"] == pytest.approx(steps.sum() / (51 + 30 + steps.sum()))


def test_goodput_counts_stops_and_leaves_out_steps_that_were_lost():
    hands = Hands()
    watch = hands.new_clock()
    log = [{"step": 0, "split": "time", **watch.begin([])}]
    for step in range(1, 12):
        hands.step(watch, 0.0, 1.0)
        if step in (6, 11):
            log.append({"step": step, "split": "time", **watch.row(1)})
    assert [row["productive_seconds"] for row in log[1:]] == [5.0, 10.0]
    hands.move(89.0)  # killed, and started again from the checkpoint of step 6
    again = hands.new_clock()
    assert again.begin(log[:2]) is None
    hands.step(again, 0.0, 1.0)
    for _ in range(5):
        hands.step(again, 0.0, 1.0)
    assert again.row(1)["productive_seconds"] == 10.0
    assert again.row(1)["goodput"] == pytest.approx(10 / (11 + 89 + 6))


def test_the_text_is_of_the_last_row_and_empty_without_one():
    assert clock.describe([{"step": 0, "split": "time", "started": 1.0}]) == ""
    row = {"goodput": 0.931, "step_seconds_median": 0.0123, "step_seconds_p99": 1.5, "input_share": 0.02}
    rows = [{"step": 1, "split": "time", **row, "goodput": 0.1}, {"step": 2, "split": "time", **row}]
    assert clock.describe(rows) == "93% goodput, median step 12.3 ms, p99 1.50 s, 2% waiting for input"
