"""Cells of a sweep: grids, and changes of one field at a time.

A cell is (name, overrides); its name lists the fields that vary. Join lists of cells with `+`.
"""


def grid(axes: dict[str, list], *, prefix: str = "", also: dict | None = None) -> list[tuple[str, dict]]:
    """Return a cell for each combination of the axes' values.

    Args:
      axes: field → values, such as `{"decorrelation.weight": [0.1, 1.0], "masking.fraction": [0.25, 0.5]}`.
      prefix: prefix of the cells' names.
      also: further overrides of every cell.
    """
    combinations: list[dict] = [{}]
    for field, values in axes.items():
        combinations = [chosen | {field: value} for chosen in combinations for value in values]
    return [(_name(prefix, chosen), (also or {}) | chosen) for chosen in combinations]


def one_factor(axes: dict[str, list], *, prefix: str = "", also: dict | None = None) -> list[tuple[str, dict]]:
    """Return a cell for each value of each axis alone; leave out values that `also` or the base has already."""
    return [cell for field, values in axes.items() for cell in grid({field: values}, prefix=prefix, also=also)]


def factors(axes: dict[str, list], *, prefix: str = "") -> dict[str, dict]:
    """Return the field that each cell of `one_factor` varies, for the report: cell → {field: value}."""
    return {_name(prefix, {field: value}): {field: value} for field, values in axes.items() for value in values}


def against(cells: list[str], measures: list[str], references: list[str]) -> list[tuple[str, str, str]]:
    """Return the tests (cell, metric, reference) of each cell in each metric against each other reference."""
    return [(c, measure, r) for measure in measures for r in references for c in cells if c != r]


def _name(prefix: str, chosen: dict) -> str:
    words = [f"{field.rpartition('.')[2]}={_word(value)}" for field, value in chosen.items()]
    return "_".join([prefix, *words] if prefix else words)


def _word(value: object) -> str:
    word = "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return "".join(letter if letter.isalnum() or letter in "_.+-" else "-" for letter in word)  # for a folder's name
