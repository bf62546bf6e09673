"""Plain-text table of runs for a terminal, and the differences between configs."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from sdecor.core import files
from sdecor.report.wording import (
    ARROWS,
    direction,
    expected_by_chance,
    format_chance,
    format_interval,
    format_retest,
    is_retested,
    keys_by_method,
    method_title,
    title,
)


def terminal_table(
    summaries: Mapping[str, Mapping[str, Mapping[str, Any]]],
    comparisons: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
) -> str:
    """Return an aligned table of runs side by side: a block for the model, then one for each attribution method.

    Args:
      summaries: run → key → `mean`, `low`, `high`, `n`, `chance`, from `summary.summarise`; the first run is the
        reference.
      comparisons: run → key → difference to the reference, from `summary.compare`.

    Returns:
      Text with a row for each metric: chance level, each run's mean with its interval, the number of images, and the
      difference, marked better or worse by `summary.compare`. Several differences are in a second table below.
    """
    comparisons = comparisons or {}
    runs, several = list(summaries), len(comparisons or {}) > 1
    beside = {} if several else comparisons
    groups = keys_by_method(key for summary in summaries.values() for key in summary)
    header = ["", "chance", *runs, "n", *("paired difference" for _ in beside)]
    text = _blocks(header, groups, partial(_row, summaries=summaries, comparisons=beside), right={1, 2 + len(runs)})
    if several:
        header = ["Paired difference", *(f"{run} − {runs[0]}" for run in comparisons)]
        text += ["", *_blocks(header, groups, partial(_differences, comparisons=comparisons), right=set())]
    note = "mean [95 % bootstrap interval] · ↑ more is better, ↓ less is better"
    if is_retested(summaries):
        note += " · ± standard deviation over the metric's random numbers (retest)"
    return "\n".join([*text, note, *_by_chance(comparisons)])


def _blocks(
    header: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    row: Callable[[str], list[str]],
    right: set[int],
) -> list[str]:
    """Return the lines of a table, with a block of rows between rules for each group of keys."""
    rows = [[row(key) for key in keys] for keys in groups.values()]
    lines = _align([header, *(row for group in rows for row in group)], right)
    rule = "─" * max(map(len, lines))
    text, rest = [lines[0]], lines[1:]
    for method, group in zip(groups, rows, strict=True):
        headed = list(groups) != [""]  # metrics of the model alone need no heading
        text += [rule] if not headed else [rule, method_title(method) if method else "Model"]
        text, rest = text + rest[: len(group)], rest[len(group) :]
    return [*text, rule]


def _by_chance(comparisons: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Return a line about the number of marks that are expected by chance, if any."""
    found = expected_by_chance(comparisons)
    return [found] if found else []


def _row(key: str, summaries: Mapping[str, Any], comparisons: Mapping[str, Any]) -> list[str]:
    entries = [summary.get(key) for summary in summaries.values()]
    counts = sorted({entry["n"] for entry in entries if entry})
    return [
        _title(key),
        format_chance(key, entries),
        *(
            "–" if entry is None else f"{format_interval(key, entry)} {format_retest(key, entry)}".rstrip()
            for entry in entries
        ),
        "–".join(str(count) for count in dict.fromkeys((counts[0], counts[-1]))),
        *(_difference(key, comparison.get(key)) for comparison in comparisons.values()),
    ]


def _differences(key: str, comparisons: Mapping[str, Any]) -> list[str]:
    return [_title(key), *(_difference(key, comparison.get(key)) for comparison in comparisons.values())]


def _title(key: str) -> str:
    return f"{title(key)} {ARROWS[direction(key)]}".rstrip()


def _difference(key: str, entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    mark = {True: "  ✓ better", False: "  ✗ worse", None: ""}[entry["better"]]
    return format_interval(key, entry, signed=True) + mark


def _align(rows: Sequence[Sequence[str]], right: set[int]) -> list[str]:
    """Pad cells to columns and return the lines; columns in `right` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def config_differences(configs: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Return the fields whose values differ between runs.

    Args:
      configs: run → config; fields of nested mappings are named `group.field`.

    Returns:
      `(field, [value of each run])`; the value is None for a run without the field.
    """
    leaves = [files.flat(config) for config in configs.values()]
    fields = dict.fromkeys(field for config in leaves for field in config)
    rows = [(field, [config.get(field) for config in leaves]) for field in fields]
    return [(field, values) for field, values in rows if any(value != values[0] for value in values)]
