"""Prepared TFDS data sets: found on disk, and read record by record without TensorFlow.

Nothing is downloaded. TFDS does not decode the images, because its decoder without TensorFlow gives wrong colors for
palette images and four channels for CMYK images. `segmentation_mask` and `bbox` are read; a `head_bbox` is not, because
it is no box of the whole object.
"""

import contextlib
import dataclasses
import difflib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sdecor.core import files, watchdog
from sdecor.data.decode import Decoder, decode_mask

DEFAULT_DATA_DIR = "~/tensorflow_datasets"
MANUAL = {
    "imagenet2012": "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar (from https://image-net.org, with an account) "
    "must lie in {data_dir}/downloads/manual before"
}
PREPARE = """\
Prepare it once on a machine with TensorFlow and a network:
    pip install tensorflow tensorflow-datasets array_record importlib_resources
    python -c {program}
and copy the resulting folder to {target}, if that is another machine. Reading it needs neither."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared TFDS directory and its metadata.

    Attributes:
      name: the data set's name, for messages.
      directory: `<data_dir>/<name>[/<config>]/<version>`, an `epath.Path`.
      class_names: class names of `label`, in order.
      sizes: number of examples in each stored split.
      has_mask: whether examples have a `segmentation_mask`.
      has_box: whether examples have a `bbox`.
    """

    name: str
    directory: Any
    class_names: tuple[str, ...]
    sizes: dict[str, int]
    has_mask: bool
    has_box: bool

    def records(self, split: str, *, skips: bool = False) -> "Records":
        """Return the serialised records of a stored split.

        Raises:
          ValueError: when a data file is missing, unless `skips`; the error names it.
        """
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(self.directory)
        stored = builder.info.splits[split]
        for path in () if skips else stored.filepaths:
            if not path.exists():
                raise ValueError(f"{path}: the data file is missing; copy the prepared directory anew, whole")
        method = tfds.decode.DeserializeMethod.RAW_BYTES
        source = builder.as_data_source(split, deserialize_method=method, file_format="array_record")
        return Records(source.data_source, tuple(map(os.fspath, stored.filepaths)), np.cumsum(stored.shard_lengths))


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """Serialised records by index: picklable, and safe to read from several threads.

    Attributes:
      source: the records.
      files: the data files, in the order of their records.
      ends: number of records in all files up to each, int `[files]`.
    """

    source: Any
    files: tuple[str, ...]
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> bytes:
        reason, cause = "the record is missing, because the data file is damaged or cut off", None
        try:
            record = self.source[index]
            if record:  # array_record returns empty records of a file that was cut off
                return record
        except Exception as error:
            reason, cause = f"the data file cannot be read ({error})", error
        raise ValueError(f"{self.file(index)}: {reason}; copy this file anew") from cause

    def __getitems__(self, indices: Sequence[int]) -> Sequence[bytes]:
        return self.source.__getitems__(indices)

    def file(self, index: int) -> str:
        """Return the data file of a record."""
        return self.files[int(np.searchsorted(self.ends, index, side="right"))]


def find(
    name: str,
    *,
    path: str | os.PathLike | None = None,
    data_dir: str | os.PathLike | None = None,
    others: Sequence[str] = (),
) -> Any:
    """Return the prepared directory of a data set: `path` itself, or the newest version below `data_dir`.

    Args:
      name: a TFDS name: `name`, `name/config`, `name:version` or `name/config:version`.
      path: the directory that holds `dataset_info.json`, if it is not below `data_dir`.
      data_dir: directory of TFDS data sets; by default `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
      others: valid names that are not of TFDS, for the error about an unknown name.

    Raises:
      ValueError: when the name is unknown; or when the data set is not prepared, with the command to run and the place
        of its result.
    """
    from etils import epath

    files.check_location(*(("data.data_dir", data_dir or "") if path is None else ("data.path", path)))
    if path is not None:
        directory = epath.Path(path).expanduser()
        if not (directory / "dataset_info.json").exists():
            raise ValueError(
                f"data.path = {os.fspath(path)!r} holds no dataset_info.json: it is no prepared TFDS directory"
            )
        return directory
    root = resolve_data_dir(data_dir)
    builder_name, _, version = name.partition(":")
    base = root / builder_name
    versions = _versions(base)
    if not versions and base.is_dir():  # the data set has configurations, and `name` names none
        configs = [child for child in sorted(base.iterdir()) if child.is_dir() and _versions(child)]
        if len(configs) > 1:
            listed = ", ".join(repr(f"{builder_name}/{child.name}") for child in configs)
            raise ValueError(f"data.name = {name!r} is prepared in several configurations, name one of them: {listed}")
        versions = _versions(configs[0]) if configs else {}
    if version and version not in versions and versions:
        raise ValueError(f"data.name = {name!r}: {base} holds the versions {', '.join(sorted(versions))}")
    if versions:
        return versions[version or max(versions, key=_version_key)]
    raise ValueError(_not_prepared(name, builder_name.split("/")[0], root, base, others))


