"""Data sets by name: their classes, their three splits, and the statistics that normalise their images."""

import dataclasses
import functools
import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sdecor.core import threads
from sdecor.core.checks import check_choice, check_range
from sdecor.core.files import check_text
from sdecor.data import embedded, image_folders, series, splits, tfds_source
from sdecor.data.batches import epoch_order
from sdecor.data.decode import MASK_ENCODINGS, Decoder
from sdecor.data.reading import ON_ERROR, Skipping, Unreadable, first_readable, read
from sdecor.data.splits import Source, Subset
from sdecor.data.tfds_source import TfdsSource, mask_encoding_of

SPLITS = ("train", "val", "test")
# TFDS data sets whose test split has no labels. They are listed, because a check would open that split in training.
UNLABELLED_TEST = (
    "imagenet2012",
    "i_naturalist2017",
    "i_naturalist2018",
    "places365_small",
    "visual_domain_decathlon",
)


@dataclasses.dataclass(frozen=True)
class _Origin:
    """A data set on disk: its classes, the stored split of each of our splits (None: none), and how to open one."""

    class_names: tuple[str, ...]
    stored: dict[str, str | None]
    open: Callable[[str, Decoder], Source]
    no_test: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A data set whose images, or series, all have one shape. Made by `create_dataset`.

    Attributes:
      name: name given to `create_dataset`.
      class_names: class names in label order.
      image_shape: `(H, W, C)` of every image, or `(T, C)` of every series.
      mean: mean per channel of pixel values in [0, 1], or of a series' own values; inputs are normalised by `mean` and
        `std`.
      std: standard deviation per channel, positive.
      dtype: "uint8" of images, "float32" of series.
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str = "uint8"
    _open: Callable[[str], Source] = dataclasses.field(repr=False)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def source(self, split: str) -> Source:
        """Return the examples of "train", "val" or "test". Every split, also test, is opened at its first use.

        Raises:
          ValueError: for another name, a split that does not exist, or labels out of range.
        """
        check_choice("split", split, SPLITS)
        return threads.call(lambda: self._open(split), name="open-split")

    def info(self) -> dict[str, Any]:
        """Return the properties of the data that a run stores, ready for JSON; the test split is not opened."""
        return {
            "name": self.name,
            "num_classes": self.num_classes,
            "class_names": list(self.class_names),
            "image_shape": list(self.image_shape),
            "sizes": {split: len(self.source(split)) for split in ("train", "val")},
            "mean": list(self.mean),
            "std": list(self.std),
        }


def create_dataset(
    name: str,
    *,
    path: str | os.PathLike | None = None,
    data_dir: str | os.PathLike | None = None,
    canvas: int | Sequence[int] | None = None,
    canvas_fit: str = "stretch",
    channels: int = 3,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    train_fraction: float = 1.0,
    limit: int | None = None,
    mask_encoding: str = "auto",
    on_error: str = "stop",
) -> Dataset:
    """Open a data set by name; nothing is downloaded.

    Args:
      name: "digit_scenes" or "xai_tris/CONFIGURATION" (embedded, prepared on first use), "series/CONFIGURATION" (drawn
        at each start), "folder", "tiny_imagenet", or the name of a TFDS data set that is prepared as ArrayRecord.
      path: the directory of "folder" and "tiny_imagenet", or a prepared TFDS directory outside `data_dir`.
      data_dir: directory of TFDS data sets; by default `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
      canvas: size in pixels, one number or `(height, width)`, to which images are resized; None keeps the images,
        which must all have one size.
      canvas_fit: "stretch" resizes the whole image to the canvas; "crop" keeps the image's proportions and its centre.
      channels: 1 or 3; images are converted. For series, their number of channels.
      val_fraction: share of train that becomes val if the data set has no val split.
      split_seed: seed for choosing that share, and the examples under `train_fraction` and `limit`.
      train_fraction: share of train, of what val leaves of it, that is kept, evenly over the classes; a smaller share
        is part of a larger one. val and test stay as they are.
      mean: mean per channel of pixel values in [0, 1]. By default the published value for the best-known data sets,
        else computed from at most 4,096 training images.
      std: standard deviation per channel, with the same defaults.
      limit: largest number of examples in a split, evenly over the classes; None = all.
      mask_encoding: encoding of a TFDS `segmentation_mask`: "binary", "trimap", or "auto" (a trimap for
        oxford_iiit_pet).
      on_error: action at an example that cannot be read: "stop" with an error, or "skip" (`sdecor.data.Skipping`).

    Raises:
      ValueError: for an invalid field or file; the error names it, and what would be valid.
    """
    check_choice("data.mask_encoding", mask_encoding, ("auto", *MASK_ENCODINGS))
    check_choice("data.on_error", on_error, ON_ERROR)
    check_range("data.val_fraction", val_fraction, 0, 1, low_open=True, high_open=True)
    check_range("data.train_fraction", train_fraction, 0, 1, low_open=True)
    if limit is not None:
        check_range("data.limit", limit, 1)
    for field, value in (("data.path", path), ("data.data_dir", data_dir)):
        if value is not None:
            check_text(field, value)
    skips = on_error == "skip"
    if _is_series(name, path):
        _check_series(channels, canvas)
        decoder = Decoder()  # drawn arrays have no use for it
    else:
        decoder = Decoder(channels=channels, canvas=_as_canvas(canvas), fit=canvas_fit)
    origin = _origin(name, path=path, data_dir=data_dir, mask_encoding=mask_encoding, skips=skips)
    train = origin.open("train", decoder)
    first = first_readable(Skipping(train, split="train") if skips else train)["image"]
    shape = first.shape
    # The cache opens a train split, and scans its labels, only once if val is carved from it.
    stored = functools.cache(functools.partial(origin.open, decoder=dataclasses.replace(decoder, shape=shape)))
    choice = {
        "val_fraction": val_fraction,
        "split_seed": split_seed,
        "train_fraction": train_fraction,
        "limit": limit,
        "skips": skips,
    }

    @functools.cache
    def opened(split: str) -> Source:
        source = _open(origin, split, stored, **choice)
        return Skipping(source, split=split, shape=shape) if skips else source

    measured = functools.partial(resolve, name, mean, std, channels=channels, train=functools.partial(opened, "train"))
    mean, std = threads.call(measured, name="mean-and-std")
    return Dataset(
        name=name,
        class_names=origin.class_names,
        image_shape=shape,
        mean=mean,
        std=std,
        dtype=first.dtype.name,
        _open=opened,
    )


