"""Checks of plain values whose errors name the field, its value and what would be right."""

import difflib
from collections.abc import Iterable
from typing import Any


def check_choice(field: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise `ValueError` unless `value` is one of `choices`."""
    choices = tuple(choices)
    if value in choices:
        return
    close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    listed = ", ".join(repr(choice) for choice in choices)
    raise ValueError(f"{field} = {value!r} is not known{hint} It is one of: {listed}")


def check_range(
    field: str,
    value: float,
    low: float | None = None,
    high: float | None = None,
    *,
    low_open: bool = False,
    high_open: bool = False,
) -> None:
    """Raise `ValueError` unless `value` is a number between `low` and `high` (an open end excludes its bound)."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    above = number and (low is None or (value > low if low_open else value >= low))
    below = number and (high is None or (value < high if high_open else value <= high))
    if above and below:
        return
    left = "(-inf" if low is None else f"{'(' if low_open else '['}{low}"
    right = "inf)" if high is None else f"{high}{')' if high_open else ']'}"
    raise ValueError(f"{field} = {value!r} is out of range: it is a number in {left}, {right}")
