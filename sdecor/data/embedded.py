"""Embedded data sets: drawn by a TFDS builder of our own on first use, without download and TensorFlow."""

import contextlib
import importlib
import io
import os
import pathlib
import tempfile
import warnings
from typing import Any

import numpy as np

from sdecor.core.checks import check_choice
from sdecor.data import scenes

# name -> the module of its builder, and the builder's class there. The builder has `examples()`, calls `progress` with
# the number of newly drawn images, and may put arrays in `drawn`, which a function `keep_decoded` of its module keeps.
BUILDERS = {"digit_scenes": ("digit_scenes", "DigitScenes"), "xai_tris": ("xai_tris", "XaiTris")}


def is_embedded(name: str) -> bool:
    """Return whether a data set's name, with or without a configuration, is that of an embedded one."""
    return name.partition(":")[0].partition("/")[0] in BUILDERS


def prepare(name: str, data_dir: str | os.PathLike) -> pathlib.Path:
    """Return the prepared directory of a data set under `data_dir`; build it there first if it is missing.

    The data set is built in a temporary directory and moved in one step, so that a killed process leaves nothing
    half-made. If two processes build it at once, the first to finish wins (both draw the same arrays).

    Args:
      name: `name`, or `name/configuration`; `:version` may follow.
      data_dir: a local directory.

    Raises:
      ValueError: for a configuration or version that does not exist, and when `data_dir` is remote.
    """
    base, _, version = name.partition(":")
    base, _, configuration = base.partition("/")
    if "://" in os.fspath(data_dir):
        raise ValueError(
            f"data.data_dir = {os.fspath(data_dir)!r} is remote: {base} is drawn in seconds, give it a local directory"
        )
    module, builder = BUILDERS[base]
    module = importlib.import_module(f"sdecor.data.{module}")
    builder = getattr(module, builder)
    keep_decoded = getattr(module, "keep_decoded", lambda directory, drawn=None: None)
    check_choice("version of data.name", version or str(builder.VERSION), (str(builder.VERSION),))
    known = tuple(each.name for each in builder.BUILDER_CONFIGS)
    if known:
        check_choice("data.name", name.partition(":")[0], tuple(f"{base}/{each}" for each in known))
    elif configuration:
        raise ValueError(f"data.name = {name!r}: {base} has no configurations, its name is {base!r}")
    root = pathlib.Path(data_dir).expanduser()
    path = pathlib.Path(base, configuration, str(builder.VERSION))
    target = root / path
    if (target / "dataset_info.json").exists():
        keep_decoded(target)
        return target
    if not scenes.photographs_as_expected():
        warnings.warn(
            f"Pillow decodes scikit-learn's photographs to other pixels here: this {base} differs slightly from the "
            "published one; install the wheel of Pillow from PyPI to get the same",
            stacklevel=2,
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{base}-", dir=root) as scratch:
        made = _build(builder, name, {"config": configuration} if known else {}, scratch)
        keep_decoded(scratch / path, made.drawn)
        try:
            os.rename(scratch / path, target)
        except OSError:
            if not (target / "dataset_info.json").exists():
                raise
    return target


def _build(builder: Any, name: str, configuration: dict[str, str], data_dir: str) -> Any:
    """Build a data set with one progress bar, without TFDS's own bars and messages; return the builder."""
    import tensorflow_datasets as tfds
    from absl import logging
    from tqdm import tqdm

    verbosity, shows_bars = logging.get_verbosity(), tfds.core.utils.tqdm_utils._active
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            made = builder(data_dir=data_dir, file_format="array_record", **configuration)
            made.drawn = {}
            with tqdm(total=made.examples(), desc=f"Preparing {name}", unit=" images") as bar:
                made.progress = bar.update
                made.download_and_prepare()
            return made
    finally:
        logging.set_verbosity(verbosity)
        tfds.display_progress_bar(shows_bars)


def png(array: np.ndarray) -> bytes:
    """Encode an image or a mask, uint8 `[H, W]` or `[H, W, 3]`, as PNG."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
