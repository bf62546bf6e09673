"""TFDS builder of the embedded data set `digit_scenes`."""

import os
import pathlib
from collections.abc import Mapping

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from sdecor.data import decoded, scenes, tfds_source
from sdecor.data.decode import Decoder
from sdecor.data.embedded import png

_COMPARED = 32  # records
NAME, VERSION = "digit_scenes", "1.0.0"


class DigitScenes(tfds.core.GeneratorBasedBuilder):
    """Real handwritten digits on real photographs, 32×32×3, with exact object masks and boxes."""

    progress = None  # if set, a function called with the number of newly drawn images
    drawn = None  # if a dict, gets the examples of each split, `decoded.EXAMPLE` `[N]`

    VERSION = tfds.core.Version(VERSION)
    RELEASE_NOTES = {"1.0.0": "Initial release."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Handwritten digits (UCI optdigits, as shipped with scikit-learn), enlarged, colored and placed at "
                "random position, scale and angle on random crops of the two photographs that scikit-learn ships, "
                "among fragments of other digits. Train, val and test share neither digit samples nor regions of the "
                "photographs."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(scenes.SIZE, scenes.SIZE, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=scenes.NUM_CLASSES),
                    "segmentation_mask": tfds.features.Image(
                        shape=(scenes.SIZE, scenes.SIZE, 1), encoding_format="png", doc="255 = object"
                    ),
                    "bbox": tfds.features.BBoxFeature(),
                    "id": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            disable_shuffling=True,
        )

    def examples(self) -> int:
        """Return the number of examples in all splits."""
        return sum(scenes.SPLIT_SIZES.values())

    def _split_generators(self, dl_manager):
        # TFDS calls our val split "validation".
        return {stored: self._generate_examples(stored) for stored in decoded.STORED}

    def _generate_examples(self, stored):
        split = decoded.STORED[stored]
        rows = np.empty(scenes.SPLIT_SIZES[split], decoded.EXAMPLE)
        if self.drawn is not None:
            self.drawn[stored] = rows
        for start in range(0, scenes.SPLIT_SIZES[split], scenes.CHUNK):
            images, labels, masks, boxes = chunk = scenes.draw_chunk(split, start)
            decoded.fill(rows, start, chunk)
            if self.progress is not None:
                self.progress(len(images))
            for i in range(len(images)):
                y0, x0, y1, x1 = (int(side) / scenes.SIZE for side in boxes[i])
                example = {
                    "image": png(images[i]),
                    "label": int(labels[i]),
                    "segmentation_mask": png(masks[i] * 255),
                    "bbox": tfds.features.BBox(ymin=y0, xmin=x0, ymax=y1, xmax=x1),
                    "id": f"{split}_{start + i:05d}",
                }
                yield start + i, example


def keep_decoded(target: pathlib.Path, drawn: Mapping[str, np.ndarray] | None = None) -> None:
    """Keep the examples as arrays beside the records, if they are missing, and are those of the records.

    They are not where Pillow decodes the photographs to other pixels, here or where the records were made.

    Args:
      target: the prepared directory.
      drawn: the examples of each split from which the records were just made; None draws them again.
    """
    for split, rows in (drawn or {}).items():
        decoded.write(target, split, rows)
    missing = [split for split in decoded.STORED if not os.path.exists(decoded.path_of(target, split))]
    if not missing or not scenes.photographs_as_expected() or not os.access(target, os.W_OK):
        return
    prepared = tfds_source.inspect(epath.Path(target), name=NAME)
    for split in missing:
        if not _is_drawn_here(prepared, split):
            return
        try:
            decoded.write(target, split, decoded.draw(split))
        except OSError:  # such as a full disk: the records have all
            return


def _is_drawn_here(prepared: tfds_source.Prepared, split: str) -> bool:
    """Return whether the first records of a split are what is drawn here; a background differs in every one."""
    source = tfds_source.TfdsSource(prepared, split, Decoder())
    images, labels, masks, boxes = scenes.draw_chunk(decoded.STORED[split], 0)
    if len(source) != scenes.SPLIT_SIZES[decoded.STORED[split]]:
        return False
    for index in range(_COMPARED):
        example = source[index]
        drawn = {"image": images[index], "label": labels[index], "object": masks[index], "box": boxes[index]}
        if not all(np.array_equal(example[field], value) for field, value in drawn.items()):
            return False
    return True
