"""Explanation and measurement by one method, over the images of a split and over mosaics of them.

Each example is explained once for all metrics of a method.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sdecor import metrics
from sdecor.core import parallel
from sdecor.data.augment import center_crop
from sdecor.evaluation.choices import Method
from sdecor.evaluation.groups import WHOLE, Group
from sdecor.evaluation.programs import (
    Advance,
    Batch,
    Item,
    Setup,
    Subject,
    batches,
    compiled,
    gathered,
    make_explanation,
    make_measurement,
    nested_order,
    real_examples,
)
from sdecor.evaluation.results import Results, collect, merge

_CHEAP = ("maps", "object")  # values of `Group.needs` that are compiled together


def measure(
    subject: Subject,
    method: Method,
    groups: Sequence[Group],
    *,
    images: Mapping[str, int],
    predicted: Results,
    pictures: int = 0,
    advance: Advance = lambda done: None,
    explain: Callable[[Batch], Batch] | None = None,
) -> tuple[Results, Results]:
    """Explain examples by one method and measure the explanations.

    Args:
      subject: the network and its data.
      method: the attribution method.
      groups: metrics to compute, except those of mosaics.
      images: group → number of examples, chosen at random; a smaller choice is part of a larger one.
      predicted: results of `predict`.
      pictures: number of examples whose attributions are returned.
      advance: called with the number of examples done since the last call.
      explain: function from a batch to its explanations on the devices, as of `make_explanation`; None for the method.

    Returns:
      Values of the measured examples, and `attributions` `[pictures, H, W, C]`.
    """
    key = subject.key()
    explain = explain or _explaining(subject, method, key)
    programs, sets = _programs(subject, method, groups, images), [each for each in groups if each.needs == "set"]
    keep = max(pictures, *(images[each.name] for each in sets), 0)
    there = predicted.examples["index"]  # fewer than the source has, if it leaves some out
    targets, kept = np.zeros(len(subject.source), np.int32), []
    targets[there] = predicted.examples["target"]

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
    order = order[np.isin(order, there)]
    found = collect(step, batches(subject, subject.source, order))
    for each in sets:
        found = _of_set(each, found, _first(kept, order[: images[each.name]]), predicted)
    for each in groups:  # a group's last batch may hold more examples than the group measures
        beyond = ~np.isin(found.examples["index"], order[: images[each.name]])
        for name in each.gives:
            found.examples[name][beyond] = np.nan
    shown = _first(kept, order[:pictures]) if pictures else {}
    return found, Results({name: shown[name] for name in ("index", "attributions") if shown}, {})


def _explaining(subject: Subject, method: Method, key: jax.Array) -> Callable[[Batch], Batch]:
    program = compiled(make_explanation, subject.setup, method)
    return lambda batch: program(subject.variables, batch, key)


def _programs(
    subject: Subject, method: Method, groups: Sequence[Group], images: Mapping[str, int]
) -> list[tuple[Callable[..., Any], bool, int]]:
    """Return compiled programs, each with whether it reads whole attributions, and its number of examples.

    All cheap groups are one program. Each other group is a program by itself, so that it compiles once for any choice.
    """
    cheap = tuple(each for each in groups if each.needs in _CHEAP)
    together = [cheap] if cheap else []
    together += [(each,) for each in groups if each.needs not in (*_CHEAP, "set")]
    programs = []
    for chosen in together:
        whole = chosen[0].needs in WHOLE  # then the program serves this method only
        program = compiled(make_measurement, subject.setup, chosen, method if whole else None)
        programs.append((program, whole, images[chosen[0].name]))
    return programs


def _first(kept: Sequence[Mapping[str, np.ndarray]], chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Return the kept arrays of the examples `chosen`, ordered by index."""
    parts = []
    for arrays in kept:
        real = (arrays["weight"] > 0) & np.isin(arrays["index"], chosen)
        parts.append(Results({name: values[real] for name, values in arrays.items() if name != "weight"}, {}))
    return merge(parts).examples


