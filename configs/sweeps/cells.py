"""Cells of a sweep: grids, and changes of one thing at a time.

A cell is (name, overrides); names are made of what varies. Lists of cells are joined with `+`.
"""


def grid(axes: dict[str, list], *, prefix: str = "", also: dict | None = None) -> list[tuple[str, dict]]:
    """Return a cell for each combination of the axes' values.

    Args:
      axes: field → its values, `{"decorrelation.weight": [0.1, 1.0], "masking.fraction": [0.25, 0.5]}`.
      prefix: of the names.
      also: overrides of every cell.
    """
    combinations: list[dict] = [{}]
    for field, values in axes.items():
        combinations = [chosen | {field: value} for chosen in combinations for value in values]
    return [(_name(prefix, chosen), (also or {}) | chosen) for chosen in combinations]


def one_factor(axes: dict[str, list], *, prefix: str = "", also: dict | None = None) -> list[tuple[str, dict]]:
    """Return a cell for each value of each axis alone; leave the value out that `also` or the base has already."""
    return [cell for field, values in axes.items() for cell in grid({field: values}, prefix=prefix, also=also)]


def factors(axes: dict[str, list], *, prefix: str = "") -> dict[str, dict]:
    """Return, for the report, which factor the cells of `one_factor` vary: cell → {field: value}."""
    return {_name(prefix, {field: value}): {field: value} for field, values in axes.items() for value in values}


def against(cells: list[str], measures: list[str], references: list[str]) -> list[tuple[str, str, str]]:
    """Return the test of each cell in each measure against each reference other than itself."""
    return [(c, measure, r) for measure in measures for r in references for c in cells if c != r]


def _name(prefix: str, chosen: dict) -> str:
    words = [f"{field.rpartition('.')[2]}={_word(value)}" for field, value in chosen.items()]
    return "_".join([prefix, *words] if prefix else words)


def _word(value: object) -> str:
    word = "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return "".join(letter if letter.isalnum() or letter in "_.+-" else "-" for letter in word)  # it names a folder
