"""An export as HDF5 files, as ViRelAy and CoRelAy read them.

Images come from the source that was exported; a place in the export is an index of the source. Examples without a
finite map, skipped ones among them, are left out of an attribution file.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from sdecor.export.pictures import pictures
from sdecor.export.reader import Export
from sdecor.export.rows import ROWS_AT_ONCE, Rows, channels_first, column, finite_places, maps_of, replacing

_COLORS = 3  # channels that ViRelAy draws


def to_hdf5(
    export: Export,
    directory: epath.PathLike,
    *,
    methods: Sequence[str] | None = None,
    examples: Sequence[int] | None = None,
    source: Any = None,
) -> None:
    """Write ViRelAy's files: `dataset.h5` (with a source), `<method>.attribution.h5` of each method, `label-map.json`.

    `dataset.h5` has `data` `[N, C, H, W]` (as the source has it) and `label` int32 `[N]`. An attribution file has
    `attribution` float32 `[M, C, H, W]`, `prediction` float32 `[M, K]` (the logits), `label` int32 `[M]` and `index`
    uint32 `[M]`, rows of `dataset.h5`. Both have `example_id`, the places in the export. ViRelAy draws color images and
    sums attributions over channels: one channel is written as three, of an attribution a third each.

    Args:
      export: what is converted.
      directory: a local folder, made where missing.
      methods: their keys; None = all.
      examples: places in the export; None = all.
      source: of the images.

    Raises:
      ValueError: where h5py is not installed, for a remote directory, or images that are not those exported.
    """
    try:
        import h5py
    except ImportError:
        raise ValueError("h5py is not installed, and HDF5 files need it: pip install h5py") from None
    if "://" in str(directory):
        raise ValueError(f"{directory} is remote: HDF5 files are written to a local folder, copy them from there")
    directory, chosen = epath.Path(directory), export.places(examples)
    directory.mkdir(parents=True, exist_ok=True)
    logits = column(export, "logits", np.float32)
    beside = {"label": column(export, "label", np.int32), "example_id": column(export, "example_id", np.int64)}
    (directory / "label-map.json").write_text(json.dumps(_label_map(export), indent=1, ensure_ascii=False) + "\n")
    if source is not None:
        with replacing(directory / "dataset.h5") as part, h5py.File(part, "w") as content:
            _write_hdf5(content, {"data": _colored(_images(export, source)), **beside}, chosen)
    for method in methods or export.methods:
        places = finite_places(export, method, chosen)
        index = Rows((), np.uint32, lambda part: np.searchsorted(chosen, part))
        rows = {"attribution": _shared(maps_of(export, method)), "prediction": logits, "index": index}
        path = directory / f"{export.name_of(method)}.attribution.h5"
        with replacing(path) as part, h5py.File(part, "w") as content:
            _write_hdf5(content, rows | beside, places)


def _images(export: Export, source: Any) -> Rows:
    height, width, channels = export.attributes["image_shape"]
    dtype = pictures(export, source, [0]).images.dtype
    return Rows((channels, height, width), dtype, lambda part: channels_first(pictures(export, source, part).images))


def _colored(rows: Rows) -> Rows:
    """Repeat a single channel."""
    if rows.shape[0] != 1:
        return rows
    return rows._replace(shape=(_COLORS, *rows.shape[1:]), read=lambda part: rows.read(part).repeat(_COLORS, 1))


def _shared(rows: Rows) -> Rows:
    """Share a single channel among several, so that they sum to it."""
    if rows.shape[0] != 1:
        return rows
    colored = _colored(rows)
    return colored._replace(read=lambda part: colored.read(part) / np.float32(_COLORS))


def _label_map(export: Export) -> list[dict[str, Any]]:
    """Return what ViRelAy calls the classes; −1 is an example whose class is not known."""
    known = (export.attributes.get("provenance") or {}).get("dataset", {})
    names = known.get("class_names") or [f"class {number}" for number in range(export.attributes["num_classes"])]
    entries = [*enumerate(names), (-1, "unknown")]
    return [{"index": number, "word_net_id": f"{number}", "name": str(name)} for number, name in entries]


def _write_hdf5(content: Any, arrays: dict[str, Rows], places: np.ndarray) -> None:
    for name, rows in arrays.items():
        array = content.create_dataset(name, (places.size, *rows.shape), rows.dtype)
        for start, part in zip(range(0, places.size, ROWS_AT_ONCE), rows.parts(places), strict=True):
            array[start : start + len(part)] = part
