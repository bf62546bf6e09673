"""An export as a NumPy archive, in the arrays that Quantus takes.

Images come from the source that was exported; a place in the export is an index of the source. Examples without a
finite map, skipped ones among them, are left out.
"""

import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from sdecor.export.pictures import network_input, pictures
from sdecor.export.reader import Export
from sdecor.export.rows import Rows, channels_first, column, finite_places, maps_of, replacing


def to_npz(
    export: Export,
    path: epath.PathLike,
    *,
    method: str | None = None,
    examples: Sequence[int] | None = None,
    source: Any = None,
) -> None:
    """Write one method's maps as the arrays that Quantus' metrics take.

    The archive has `a_batch` float32 `[N, 1 or C, H, W]`, `y_batch` int64 `[N]` (the class explained), and beside them
    `label`, `prediction` and `index`, the places in the export; with a source also `x_batch` float32 `[N, C, H, W]`, as
    the network took it, and where the data have masks or boxes `s_batch` uint8 `[N, 1, H, W]`, 1 on the object.

    Args:
      export: what is converted.
      path: of the file, local or remote.
      method: its key, where there are several.
      examples: places in the export; None = all.
      source: of the images.

    Raises:
      ValueError: for an unknown method or place, or images that are not those exported.
    """
    if method is None and len(export.methods) > 1:
        raise ValueError(f"method is not given: an archive has one method's maps, one of {', '.join(export.methods)}")
    method = method or next(iter(export.methods))
    places = finite_places(export, method, export.places(examples))
    arrays = {"a_batch": maps_of(export, method), "y_batch": column(export, "target", np.int64)}
    arrays |= {name: column(export, name, np.int64) for name in ("label", "prediction")}
    arrays["index"] = Rows((), np.int64, lambda part: part)
    if source is not None:
        arrays |= _inputs(export, source)
    with replacing(path) as part, part.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, rows in arrays.items():
            _write_npy(archive, name, rows, places)


def _inputs(export: Export, source: Any) -> dict[str, Rows]:
    """The images as the network took them, and the objects where there are any."""
    height, width, channels = export.attributes["image_shape"]
    x = Rows(
        (channels, height, width),
        np.float32,
        lambda part: channels_first(network_input(export, pictures(export, source, part).images)),
    )
    if pictures(export, source, [0]).objects is None:
        return {"x_batch": x}
    s = Rows((1, height, width), np.uint8, lambda part: pictures(export, source, part).objects[:, None] == 1)
    return {"x_batch": x, "s_batch": s}


def _write_npy(archive: zipfile.ZipFile, name: str, rows: Rows, places: np.ndarray) -> None:
    """Add an array to an .npz, as `np.savez` would, without ever holding all of it."""
    dtype = np.dtype(rows.dtype)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (places.size, *rows.shape)}
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in rows.parts(places):
            file.write(part.tobytes())