def inspect(directory: Any, *, name: str) -> Prepared:
    """Read a prepared directory's metadata, without running code of the data set.

    Raises:
      ValueError: when there is no `image` or class `label`, or when the data set was not prepared as ArrayRecord.
    """
    import tensorflow_datasets as tfds

    info = tfds.builder_from_directory(directory).info
    features = info.features
    if not isinstance(features, tfds.features.FeaturesDict):
        raise ValueError(f"data.name = {name!r} has no named features such as image and label")
    held = ", ".join(features)
    image, label, mask, box = (
        features[key] if key in features else None for key in ("image", "label", "segmentation_mask", "bbox")
    )
    if not isinstance(image, tfds.features.Image) or image.np_dtype != "uint8":
        raise ValueError(f"data.name = {name!r} has no feature 'image' of 8-bit pixels; its features: {held}")
    if not isinstance(label, tfds.features.ClassLabel):
        raise ValueError(f"data.name = {name!r} has no feature 'label' that is one class; its features: {held}")
    formats = {stored.value for stored in info.available_file_formats()}
    if "array_record" not in formats:
        target, again = os.fspath(directory), _how_to_prepare(name, "DIR", directory)
        stored = ", ".join(sorted(formats))
        raise ValueError(f"{target} was prepared as {stored}: as array_record it is read without TensorFlow. {again}")
    return Prepared(
        name=name,
        directory=directory,
        class_names=tuple(label.names),
        sizes={split: stored.num_examples for split, stored in info.splits.items()},
        has_mask=isinstance(mask, tfds.features.Image),
        has_box=isinstance(box, tfds.features.BBoxFeature),
    )


def resolve_data_dir(data_dir: str | os.PathLike | None) -> Any:
    """Return the directory of data sets, an `epath.Path`: `data_dir`, else `$TFDS_DATA_DIR`, else TFDS's default."""
    from etils import epath

    return epath.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or DEFAULT_DATA_DIR).expanduser()


def _versions(base: Any) -> dict[str, Any]:
    if not base.is_dir():
        return {}
    return {child.name: child for child in base.iterdir() if (child / "dataset_info.json").exists()}


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in version.split("."))


