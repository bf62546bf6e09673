"""A run's numbers with intervals, and the differences of two runs on the same images; on the host, in float64.

A key is the name of a metric of the network ("accuracy"), or "method/metric".
"""

from collections.abc import Iterable, Mapping

import numpy as np

from sdecor import metrics
from sdecor.evaluation import RANDOM, Results
from sdecor.evaluation.statistics import (
    Interval,
    Median,
    Statistic,
    bootstrap,
    difference_of,
    mean_of,
    median_of,
    ratio_of,
)
from sdecor.metrics.registry import KNOWN, RELATIVE

_DIAGNOSTICS = [name for name, metric in KNOWN.items() if metric.function is metrics.feature_diagnostics]
FEWEST = 20  # number of images below which no difference is marked better or worse


def summarise(results: Results, *, n_resamples: int = 2000, level: float = 0.95, seed: int = 0) -> dict[str, dict]:
    """Return every metric's mean over the split with its bootstrap interval.

    Returns:
      By key, for metrics in `metrics.registry.KNOWN`: `mean`, `low`, `high`, `n` (examples for which the metric is
      defined), `undefined` (the other examples), and `chance`, the chance level over the same examples, if there is
      one. `mean` is None for an undefined metric. The bounds are None for feature diagnostics, and for metrics whose
      values depend on one another. For heavy-tailed metrics `mean` is the median, and `statistic` is "median".
    """
    examples, count = _with_relative(results.examples), results.examples["index"].size
    intervals = bootstrap(_statistics(examples), n_resamples=n_resamples, level=level, seed=seed)
    summary = {}
    for key, (mean, low, high, n) in intervals.items():
        summary[key] = {**_entry(key, mean, low, high, n), "undefined": count - n, **_chance(key, examples)}
    diagnostics = metrics.feature_diagnostics(results.moments)
    for name in _DIAGNOSTICS:
        value = _plain(diagnostics[name])
        undefined = count if value is None else 0
        summary[name] = {"mean": value, "low": None, "high": None, "n": count - undefined, "undefined": undefined}
        floor = KNOWN[name].chance
        summary[name] |= {} if floor is None else {"chance": _plain(diagnostics[floor])}
    return summary


