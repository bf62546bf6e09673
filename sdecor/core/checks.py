"""Validation of plain values. Errors name the field, its value and the valid values."""

import difflib
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np


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
    number = _is_number(value)
    above = number and (low is None or (value > low if low_open else value >= low))
    below = number and (high is None or (value < high if high_open else value <= high))
    if above and below:
        return
    left = "(-inf" if low is None else f"{'(' if low_open else '['}{low}"
    right = "inf)" if high is None else f"{high}{')' if high_open else ']'}"
    raise ValueError(f"{field} = {value!r} is out of range: it is a number in {left}, {right}")


def check_count(field: str, value: int, low: int = 1, high: int | None = None) -> None:
    """Raise `ValueError` unless `value` is a whole number, from Python or NumPy, between `low` and `high`."""
    whole = _is_number(value) and _is_whole(value)
    if whole and operator.index(value) >= low and (high is None or operator.index(value) <= high):
        return
    most = "or more" if high is None else f"to {high}"
    raise ValueError(f"{field} = {value!r} is no such count: it is a whole number, {low} {most}")


def _is_number(value: Any) -> bool:
    """Return whether a value is one real number: from Python, or from NumPy or JAX without axes."""
    if type(value) in (int, float):  # as nearly always: the loop of training calls this at each step
        return True
    if isinstance(value, str | bytes) or np.ndim(value) > 0 or np.iscomplexobj(value):
        return False
    if isinstance(value, bool) or getattr(value, "dtype", None) == np.bool_:
        return False
    try:
        float(value)
    except TypeError:
        return False
    return True


def _is_whole(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return True
