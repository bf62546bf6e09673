"""Tests of bootstrap intervals against normal theory and plain loops."""

import numpy as np
import pytest

from sdecor.evaluation.statistics import (
    Statistic,
    bootstrap,
    bootstrap_mean,
    bootstrap_sums,
    difference_of,
    mean_of,
    median_of,
    paired_difference,
    ratio_of,
)

RNG = np.random.default_rng(0)


def test_interval_of_a_mean_is_the_normal_one_for_many_examples():
    values = RNG.exponential(2.0, 4000)
    mean, low, high, n = bootstrap_mean(values)
    half = 1.96 * values.std() / np.sqrt(values.size)
    assert n == 4000
    assert mean == pytest.approx(values.mean(), rel=1e-12)
    assert low == pytest.approx(mean - half, abs=0.08 * half)
    assert high == pytest.approx(mean + half, abs=0.08 * half)


def test_intervals_cover_as_often_as_they_say():
    samples = RNG.normal(3.0, 1.0, (300, 60))
    covered = [low <= 3.0 <= high for _, low, high, _ in (bootstrap_mean(s, n_resamples=400) for s in samples)]
    assert 0.89 <= np.mean(covered) <= 0.98


def test_level_widens_the_interval():
    values = RNG.normal(size=500)
    narrow, wide = bootstrap_mean(values, level=0.5), bootstrap_mean(values, level=0.99)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high
    with pytest.raises(ValueError, match="level = 95"):
        bootstrap_mean(values, level=95)


def test_undefined_values_are_dropped_and_counted():
    values = np.array([1.0, np.nan, 3.0, np.nan, 5.0])
    found = bootstrap_mean(values)
    assert found.n == 3 and found.mean == 3.0
    assert 1.0 <= found.low <= found.high <= 5.0


@pytest.mark.parametrize("values", [[], [np.nan, np.nan]])
def test_without_examples_there_is_no_value(values):
    mean, low, high, n = bootstrap_mean(np.array(values))
    assert n == 0 and np.isnan([mean, low, high]).all()


def test_one_example_has_a_value_and_no_interval():
    mean, low, high, n = bootstrap_mean(np.array([2.5, np.nan]))
    assert (mean, n) == (2.5, 1) and np.isnan([low, high]).all()


def test_same_seed_same_interval_and_large_means_are_kept():
    values = RNG.normal(1e6, 1e-3, 1000)
    first, again, other = bootstrap_mean(values), bootstrap_mean(values), bootstrap_mean(values, seed=1)
    assert first == again != other
    assert 3e-5 < first.high - first.low < 3e-4


def test_sums_are_of_n_draws_with_replacement_whatever_the_block():
    columns = np.stack([np.ones(700), np.arange(700)], axis=1)
    sums = bootstrap_sums(columns, n_resamples=50)
    np.testing.assert_array_equal(sums[:, 0], 700)
    assert np.unique(sums[:, 1]).size > 40
    assert sums[:, 1].std() == pytest.approx(np.sqrt(700) * np.arange(700).std(), rel=0.4)


def test_columns_of_few_examples_are_resampled_with_all_others():
    """A column's sums do not depend on the other columns, and therefore not on the grouping."""
    columns = RNG.normal(size=(300, 4))
    columns[40:, 1:3] = 0
    together = bootstrap_sums(columns, n_resamples=30)
    for i in range(4):
        np.testing.assert_allclose(bootstrap_sums(columns[:, [i]], n_resamples=30)[:, 0], together[:, i], atol=1e-9)


def test_memory_is_bounded_for_many_examples(monkeypatch):
    import sdecor.evaluation.statistics as module

    columns = RNG.normal(size=(3000, 2))
    whole = bootstrap_sums(columns, n_resamples=40)
    monkeypatch.setattr(module, "_CELLS", 3000 * 7)
    np.testing.assert_allclose(bootstrap_sums(columns, n_resamples=40), whole, rtol=1e-9, atol=1e-9)


def test_paired_difference_sees_what_unpaired_intervals_hide():
    a = RNG.normal(0, 10, 800)
    b = a + RNG.normal(0.2, 0.5, 800)
    mean, low, high, n = paired_difference(a, b)
    assert n == 800 and mean == pytest.approx((b - a).mean()) and low > 0
    assert bootstrap_mean(a).high > bootstrap_mean(b).low
    a[:10], b[5:20] = np.nan, np.nan
    assert paired_difference(a, b).n == 780
    with pytest.raises(ValueError, match="do not pair"):
        paired_difference(a, b[1:])


def test_ratio_is_of_means_over_complete_pairs():
    numerators, denominators = RNG.uniform(1, 2, 500), RNG.uniform(0.1, 1, 500)
    numerators[3], denominators[4] = np.nan, np.nan
    keep = np.isfinite(numerators + denominators)
    found = bootstrap({"ratio": ratio_of(numerators, denominators)})["ratio"]
    assert found.n == 498
    assert found.mean == pytest.approx(numerators[keep].mean() / denominators[keep].mean())
    assert found.low < found.mean < found.high