def _of_set(group: Group, found: Results, arrays: Mapping[str, np.ndarray], predicted: Results) -> Results:
    """Add the values of a group that compares many maps with one another."""
    index = arrays["index"]
    predictions = predicted.examples["prediction"][np.searchsorted(predicted.examples["index"], index)]
    values = np.full(found.examples["index"].size, np.nan, np.float32)
    (name,) = group.gives
    values[np.searchsorted(found.examples["index"], index)] = group.function(
        arrays["maps"], predictions, **dict(group.options)
    )
    return Results(found.examples | {name: values}, found.moments)


@dataclasses.dataclass(frozen=True, eq=False)
class Mosaics:
    """A source of M mosaics, with one example per cell whose label is that of the image in the cell.

    Attributes:
      source: source of the single images.
      members: indices of the images in the source, int `[M, size²]`.
      size: number of cells along a side.
      crop: side of the central crop of an image; None for the whole image.
      resize: whether mosaics are resized to the size of one image.
    """

    source: Any
    members: np.ndarray
    size: int
    crop: int | None
    resize: bool

    def __len__(self) -> int:
        return self.members.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        mosaic, cell = divmod(index, self.size**2)
        examples = [self.source[int(member)] for member in self.members[mosaic]]
        images = center_crop(np.stack([example["image"] for example in examples]), self.crop)
        made = np.asarray(metrics.make_mosaics(images[None].astype(np.float32), self.size, resize=self.resize))
        return {"image": np.rint(made[0]).astype(np.uint8), "label": examples[cell]["label"]}

    def name(self, index: int) -> str:
        mosaic, cell = divmod(index, self.size**2)
        return f"mosaic {mosaic} with {self.source.name(int(self.members[mosaic, cell]))}"


def grid_pointing_game(
    subject: Subject,
    method: Method,
    *,
    size: int,
    resize: bool,
    images: int,
    predicted: Results,
    advance: Advance = lambda done: None,
) -> Results:
    """Explain the class of each image in mosaics of `size`² images; return the share of saliency in its own cell.

    Args:
      subject: the network and its data.
      method: the attribution method.
      size: number of cells along a side.
      resize: whether mosaics are resized to the size of one image, for networks that accept no other size.
      images: largest number of images in mosaics.
      predicted: results of `predict`; the correct images of highest confidence are chosen.
      advance: called with the number of examples done since the last call.

    Returns:
      `grid_pointing_game` of the images in mosaics; empty if too few images are classified correctly.
    """
    members = _members(predicted, size, images // size**2, subject.seed)
    if not members.size:
        return Results({"index": members.ravel(), "grid_pointing_game": np.empty(0, np.float32)}, {})
    source = Mosaics(subject.source, members, size, subject.setup.size, resize)
    explain, key = compiled(make_explanation, mosaic_setup(subject.setup), method), subject.key()

    def step(item: Item) -> Any:
        _, batch = item
        batch = parallel.shard(batch | {"target": batch["label"]})
        outputs = {name: batch[name] for name in ("index", "weight")}
        outputs["maps"] = explain(subject.variables, batch, key)["maps"]
        advance(real_examples(item[1]))
        return gathered(outputs), {}

    maps = collect(step, batches(subject, source, np.arange(len(source)))).examples["maps"]
    cells = np.arange(len(source)) % size**2
    values = np.asarray(metrics.grid_pointing_game(maps, cells, size=size))
    order = np.argsort(members.ravel())
    return Results({"index": members.ravel()[order], "grid_pointing_game": values[order]}, {})


def mosaic_setup(setup: Setup) -> Setup:
    """Return the setup for mosaics, which are cropped already and explained for the class of their label."""
    return setup._replace(size=None, target="label")


def _members(predicted: Results, size: int, count: int, seed: int) -> np.ndarray:
    """Choose the images of `count` mosaics, or of fewer if there are too few correct ones: int `[M, size²]`."""
    labels, confidence, accuracy = (predicted.examples[name] for name in ("label", "confidence", "accuracy"))
    for fewer in range(count, 0, -1):
        try:
            chosen = metrics.choose_mosaics(labels, confidence, accuracy > 0, size=size, count=fewer, seed=seed)
            return predicted.examples["index"][chosen]
        except ValueError:  # too few images are classified correctly
            continue
    return np.empty((0, size**2), np.int64)
