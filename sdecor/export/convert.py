"""Conversion of an export to a NumPy archive (Quantus) or HDF5 files (ViRelAy, CoRelAy), with images.

Images come from the data that was exported; a place in the export is an index of the source. Examples without a finite
map, skipped ones among them, are left out of NumPy archives and of attribution files.
"""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from sdecor.core.files import readable, replacing, write_json
from sdecor.data import center_crop, normalise
from sdecor.data.batches import object_mask
from sdecor.data.dataset import create_dataset, options_of
from sdecor.export.reader import Export

AT_ONCE = 64  # examples in memory at a time


class LazyArray(NamedTuple):
    """An array `[N, …]` that is read in parts: shape of one example, dtype, and `read(places [n]) -> [n, …]`."""

    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[np.ndarray], np.ndarray]

    def batches(self, places: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield slices of `places`, at most `AT_ONCE` long, each with the values there."""
        for where in in_batches(places.size):
            yield where, np.ascontiguousarray(self.read(places[where]), self.dtype)


def in_batches(n: int) -> Iterator[slice]:
    """Yield slices of at most `AT_ONCE` that cover `n` examples."""
    return (slice(start, min(start + AT_ONCE, n)) for start in range(0, n, AT_ONCE))


def column(export: Export, name: str, dtype: Any) -> LazyArray:
    """Return a stored array, converted to `dtype`."""
    return LazyArray(export.arrays[name].tail, dtype, lambda places: export.read(name, places))


def maps_of(export: Export, method: str) -> LazyArray:
    """Return a method's maps `[N, C, H, W]`; C is 1 for maps without channels."""
    axes = len(positions_of(export))
    tail = export.arrays[export.name_of(method)].tail
    shape = (*(tail[axes:] or [1]), *tail[:axes])
    return LazyArray(shape, np.float32, lambda places: channels_first(export.attribution(method, places), axes))


def positions_of(export: Export) -> tuple[int, ...]:
    """Return the shape of an input without its channels: `(H, W)`, or `(T,)` of series."""
    return tuple(export.attributes["image_shape"][:-1])


def channels_first(values: np.ndarray, axes: int) -> np.ndarray:
    """Return `[n, C, *positions]` from `[n, *positions, C]` with `axes` positions, or `[n, 1, …]` without channels."""
    return values[:, None] if values.ndim == axes + 1 else np.moveaxis(values, -1, 1)


def finite_places(export: Export, method: str, places: np.ndarray) -> np.ndarray:
    """Return the places whose map is finite; raise `ValueError` if there are none."""
    whole = np.empty(places.size, bool)
    for where in in_batches(places.size):
        values = export.attribution(method, places[where])
        whole[where] = np.isfinite(values).all(tuple(range(1, values.ndim)))
    if not whole.any():
        raise ValueError(f"{export.path} has no finite map of {method} among the {places.size} examples chosen")
    return places[whole]


class Pictures(NamedTuple):
    """Images `[n, H, W, C]`, and object codes uint8 `[n, H, W]`, or None if the data have no masks or boxes.

    Series are `[n, T, C]`, and their codes `[n, T]` or `[n, T, C]`.
    """

    images: np.ndarray
    objects: np.ndarray | None


def open_source(export: Export, **changes: Any) -> Any:
    """Open the data that an export of a trained run was made from.

    Args:
      export: an export made by `evaluate.py --export`.
      **changes: new values for fields of the run's `config.data`, such as its `path` now; None keeps a field.

    Raises:
      ValueError: when `evaluate.py --export` did not make the export.
    """
    made_of = _provenance(export)
    if not {"config", "dataset"} <= made_of.keys():
        raise ValueError(f"{export.path} does not tell where its images lie: it was not made by evaluate.py --export")
    known = made_of["dataset"]
    fields = made_of["config"]["data"] | {name: value for name, value in changes.items() if value is not None}
    options = options_of(fields) | {"mean": known["mean"], "std": known["std"], "on_error": "stop"}
    return create_dataset(**options).source(known["split"])


def _provenance(export: Export) -> dict[str, Any]:
    return export.attributes.get("provenance") or {}


def pictures(export: Export, source: Any, places: Sequence[int]) -> Pictures:
    """Return the source's images at `places`, cropped to the centre that the network saw.

    The image of a skipped example is black.

    Raises:
      ValueError: when the source differs from the exported data.
    """
    if len(source) != len(export):
        raise ValueError(f"the source has {len(source)} examples, and {export.path} {len(export)}: give the same data")
    skipped = {int(each["index"]) for each in export.skipped}
    whole = next((place for place in range(len(export)) if place not in skipped), None)
    if whole is None:
        raise ValueError(f"{export.path}: every example was skipped, there are no images")
    examples = [_same_example(export, source, int(place)) if int(place) not in skipped else None for place in places]
    like = source[whole]
    blank = {"image": np.zeros_like(like["image"])}
    images = np.stack([(example or blank)["image"] for example in examples])
    mask = object_mask(like)
    if mask is None:
        return Pictures(_cut(export, images), None)
    masks = np.stack([np.zeros_like(mask) if example is None else object_mask(example) for example in examples])
    return Pictures(_cut(export, images), _cut(export, masks))


def network_input(export: Export, images: np.ndarray) -> np.ndarray:
    """Return the network's float32 inputs: those of a trained run are normalised by the data set's mean and std."""
    known = _provenance(export).get("dataset", {})
    if "mean" not in known:
        return images.astype(np.float32)
    return np.asarray(normalise(images, known["mean"], known["std"]))


def _same_example(export: Export, source: Any, place: int) -> dict[str, Any]:
    """Return the source's example at `place`; raise `ValueError` if its name or class differs from the exported one."""
    example, name, label = source[place], export.names[place], int(export.read("label", place))
    # Names given to `export.export` may differ from the source's names.
    of_run = "dataset" in _provenance(export)
    found = readable(str(source.name(place))) if of_run else name
    # Stored names are relative to the folder of all examples, because that folder may move.
    same = found == name or found.endswith(f"/{name}")
    if not same or int(example.get("label", label)) != label:
        raise ValueError(
            f"example {place} of the source is {found!r} of class {example.get('label')}, and of {export.path} "
            f"{name!r} of class {label}: give the same data"
        )
    return example


def _cut(export: Export, images: np.ndarray) -> np.ndarray:
    wanted = positions_of(export)
    found = images.shape[1 : 1 + len(wanted)]
    if found == wanted:
        return images
    if len(wanted) != 2 or wanted[0] != wanted[1]:
        raise ValueError(f"the source's images are {found} and the maps {wanted}: give the same")
    return center_crop(images, wanted[0])


def to_npz(
    export: Export,
    path: epath.PathLike,
    *,
    method: str | None = None,
    examples: Sequence[int] | None = None,
    source: Any = None,
) -> None:
    """Write one method's maps as the arrays that Quantus' metrics take.

    The archive holds the finite maps `a_batch` float32 `[N, 1 or C, H, W]`, the explained classes `y_batch` int64
    `[N]`, and `label`, `prediction` and `index` (the places in the export) int64 `[N]`. With a source it also holds the
    network's inputs `x_batch` float32 `[N, C, H, W]` and, if the data have masks or boxes, `s_batch` uint8
    `[N, 1, H, W]`, which is 1 on the object. Arrays of series have the axis T in place of H and W; where the masks of
    the data have channels, `s_batch` is `[N, C, T]`.

    Args:
      export: the export to convert.
      path: path of the archive, local or remote.
      method: the method's key or array name; needed if there are several methods.
      examples: places in the export; None = all.
      source: the exported data, for the images.

    Raises:
      ValueError: for an unknown method or place, or images that differ from the exported ones.
    """
    if method is None and len(export.methods) > 1:
        raise ValueError(f"method is not given: an archive has one method's maps, one of {', '.join(export.methods)}")
    method = method or next(iter(export.methods))
    places = finite_places(export, method, export.places(examples))
    arrays = {"a_batch": maps_of(export, method), "y_batch": column(export, "target", np.int64)}
    arrays |= {name: column(export, name, np.int64) for name in ("label", "prediction")}
    arrays["index"] = LazyArray((), np.int64, lambda places: places)
    if source is not None:
        arrays |= _inputs(export, source)
    epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            _write_npy(archive, name, array, places)


def _inputs(export: Export, source: Any) -> dict[str, LazyArray]:
    """Return the network's inputs, and the object masks if the data have any."""
    *wanted, channels = export.attributes["image_shape"]
    axes = len(wanted)
    x = LazyArray(
        (channels, *wanted),
        np.float32,
        lambda places: channels_first(network_input(export, pictures(export, source, places).images), axes),
    )
    objects = pictures(export, source, [0]).objects
    if objects is None:
        return {"x_batch": x}
    s = LazyArray(
        channels_first(objects, axes).shape[1:],
        np.uint8,
        lambda places: channels_first(pictures(export, source, places).objects, axes) == 1,
    )
    return {"x_batch": x, "s_batch": s}


def _write_npy(archive: zipfile.ZipFile, name: str, array: LazyArray, places: np.ndarray) -> None:
    """Add an array to an .npz file, as `np.savez` does, without holding all of it in memory."""
    descr, shape = np.lib.format.dtype_to_descr(np.dtype(array.dtype)), (places.size, *array.shape)
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        for _, values in array.batches(places):
            file.write(values.tobytes())


_COLORS = 3  # channels that ViRelAy draws


def to_hdf5(
    export: Export,
    directory: epath.PathLike,
    *,
    methods: Sequence[str] | None = None,
    examples: Sequence[int] | None = None,
    source: Any = None,
) -> None:
    """Write ViRelAy's files: `dataset.h5` (with a source), one `<method>.attribution.h5` per method, `label-map.json`.

    `dataset.h5` holds the source's images `data` `[N, C, H, W]` and `label` int32 `[N]`. An attribution file holds the
    M finite maps `attribution` float32 `[M, C, H, W]`, the logits `prediction` float32 `[M, K]`, `label` int32 `[M]`
    and `index` uint32 `[M]`, the rows in `dataset.h5`. Both hold `example_id`, the places in the export. ViRelAy draws
    color images and sums attributions over channels. A single channel is therefore written as three: an image is
    repeated, an attribution is divided by 3.

    Args:
      export: the export to convert.
      directory: a local folder, created if missing.
      methods: method keys or array names; None = all.
      examples: places in the export; None = all.
      source: the exported data, for the images.

    Raises:
      ValueError: when h5py is not installed, the directory is remote, the export is not of images, or images differ
        from the exported ones.
    """
    if len(positions_of(export)) != 2:
        raise ValueError(
            f"{export.path} is of inputs of shape {tuple(export.attributes['image_shape'])}: ViRelAy's files are of "
            "images; write a NumPy archive instead"
        )
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
    write_json(directory / "label-map.json", _label_map(export))
    if source is not None:
        with replacing(directory / "dataset.h5") as temporary, h5py.File(temporary, "w") as content:
            _write_hdf5(content, {"data": _colored(_images(export, source)), **beside}, chosen)
    for method in methods or export.methods:
        places = finite_places(export, method, chosen)
        index = LazyArray((), np.uint32, lambda places: np.searchsorted(chosen, places))
        arrays = {"attribution": _shared(maps_of(export, method)), "prediction": logits, "index": index}
        path = directory / f"{export.name_of(method)}.attribution.h5"
        with replacing(path) as temporary, h5py.File(temporary, "w") as content:
            _write_hdf5(content, arrays | beside, places)


def _images(export: Export, source: Any) -> LazyArray:
    height, width, channels = export.attributes["image_shape"]
    dtype = pictures(export, source, [0]).images.dtype
    return LazyArray(
        (channels, height, width), dtype, lambda places: channels_first(pictures(export, source, places).images, 2)
    )


def _colored(array: LazyArray) -> LazyArray:
    """Repeat a single channel three times."""
    if array.shape[0] != 1:
        return array
    shape = (_COLORS, *array.shape[1:])
    return array._replace(shape=shape, read=lambda places: array.read(places).repeat(_COLORS, 1))


def _shared(array: LazyArray) -> LazyArray:
    """Split a single channel into three equal parts that sum to it."""
    if array.shape[0] != 1:
        return array
    colored = _colored(array)
    return colored._replace(read=lambda places: colored.read(places) / np.float32(_COLORS))


def _label_map(export: Export) -> list[dict[str, Any]]:
    """Return ViRelAy's list of class names; −1 is the unknown class."""
    known = _provenance(export).get("dataset", {})
    names = known.get("class_names") or [f"class {number}" for number in range(export.attributes["num_classes"])]
    entries = [*enumerate(names), (-1, "unknown")]
    return [{"index": number, "word_net_id": f"{number}", "name": str(name)} for number, name in entries]


def _write_hdf5(content: Any, arrays: dict[str, LazyArray], places: np.ndarray) -> None:
    for name, array in arrays.items():
        stored = content.create_dataset(name, (places.size, *array.shape), array.dtype)
        for where, values in array.batches(places):
            stored[where] = values
