"""Where a sweep comes from: its file, changes on the command line, and the copy that is kept in its folder."""

import ast
import dataclasses
import importlib.util
import json
import os
import pathlib
import platform
import re
import sys
from collections.abc import Sequence
from typing import Any

from sdecor.core import files
from sdecor.sweep.plan import PLAN, ROOT, Sweep, make


def load(path: str, settings: Sequence[str] = ()) -> Sweep:
    """Read a sweep file.

    Args:
      path: of the file, FILE or FILE:ARGUMENT where its `get_config` takes one.
      settings: changes, `evaluate.FLAG=VALUE` or `config.FIELD=VALUE`.

    Raises:
      ValueError: for a file or a setting that cannot be; the message says what would be right.
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
    temporary = folder / f".{PLAN}.{platform.node()}.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(files.plain(dataclasses.asdict(sweep)), indent=2, ensure_ascii=False) + "\n")
    temporary.replace(folder / PLAN)


def read(folder: pathlib.Path) -> Sweep:
    """Return the sweep that was last started in `folder`.

    Raises:
      ValueError: when there is none.
    """
    if not (folder / PLAN).is_file():
        raise ValueError(f"{folder} holds no sweep: {folder / PLAN} is missing. Start one with --config and --workdir")
    stored = json.loads((folder / PLAN).read_text())
    tests = tuple(tuple(test) for test in stored.pop("tests"))
    return Sweep(**stored | {"seeds": tuple(stored["seeds"]), "tests": tests})


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds that `0:3` (0, 1, 2) or `0,2` stand for.

    Raises:
      ValueError: for another form.
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
        if group == "evaluate":
            content = content | {"evaluate": {**content.get("evaluate", {}), name: _value(text)}}
        else:  # it holds for every cell, whatever the sweep file says there
            cells = [(cell, {**overrides, name: _value(text)}) for cell, overrides in content.get("cells", ())]
            content = content | {"cells": cells}
    return content


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return {"true": True, "false": False}.get(text, text)
