"""TFDS builder of `digit_scenes`, the embedded data set: prepared in seconds, without download and TensorFlow."""

import contextlib
import io
import os
import pathlib
import tempfile
import warnings

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from sdecor.data import decoded, scenes, tfds_source
from sdecor.data.decode import Decoder

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
                    "image": _png(images[i]),
                    "label": int(labels[i]),
                    "segmentation_mask": _png(masks[i] * 255),
                    "bbox": tfds.features.BBox(ymin=y0, xmin=x0, ymax=y1, xmax=x1),
                    "id": f"{split}_{start + i:05d}",
                }
                yield start + i, example


def prepare(data_dir: str | os.PathLike) -> pathlib.Path:
    """Return the prepared directory under `data_dir`; build the data set there first if it is missing.

    The data set is built in a temporary directory and moved in one step, so that a killed process leaves nothing
    half-made. If two processes build it at once, the first to finish wins (both draw the same arrays).

    Raises:
      ValueError: when `data_dir` is remote.
    """
    if "://" in os.fspath(data_dir):
        raise ValueError(
            f"data.data_dir = {os.fspath(data_dir)!r} is remote: {NAME} is drawn in seconds, give it a local directory"
        )
    root = pathlib.Path(data_dir).expanduser()
    target = root / NAME / VERSION
    if (target / "dataset_info.json").exists():
        keep_decoded(target)
        return target
    if not scenes.photographs_as_expected():
        warnings.warn(
            f"Pillow decodes scikit-learn's photographs to other pixels here: this {NAME} differs slightly from the "
            "published one; install the wheel of Pillow from PyPI to get the same",
            stacklevel=2,
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=root) as scratch:
        _build(scratch)
        try:
            os.rename(pathlib.Path(scratch) / NAME / VERSION, target)
        except OSError:
            if not (target / "dataset_info.json").exists():
                raise
    return target


def keep_decoded(target: pathlib.Path) -> None:
    """Keep the examples as arrays beside the records, if they are missing, and are those of the records.

    They are not where Pillow decodes the photographs to other pixels, here or where the records were made.
    """
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


def _build(data_dir: str) -> None:
    """Build the data set with one progress bar, without TFDS's own bars and messages."""
    from absl import logging
    from tqdm import tqdm

    verbosity, shows_bars = logging.get_verbosity(), tfds.core.utils.tqdm_utils._active
    total = sum(scenes.SPLIT_SIZES.values())
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        bar = tqdm(total=total, desc=f"Preparing {NAME}", unit=" images")
        with bar, contextlib.redirect_stdout(io.StringIO()):
            builder = DigitScenes(data_dir=data_dir, file_format="array_record")
            builder.progress = bar.update
            builder.drawn = {}
            builder.download_and_prepare()
            for split, rows in builder.drawn.items():
                decoded.write(pathlib.Path(data_dir) / NAME / VERSION, split, rows)
    finally:
        logging.set_verbosity(verbosity)
        tfds.display_progress_bar(shows_bars)


def _png(array: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