def miscalibrated(rng: np.random.Generator, n: int, gap: float) -> Statistic:
    """Return a calibration error over 10 bins; accuracy is `gap` below the confidence."""
    confidence = rng.uniform(0.3, 1, n)
    correct = rng.random(n) < confidence - gap
    columns = (np.ceil(confidence * 10)[:, None] == np.arange(1, 11)) * (confidence - correct)[:, None]
    return Statistic(columns, lambda sums: np.abs(sums).sum(-1) / n, n, biased=True, least=0.0)


@pytest.mark.parametrize("gap", [0.0, 0.02, 0.2])
def test_interval_of_a_biased_statistic_holds_its_estimate(gap):
    """For calibrated predictions the plain percentile interval often lies above the estimate."""
    rng = np.random.default_rng(1)
    samples = [miscalibrated(rng, 300, gap) for _ in range(60)]
    plain = [bootstrap({"e": s._replace(biased=False)}, n_resamples=300)["e"] for s in samples]
    found = [bootstrap({"e": s}, n_resamples=300)["e"] for s in samples]
    assert all(0 <= low <= mean <= high for mean, low, high, _ in found)
    if gap == 0:
        assert any(mean < low for mean, low, _, _ in plain)


def test_interval_of_a_biased_statistic_covers():
    rng = np.random.default_rng(2)
    samples = [miscalibrated(rng, 400, 0.2) for _ in range(200)]
    covered = [low <= 0.2 <= high for _, low, high, _ in (bootstrap({"e": s}, n_resamples=300)["e"] for s in samples)]
    assert 0.88 <= np.mean(covered) <= 0.99


def test_difference_of_biased_statistics_holds_its_estimate_and_may_be_negative():
    rng = np.random.default_rng(3)
    found = []
    for _ in range(40):
        pair = miscalibrated(rng, 300, 0.1), miscalibrated(rng, 300, 0.0)
        found.append(bootstrap({"e": difference_of(*pair)}, n_resamples=200)["e"])
    assert all(low <= mean <= high for mean, low, high, _ in found)
    assert np.mean([high < 0 for _, _, high, _ in found]) > 0.3


def test_statistics_share_resamples_so_that_a_difference_to_itself_is_zero():
    values = RNG.normal(size=200)
    statistics = {"a": mean_of(values), "zero": difference_of(mean_of(values), mean_of(values))}
    statistics["double"] = Statistic(values[:, None], lambda sums: 2 * sums[..., 0] / 200, 200)
    found = bootstrap(statistics)
    assert found["zero"][:3] == (0, 0, 0)
    assert found["double"].low == pytest.approx(2 * found["a"].low)


@pytest.mark.parametrize("n", [8, 10, 20])
def test_few_equal_examples_seldom_differ(n):
    """For equal runs about 1 interval in 20 may exclude 0, even with few images."""
    rng = np.random.default_rng(n)
    intervals = [bootstrap_mean(rng.normal(size=n), n_resamples=400) for _ in range(400)]
    assert np.mean([low > 0 or high < 0 for _, low, high, _ in intervals]) < 0.095


@pytest.mark.parametrize("n", [4, 5, 40, 41])
def test_median_has_the_interval_of_medians_of_resamples(n):
    values = np.random.default_rng(n).lognormal(sigma=2, size=n)
    found = bootstrap({"m": median_of(np.append(values, np.nan))}, n_resamples=40_000)["m"]
    assert found.mean == np.median(values) and found.n == n
    plain = np.median(np.random.default_rng(1).choice(values, (40_000, n)), axis=1)
    widened = bootstrap({"m": median_of(values)}, n_resamples=40_000, level=0.5)["m"]
    for tail in (0.1, 0.3, 0.7, 0.9):
        drawn = np.quantile(draws_of_median(values), tail)
        assert np.mean(plain < drawn) <= tail + 0.02 and np.mean(plain <= drawn) >= tail - 0.02
    assert widened.low <= found.mean <= widened.high


def draws_of_median(values: np.ndarray) -> np.ndarray:
    """Return the draws behind an interval, intercepted where its percentiles are computed."""
    import sdecor.evaluation.statistics as module

    kept = []
    inner = module._percentiles
    module._percentiles = lambda draws, n, level: kept.append(draws) or inner(draws, n, level)
    try:
        bootstrap({"m": median_of(values)}, n_resamples=40_000)
    finally:
        module._percentiles = inner
    return kept[0]


def test_means_and_medians_are_found_together_and_in_order():
    values = RNG.normal(size=50)
    found = bootstrap({"a": median_of(values), "b": mean_of(values), "c": median_of(values[:0])})
    assert list(found) == ["a", "b", "c"] and found["b"] == bootstrap_mean(values)
    assert found["c"].n == 0 and np.isnan(found["c"][:3]).all()
