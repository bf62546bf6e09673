"""Stored maps, which are measured in place of explaining: what they tell of a plan, and how a batch of them is read.

What cannot be told from the stored maps is left out with a note, or refused where it was named: see `restrict`.
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
    """The stored explanations of a split, one for each example in the order of the split.

    Attributes:
      read: `(method's key, places in the split int [n]) -> float32 [n, H, W]`, or `[n, H, W, C]` where not reduced.
      reduction: from channels to a map, see `attribution.REDUCTIONS`; None = the attributions are whole.
      targets: the classes explained, int `[N]`.
    """

    read: Callable[[str, np.ndarray], np.ndarray]
    reduction: str | None
    targets: np.ndarray


def restrict(plan: Plan, metrics: Mapping[str, bool], reduction: str | None) -> tuple[Plan, list[str]]:
    """Leave out of a plan what stored maps do not tell.

    Args:
      plan: what is wanted.
      metrics: as of `choose_metrics`.
      reduction: of the stored maps, see `Maps`.

    Returns:
      The plan without those metrics, and a line for each of them.

    Raises:
      ValueError: when one of them was named itself.
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
    """Return what a group needs that is not stored; None where nothing is missing."""
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
    """Return the maps of some examples under the methods' keys, `[n, H, W, C]`; C = 1 where they are reduced."""
    read = {key: maps.read(key, index) for key in methods}
    return Results({"index": index} | {key: x[..., None] if x.ndim == 3 else x for key, x in read.items()}, {})


def explaining(subject: Subject, method: Method, maps: Maps) -> Callable[[Batch], Batch]:
    """Return the function that reads a method's stored explanations of a batch, in place of `make_explanation`'s."""
    key = subject.key()

    def read(batch: Batch) -> Batch:
        places = np.maximum(batch["index"], 0)  # padding has none, and no weight either
        values = np.asarray(maps.read(method.key, places.reshape(-1)), np.float32)
        return _arrays(subject, maps, parallel.shard(values), key)

    return read


def _arrays(subject: Subject, maps: Maps, values: np.ndarray, key: jax.Array) -> Batch:
    """Return what an explanation of the batch gives, of the stored `values` `[devices, n, …]`."""
    if maps.reduction is None:
        program = compiled(make_reduction, subject.setup)
        return {"attributions": values} | program(subject.variables, {"attributions": values}, key)
    # Without signs there is no metric that looks at them, see `restrict`; one that did would be undefined.
    return {"maps": values, "signed": values if maps.reduction == "sum" else np.full_like(values, np.nan)}


def make_reduction(setup: Setup) -> Callable[[Any, Batch, jax.Array], Batch]:
    """Return `reduce_batch(variables, batch, key) -> arrays`, the `maps` and `signed` of `attributions`."""

    def reduce_batch(variables: Any, batch: Batch, key: jax.Array) -> Batch:
        how = {"maps": setup.reduction, "signed": "sum"}
        return {name: reduce(batch["attributions"], how=each) for name, each in how.items()}

    return reduce_batch