def compare(
    reference: Results, other: Results, *, n_resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> dict[str, dict]:
    """Return the paired differences `other − reference` on the same images, with paired bootstrap intervals.

    Returns:
      By key: `mean`, `low`, `high` of the difference over the images for which both runs are defined, the number of
      pairs `n`, and `better`. This is True or False if the interval excludes 0 and the metric has a better direction,
      else None. It is also None for fewer than 20 pairs, for metrics whose values depend on one another, and for
      metrics that depend on the network's robustness to masking as much as on its maps, unless they are relative to a
      random order. For heavy-tailed metrics `mean` is the median of the pairs' differences.

    Raises:
      ValueError: if the two runs were not evaluated on the same images.
    """
    a, b = reference.examples, other.examples
    if not (np.array_equal(a["index"], b["index"]) and np.array_equal(a["label"], b["label"])):
        raise ValueError(
            f"the runs were evaluated on different images ({a['index'].size} and {b['index'].size}): "
            "evaluate both on the same split of the same data set"
        )
    a, b = _jointly_defined(_with_relative(a), _with_relative(b))
    left, right = _statistics(a), _statistics(b)
    paired = {
        key: _center(key, b[key] - a[key]) if key in a and key in b else difference_of(left[key], right[key])
        for key in left
        if key in right
    }
    intervals = bootstrap(paired, n_resamples=n_resamples, level=level, seed=seed)
    differences = {
        key: {**_entry(key, *interval), "better": _better(key, interval)} for key, interval in intervals.items()
    }
    before, after = (metrics.feature_diagnostics(run.moments) for run in (reference, other))
    for name in _DIAGNOSTICS:
        entry = {"mean": _plain(after[name] - before[name]), "low": None, "high": None, "n": after["n"], "better": None}
        differences[name] = entry
    return differences


def retest(results: Results, again: Results) -> dict[str, dict[str, float | int | None]]:
    """Return the noise of each metric itself, from two measurements of the same images with different seeds.

    Args:
      results: the results that are reported.
      again: results with another seed, of the metrics that were measured twice.

    Returns:
      By key, for the metrics in both: `n` (images for which both are defined); `sd`, the standard deviation of an
      image's value over seeds; `of_mean`, that of the reported mean or median; and `reliability`, the share of the
      variance of the values that is due to the images. These are the within-image standard deviation, this over √n,
      and the intraclass correlation ICC(1,1) of a one-way analysis of variance (Shrout and Fleiss, Psychological
      Bulletin 86, 1979). For a median, and for metrics whose images depend on one another, `of_mean` is the absolute
      difference of the two summaries over √2. None where undefined.
    """
    first, second = _with_relative(results.examples), _with_relative(again.examples)
    found = {}
    for key, values in first.items():
        if _of(key) in KNOWN and _method(key) not in ("", RANDOM.key) and key in second:
            found[key] = _noise(key, np.stack([values, second[key]]).astype(np.float64))
    return found


def _noise(key: str, twice: np.ndarray) -> dict[str, float | int | None]:
    """Return the numbers of `retest` for the values `[2, N]` of one metric."""
    twice = twice[:, ~np.isnan(twice).any(0)]
    n = twice.shape[1]
    if n < 2:
        return {"n": n, "sd": None, "of_mean": None, "reliability": None}
    within = np.mean((twice[0] - twice[1]) ** 2) / 2
    between = 2 * twice.mean(0).var(ddof=1)
    of_mean = np.sqrt(within / n)
    median = KNOWN[_of(key)].statistic == "median"
    if median or _depends_on_others(key):
        of_mean = abs(np.subtract(*(np.median if median else np.mean)(twice, axis=1))) / np.sqrt(2)
    share = (between - within) / (between + within) if between + within > 0 else np.nan
    return {"n": n, "sd": _plain(np.sqrt(within)), "of_mean": _plain(of_mean), "reliability": _plain(share)}


def mean_curves(results: Results) -> dict[str, np.ndarray]:
    """Return each method's curves, averaged over defined examples; those of a random order are named `…_random`."""
    means = {}
    for key, curves in results.examples.items():
        defined = curves[~np.isnan(curves).any(-1)] if key.endswith("_curve") else ()
        if len(defined):
            means[key] = defined.mean(0)
    random = {key: means.pop(key) for key in list(means) if _method(key) == RANDOM.key}
    beside = {f"{key}_random": random.get(f"{RANDOM.key}/{_of(key)}") for key in means}
    return means | {key: curve for key, curve in beside.items() if curve is not None}


def _method(key: str) -> str:
    return key.rpartition("/")[0]


def _of(key: str) -> str:
    return key.rpartition("/")[2]


def _methods(keys: Iterable[str]) -> list[str]:
    return [method for method in dict.fromkeys(map(_method, keys)) if method not in ("", RANDOM.key)]


def _with_relative(examples: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Add the differences between each method's metrics and those of a random order of pixels."""
    added = {}
    for key, values in examples.items():
        random = examples.get(f"{RANDOM.key}/{_of(key)}")
        if random is not None and _of(key) + RELATIVE in KNOWN and _method(key) != RANDOM.key:
            added[key + RELATIVE] = values - random
    return dict(examples) | added


def _jointly_defined(
    a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return both with NaN wherever a metric is undefined in one, so that ratios too use the same images."""
    both = [key for key in a if key in b and _of(key) in KNOWN]
    gaps = {key: np.isnan(a[key]) | np.isnan(b[key]) for key in both}
    return tuple(dict(run) | {key: np.where(gap, np.nan, run[key]) for key, gap in gaps.items()} for run in (a, b))


def _center(key: str, values: np.ndarray) -> Statistic | Median:
    """Return the mean of a metric as a statistic, or its median for a heavy-tailed metric."""
    return (median_of if KNOWN[_of(key)].statistic == "median" else mean_of)(values)


def _entry(key: str, mean: float, low: float, high: float, n: int) -> dict[str, float | int | str | None]:
    low, high = (np.nan, np.nan) if _depends_on_others(key) else (low, high)
    median = {"statistic": "median"} if KNOWN[_of(key)].statistic == "median" else {}
    return {"mean": _plain(mean), "low": _plain(low), "high": _plain(high), "n": n, **median}


def _depends_on_others(key: str) -> bool:
    """Return whether an image's value depends on the other images, so that the bootstrap does not apply."""
    return KNOWN[_of(key)].needs == "set"


def _statistics(examples: Mapping[str, np.ndarray]) -> dict[str, Statistic | Median]:
    """Return the statistics of the network's metrics, then of each method's, in the order of `KNOWN`."""
    statistics = {name: mean_of(examples[name]) for name in KNOWN if name in examples}
    statistics["calibration_error"] = _calibration(examples["confidence"], examples["accuracy"])
    for method in _methods(examples):
        keys = [f"{method}/{name}" for name in KNOWN]
        statistics |= {key: _center(key, examples[key]) for key in keys if key in examples}
        for name, metric in KNOWN.items():
            if metric.statistic == "ratio" and f"{method}/{metric.derived_from}" in examples:
                values, level = examples[f"{method}/{metric.derived_from}"], examples[KNOWN[metric.derived_from].chance]
                statistics[f"{method}/{name}"] = ratio_of(values, level)
    return statistics


def _calibration(confidence: np.ndarray, correct: np.ndarray) -> Statistic:
    defined = ~np.isnan(confidence + correct)
    columns = np.concatenate([metrics.calibration_bins(confidence, correct), defined[:, None]], axis=1)
    return Statistic(
        columns,
        lambda sums: metrics.calibration_error(sums[..., :-1], sums[..., -1]),
        int(defined.sum()),
        biased=True,  # each bin's gap is an absolute value, which noise alone makes positive
        least=0.0,
    )


def _chance(key: str, examples: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    level, random = KNOWN[_of(key)].chance, f"{RANDOM.key}/{_of(key)}"
    if level is None and random in examples:
        level = random
    if callable(level):
        level = level(examples["label"])
    if isinstance(level, str):
        both = ~np.isnan(examples[key] + examples[level])
        return {"chance": _plain(np.mean(examples[level][both], dtype=np.float64) if both.any() else np.nan)}
    return {} if level is None else {"chance": level}


def _better(key: str, interval: Interval) -> bool | None:
    metric, excludes_zero = KNOWN[_of(key)], interval.low > 0 or interval.high < 0
    if not metric.ranks_runs or not excludes_zero or interval.n < FEWEST:
        return None
    return (interval.low > 0) == metric.higher_is_better


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
