"""A sweep as plain data: its cells, seeds and tests; read from a sweep file, kept in the sweep's folder.

A sweep file has a function `get_config()` that returns a dictionary (see docs/sweeps.md):

    base       {"config": a config file, "overrides": {field: value}}, for all cells
    cells      list of (name, overrides); a cell's overrides take precedence over those of base
    seeds      number of seeds, or a list of seeds
    evaluate   flags of evaluate.py, {"methods": [...], "metrics": [...], "split": "test", ...}
    tags       {"references": [cells], "measures": [main measures], "factors": {cell: {factor: value}}}
    tests      the preregistered tests, list of (cell, measure, reference)

A field is the dotted name of a config field, such as "masking.fraction". A name without a dot is a word of the config
string: {"method": "sgt", "runlocal": True} is FILE:method=sgt,runlocal.
"""

import dataclasses
import importlib.util
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sdecor.core import files
from sdecor.core.checks import check_choice, check_count
from sdecor.core.commands import parse_value

ROOT = pathlib.Path(__file__).parents[2]  # the repository, with train.py, evaluate.py and configs/
KEYS = ("base", "cells", "seeds", "evaluate", "tags", "tests")
TAGS = ("references", "measures", "factors")
REPORT, PLAN, SLURM = "report", "sweep.json", "slurm"  # in the sweep's folder, beside the cells
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=+-]*")


class Trial(NamedTuple):
    """One cell with one seed.

    Attributes:
      cell: name of the cell.
      seed: the run's seed.
      config: file of the base config, absolute or relative to the repository.
      overrides: the cell's overrides.
      evaluate: flags of evaluate.py.
    """

    cell: str
    seed: int
    config: str
    overrides: dict[str, Any]
    evaluate: dict[str, Any]

    @property
    def key(self) -> str:
        """The trial's folder, within the sweep's folder."""
        return f"{self.cell}/seed{self.seed}"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A valid sweep.

    Attributes:
      config: file of the base config.
      cells: name → overrides, those of the base included.
      seeds: the seeds of every cell.
      evaluate: flags of evaluate.py.
      tags: `references`, `measures` and `factors`, for the report.
      tests: the preregistered tests, `(cell, measure, reference)`.
    """

    config: str
    cells: dict[str, dict[str, Any]]
    seeds: tuple[int, ...]
    evaluate: dict[str, Any]
    tags: dict[str, Any]
    tests: tuple[tuple[str, str, str], ...]

    def trials(self, only: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Trial]:
        """Return the trials, all cells of the first seed before those of the second.

        Args:
          only: the cells to return; empty = all.
          seeds: the seeds to return; empty = all.

        Raises:
          ValueError: for a cell or a seed that the sweep does not have.
        """
        for cell in only:
            check_choice("--only", cell, self.cells)
        for seed in seeds:
            check_choice("--seeds", seed, self.seeds)
        return [
            Trial(cell, seed, self.config, overrides, self.evaluate)
            for seed in self.seeds
            for cell, overrides in self.cells.items()
            if (not only or cell in only) and (not seeds or seed in seeds)
        ]


def check_repository() -> None:
    """Raise `ValueError` unless the package lies in a clone of the repository, beside train.py and evaluate.py."""
    missing = [name for name in ("train.py", "evaluate.py") if not (ROOT / name).is_file()]
    if missing:
        raise ValueError(
            f"a sweep starts train.py and evaluate.py, and {ROOT} has no {' and no '.join(missing)}: the installed "
            "package does not hold them. Clone the repository of sdecor and start the sweep in the clone"
        )


def make(content: Mapping[str, Any]) -> Sweep:
    """Return the sweep that the content of a sweep file describes.

    Raises:
      ValueError: naming the wrong entry and a right value.
    """
    for key in content:
        check_choice("entry of the sweep", key, KEYS)
    base = dict(content.get("base", {}))
    for key in base:
        check_choice("entry of base", key, ("config", "overrides"))
    cells = _cells(content.get("cells", ()), dict(base.get("overrides", {})))
    tags = _tags(content.get("tags", {}), cells)
    tests = tuple(tuple(test) for test in content.get("tests", ()))
    for test in tests:
        if len(test) != 3:
            raise ValueError(f"tests has {test!r}: a test is (cell, measure, reference)")
        check_choice(f"cell of the test {test!r}", test[0], cells)
        check_choice(f"reference of the test {test!r}", test[2], cells)
        if test[0] == test[2]:
            raise ValueError(f"tests has {test!r}: a cell is compared with another one")
    if len(set(tests)) < len(tests):
        raise ValueError(f"tests has {next(t for t in tests if tests.count(t) > 1)!r} twice: name each test once")
    config = base.get("config", "configs/default.py")
    if ":" in config:
        raise ValueError(f"base.config = {config!r}: name the file alone, and {{'method': …}} among the overrides")
    return Sweep(config, cells, _seeds(content.get("seeds", 1)), dict(content.get("evaluate", {})), tags, tests)


def _cells(given: Sequence[tuple[str, Mapping[str, Any]]], base: dict[str, Any]) -> dict[str, dict[str, Any]]:
    if not given:
        raise ValueError("cells is empty: list at least one (name, overrides)")
    cells: dict[str, dict[str, Any]] = {}
    for cell in given:
        if len(cell) != 2 or not isinstance(cell[0], str) or not isinstance(cell[1], Mapping):
            raise ValueError(f"cells has {cell!r}: a cell is (name, {{field: value}})")
        name, overrides = cell
        if not _NAME.fullmatch(name) or name in (REPORT, SLURM, PLAN):
            raise ValueError(
                f"cells has the name {name!r}: it is the name of a folder, of letters, digits and _.=+-, "
                f"and none of {REPORT}, {SLURM} and {PLAN}"
            )
        if name in cells:
            raise ValueError(f"cells has the name {name!r} twice: give each cell a name of its own")
        cells[name] = base | dict(overrides)
        if "seed" in cells[name]:
            raise ValueError(f"the overrides of {name!r} have a seed: list the seeds under seeds")
    return cells


def _seeds(given: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(given, int):
        check_count("seeds", given)
        return tuple(range(given))
    for seed in given:
        check_count("seeds", seed, 0)
    if not given or len(set(given)) < len(given):
        raise ValueError(f"seeds = {given!r}: give each seed once, and one at least")
    return tuple(given)


def _tags(given: Mapping[str, Any], cells: Mapping[str, Any]) -> dict[str, Any]:
    for key in given:
        check_choice("entry of tags", key, TAGS)
    for cell in given.get("references", ()):
        check_choice("tags.references", cell, cells)
    for cell in given.get("factors", {}):
        check_choice("cell of tags.factors", cell, cells)
    kinds = {"references": list, "measures": list, "factors": dict}
    return {key: kind(given.get(key, ())) for key, kind in kinds.items()}


def load(path: str, settings: Sequence[str] = ()) -> Sweep:
    """Load a sweep file.

    Args:
      path: FILE, or FILE:ARGUMENT for a `get_config` that takes an argument.
      settings: changes to the sweep, `evaluate.FLAG=VALUE` or `config.FIELD=VALUE`.

    Raises:
      ValueError: for a wrong file or setting; the message names a right one.
    """
    name, colon, argument = path.partition(":")
    file = pathlib.Path(name)
    if not file.is_file():
        raise ValueError(f"--config = {name!r} is no file: name a sweep file, for example configs/sweeps/ablation.py")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))  # for `from configs import …`
    spec = importlib.util.spec_from_file_location(f"_sweep_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"--config = {name!r} is no sweep file: it has no function get_config()")
    content = dict(module.get_config(argument) if colon else module.get_config())
    return make(_changed(content, settings))


def write(folder: pathlib.Path, sweep: Sweep) -> None:
    """Keep the sweep in its folder, for the report; several sweeps may, at once."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / PLAN, files.plain(dataclasses.asdict(sweep)))


