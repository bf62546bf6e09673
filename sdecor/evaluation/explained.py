"""The sweep that explains by one method and measures its explanations, each explained once for all measures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sdecor.core import parallel
from sdecor.evaluation.choices import Method
from sdecor.evaluation.device import Batch, make_explanation, make_measurement
from sdecor.evaluation.measures import WHOLE, Measure
from sdecor.evaluation.results import Results, collect, merge
from sdecor.evaluation.sweep import Advance, Item, Subject, batches, compiled, gathered, nested_order, real_examples

_CHEAP = ("maps", "object")  # needs of measures that are compiled together


def measure(
    subject: Subject,
    method: Method,
    measures: Sequence[Measure],
    *,
    images: Mapping[str, int],
    predicted: Results,
    pictures: int = 0,
    advance: Advance = lambda done: None,
    explain: Callable[[Batch], Batch] | None = None,
) -> tuple[Results, Results]:
    """Explain examples by one method and measure the explanations.

    Args:
      subject: what is evaluated.
      method: what explains.
      measures: what is measured, other than of mosaics.
      images: by measure, of how many examples, chosen at random; fewer are always among more.
      predicted: as of `predict`.
      pictures: the number of examples whose attributions are returned too.
      advance: is told how many examples were done.
      explain: gives the explanations of a batch on the devices, as of `make_explanation`; None = the method.

    Returns:
      Values of the examples measured, and `attributions` `[pictures, H, W, C]`.
    """
    key = subject.key()
    explain = explain or _explaining(subject, method, key)
    programs, sets = _programs(subject, method, measures, images), [each for each in measures if each.needs == "set"]
    keep = max(pictures, *(images[each.name] for each in sets), 0)
    targets, kept = predicted.examples["target"], []

    def step(item: Item) -> Any:
        start, batch = item
        batch = parallel.shard(batch | {"target": targets[batch["index"]]})
        outputs = {name: batch[name] for name in ("index", "weight")}
        batch |= explain(batch)
        if start < keep:
            arrays = {name: batch[name] for name in ("index", "weight", "attributions", "maps") if name in batch}
            kept.append(parallel.unshard(gathered(arrays)))
        without = {name: values for name, values in batch.items() if name != "attributions"}
        for program, whole, limit in programs:
            if start < limit:
                outputs |= program(subject.variables, batch if whole else without, key)
        advance(real_examples(item[1]))
        return gathered(outputs), {}

    order = nested_order(len(subject.source), {pictures, *images.values()})
    found = collect(step, batches(subject, subject.source, order))
    for each in sets:
        found = _of_set(each, found, _first(kept, order[: images[each.name]]), predicted)
    for each in measures:  # a measure's last batch may hold more examples than it is to measure
        beyond = ~np.isin(found.examples["index"], order[: images[each.name]])
        for name in each.gives:
            found.examples[name][beyond] = np.nan
    shown = _first(kept, order[:pictures]) if pictures else {}
    return found, Results({name: shown[name] for name in ("index", "attributions") if shown}, {})


def _explaining(subject: Subject, method: Method, key: jax.Array) -> Callable[[Batch], Batch]:
    program = compiled(make_explanation, subject.setup, method)
    return lambda batch: program(subject.variables, batch, key)


def _programs(
    subject: Subject, method: Method, measures: Sequence[Measure], images: Mapping[str, int]
) -> list[tuple[Callable[..., Any], bool, int]]:
    """Return programs, whether each looks at whole attributions, and of how many examples it measures.

    The cheap measures are one program; of the others each is one, whatever else is measured.
    """
    cheap = tuple(each for each in measures if each.needs in _CHEAP)
    groups = [cheap] if cheap else []
    groups += [(each,) for each in measures if each.needs not in (*_CHEAP, "set")]
    programs = []
    for group in groups:
        whole = group[0].needs in WHOLE  # then the program is this method's alone
        program = compiled(make_measurement, subject.setup, group, method if whole else None)
        programs.append((program, whole, images[group[0].name]))
    return programs


def _first(kept: Sequence[Mapping[str, np.ndarray]], chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Return the arrays of the examples `chosen`, ordered by index."""
    parts = []
    for arrays in kept:
        real = (arrays["weight"] > 0) & np.isin(arrays["index"], chosen)
        parts.append(Results({name: values[real] for name, values in arrays.items() if name != "weight"}, {}))
    return merge(parts).examples


def _of_set(measure: Measure, found: Results, arrays: Mapping[str, np.ndarray], predicted: Results) -> Results:
    """Add a measure of many maps at once."""
    index = arrays["index"]
    predictions = predicted.examples["prediction"][index]
    values = np.full(found.examples["index"].size, np.nan, np.float32)
    (name,) = measure.gives
    values[np.searchsorted(found.examples["index"], index)] = measure.function(
        arrays["maps"], predictions, **dict(measure.options)
    )
    return Results(found.examples | {name: values}, found.moments)
