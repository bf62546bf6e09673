"""Numbers as text: how each measure is written, the terminal's table, and what differs between configs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sdecor.metrics import DATASET_METRICS, METRICS

TITLES = {
    "accuracy": "Accuracy",
    "cross_entropy": "Cross-entropy",
    "calibration_error": "Calibration error",
    "confidence": "Confidence",
    "energy_inside": "Saliency on the object",
    "energy_ratio": "… relative to its area",
    "pointing_game": "Pointing game",
    "gini": "Sparseness (Gini)",
    "insertion": "Insertion area",
    "insertion_vs_random": "… relative to random",
    "deletion": "Deletion area",
    "deletion_vs_random": "… relative to random",
    "area_share": "Object's share of the area",
    "mean_abs_correlation": "Feature correlation",
    "effective_rank": "Effective rank of features",
    "mean_std": "Feature scale",
    "dead_features": "Dead features",
}
_PERCENT = {"accuracy", "calibration_error", "confidence", "energy_inside", "pointing_game", "area_share"}
ARROWS = {True: "↑", False: "↓", None: ""}


_PARENTS = {"energy_ratio": "energy_inside", "insertion_vs_random": "insertion", "deletion_vs_random": "deletion"}


def full_title(name: str) -> str:
    """Return a measure's title where it does not stand below its parent."""
    title = TITLES.get(name, name)
    return title.replace("…", TITLES[_PARENTS[name]] + ",") if name in _PARENTS else title


def direction(name: str) -> bool | None:
    """Tell whether more of a measure is better; None where neither is, or the measure is not known."""
    metric = (METRICS | DATASET_METRICS).get(name)
    return None if metric is None else metric.higher_is_better


def description(name: str) -> str:
    """Return what a measure says, in a sentence."""
    metric = (METRICS | DATASET_METRICS).get(name)
    return "" if metric is None else metric.description


def names_in_order(entries: Mapping[str, Any]) -> list[str]:
    """Return the measures in reading order: those with a title first, then the others as they come."""
    return [name for name in TITLES if name in entries] + [name for name in entries if name not in TITLES]


def format_value(name: str, value: float | None, *, signed: bool = False, unit: bool = True) -> str:
    """Write one number of a measure: shares in per cent, counts whole, the rest with three significant decimals.

    A difference (`signed`) of percentages is in percentage points. `None` is a dash.
    """
    if value is None or not math.isfinite(value):
        return "–"
    sign = "+" if signed else ""
    if value == 0 and not signed and name not in _PERCENT:
        text = "0"
    elif name in _PERCENT:
        text = f"{100 * value:{sign}.1f}" + ("" if not unit else " pp" if signed else " %")
    elif name == "dead_features":
        text = f"{value:{sign}.0f}"
    elif abs(value) >= 100:
        text = f"{value:{sign}.0f}"
    else:
        text = f"{value:{sign}.{1 if abs(value) >= 10 else 3}f}"
    return text.replace("-", "−")


def format_interval(name: str, entry: Mapping[str, Any], *, signed: bool = False) -> str:
    """Write `mean [low, high]`, or the mean alone where there is no interval."""
    mean = format_value(name, entry["mean"], signed=signed)
    if entry.get("low") is None or entry.get("high") is None:
        return mean
    low, high = (format_value(name, entry[end], signed=signed, unit=False) for end in ("low", "high"))
    return f"{mean} [{low}, {high}]"


def format_chance(name: str, entries: Sequence[Mapping[str, Any] | None]) -> str:
    """Write the chance level; where it differs between the runs' entries, one for each."""
    levels = [format_value(name, entry.get("chance")) if entry else "–" for entry in entries]
    if set(levels) == {"–"}:
        return ""
    return levels[0] if len(set(levels)) == 1 else " / ".join(levels)


def terminal_table(
    summaries: Mapping[str, Mapping[str, Mapping[str, Any]]],
    comparisons: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
) -> str:
    """Return an aligned table of runs side by side.

    Args:
      summaries: run → measure → `mean`, `low`, `high`, `n`, `chance`, as of `summary.summarise`; the first
        run is the reference.
      comparisons: run → measure → difference to the reference, as of `summary.compare`.

    Returns:
      Text with a row for each measure: chance level, each run's mean with its interval, the number of images,
      and each difference, marked `better` or `worse` only where its interval excludes 0.
    """
    comparisons = comparisons or {}
    runs = list(summaries)
    several = len(comparisons) > 1
    header = ["", "chance", *runs, "n"]
    header += [f"{run} − {runs[0]}" if several else "paired difference" for run in comparisons]
    rows = []
    measures = {name: None for summary in summaries.values() for name in summary}
    for name in names_in_order(measures):
        entries = [summaries[run].get(name) for run in runs]
        row = [f"{TITLES.get(name, name)} {ARROWS[direction(name)]}".rstrip()]
        row.append(format_chance(name, entries))
        row += ["–" if entry is None else format_interval(name, entry) for entry in entries]
        counts = sorted({entry["n"] for entry in entries if entry})
        row.append("–".join(str(count) for count in {counts[0]: 0, counts[-1]: 0}))
        row += [_difference(name, comparison.get(name)) for comparison in comparisons.values()]
        rows.append(row)
    lines = _align([header, *rows], right={1, 2 + len(runs)})
    lines = [line.rstrip() for line in lines]
    rule = "─" * max(map(len, lines))
    lines = [lines[0], rule, *lines[1:], rule]
    return "\n".join([*lines, "mean [95 % bootstrap interval] · ↑ more is better, ↓ less is better"])


def _difference(name: str, entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    mark = {True: "  ✓ better", False: "  ✗ worse", None: ""}[entry["better"]]
    return format_interval(name, entry, signed=True) + mark


def _align(rows: list[list[str]], right: set[int]) -> list[str]:
    """Pad cells to columns; those in `right` are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def config_differences(configs: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Return the fields whose values differ between runs.

    Args:
      configs: run → config; nested mappings are written as `group.field`.

    Returns:
      `(field, [each run's value])`, a run without the field has None.
    """
    flat = {run: dict(_flatten(config)) for run, config in configs.items()}
    fields = {field: None for config in flat.values() for field in config}
    rows = [(field, [config.get(field) for config in flat.values()]) for field in fields]
    return [(field, values) for field, values in rows if any(value != values[0] for value in values)]


def _flatten(config: Mapping[str, Any], prefix: str = ""):
    for field, value in config.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{field}.")
        else:
            yield prefix + field, value
