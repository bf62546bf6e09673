"""What tells the examples of a split from those of another, cheaply: without reading them all."""

from typing import Any

import numpy as np

from sdecor.core.files import digest
from sdecor.data.batches import evaluation_indices, object_mask, read
from sdecor.data.splits import Source

_READ = 16  # examples whose pixels are looked at
_DIGITS = 16  # of a checksum


def identity(source: Source) -> dict[str, Any]:
    """Return what changes when a split holds other examples.

    Returns:
      `examples`, their number; `labels` and `pixels`, checksums of all labels and of some images with their object
      masks; and `masks`, whether there are masks or boxes. Plain values, ready for JSON.
    """
    images, masks = [], []
    for index in evaluation_indices(len(source), _READ):
        try:
            example = read(source, index)
        except ValueError:  # whoever reads all examples says what is wrong with this one, or skips it
            continue
        images.append(example["image"])
        masks.append(object_mask(example))
    masks = [mask for mask in masks if mask is not None]
    return {
        "examples": len(source),
        "labels": digest([np.asarray(source.labels, np.int32)])[:_DIGITS],
        "pixels": digest([*images, *masks])[:_DIGITS],
        "masks": bool(masks),
    }
