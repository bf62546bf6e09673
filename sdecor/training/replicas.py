"""Replicas: runs that differ in numbers alone and are trained together by one program.

A replica is given as text, `[NAME:]FIELD=NUMBER,FIELD=NUMBER`, and lies in the folder NAME of the program's. What may
differ is what enters the compiled step as a value: the seed, and the numbers of `build.create_hyper`.
"""

import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sdecor.core.checks import check_choice, check_count, check_range
from sdecor.core.commands import parse_value
from sdecor.training.terms import TERMS

# A term whose weight is 0 is not computed: for all replicas, or for none.
WEIGHTS = tuple(term.weight for term in TERMS.values())
FIELDS = tuple(
    dict.fromkeys(
        (
            *("seed", *WEIGHTS, *(term.ramp for term in TERMS.values())),
            *("masking.fraction", "masking.ramp_epochs", "optim.lr", "optim.weight_decay"),
        )
    )
)
PARTLY = 3  # exit status of train.py when some replicas failed and the others are finished
FAILED = "failed"  # the split of the row in metrics.jsonl that says at which step a replica failed
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.=+-]*"
_NAME = re.compile(rf"{_PART}(/{_PART})*")


class PartlyFinished(FloatingPointError):
    """Some replicas failed, the others are finished."""


class Replica(NamedTuple):
    """A replica: the folder within the program's, and the fields that are its own."""

    name: str
    overrides: dict[str, float]


def parse(texts: Iterable[str]) -> tuple[Replica, ...]:
    """Read replicas from their texts; without a name one is called by its fields, `seed=1_optim.lr=0.01`.

    Raises:
      ValueError: for a field that replicas cannot differ in, what is no number, or two replicas of the same name or
        of the same fields.
    """
    found = tuple(map(_parse, texts))
    for attribute, what in (("name", "name"), ("overrides", "fields")):
        values = [getattr(replica, attribute) for replica in found]
        twice = [replica.name for replica in found if values.count(getattr(replica, attribute)) > 1]
        if twice:
            raise ValueError(f"--replica: {' and '.join(twice)} have the same {what}: let each have its own")
    for outer in found:
        inner = [replica.name for replica in found if replica.name.startswith(f"{outer.name}/")]
        if inner:
            raise ValueError(f"--replica: {inner[0]} would lie within the folder of the run {outer.name}: rename one")
    return found


def _parse(text: str) -> Replica:
    name, colon, fields = text.rpartition(":")
    overrides = {}
    for part in fields.split(","):
        field, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"--replica={text!r}: {part!r} should be FIELD=NUMBER, for example seed=1")
        check_choice(f"field of --replica={text!r} (what a replica can have of its own)", field, FIELDS)
        if field in overrides:
            raise ValueError(f"--replica={text!r} has {field} twice: name it once")
        overrides[field] = _number(f"{field} of --replica={text!r}", field, value)
    name = name if colon else fields.replace(",", "_")
    if not _NAME.fullmatch(name):
        raise ValueError(f"--replica={text!r}: {name!r} should be a folder below --workdir, of letters, digits, _.=+-")
    return Replica(name, overrides)


def _number(what: str, field: str, text: str) -> float:
    value = parse_value(text)
    if field == "seed":
        check_count(what, value, 0)
        return value
    if isinstance(value, str) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{what} is {text!r}: it should be a number, and finite")
    check_range(what, value)
    return float(value)


def text(replica: Replica) -> str:
    """Write a replica as `parse` reads it."""
    fields = ",".join(f"{field}={value!r}" for field, value in replica.overrides.items())
    return f"{replica.name}:{fields}"


def common(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return of a config's fields, by dotted names, what replicas of one program have in common.

    Of a weight this is whether its term is computed at all.
    """
    kept = {name: value for name, value in fields.items() if name not in FIELDS}
    return kept | {name: fields[name] > 0 for name in WEIGHTS}


def common_steps(saved: Mapping[str, Sequence[int]], begun: Container[str]) -> list[int]:
    """Return the steps from which all replicas can go on, latest first; empty where they start anew.

    They are saved together, one after the other, so that a kill leaves some of them one checkpoint ahead.

    Args:
      saved: name → steps that have a checkpoint.
      begun: the names of those that were trained before, with a checkpoint or killed before their first.

    Raises:
      ValueError: when more than the last checkpoint of a replica would be lost, or one was never begun where others
        have a checkpoint: they were not trained together.
    """
    steps = sorted(set.intersection(*map(set, saved.values())), reverse=True)
    last = steps[0] if steps else 0
    behind = any(saved.values()) and not all(each or name in begun for name, each in saved.items())
    if behind or any(sum(step > last for step in each) > 1 for each in saved.values()):
        listed = "; ".join(f"{name}: {max(each, default=0)}" for name, each in saved.items())
        raise ValueError(
            f"the replicas are at different steps ({listed}) and have no recent checkpoint in common: train those at "
            "the same step together, the others by commands of their own"
        )
    return steps


def list_failures(failures: Mapping[str, str]) -> str:
    """Return a text about the replicas that failed, of why each did (name → reason, empty for the others)."""
    listed = [f"  {name}: {failure}" for name, failure in failures.items() if failure]
    first = f"{len(listed)} of {len(failures)} replicas failed; start each of these again with a command of its own:"
    return "\n".join([first, *listed])


def failed_at(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the step at which a run's rows say that it failed, None where they do not."""
    return rows[-1]["step"] if rows and rows[-1]["split"] == FAILED else None
