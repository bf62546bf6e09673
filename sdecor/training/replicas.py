"""Replicas: runs that differ only in numbers and are trained together by one program.

A replica is written `[NAME:]FIELD=NUMBER,FIELD=NUMBER`; its folder is NAME below --workdir. Replicas may differ in the
values that are arguments of the compiled step: the seed, and the numbers of `build.create_hyper`.
"""

import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sdecor.core.checks import check_choice, check_count, check_range
from sdecor.core.commands import parse_value

FAILED = "failed"  # `split` of the row in metrics.jsonl with the step at which a replica failed
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.=+-]*"
_NAME = re.compile(rf"{_PART}(/{_PART})*")


def weight_fields() -> tuple[str, ...]:
    """Return the config fields of the terms' weights.

    A term of weight 0 is not computed, so its weight must be 0 in all replicas or in none.
    """
    from sdecor.training.terms import TERMS  # needs JAX, without which a sweep starts

    return tuple(term.weight for term in TERMS.values())


def own_fields() -> tuple[str, ...]:
    """Return the config fields in which replicas may differ."""
    from sdecor.training.terms import TERMS

    ramps = tuple(term.ramp for term in TERMS.values())
    starts = tuple(term.start for term in TERMS.values() if term.start)
    others = ("masking.fraction", "masking.ramp_epochs", "optim.lr", "optim.weight_decay")
    return tuple(dict.fromkeys(("seed", *weight_fields(), *ramps, *starts, *others)))


class PartlyFinished(FloatingPointError):
    """An error after training: some replicas failed, the others are finished."""


class Replica(NamedTuple):
    """A replica: its name, which is its folder below --workdir, and the config fields that it changes."""

    name: str
    overrides: dict[str, float]


def parse(texts: Iterable[str]) -> tuple[Replica, ...]:
    """Parse replicas; the default name is made of the fields, such as `seed=1_optim.lr=0.01`.

    Raises:
      ValueError: for a field in which replicas cannot differ, a value that is no number, or two replicas with the same
        name or the same fields.
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
        check_choice(f"field of --replica={text!r} (what a replica can have of its own)", field, own_fields())
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
    """Return the text of a replica, in the form that `parse` reads."""
    fields = ",".join(f"{field}={value!r}" for field, value in replica.overrides.items())
    return f"{replica.name}:{fields}"


def common(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a config's fields, by dotted name, that replicas of one program must share.

    For a weight this is whether its term is computed.
    """
    kept = {name: value for name, value in fields.items() if name not in own_fields()}
    return kept | {name: fields[name] > 0 for name in weight_fields()}


def common_steps(saved: Mapping[str, Sequence[int]], begun: Container[str]) -> list[int]:
    """Return the steps from which all replicas can continue, latest first; empty if they start from the beginning.

    Replicas are saved one after the other, so after a kill some of them may be one checkpoint ahead.

    Args:
      saved: name → steps with a checkpoint.
      begun: names of the replicas that were trained before, even if killed before their first checkpoint.

    Raises:
      ValueError: if the replicas were not trained together: a replica would lose more than its last checkpoint, or one
        was never trained while others have a checkpoint.
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
    """Return a text about the failed replicas and their reasons; `failures` is name → reason, "" for the others."""
    listed = [f"  {name}: {failure}" for name, failure in failures.items() if failure]
    first = f"{len(listed)} of {len(failures)} replicas failed; start each of these again with a command of its own:"
    return "\n".join([first, *listed])


def failed_at(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the step at which a run failed, from the rows of its log; None if it did not fail."""
    return rows[-1]["step"] if rows and rows[-1]["split"] == FAILED else None
