"""TFDS builder of the embedded data set `xai_tris`: a configuration for each scenario, background and size."""

import tensorflow_datasets as tfds

from sdecor.data import tetrominoes
from sdecor.data.embedded import png

CONFIGURATIONS = {
    f"{scenario}_{background}_{size}": (scenario, background, size)
    for scenario in tetrominoes.SCENARIOS
    for background in tetrominoes.BACKGROUNDS
    for size in tetrominoes.SIZES
}


class XaiTris(tfds.core.GeneratorBasedBuilder):
    """Tetrominoes on noise, gray, with the exact pixels that tell the class."""

    progress = None  # if set, a function called with the number of newly drawn images

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Initial release."}
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in CONFIGURATIONS]

    @property
    def _chosen(self) -> tuple[str, str, str]:
        return CONFIGURATIONS[self.builder_config.name]

    def _info(self) -> tfds.core.DatasetInfo:
        scenario, _, size = self._chosen
        pixels = tetrominoes.SIZES[size].pixels
        shape = (pixels, pixels, 1)
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "The ground-truth benchmark of Clark et al. (2024), drawn anew: T and L tetrominoes on white, "
                "correlated or natural noise. The mask holds the pixels that tell the class, and no others."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=shape, encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=list(tetrominoes.CLASS_NAMES[scenario])),
                    "segmentation_mask": tfds.features.Image(shape=shape, encoding_format="png", doc="255 = object"),
                    "id": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://arxiv.org/abs/2306.12816",
            disable_shuffling=True,
        )

    def examples(self) -> int:
        """Return the number of examples in all splits."""
        return sum(tetrominoes.SIZES[self._chosen[2]].counts.values())

    def _split_generators(self, dl_manager):
        # TFDS calls our val split "validation".
        drawn, counts = tetrominoes.draw(*self._chosen), tetrominoes.SIZES[self._chosen[2]].counts
        names, start, generators = {"train": "train", "val": "validation", "test": "test"}, 0, {}
        for split, count in counts.items():
            generators[names[split]] = self._generate_examples(split, drawn, start, count)
            start += count
        return generators

    def _generate_examples(self, split, drawn, start, count):
        for i in range(count):
            if self.progress is not None:
                self.progress(1)
            yield (
                i,
                {
                    "image": png(drawn.images[start + i]),
                    "label": int(drawn.labels[start + i]),
                    "segmentation_mask": png(drawn.masks[start + i] * 255),
                    "id": f"{split}_{i:05d}",
                },
            )