def _not_prepared(name: str, builder_name: str, root: Any, base: Any, others: Sequence[str]) -> str:
    import tensorflow_datasets as tfds

    known = tuple(dict.fromkeys((*others, *tfds.list_builders(with_community_datasets=False))))  # some are in both
    if builder_name not in known:
        close = difflib.get_close_matches(builder_name, known, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        return (
            f"data.name = {name!r} is not known: {hint}It is one of {', '.join(others)}, the name of a TFDS data "
            f"set with image and label, or of your own builder once prepared in {base} (file_format='array_record')"
        )
    prepare = _how_to_prepare(name, os.fspath(root), base)
    manual = MANUAL[builder_name].format(data_dir=root) + ". " if builder_name in MANUAL else ""
    return f"data.name = {name!r} is not prepared: no {base}/<version>/dataset_info.json. {manual}{prepare}"


def _how_to_prepare(name: str, data_dir: str, target: Any) -> str:
    """Return the instructions to prepare a data set, quoted for a shell."""
    named, there = (json.dumps(text, ensure_ascii=False) for text in (name, data_dir))
    program = (
        "import tensorflow_datasets as tfds; "
        f'tfds.builder({named}, data_dir={there}, file_format="array_record").download_and_prepare()'
    )
    return PREPARE.format(program=shlex.quote(program), target=target)


NAME_FEATURES = ("file_name", "image/filename", "filename", "id", "image/id")
TRIMAPS = ("oxford_iiit_pet",)  # data sets whose segmentation_mask is a trimap
LARGE = 100_000  # from this number of examples on, the scan for labels shows a progress bar and is kept in a file
SCAN = 512  # records read at a time


@dataclasses.dataclass(eq=False)
class TfdsSource:
    """A stored split of a prepared data set, decoded when it is read.

    Attributes:
      prepared: the prepared directory.
      split: the name of the stored split.
      decoder: decoder of the images.
      mask_encoding: encoding of `segmentation_mask`, "binary" or "trimap".
      skips: whether a missing or damaged data file is no error before its records are read; their labels are −1.
    """

    prepared: Prepared
    split: str
    decoder: Decoder
    mask_encoding: str = "binary"
    skips: bool = False

    def __post_init__(self) -> None:
        self._records = self.prepared.records(self.split, skips=self.skips)
        self._labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._records)

    @property
    def labels(self) -> np.ndarray:
        """All labels, int32 `[N]`, read without decoding an image.

        TFDS stores a label beside its image, so all records are read once. For a large split the labels are then kept
        in `labels-<split>.npy` in the prepared directory, if it is writable.
        """
        if self._labels is None:
            self._labels = self._read_labels()
        return self._labels

    def name(self, index: int) -> str:
        """Return the data set, split and index of an example, and its file name or id if it has one."""
        try:
            return self._name(index, self._features(index))
        except Exception:  # the record cannot be read
            return self._place(index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            features = self._features(index)
        except Exception as error:
            raise ValueError(f"{self._place(index)}: {error}") from error
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
        place = self._place(index)
        for key in NAME_FEATURES:
            # Indexing a protobuf map with a missing key would add the key.
            if key in features and features[key].bytes_list.value:
                return f"{place} ({features[key].bytes_list.value[0].decode(errors='replace')})"
        return place

    def _place(self, index: int) -> str:
        return f"{self.prepared.name} {self.split}[{index}]"

    def _read_labels(self) -> np.ndarray:
        kept = self.prepared.directory / f"labels-{self.split}.npy"
        if len(self) >= LARGE and kept.exists():
            with kept.open("rb") as stream:
                labels = np.load(stream)
            if labels.shape == (len(self),):
                return labels.astype(np.int32)
        labels = self._scan_labels()
        if len(self) >= LARGE and not self._left_out:
            _keep(kept, labels)
        return labels

    def _scan_labels(self) -> np.ndarray:
        from tensorflow_datasets.proto import tf_example_pb2
        from tqdm import tqdm

        labels, self._left_out = np.full(len(self), -1, np.int32), 0
        starts = range(0, len(self), SCAN)
        for start in tqdm(starts, f"Labels of {self.prepared.name} {self.split}", disable=len(self) < LARGE):
            watchdog.beat("the reading of labels")
            indices = range(start, min(start + SCAN, len(self)))
            for index, record in self._read_some(indices):
                feature = tf_example_pb2.Example.FromString(record).features.feature["label"]
                labels[index] = feature.int64_list.value[0]
        return labels

    def _read_some(self, indices: range) -> Iterator[tuple[int, bytes]]:
        """Yield the records of `indices` that can be read, each with its index."""
        with contextlib.suppress(Exception):  # then they are read one by one, to find the damaged ones
            records = self._records.__getitems__(indices)
            if all(records):
                yield from zip(indices, records, strict=True)
                return
        for index in indices:
            try:
                yield index, self._records[index]
            except ValueError as error:
                if not self.skips:
                    raise ValueError(f"{self._place(index)}: {error}") from error
                self._left_out += 1


def image_size(data: bytes, *, name: str) -> tuple[int, int]:
    """Return height and width of an encoded image, read from its header."""
    import io

    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except Exception as error:
        raise ValueError(f"{name}: cannot be decoded as an image ({error})") from error


def mask_encoding_of(name: str, mask_encoding: str) -> str:
    """Return the mask encoding of a data set; "auto" is a trimap for data sets known to have one, else binary."""
    if mask_encoding != "auto":
        return mask_encoding
    return "trimap" if name.split("/")[0].split(":")[0] in TRIMAPS else "binary"


def _keep(path: Any, labels: np.ndarray) -> None:
    try:
        with files.replacing(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, labels)
    except OSError as error:
        print(f"The labels could not be kept in {path} ({error}): they are read anew each time", file=sys.stderr)
