"""One run's numbers with intervals, and two runs' differences on the same images; on the host, in float64."""

from collections.abc import Mapping

import numpy as np

from sdecor import metrics
from sdecor.evaluation import Results
from sdecor.statistics import Statistic, bootstrap, difference_of, mean_of, ratio_of

# The level that a meaningless map, or a network that always answers alike, reaches: by example, or as a constant.
_CHANCE = {
    "accuracy": "chance_accuracy",
    "energy_inside": "area_share",
    "pointing_game": "chance_pointing",
    "energy_ratio": 1.0,
    "insertion": "insertion_random",
    "deletion": "deletion_random",
    "insertion_vs_random": 0.0,
    "deletion_vs_random": 0.0,
}
_DIAGNOSTICS = ("mean_abs_correlation", "effective_rank", "mean_std", "dead_features")


def summarise(results: Results, *, n_resamples: int = 2000, level: float = 0.95, seed: int = 0) -> dict[str, dict]:
    """Return every measure's mean over the split with its bootstrap interval.

    Returns:
      By name of the measure (`metrics.METRICS` and `metrics.DATASET_METRICS`): `mean`, `low`, `high`, `n` (examples for
      which it is defined), `undefined` (the others), and `chance` where there is such a level, over the same examples.
      None where there is no value: an undefined measure, or the interval of a feature diagnostic.
    """
    examples, count = results.examples, results.examples["index"].size
    statistics = _statistics(examples)
    intervals = bootstrap(statistics, n_resamples=n_resamples, level=level, seed=seed)
    summary = {}
    for name, (mean, low, high, n) in intervals.items():
        entry = {"mean": _plain(mean), "low": _plain(low), "high": _plain(high), "n": n, "undefined": count - n}
        summary[name] = entry | _chance(name, examples)
    diagnostics = metrics.feature_diagnostics(results.moments)
    for name in _DIAGNOSTICS:
        value = _plain(diagnostics[name])
        undefined = count if value is None else 0
        summary[name] = {"mean": value, "low": None, "high": None, "n": count - undefined, "undefined": undefined}
    summary["mean_abs_correlation"]["chance"] = _plain(diagnostics["correlation_floor"])
    return summary


def compare(
    reference: Results, other: Results, *, n_resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> dict[str, dict]:
    """Return the paired differences `other − reference` on the same images, with paired bootstrap intervals.

    Returns:
      By name of the measure: `mean`, `low`, `high` of the difference over the images where both runs are defined,
      `n` pairs, and `better`: True or False where the interval excludes 0 and the measure has a better direction,
      else None.

    Raises:
      ValueError: when the two were not evaluated on the same images.
    """
    a, b = reference.examples, other.examples
    if not (np.array_equal(a["index"], b["index"]) and np.array_equal(a["label"], b["label"])):
        raise ValueError(
            f"the runs were evaluated on different images ({a['index'].size} and {b['index'].size}): "
            "evaluate both on the same split of the same data set"
        )
    a, b = _jointly_defined(a, b)
    left, right = _statistics(a), _statistics(b)
    paired = {}
    for name in left:
        if name in right:
            scalar = name in metrics.METRICS
            paired[name] = mean_of(b[name] - a[name]) if scalar else difference_of(left[name], right[name])
    intervals = bootstrap(paired, n_resamples=n_resamples, level=level, seed=seed)
    differences = {
        name: {
            "mean": _plain(mean),
            "low": _plain(low),
            "high": _plain(high),
            "n": n,
            "better": _better(name, low, high),
        }
        for name, (mean, low, high, n) in intervals.items()
    }
    before, after = (metrics.feature_diagnostics(run.moments) for run in (reference, other))
    for name in _DIAGNOSTICS:
        entry = {"mean": _plain(after[name] - before[name]), "low": None, "high": None, "n": after["n"], "better": None}
        differences[name] = entry
    return differences


def mean_curves(results: Results) -> dict[str, np.ndarray]:
    """Return the insertion and deletion curves, and those of a random order, averaged over defined examples."""
    names = [name for name in results.examples if "_curve" in name]
    defined = {name: results.examples[name][~np.isnan(results.examples[name]).any(-1)] for name in names}
    return {name: curves.mean(0) for name, curves in defined.items() if len(curves)}


def _jointly_defined(
    a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return both with NaN wherever a measure is undefined in either, so that ratios too are over the same images."""
    gaps = {name: np.isnan(a[name]) | np.isnan(b[name]) for name in metrics.METRICS if name in a and name in b}
    return tuple(dict(run) | {name: np.where(gap, np.nan, run[name]) for name, gap in gaps.items()} for run in (a, b))


def _statistics(examples: Mapping[str, np.ndarray]) -> dict[str, Statistic]:
    statistics = {name: mean_of(examples[name]) for name in metrics.METRICS if name in examples}
    statistics["calibration_error"] = _calibration(examples["confidence"], examples["accuracy"])
    if "energy_inside" in examples:
        statistics["energy_ratio"] = ratio_of(examples["energy_inside"], examples["area_share"])
    return statistics


def _calibration(confidence: np.ndarray, correct: np.ndarray) -> Statistic:
    defined = ~np.isnan(confidence)
    columns = np.concatenate([metrics.calibration_bins(confidence, correct), defined[:, None]], axis=1)
    return Statistic(
        columns,
        lambda sums: metrics.calibration_error(sums[..., :-1], sums[..., -1]),
        int(defined.sum()),
        biased=True,  # each bin's gap is an absolute value, which noise alone makes positive
        least=0.0,
    )


def _chance(name: str, examples: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    level = _CHANCE.get(name)
    if level == "chance_accuracy":
        return {"chance": float(np.unique(examples["label"], return_counts=True)[1].max() / examples["label"].size)}
    if isinstance(level, str):
        both = ~np.isnan(examples[name] + examples[level])
        return {"chance": _plain(np.mean(examples[level][both], dtype=np.float64) if both.any() else np.nan)}
    return {} if level is None else {"chance": level}


def _better(name: str, low: float, high: float) -> bool | None:
    direction = (metrics.METRICS | metrics.DATASET_METRICS)[name].higher_is_better
    if direction is None or not (low > 0 or high < 0):
        return None
    return (low > 0) == direction


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