def options_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `create_dataset` among the fields of a config's `data`; earlier versions lack some."""
    return {name: fields[name] for name in inspect.signature(create_dataset).parameters if name in fields}


def _origin(name: str, *, path: Any, data_dir: Any, mask_encoding: str, skips: bool) -> _Origin:
    if name in IN_FOLDERS:
        if path is None:
            raise ValueError(f"data.path is not set: data.name = {name!r} needs the directory it lies in")
        return IN_FOLDERS[name](path)
    if _is_series(name, path):
        return _series(name)
    if embedded.is_embedded(name) and path is None:
        directory = embedded.prepare(name, tfds_source.resolve_data_dir(data_dir))
    else:
        others = (*embedded.BUILDERS, SERIES, *IN_FOLDERS)
        directory = tfds_source.find(name, path=path, data_dir=data_dir, others=others)
    decoded = name.partition(":")[0] == "digit_scenes" and path is None
    return _tfds(name, directory, mask_encoding_of(name, mask_encoding), skips, decoded)


SERIES = "series"


def _is_series(name: str, path: Any) -> bool:
    return path is None and name.partition(":")[0].partition("/")[0] == SERIES


def _check_series(channels: int, canvas: Any) -> None:
    if canvas is not None:
        raise ValueError(f"data.canvas = {canvas!r} is for images: series have no pixels to resize, leave it out")
    if channels != series.CHANNELS:
        raise ValueError(f"data.channels = {channels!r}: the series have {series.CHANNELS} channels, give this number")


def _series(name: str) -> _Origin:
    check_choice("data.name", name, [f"{SERIES}/{each}" for each in series.CONFIGURATIONS])
    configuration = name.partition("/")[2]

    def opened(split: str, decoder: Decoder) -> Source:
        return series.open_split(configuration, split)

    return _Origin(series.CLASS_NAMES, {split: split for split in SPLITS}, opened, "")


def _folder(path: Any) -> _Origin:
    root = os.path.expanduser(path)
    classes = image_folders.class_folders(root)
    listed = functools.cache(lambda split: image_folders.open_split(root, split, classes=classes, decoder=Decoder()))
    return _Origin(
        classes,
        {split: split if image_folders.find_split(root, split) else None for split in SPLITS},
        lambda split, decoder: dataclasses.replace(listed(split), decoder=decoder),
        f"data.path = {root!r} has no folder 'test'. To evaluate on its 'val', rename that to 'test': "
        "a validation split is then carved from train",
    )


def _tiny_imagenet(path: Any) -> _Origin:
    root = os.path.expanduser(path)
    wnids, names = image_folders.read_classes(root)
    return _Origin(
        names,
        {"train": "train", "val": None, "test": "val"},
        lambda split, decoder: image_folders.open_tiny_imagenet(root, split, wnids=wnids, decoder=decoder),
        "",
    )


# Data sets that are read from a user's directory, by name.
IN_FOLDERS: dict[str, Callable[[Any], _Origin]] = {"folder": _folder, "tiny_imagenet": _tiny_imagenet}


def _tfds(name: str, directory: Any, mask_encoding: str, skips: bool, decoded: bool) -> _Origin:
    kind = TfdsSource
    if decoded:
        from sdecor.data.decoded import DecodedSource as kind
    prepared = tfds_source.inspect(directory, name=name)
    held = ", ".join(repr(split) for split in prepared.sizes) or "none"
    if not prepared.sizes.get("train"):
        raise ValueError(f"data.name = {name!r} has no split 'train' with examples; its splits: {held}")
    has_val = bool(prepared.sizes.get("validation"))
    labelled = name.split("/")[0].split(":")[0] not in UNLABELLED_TEST
    has_test = bool(prepared.sizes.get("test")) and labelled
    stored = {"train": "train", "val": None, "test": None}
    if has_test:
        stored.update(val="validation" if has_val else None, test="test")
    elif has_val:
        stored.update(test="validation")
    return _Origin(
        prepared.class_names,
        stored,
        lambda split, decoder: kind(prepared, split, decoder, mask_encoding, skips),
        f"data.name = {name!r} has no split 'test' or 'validation' to test on; its splits: {held}",
    )


