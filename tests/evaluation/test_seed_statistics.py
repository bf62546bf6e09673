"""Tests of intervals and tests over seeds, against SciPy and worked examples."""

import numpy as np
import pytest
from scipy import stats

from sdecor.evaluation.statistics import holm, mean_interval, paired_test


@pytest.mark.parametrize("n", [2, 3, 5, 30])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_interval_is_students(n, level):
    values = np.random.default_rng(n).normal(3, 2, n)
    found = mean_interval(values, level=level)
    low, high = stats.t.interval(level, n - 1, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose([found.mean, found.low, found.high], [values.mean(), low, high], rtol=1e-12)
    assert found.n == n


def test_too_few_values_have_no_interval():
    assert mean_interval([]) == (None, None, None, 0)
    assert mean_interval([2.0]) == (2.0, None, None, 1)
    assert mean_interval([2.0, None, float("nan")]).n == 1


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_paired_test_is_scipys(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(1, 1, n), rng.normal(0, 1, n)
    found = paired_test(dict(enumerate(a)), dict(enumerate(b)))
    expected = stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    np.testing.assert_allclose(
        [found.mean, found.low, found.high, found.p],
        [np.mean(a - b), interval.low, interval.high, expected.pvalue],
        rtol=1e-10,
    )


def test_seeds_that_one_side_lacks_are_left_out():
    a, b = {0: 1.0, 1: 2.0, 2: 5.0, 3: None, 4: 9.0}, {0: 0.5, 1: 1.0, 2: 1.0, 3: 3.0, 5: 0.0}
    found = paired_test(a, b)
    assert found.n == 3 and found.mean == pytest.approx(5.5 / 3)
    assert found.p == pytest.approx(stats.ttest_rel([1.0, 2.0, 5.0], [0.5, 1.0, 1.0]).pvalue)


def test_no_pair_one_pair_and_no_spread():
    assert paired_test({0: 1.0}, {1: 1.0}) == (None, None, None, 0, None)
    assert paired_test({0: 1.0}, {0: 0.5}) == (0.5, None, None, 1, None)
    assert paired_test({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).p is None
    assert paired_test({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}).p == 0


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04, and the last not below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_holm_rejects_what_the_step_down_procedure_does():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.uniform(0, 0.1, 6)
        rejected, order = set(), np.argsort(p)
        for rank, place in enumerate(order):  # Holm's procedure: stop at the first that is not below α / (m − rank)
            if p[place] > 0.05 / (6 - rank):
                break
            rejected.add(place)
        assert {place for place, q in enumerate(holm(list(p))) if q <= 0.05} == rejected


def test_planned_tests_that_could_not_be_made_count():
    assert holm([0.02, None, None]) == [pytest.approx(0.06), None, None]
