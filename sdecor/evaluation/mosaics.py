"""The sweep over mosaics of confidently classified images: the grid pointing game, which needs no object masks."""

import dataclasses
from typing import Any

import numpy as np

from sdecor import metrics
from sdecor.core import parallel
from sdecor.data.augment import center_crop
from sdecor.evaluation.choices import Method
from sdecor.evaluation.device import Setup, make_explanation
from sdecor.evaluation.results import Results, collect
from sdecor.evaluation.sweep import Advance, Item, Subject, batches, compiled, gathered, real_examples


@dataclasses.dataclass(frozen=True, eq=False)
class Mosaics:
    """Mosaics as examples of a source, one for each cell: its label is that of the image in the cell.

    Attributes:
      source: of the single images.
      members: places in the source, int `[M, size²]`.
      size: cells along a side.
      crop: side of the central crop of an image; None = all of it.
      resize: whether a mosaic has the size of one image.
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
    """Explain the class of each image in mosaics of `size`² images, and find its share of saliency in its own cell.

    Args:
      subject: what is evaluated.
      method: what explains.
      size: cells along a side.
      resize: whether mosaics have the size of one image, for networks that take no other.
      images: at most so many are put into mosaics.
      predicted: as of `predict`: the most confidently right images are chosen.
      advance: is told how many examples were done.

    Returns:
      `grid_pointing_game` of the images that are in a mosaic, which may be none.
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
    """Return how mosaics are fed: they are cropped already, and each asks for the class of one of its images."""
    return setup._replace(size=None, target="label")


def _members(predicted: Results, size: int, count: int, seed: int) -> np.ndarray:
    """Choose the images of `count` mosaics, or of as many as there can be: int `[M, size²]`."""
    labels, confidence, accuracy = (predicted.examples[name] for name in ("label", "confidence", "accuracy"))
    for fewer in range(count, 0, -1):
        try:
            return metrics.choose_mosaics(labels, confidence, accuracy > 0, size=size, count=fewer, seed=seed)
        except ValueError:  # too few images are classified right
            continue
    return np.empty((0, size**2), np.int64)