def _open(
    origin: _Origin,
    split: str,
    stored: Callable[[str], Source],
    *,
    val_fraction: float,
    split_seed: int,
    train_fraction: float,
    limit: int | None,
    skips: bool,
) -> Source:
    if split == "test" and origin.stored["test"] is None:
        raise ValueError(origin.no_test)
    carved = split != "test" and origin.stored["val"] is None
    source = stored("train" if carved else origin.stored[split])
    reduced = split == "train" and train_fraction < 1
    if carved or reduced or limit is not None:
        indices = np.arange(len(source))
        labels = _checked(source, len(origin.class_names), skips).labels
        if carved:
            indices = splits.carve(labels, fraction=val_fraction, seed=split_seed)[split == "val"]
        if reduced:
            size = max(1, round(len(indices) * train_fraction))
            indices = indices[splits.pick(labels[indices], size, seed=split_seed)]
        if limit is not None:
            indices = indices[splits.pick(labels[indices], limit, seed=split_seed)]
        return Subset(source, indices)
    return _checked(source, len(origin.class_names), skips)


def _checked(source: Source, num_classes: int, skips: bool) -> Source:
    wrong = (source.labels < 0) | (source.labels >= num_classes)
    if skips and (source.labels != -1).any():  # −1: the label cannot be read, and the example is left out
        wrong &= source.labels != -1
    wrong = np.flatnonzero(wrong)
    if len(wrong):
        first = int(wrong[0])
        hint = ": the split has no labels, evaluate another one" if (source.labels == -1).all() else ""
        raise ValueError(
            f"{source.name(first)}: label {source.labels[first]} is outside 0 … {num_classes - 1} "
            f"({len(wrong)} of {len(source)} examples are){hint}"
        )
    return source


def _as_canvas(canvas: int | Sequence[int] | None) -> tuple[int, int] | None:
    if canvas is None:
        return None
    sides = (canvas, canvas) if isinstance(canvas, int) else tuple(canvas)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"data.canvas = {canvas!r}: give one positive number of pixels, or (height, width)")
    return sides


SAMPLE = 4096  # images from which mean and std are computed
PUBLISHED = {  # mean and std of the training images, in [0, 1]
    "digit_scenes": ((0.379278, 0.399056, 0.322808), (0.272799, 0.242677, 0.218832)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn_cropped": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def resolve(
    name: str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    *,
    channels: int,
    train: Callable[[], Source],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return `mean` and `std`, one value per channel; None gives a published value, or one computed from `train()`."""
    if mean is None or std is None:
        published = PUBLISHED.get(name.partition(":")[0])
        fits = published is not None and len(published[0]) in (1, channels)
        found = published if fits else compute(train())
        mean, std = found[0] if mean is None else mean, found[1] if std is None else std
    return _per_channel("data.mean", mean, channels), _per_channel("data.std", std, channels, positive=True)


def compute(source: Source, *, sample: int = SAMPLE) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute mean and standard deviation per channel over at most `sample` examples.

    They are those of pixel values in [0, 1], or of the own values of float inputs.

    Examples that their source leaves out do not count. The others are chosen at random, always the same ones; a stride
    could miss part of a repeating pattern. The sums of pixels are integers, so the result does not depend on their
    order. A constant channel gets the standard deviation 1/255, so that division by it is safe.
    """
    total = squares = pixels = 0
    unit = 255
    for i in np.sort(epoch_order(0, 0, len(source))[:sample]):
        try:
            image = read(source, i)["image"]
        except Unreadable:
            continue
        unit = 255 if image.dtype == np.uint8 else 1
        image = image.astype(np.int64 if image.dtype == np.uint8 else np.float64)
        positions = tuple(range(image.ndim - 1))
        total = total + image.sum(axis=positions)
        squares = squares + (image * image).sum(axis=positions)
        pixels += math.prod(image.shape[:-1])
    mean, std = [], []
    for s, q in zip(total.tolist(), squares.tolist(), strict=True):
        mean.append(round(s / (unit * pixels), 6))
        variance = (pixels * q - s * s) / (unit * pixels) ** 2
        std.append(round(max(math.sqrt(max(variance, 0)), 1 / 255), 6))
    return tuple(mean), tuple(std)


def _per_channel(field: str, values: Sequence[float], channels: int, *, positive: bool = False) -> tuple[float, ...]:
    values = tuple(float(value) for value in values)
    values = values * channels if len(values) == 1 else values  # gray images in three channels
    if len(values) != channels or not all(math.isfinite(v) and (v > 0 or not positive) for v in values):
        kind = "positive number" if positive else "number"
        raise ValueError(
            f"{field} = {values!r}: give one {kind} for each of the {channels} channels, for pixels in [0, 1]"
        )
    return values
