"""Build what a run reads: its data set, the facts of it that enter the step, and the preparation of images."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from sdecor.core.checks import check_range
from sdecor.data.augment import augment, center_crop, normalise, to_float


def create_data(config: ConfigDict, known: Mapping[str, Any] | None = None) -> Any:
    """Open the config's data set (`sdecor.data.Dataset`).

    Args:
      config: config of the run.
      known: facts of the data set that the run recorded. With data.on_error = "skip" its mean and std are used instead
        of measured ones, because they change when an image cannot be read any more.

    Raises:
      ValueError: for a data set of one class, or one that `create_dataset` refuses.
    """
    from sdecor.data.dataset import create_dataset, options_of

    data = config.data
    options = options_of(data)
    if known is not None and options.get("on_error") == "skip":
        options |= {field: known[field] for field in ("mean", "std") if options[field] is None}
    try:
        dataset = create_dataset(**options)
    except ValueError as error:
        prefix = "config." if str(error).startswith("data.") else ""  # the library knows no config
        raise ValueError(f"{prefix}{error}") from error
    if dataset.num_classes < 2:
        where = "" if data.path is None else f", data.path = {data.path!r},"
        raise ValueError(
            f"config.data.name = {data.name!r}{where} has one class, {dataset.class_names[0]!r}: a classifier of one "
            "class is always right and learns nothing. Give at least two, such as a folder of images without the object"
        )
    return dataset


class DataFacts(NamedTuple):
    """The facts of a data set that enter the compiled step.

    Attributes:
      num_classes: K.
      image_shape: `(H, W, C)` of the stored images, or `(T, C)` of series.
      mean, std: per channel, of pixel values in [0, 1] or of a series' own values.
      examples: number of training examples.
      dtype: "uint8" of images, "float32" of series.
    """

    num_classes: int
    image_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    examples: int
    dtype: str = "uint8"


_UNKNOWN = ((0.5,), (0.25,))  # mean and standard deviation of images that are not at hand


def read_facts(dataset: Any) -> DataFacts:
    """Return the facts of a data set that `create_data` opened."""
    shape, examples = tuple(dataset.image_shape), len(dataset.source("train"))
    # A data set of your own may lack a dtype: then it has images.
    dtype = getattr(dataset, "dtype", "uint8")
    return DataFacts(dataset.num_classes, shape, dataset.mean, dataset.std, examples, dtype)


def assume_facts(
    config: ConfigDict, classes: int, examples: int | None = None, image_shape: Sequence[int] | None = None
) -> DataFacts:
    """Return the facts of a data set that is not at hand.

    Args:
      config: config of the run; it provides the canvas, and mean and standard deviation if it has them. Else these are
        the published ones, or 0.5 and 0.25, which change no size and no time.
      classes: number of classes.
      examples: number of training examples; None for a thousand steps per epoch. Only the schedule depends on it.
      image_shape: `(H, W)` of the stored images; None for the config's canvas.

    Raises:
      ValueError: if a number is out of range, or the size of the images is unknown.
    """
    from sdecor.data.dataset import PUBLISHED, SERIES, resolve

    data = config.data
    check_range("--classes", classes, 2)
    if data.name.partition("/")[0] == SERIES:
        raise ValueError(f"--classes is for images: config.data.name = {data.name!r} is drawn here, leave it out")
    if examples is not None:
        check_range("--examples", examples, 1)
    size = image_shape or data.canvas
    if not size:
        raise ValueError("--image_shape is missing: config.data.canvas is None, so give the images' height and width")
    size = (size, size) if isinstance(size, int) else tuple(size)
    if len(size) != 2 or not all(isinstance(each, int) and each >= 1 for each in size):
        raise ValueError(f"--image_shape = {','.join(map(str, size))}: give a height and a width, such as 256,256")
    found = PUBLISHED.get(data.name.partition(":")[0], _UNKNOWN)
    mean, std = found if len(found[0]) in (1, data.channels) else _UNKNOWN
    mean, std = resolve(data.name, data.mean or mean, data.std or std, channels=data.channels, train=list)
    return DataFacts(classes, (*size, data.channels), mean, std, examples or 1000 * config.train.batch_size)


def check_preparation(prepare: Callable, canvas: tuple[int, ...], dtype: str = "uint8") -> None:
    """Trace the training preparation, so that invalid augmentation fails before training.

    Raises:
      ValueError: for invalid augmentation; the message names the field and its valid values.
    """
    key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    image = jax.ShapeDtypeStruct((1, *canvas), dtype)
    try:
        jax.eval_shape(prepare, key, image)
    except ValueError as error:
        raise ValueError(f"config.augment: {error}") from error


def image_size(config: ConfigDict, canvas: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the model's input for images on the `canvas` (H, W, C), or other inputs of its shape.

    Raises:
      ValueError: if the input is larger than the canvas, or a crop is to be taken of what is no image.
    """
    size = config.augment.size
    if size is None:
        return canvas
    if len(canvas) != 3:
        raise ValueError(f"config.augment.size = {size!r} is for images: inputs of shape {canvas} are not cropped")
    check_range("config.augment.size", size, 1, min(canvas[:2]))
    return (size, size, canvas[2])


def create_preparation(config: ConfigDict, mean: Any, std: Any) -> tuple[Callable, Callable]:
    """Return the preparations of images on the device: training's `(keys, stored) -> float32`, and evaluation's."""
    options = config.augment
    change = partial(
        augment,
        crop_padding=options.crop_padding,
        flip=options.flip,
        resized_crop=options.resized_crop and tuple(options.resized_crop),
        size=options.size,
    )

    def for_training(keys: jax.Array, images: jax.Array) -> jax.Array:
        return normalise(change(keys, to_float(images)), mean, std)

    def for_evaluation(images: jax.Array) -> jax.Array:
        return normalise(center_crop(images, options.size), mean, std)

    return for_training, for_evaluation
