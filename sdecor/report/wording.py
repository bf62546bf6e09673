"""The titles of metrics, the order in which they are read, and how their numbers are written.

A key is the name of a metric ("accuracy"), or of a metric of an attribution method's maps ("gradient/gini").
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sdecor.attribution import METHOD_INFO
from sdecor.metrics.registry import KNOWN

ARROWS = {True: "↑", False: "↓", None: ""}
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def split_key(key: str) -> tuple[str, str]:
    """Return `(method, metric)` of a key; the method is "" where the metric is of the model."""
    method, _, name = key.rpartition("/")
    return method, name


def title(key: str) -> str:
    """Return a metric's title, which says where a median stands for the mean: the name itself where not known."""
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
    """Tell whether more of a metric is better; None where neither is, or the metric is not known."""
    metric = KNOWN.get(split_key(key)[1])
    return None if metric is None else metric.higher_is_better


def description(key: str) -> str:
    """Return the meaning of a metric, in a sentence."""
    metric = KNOWN.get(split_key(key)[1])
    return "" if metric is None else metric.description


def keys_by_method(keys: Iterable[str]) -> dict[str, list[str]]:
    """Group keys: the model's first, under "", then each method's as they come, all in the registry's order."""
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
    """Write one number of a metric: shares in per cent, counts whole, the rest with about three digits.

    A difference (`signed`) of percentages is in percentage points. `None` is a dash. `size` is the magnitude that
    decides how many digits are written; by default the value's own.
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
    """Write an interval's ends without their unit; None where there is no interval."""
    if entry.get("low") is None or entry.get("high") is None:
        return None
    low, high = (format_value(key, entry[end], signed=signed, unit=False, size=_size(entry)) for end in ("low", "high"))
    return low, high


def format_mean(key: str, entry: Mapping[str, Any], *, signed: bool = False) -> str:
    """Write an entry's mean with as many digits as its interval."""
    return format_value(key, entry["mean"], signed=signed, size=_size(entry))


def format_interval(key: str, entry: Mapping[str, Any], *, signed: bool = False) -> str:
    """Write `mean [low, high]`, or the mean alone where there is no interval."""
    mean, bounds = format_mean(key, entry, signed=signed), format_bounds(key, entry, signed=signed)
    return mean if bounds is None else f"{mean} [{bounds[0]}, {bounds[1]}]"


def _size(entry: Mapping[str, Any]) -> float | None:
    """The mean decides the digits, unless it is nearly 0 within a wide interval."""
    values = [entry[end] for end in ("mean", "low", "high") if entry.get(end) is not None]
    values = [abs(value) for value in values if math.isfinite(value)]
    if not values:
        return None
    return values[0] if values[0] >= 1e-2 else max(values)


def expected_by_chance(comparisons: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Say how many of the differences that have an interval would be marked if there were none; "" without any."""
    counted = [entry for entries in comparisons.values() for entry in entries.values() if entry.get("low") is not None]
    if not counted:
        return ""
    return (
        f"Each interval misses the truth once in 20 times: of {len(counted)} differences, about "
        f"{max(1, round(len(counted) / 20))} would exclude 0 though the runs were equal."
    )


def format_chance(key: str, entries: Sequence[Mapping[str, Any] | None]) -> str:
    """Write the chance level; where it differs between the entries, one for each."""
    levels = [entry.get("chance") if entry else None for entry in entries]
    return "" if set(levels) <= {None} else format_several([format_value(key, level) for level in levels])


def format_several(texts: Sequence[str]) -> str:
    """Write values side by side, those that agree once; of more than three, the first and the last."""
    distinct = list(dict.fromkeys(texts))
    if len(distinct) == 1:
        return distinct[0]
    return " / ".join(texts) if len(texts) <= 3 else f"{distinct[0]} … {distinct[-1]}"
