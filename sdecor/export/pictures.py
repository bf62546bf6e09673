"""The images of an export, read again from the source that was exported, and cut to what the network saw."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sdecor.core.files import readable
from sdecor.data import center_crop, create_dataset, normalise
from sdecor.data.batches import object_mask
from sdecor.export.reader import Export


class Pictures(NamedTuple):
    """Images `[n, H, W, C]` and, where the data have masks or boxes, object codes uint8 `[n, H, W]`, else None."""

    images: np.ndarray
    objects: np.ndarray | None


def open_source(export: Export, **changes: Any) -> Any:
    """Open the examples that an export of a trained run was made of.

    Args:
      export: made by `evaluate.py --export`.
      **changes: fields of the run's `config.data` to change, those that are not None: where the data lie now.

    Raises:
      ValueError: when the export was made of other data than a run's.
    """
    made_of = export.attributes.get("provenance") or {}
    if not {"config", "dataset"} <= made_of.keys():
        raise ValueError(f"{export.path} does not tell where its images lie: it was not made by evaluate.py --export")
    known = made_of["dataset"]
    fields = made_of["config"]["data"] | {name: value for name, value in changes.items() if value is not None}
    names = ("path", "data_dir", "canvas", "canvas_fit", "mask_encoding", "channels", "val_fraction", "split_seed")
    options = {name: fields.get(name) for name in (*names, "limit")}
    return create_dataset(fields["name"], **options, mean=known["mean"], std=known["std"]).source(known["split"])


def pictures(export: Export, source: Any, places: Sequence[int]) -> Pictures:
    """Return the images at `places` as the source has them, in the middle part that the network saw.

    An example that was skipped is black.

    Raises:
      ValueError: when the source is not the one that was exported.
    """
    if len(source) != len(export):
        raise ValueError(f"the source has {len(source)} examples, and {export.path} {len(export)}: give the same data")
    skipped = {int(each["index"]) for each in export.skipped}
    whole = next((place for place in range(len(export)) if place not in skipped), None)
    if whole is None:
        raise ValueError(f"{export.path}: every example was skipped, there are no images")
    examples = [_checked(export, source, int(place)) if int(place) not in skipped else None for place in places]
    like = source[whole]
    blank = {"image": np.zeros_like(like["image"])}
    images = np.stack([(example or blank)["image"] for example in examples])
    mask = object_mask(like)
    if mask is None:
        return Pictures(_cut(export, images), None)
    masks = np.stack([np.zeros_like(mask) if example is None else object_mask(example) for example in examples])
    return Pictures(_cut(export, images), _cut(export, masks))


def network_input(export: Export, images: np.ndarray) -> np.ndarray:
    """Return images as the network took them, float32: uint8 ones normalised by the data set's mean and deviation."""
    known = (export.attributes.get("provenance") or {}).get("dataset", {})
    if images.dtype != np.uint8 or "mean" not in known:
        return images.astype(np.float32)
    return np.asarray(normalise(images, known["mean"], known["std"]))


def _checked(export: Export, source: Any, place: int) -> dict[str, Any]:
    example, name, label = source[place], export.names[place], int(export.read("label", place))
    # Names that were given to `export.export` need not be those of a source.
    of_run = "dataset" in (export.attributes.get("provenance") or {})
    found = readable(str(source.name(place))) if of_run else name
    # Stored names are told from the folder of all examples on: that may be another by now.
    same = found == name or found.endswith(f"/{name}")
    if not same or int(example.get("label", label)) != label:
        raise ValueError(
            f"example {place} of the source is {found!r} of class {example.get('label')}, and of {export.path} "
            f"{name!r} of class {label}: give the same data"
        )
    return example


def _cut(export: Export, images: np.ndarray) -> np.ndarray:
    height, width, _ = export.attributes["image_shape"]
    if images.shape[1:3] != (height, width) and height != width:
        raise ValueError(f"the source's images are {images.shape[1:3]} and the maps {(height, width)}: give the same")
    return images if images.shape[1:3] == (height, width) else center_crop(images, height)
