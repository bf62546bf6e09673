"""Prepared TFDS data sets with `image` and `label`, read record by record without TensorFlow.

The images are decoded here and not by TFDS, whose decoder without TensorFlow gives palette images wrong colours and
CMYK images four channels. `segmentation_mask` and `bbox` are passed on; a `head_bbox` is no box of the whole object
and is not.
"""

import dataclasses
import os
import sys
from typing import Any

import numpy as np

from sdecor.data.decode import Decoder, decode_mask
from sdecor.data.tfds_directory import Prepared

NAME_FEATURES = ("file_name", "image/filename", "filename", "id", "image/id")
TRIMAPS = ("oxford_iiit_pet",)  # data sets whose segmentation_mask is a trimap
LARGE = 100_000  # examples from which on the scan for labels shows a bar and is kept in a file
SCAN = 512  # records read at once


@dataclasses.dataclass(eq=False)
class TfdsSource:
    """One stored split of a prepared data set, decoded when asked for.

    Attributes:
      prepared: the prepared directory.
      split: the name of the stored split.
      decoder: what each image is turned into.
      mask_encoding: "binary" or "trimap": how `segmentation_mask` is to be read.
    """

    prepared: Prepared
    split: str
    decoder: Decoder
    mask_encoding: str = "binary"

    def __post_init__(self) -> None:
        self._records = self.prepared.records(self.split)
        self._labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._records)

    @property
    def labels(self) -> np.ndarray:
        """All labels, int32 `[N]`, without decoding an image.

        TFDS stores a label beside its image, so all records are read once. For a large split the labels are then kept
        in `labels-<split>.npy` in the prepared directory, if that can be written.
        """
        if self._labels is None:
            self._labels = self._read_labels()
        return self._labels

    def name(self, index: int) -> str:
        """The example's file name or id, if it has one, after the data set, the split and the index."""
        return self._name(index, self._features(index))

    def __getitem__(self, index: int) -> dict[str, Any]:
        features = self._features(index)
        name = self._name(index, features)
        mask = box = None
        if self.prepared.has_mask:
            data = features["segmentation_mask"].bytes_list.value[0]
            mask = decode_mask(data, name=name, encoding=self.mask_encoding)
        image = features["image"].bytes_list.value[0]
        if self.prepared.has_box:
            ymin, xmin, ymax, xmax = features["bbox"].float_list.value
            height, width = image_size(image, name=name) if mask is None else mask.shape
            box = np.array([ymin * height, xmin * width, ymax * height, xmax * width])
        label = features["label"].int64_list.value[0]
        if not 0 <= label < len(self.prepared.class_names):
            raise ValueError(f"{name}: label {label} is outside 0 … {len(self.prepared.class_names) - 1}")
        return {**self.decoder(image, name=name, mask=mask, box=box), "label": np.int32(label)}

    def _features(self, index: int) -> Any:
        from tensorflow_datasets.proto import tf_example_pb2

        return tf_example_pb2.Example.FromString(self._records[int(index)]).features.feature

    def _name(self, index: int, features: Any) -> str:
        place = f"{self.prepared.name} {self.split}[{index}]"
        for key in NAME_FEATURES:
            # Asking a protobuf map for a missing key would add it.
            if key in features and features[key].bytes_list.value:
                return f"{place} ({features[key].bytes_list.value[0].decode(errors='replace')})"
        return place

    def _read_labels(self) -> np.ndarray:
        kept = self.prepared.directory / f"labels-{self.split}.npy"
        if len(self) >= LARGE and kept.exists():
            with kept.open("rb") as stream:
                labels = np.load(stream)
            if labels.shape == (len(self),):
                return labels.astype(np.int32)
        labels = self._scan_labels()
        if len(self) >= LARGE:
            _keep(kept, labels)
        return labels

    def _scan_labels(self) -> np.ndarray:
        from tensorflow_datasets.proto import tf_example_pb2
        from tqdm import tqdm

        labels = np.empty(len(self), np.int32)
        starts = range(0, len(self), SCAN)
        for start in tqdm(starts, f"Labels of {self.prepared.name} {self.split}", disable=len(self) < LARGE):
            indices = range(start, min(start + SCAN, len(self)))
            for index, record in zip(indices, self._records.__getitems__(indices), strict=True):
                feature = tf_example_pb2.Example.FromString(record).features.feature["label"]
                labels[index] = feature.int64_list.value[0]
        return labels


def image_size(data: bytes, *, name: str) -> tuple[int, int]:
    """Height and width of an encoded image, read from its header."""
    import io

    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except Exception as error:
        raise ValueError(f"{name}: cannot be decoded as an image ({error})") from error


def mask_encoding_of(name: str, mask_encoding: str) -> str:
    """Resolve "auto": a trimap for the data sets known to have one, else binary."""
    if mask_encoding != "auto":
        return mask_encoding
    return "trimap" if name.split("/")[0].split(":")[0] in TRIMAPS else "binary"


def _keep(path: Any, labels: np.ndarray) -> None:
    scratch = path.parent / f"{path.name}.{os.getpid()}.tmp"
    try:
        with scratch.open("wb") as stream:
            np.save(stream, labels)
        scratch.rename(path)
    except OSError as error:
        print(f"The labels could not be kept in {path} ({error}): they are read anew each time", file=sys.stderr)
