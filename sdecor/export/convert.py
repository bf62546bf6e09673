"""An export as NumPy archive (Quantus) or HDF5 files (ViRelAy, CoRelAy), with the images read."""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from sdecor.core.files import readable, replacing, write_json
from sdecor.data import center_crop, create_dataset, normalise
from sdecor.data.batches import object_mask
from sdecor.export.reader import Export

AT_ONCE = 64  # examples in memory


class LazyArray(NamedTuple):
    """An array `[N, …]` that is read when it is written: shape of an example, type, and `(places [n]) -> [n, …]`."""

    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[np.ndarray], np.ndarray]

    def batches(self, places: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the values at `places`, `AT_ONCE` at a time, with where they stand among these."""
        for where in in_batches(places.size):
            yield where, np.ascontiguousarray(self.read(places[where]), self.dtype)


def in_batches(n: int) -> Iterator[slice]:
    """Yield the slices that cut `n` examples into batches of `AT_ONCE`."""
    return (slice(start, min(start + AT_ONCE, n)) for start in range(0, n, AT_ONCE))


def column(export: Export, name: str, dtype: Any) -> LazyArray:
    """Return one of the stored arrays as another type."""
    return LazyArray(export.arrays[name].tail, dtype, lambda places: export.read(name, places))


def maps_of(export: Export, method: str) -> LazyArray:
    """Return the maps with channels first, one where there is none."""
    height, width, *channels = export.arrays[export.name_of(method)].tail
    shape = (*(channels or [1]), height, width)
    return LazyArray(shape, np.float32, lambda places: channels_first(export.attribution(method, places)))


def channels_first(values: np.ndarray) -> np.ndarray:
    """Return `[n, C, H, W]` of `[n, H, W, C]`, or of `[n, H, W]` with one channel."""
    return values[:, None] if values.ndim == 3 else np.moveaxis(values, -1, 1)


def finite_places(export: Export, method: str, places: np.ndarray) -> np.ndarray:
    """Return the places whose map is finite."""
    whole = np.empty(places.size, bool)
    for where in in_batches(places.size):
        values = export.attribution(method, places[where])
        whole[where] = np.isfinite(values).all(tuple(range(1, values.ndim)))
    if not whole.any():
        raise ValueError(f"{export.path} has no finite map of {method} among the {places.size} examples chosen")
    return places[whole]


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
    made_of = _provenance(export)
    if not {"config", "dataset"} <= made_of.keys():
        raise ValueError(f"{export.path} does not tell where its images lie: it was not made by evaluate.py --export")
    known = made_of["dataset"]
    fields = made_of["config"]["data"] | {name: value for name, value in changes.items() if value is not None}
    names = ("path", "data_dir", "canvas", "canvas_fit", "mask_encoding", "channels", "val_fraction", "split_seed")
    options = {name: fields.get(name) for name in (*names, "limit")}
    return create_dataset(fields["name"], **options, mean=known["mean"], std=known["std"]).source(known["split"])


def _provenance(export: Export) -> dict[str, Any]:
    return export.attributes.get("provenance") or {}


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
    """Return images as the network took them, float32: uint8 ones normalised by the data set's mean and deviation."""
    known = _provenance(export).get("dataset", {})
    if images.dtype != np.uint8 or "mean" not in known:
        return images.astype(np.float32)
    return np.asarray(normalise(images, known["mean"], known["std"]))


def _same_example(export: Export, source: Any, place: int) -> dict[str, Any]:
    """Return the source's example, refusing one of another name or class than was exported."""
    example, name, label = source[place], export.names[place], int(export.read("label", place))
    # Names that were given to `export.export` need not be those of a source.
    of_run = "dataset" in _provenance(export)
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
    arrays["index"] = LazyArray((), np.int64, lambda places: places)
    if source is not None:
        arrays |= _inputs(export, source)
    epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            _write_npy(archive, name, array, places)


def _inputs(export: Export, source: Any) -> dict[str, LazyArray]:
    """The images as the network took them, and the objects where there are any."""
    height, width, channels = export.attributes["image_shape"]
    x = LazyArray(
        (channels, height, width),
        np.float32,
        lambda places: channels_first(network_input(export, pictures(export, source, places).images)),
    )
    if pictures(export, source, [0]).objects is None:
        return {"x_batch": x}
    s = LazyArray((1, height, width), np.uint8, lambda places: pictures(export, source, places).objects[:, None] == 1)
    return {"x_batch": x, "s_batch": s}


def _write_npy(archive: zipfile.ZipFile, name: str, array: LazyArray, places: np.ndarray) -> None:
    """Add an array to an .npz, as `np.savez` would, without ever holding all of it."""
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
        (channels, height, width), dtype, lambda places: channels_first(pictures(export, source, places).images)
    )


def _colored(array: LazyArray) -> LazyArray:
    """Repeat a single channel."""
    if array.shape[0] != 1:
        return array
    shape = (_COLORS, *array.shape[1:])
    return array._replace(shape=shape, read=lambda places: array.read(places).repeat(_COLORS, 1))


def _shared(array: LazyArray) -> LazyArray:
    """Share a single channel among several, so that they sum to it."""
    if array.shape[0] != 1:
        return array
    colored = _colored(array)
    return colored._replace(read=lambda places: colored.read(places) / np.float32(_COLORS))


def _label_map(export: Export) -> list[dict[str, Any]]:
    """Return what ViRelAy calls the classes; −1 is an example whose class is not known."""
    known = _provenance(export).get("dataset", {})
    names = known.get("class_names") or [f"class {number}" for number in range(export.attributes["num_classes"])]
    entries = [*enumerate(names), (-1, "unknown")]
    return [{"index": number, "word_net_id": f"{number}", "name": str(name)} for number, name in entries]


def _write_hdf5(content: Any, arrays: dict[str, LazyArray], places: np.ndarray) -> None:
    for name, array in arrays.items():
        stored = content.create_dataset(name, (places.size, *array.shape), array.dtype)
        for where, values in array.batches(places):
            stored[where] = values
