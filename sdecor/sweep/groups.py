"""Which runs of a sweep one program may train at once, as replicas: those that differ in numbers alone."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sdecor.sweep import check, commands, record
from sdecor.sweep.plan import Run
from sdecor.training import logbook, replicas


class Group(NamedTuple):
    """Runs that are trained at once, or one run; `replicas` are what each of several has of its own, by key."""

    runs: tuple[Run, ...]
    replicas: Mapping[str, str] = {}

    def of(self, chosen: Sequence[Run]) -> "Group":
        """Return the group of these runs alone."""
        return Group(tuple(chosen), self.replicas)


def singly(runs: Sequence[Run]) -> list[Group]:
    """Return each run by itself."""
    return [Group((run,)) for run in runs]


def together(runs: Sequence[Run], folder: pathlib.Path, configs: Mapping[str, Any], size: int) -> list[Group]:
    """Put up to `size` runs into a group, in the order of the runs, where they can be trained at once.

    A run that is trained, or whose training failed, alone or in an earlier group, is by itself.

    Args:
      runs: of the sweep.
      folder: the sweep's.
      configs: of every cell, as of `check.check`.
      size: the most runs of a group.
    """
    found: list[list[Run]] = []
    open_groups: dict[str, list[Run]] = {}
    for run in runs:
        place = folder / run.key
        failed = record.read(place).get("failed", {}).get("stage") == "train"
        alone = (
            failed or record.is_done(place, run, "train") or replicas.failed_at(logbook.read_rows(place)) is not None
        )
        kind = _kind(configs[run.cell])
        group = open_groups.get(kind)
        if alone or group is None or len(group) >= size or not _at_the_same_step([*group, run], folder):
            group = []
            found.append(group)
            if not alone:
                open_groups[kind] = group
        group.append(run)
    return [_group(group, configs) for group in found]


def _kind(config: Mapping[str, Any]) -> str:
    """Return what the replicas of a program have in common, as text."""
    return json.dumps(replicas.common(check.flat(config)), sort_keys=True)


def _at_the_same_step(runs: Sequence[Run], folder: pathlib.Path) -> bool:
    saved = {
        run.key: [int(path.name) for path in (folder / run.key / "checkpoints").glob("*") if path.name.isdigit()]
        for run in runs
    }
    begun = [run.key for run in runs if logbook.read_rows(folder / run.key)]
    try:
        replicas.common_steps(saved, begun)
    except ValueError:
        return False
    return True


def _group(runs: Sequence[Run], configs: Mapping[str, Any]) -> Group:
    if len(runs) == 1:
        return Group(tuple(runs))
    values = {run.key: check.flat(configs[run.cell]) | {"seed": run.seed} for run in runs}
    own = [field for field in replicas.FIELDS if len({fields[field] for fields in values.values()}) > 1]
    texts = {key: replicas.text(replicas.Replica(key, {f: fields[f] for f in own})) for key, fields in values.items()}
    return Group(tuple(runs), texts)


def command(group: Group, stage: str, folder: pathlib.Path) -> list[str]:
    """Return the whole command line of a stage of a group in the sweep's `folder`."""
    first = group.runs[0]
    if len(group.runs) == 1:
        return commands.command(first, stage, folder)
    return commands.together(first, [group.replicas[run.key] for run in group.runs], folder)
