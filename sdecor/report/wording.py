"""Titles of metrics and methods, the order of metrics, and the text of their numbers.

A key is the name of a metric ("accuracy"), or of a metric of a method's maps ("gradient/gini").
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sdecor.attribution import METHOD_INFO
from sdecor.metrics.registry import KNOWN

ARROWS = {True: "↑", False: "↓", None: ""}
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def split_key(key: str) -> tuple[str, str]:
    """Return `(method, metric)` of a key; the method is "" for a metric of the model."""
    method, _, name = key.rpartition("/")
    return method, name


def title(key: str) -> str:
    """Return a metric's title, with ", median" if its mean is a median; the name of an unknown metric."""
    name = split_key(key)[1]
    metric = KNOWN.get(name)
    return name if metric is None else metric.title + (", median" if metric.statistic == "median" else "")


def method_title(method: str) -> str:
    """Return an attribution method's title: "rise:samples=100" is "RISE (samples=100)"."""
    name, *options = method.split(":")
    words = name.replace("_", " ")
    known = METHOD_INFO[name].title if name in METHOD_INFO else words[:1].upper() + words[1:]
    return known + (f" ({', '.join(options)})" if options else "")


def direction(key: str) -> bool | None:
    """Return whether a higher value of a metric is better; None without a better direction, or if it is unknown."""
    metric = KNOWN.get(split_key(key)[1])
    return None if metric is None else metric.higher_is_better


def description(key: str) -> str:
    """Return the meaning of a metric in one sentence; "" if the metric is unknown."""
    metric = KNOWN.get(split_key(key)[1])
    return "" if metric is None else metric.description


def keys_by_method(keys: Iterable[str]) -> dict[str, list[str]]:
    """Group keys by method, the model's first under ""; the keys of a group are in the registry's order."""
    order = {name: place for place, name in enumerate(KNOWN)}
    groups: dict[str, list[str]] = {}
    for key in dict.fromkeys(keys):
        groups.setdefault(split_key(key)[0], []).append(key)
    for group in groups.values():
        group.sort(key=lambda key: order.get(split_key(key)[1], len(order)))
    return {method: groups[method] for method in sorted(groups, key=lambda method: method != "")}


def format_value(
    key: str, value: float | None, *, signed: bool = False, unit: bool = True, size: float | None = None
) -> str:
    """Return a metric's value as text: shares in per cent, counts whole, other numbers with about three digits.

    A difference (`signed`) of percentages is in percentage points. None is a dash. The magnitude `size`, by default the
    value's own, determines the number of digits.
    """
    if value is None or not math.isfinite(value):
        return "–"
    metric, sign = KNOWN.get(split_key(key)[1]), "+" if signed else ""
    size = abs(value) if size is None else size
    if metric is not None and metric.percent:
        return _minus(f"{100 * value:{sign}z.1f}") + ("" if not unit else " pp" if signed else " %")
    if size == 0 and not signed:
        return "0"
    if size >= 1e5 or 0 < size < 1e-4:
        return _scientific(value, sign)
    exponent = math.floor(math.log10(size)) if size else -1
    decimals = max(0, 2 - exponent) if exponent > -2 else 1 - exponent
    return _minus(f"{value:{sign}z.{0 if metric is not None and metric.whole else decimals}f}")


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _scientific(value: float, sign: str) -> str:
    mantissa, exponent = f"{value:{sign}.1e}".split("e")
    return f"{_minus(mantissa)}×10{str(int(exponent)).translate(_SUPERSCRIPT)}"


def format_bounds(key: str, entry: Mapping[str, Any], *, signed: bool = False) -> tuple[str, str] | None:
    """Return the ends of an interval as texts without their unit; None if there is no interval."""
    if entry.get("low") is None or entry.get("high") is None:
        return None
    low, high = (format_value(key, entry[end], signed=signed, unit=False, size=_size(entry)) for end in ("low", "high"))
    return low, high


def format_mean(key: str, entry: Mapping[str, Any], *, signed: bool = False) -> str:
    """Return an entry's mean as text, with as many digits as its interval."""
    return format_value(key, entry["mean"], signed=signed, size=_size(entry))


def format_interval(key: str, entry: Mapping[str, Any], *, signed: bool = False) -> str:
    """Return the text `mean [low, high]`, or the mean alone if there is no interval."""
    mean, bounds = format_mean(key, entry, signed=signed), format_bounds(key, entry, signed=signed)
    return mean if bounds is None else f"{mean} [{bounds[0]}, {bounds[1]}]"


def is_retested(summaries: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether a metric of any run was measured again with another seed."""
    return any("retest" in entry for summary in summaries.values() for entry in summary.values())


def format_retest(key: str, entry: Mapping[str, Any] | None) -> str:
    """Return the standard deviation of a mean over the seeds of its metric as text; "" if it was not measured."""
    noise = (entry or {}).get("retest", {}).get("of_mean")
    return "" if noise is None else f"± {format_value(key, noise)}"


def _size(entry: Mapping[str, Any]) -> float | None:
    """Return the magnitude for `format_value`: the mean's, or the largest of mean and bounds if the mean is near 0."""
    values = [entry[end] for end in ("mean", "low", "high") if entry.get(end) is not None]
    values = [abs(value) for value in values if math.isfinite(value)]
    if not values:
        return None
    return values[0] if values[0] >= 1e-2 else max(values)


def expected_by_chance(comparisons: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Return a text about the number of marked differences expected by chance; "" without any interval."""
    counted = [entry for entries in comparisons.values() for entry in entries.values() if entry.get("low") is not None]
    if not counted:
        return ""
    return (
        f"An interval misses the true value once in 20 times: of {len(counted)} differences, about "
        f"{max(1, round(len(counted) / 20))} would exclude 0 though the runs were equal."
    )


def format_chance(key: str, entries: Sequence[Mapping[str, Any] | None]) -> str:
    """Return the chance level as text; if it differs between the entries, one level for each."""
    levels = [entry.get("chance") if entry else None for entry in entries]
    return "" if set(levels) <= {None} else format_several([format_value(key, level) for level in levels])


def format_several(texts: Sequence[str]) -> str:
    """Return values side by side, or one if all are equal; for more than three, the first and the last distinct one."""
    distinct = list(dict.fromkeys(texts))
    if len(distinct) == 1:
        return distinct[0]
    return " / ".join(texts) if len(texts) <= 3 else f"{distinct[0]} … {distinct[-1]}"
