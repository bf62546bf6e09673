"""TFDS builder of the embedded data set `digit_scenes`."""

import tensorflow_datasets as tfds

from sdecor.data import scenes
from sdecor.data.embedded import png

NAME, VERSION = "digit_scenes", "1.0.0"


class DigitScenes(tfds.core.GeneratorBasedBuilder):
    """Real handwritten digits on real photographs, 32×32×3, with exact object masks and boxes."""

    progress = None  # if set, a function called with the number of newly drawn images

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
        names = {"train": "train", "validation": "val", "test": "test"}
        return {stored: self._generate_examples(split) for stored, split in names.items()}

    def _generate_examples(self, split):
        for start in range(0, scenes.SPLIT_SIZES[split], scenes.CHUNK):
            images, labels, masks, boxes = scenes.draw_chunk(split, start)
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
