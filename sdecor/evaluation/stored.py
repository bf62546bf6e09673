"""Stored maps, measured instead of explaining: which metrics they allow, and how a batch of them is read.

Metrics that stored maps do not allow are left out of presets with a note, and raise an error if named; see `restrict`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from sdecor.attribution import reduce
from sdecor.core import parallel
from sdecor.evaluation.choices import RANDOM, Method
from sdecor.evaluation.groups import WHOLE, Group
from sdecor.evaluation.plan import Plan
from sdecor.evaluation.programs import Batch, Setup, Subject, compiled
from sdecor.evaluation.results import Results


class Maps(NamedTuple):
    """The stored maps of a split, one per example in the order of the split.

    Attributes:
      read: `(key of the method, indices in the split int [n]) -> float32 [n, H, W]`, or `[n, H, W, C]` if not reduced.
      reduction: reduction over channels of the maps, one of `attribution.REDUCTIONS`; None for whole attributions.
      targets: explained classes, int `[N]`.
    """

    read: Callable[[str, np.ndarray], np.ndarray]
    reduction: str | None
    targets: np.ndarray


def restrict(plan: Plan, metrics: Mapping[str, bool], reduction: str | None) -> tuple[Plan, list[str]]:
    """Drop the metrics of a plan that stored maps do not allow.

    Args:
      plan: plan of the evaluation.
      metrics: result of `choose_metrics`.
      reduction: reduction of the stored maps, see `Maps`.

    Returns:
      The plan without these metrics, and one line for each of them.

    Raises:
      ValueError: if one of these metrics was named itself.
    """
    chosen, notes = [], []
    for group in plan.groups:
        reason = _missing(group, reduction)
        if reason is None:
            chosen.append(group)
        elif any(metrics.get(name, False) for name in group.gives):
            raise ValueError(f"--metrics has {group.title}, which stored maps do not tell: {reason}")
        else:
            notes.append(f"metric {group.title} is left out: {reason}")
    ordered = any(group.reference for group in chosen)
    methods = {key: method for key, method in plan.methods.items() if ordered or key != RANDOM.key}
    return plan._replace(groups=tuple(chosen), methods=methods), notes


def _missing(group: Group, reduction: str | None) -> str | None:
    """Return a text about the input of a group that is not stored; None if nothing is missing."""
    if group.needs == "mosaic":
        return "it explains mosaics of images, and maps of the images alone are stored; evaluate without --from_export"
    if reduction is not None and group.needs in WHOLE:
        return (
            f"it looks at whole attributions, and maps reduced by {reduction!r} are stored; "
            "export with --reduce=none, or evaluate without --from_export"
        )
    if reduction not in (None, "sum") and group.signed:
        return (
            f"it needs the signs of the attributions, and maps reduced by {reduction!r} are stored; "
            "export with --reduce=sum or --reduce=none, or evaluate without --from_export"
        )
    return None


def shown(maps: Maps, methods: Iterable[str], index: np.ndarray) -> Results:
    """Return the maps of some examples by key of the method, `[n, H, W, C]`; C = 1 if they are reduced."""
    read = {key: maps.read(key, index) for key in methods}
    whole = maps.reduction is None
    return Results({"index": index} | {key: x if whole else x[..., None] for key, x in read.items()}, {})


def explaining(subject: Subject, method: Method, maps: Maps) -> Callable[[Batch], Batch]:
    """Return the function that reads a method's stored maps of a batch, in place of that of `make_explanation`."""
    key = subject.key()

    def read(batch: Batch) -> Batch:
        places = np.maximum(batch["index"], 0)  # padding has index −1; its values have weight 0
        values = np.asarray(maps.read(method.key, places.reshape(-1)), np.float32)
        return _arrays(subject, maps, parallel.shard(values), key)

    return read


def _arrays(subject: Subject, maps: Maps, values: np.ndarray, key: jax.Array) -> Batch:
    """Return the arrays of `make_explanation` that the stored `values` `[devices, n, …]` allow."""
    if maps.reduction is None:
        program = compiled(make_reduction, subject.setup)
        return {"attributions": values} | program(subject.variables, {"attributions": values}, key)
    # `restrict` drops the metrics that read signs; NaN makes any other use visible.
    return {"maps": values, "signed": values if maps.reduction == "sum" else np.full_like(values, np.nan)}


def make_reduction(setup: Setup) -> Callable[[Any, Batch, jax.Array], Batch]:
    """Return `reduce_batch(variables, batch, key) -> arrays`: `maps` and `signed` from `attributions`."""

    def reduce_batch(variables: Any, batch: Batch, key: jax.Array) -> Batch:
        how = {"maps": setup.reduction, "signed": "sum"}
        return {name: reduce(batch["attributions"], how=each) for name, each in how.items()}

    return reduce_batch