def read(folder: pathlib.Path) -> Sweep:
    """Return the sweep that was last started in `folder`.

    Raises:
      ValueError: when `folder` holds no sweep, or its file is damaged.
    """
    if not (folder / PLAN).is_file():
        raise ValueError(f"{folder} holds no sweep: {folder / PLAN} is missing. Start one with --config and --workdir")
    remedy = "run the sweep's command again, with --config: it writes the file anew"
    stored = files.read_json(folder / PLAN, remedy=remedy)
    try:
        tests = tuple(tuple(test) for test in stored.pop("tests"))
        return Sweep(**stored | {"seeds": tuple(stored["seeds"]), "tests": tests})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / PLAN} is of another version, or damaged ({error!r}): {remedy}") from error


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds of `0:3` (0, 1, 2) or of `0,2`.

    Raises:
      ValueError: for any other form.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match and int(match[1]) < int(match[2]):
        return tuple(range(int(match[1]), int(match[2])))
    if re.fullmatch(r"\d+(,\d+)*", text):
        return tuple(int(word) for word in text.split(","))
    raise ValueError(f"--seeds = {text!r} is not known: give 0:3 for the seeds 0, 1 and 2, or a list 0,2")


def _changed(content: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    for setting in settings:
        field, equals, text = setting.partition("=")
        group, dot, name = field.partition(".")
        if not equals or not dot or group not in ("evaluate", "config"):
            raise ValueError(f"--set = {setting!r} is not known: give evaluate.FLAG=VALUE or config.FIELD=VALUE")
        value = parse_value({"true": "True", "false": "False"}.get(text, text))
        if group == "evaluate":
            content = content | {"evaluate": {**content.get("evaluate", {}), name: value}}
        else:  # overrides every cell, and what the sweep file says there
            cells = [(cell, {**overrides, name: value}) for cell, overrides in content.get("cells", ())]
            content = content | {"cells": cells}
    return content
