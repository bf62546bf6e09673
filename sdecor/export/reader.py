"""Reader of an export: float32 maps, predictions and targets; and a check that it is of a given run and data."""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorstore as ts
from etils import epath

from sdecor.core.checks import check_choice, check_count
from sdecor.core.files import check_text, differing_fields, list_differences, plain_settings
from sdecor.evaluation import Method, choose_methods
from sdecor.evaluation.stored import Maps
from sdecor.export import verify
from sdecor.export.encode import DTYPES, decode
from sdecor.export.feed import reader_of
from sdecor.export.files import open_files
from sdecor.export.layout import METADATA, ArraySpec
from sdecor.export.manifest import IDS, SKIPPED, Record, layout_of, names_of, read_group, read_records
from sdecor.export.resume import fill_unread, list_shortly

REPAIR = (
    "run the export's command again, it computes damaged parts again; `python -m sdecor.export PATH --check` lists them"
)
_CACHE_BYTES = 1 << 26  # memory for decoded chunks, so that random reads decode a chunk once


class Arrays:
    """The stored arrays under `path`, a folder or URL; each is opened at its first read."""

    def __init__(self, path: str, specs: Mapping[str, ArraySpec]):
        self._path, self._specs = path, specs
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
        self._opened: dict[str, ts.TensorStore] = {}

    def read(self, name: str, places: np.ndarray) -> np.ndarray:
        """Return the stored entries of an array at `places`, one number or `[n]`."""
        if name not in self._opened:
            self._opened[name] = self._open(name)
        if places.ndim == 0:
            return self._read(name, int(places))
        run = places.size and np.array_equal(places, np.arange(places[0], places[0] + places.size))
        return self._read(name, slice(int(places[0]), int(places[0]) + places.size) if run else places)

    def _read(self, name: str, chosen: Any) -> np.ndarray:
        try:
            return self._opened[name][chosen].read().result()
        except ValueError as error:
            raise ValueError(f"array {name!r} of {self._path} is damaged: {REPAIR} ({_first(error)})") from error

    def _open(self, name: str) -> ts.TensorStore:
        folder: Any = f"{self._path.rstrip('/')}/{name}/"
        if "://" not in folder:
            folder = {"driver": "file", "path": os.path.abspath(os.path.expanduser(folder)) + "/"}
        spec = {"driver": "zarr3", "kvstore": folder, "recheck_cached_data": "open"}
        try:
            found = ts.open(spec, read=True, open=True, context=self._context).result()
        except ValueError as error:
            raise ValueError(f"array {name!r} of {self._path} is damaged: {REPAIR} ({_first(error)})") from error
        wanted = self._specs[name]
        if (found.dtype.name, found.shape[1:]) != (wanted.dtype, wanted.tail):
            raise ValueError(
                f"array {name!r} of {self._path} is {found.dtype.name} {found.shape[1:]} in its own {METADATA}, and "
                f"{wanted.dtype} {wanted.tail} in the group's: {REPAIR}"
            )
        return found


def _first(error: Exception) -> str:
    """Return TensorStore's text of an error without its description of the array."""
    return str(error).partition(" [")[0]


@contextlib.contextmanager
def _named(file: str) -> Iterator[None]:
    """Put the name of a file before an error in its content."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{file} is of no export that can be read: {error}") from error


def _validate_attributes(attributes: Mapping[str, Any]) -> None:
    """Raise `ValueError` for attributes of an export that are missing or of another type."""
    count, shape = attributes.get("num_examples", ""), attributes.get("image_shape")
    if count is not None or attributes.get("complete"):
        check_count("num_examples", count, 0)
    check_count("num_classes", attributes.get("num_classes"))
    if not isinstance(shape, list) or len(shape) < 2:
        raise ValueError(f"image_shape = {shape!r} is no shape: give height, width and channels, or time and channels")
    for size in shape:
        check_count("image_shape", size)
    for field in ("provenance", "totals"):
        if not isinstance(attributes.get(field) or {}, dict):
            raise ValueError(f"{field} = {attributes[field]!r} is no JSON object")


def _validate_methods(arrays: Mapping[str, ArraySpec]) -> None:
    """Raise `ValueError` unless the methods' keys are different texts of one line, and their arrays can be decoded."""
    without = [name for name, spec in arrays.items() if not isinstance(spec.attributes, dict)]
    if without:
        raise ValueError(f"attributes of array {without[0]!r} are no JSON object")
    keys = [spec.attributes["method"] for spec in arrays.values() if "method" in spec.attributes]
    for name, spec in arrays.items():
        if "method" not in spec.attributes:
            continue
        key, encoding = spec.attributes["method"], spec.attributes.get("encoding")
        if not isinstance(key, str) or not key.isprintable() or keys.count(key) > 1:
            raise ValueError(f"method = {key!r} of array {name!r} is no key of its own, of printable characters")
        if not isinstance(encoding, dict) or not isinstance(spec.attributes.get("settings"), dict):
            raise ValueError(f"array {name!r} lacks the encoding or the settings of its method")
        check_choice(f"encoding.dtype of array {name!r}", encoding.get("dtype"), DTYPES)
        check_count(f"encoding.zero_point of array {name!r}", encoding.get("zero_point"), 0)
        others = {"encoding.scale": encoding.get("scale")}
        others["completeness_error"] = spec.attributes.get("completeness_error")
        for field, other in others.items():
            check_choice(f"{field} of array {name!r}", other, (None, *arrays))
        if encoding["dtype"] != spec.dtype or (spec.dtype != "float32") != (encoding.get("scale") is not None):
            raise ValueError(f"encoding of array {name!r} is not of its type {spec.dtype}")


Index = int | slice | np.ndarray | list[int]


def open(path: epath.PathLike) -> "Export":
    """Open an export, finished or not, local or remote.

    Raises:
      ValueError: when there is no export at `path`.
    """
    return Export(path)


class Export:
    """An export, opened for reading. A place is an example's number in the data, `0 … len(export)−1`.

    Attributes:
      path: path of the export.
      attributes: attributes of the root group: the exported run, data and settings.
      arrays: `ArraySpec`s of the stored arrays, by name.
      methods: attributes of the methods' arrays, by method key.
      complete: whether the export is finished.
      ranges: `(start, stop)` of the stored places, neighbours joined.
    """

    def __init__(self, path: epath.PathLike):
        check_text("path", path)
        self.path = os.fspath(path)
        self._files = open_files(self.path)
        group = read_group(self._files)
        if group is None:
            raise ValueError(
                f"{self.path} holds no export, or a damaged zarr.json: give the folder that the export was written to"
            )
        self.attributes: dict[str, Any] = group["attributes"]
        self.arrays = {spec.name: spec for spec in layout_of(group).arrays}
        with _named(self._files.name(METADATA)):
            _validate_attributes(self.attributes)
            _validate_methods(self.arrays)
        self.methods = {s.attributes["method"]: s.attributes for s in self.arrays.values() if "method" in s.attributes}
        self._name_of = {s.attributes["method"]: s.name for s in self.arrays.values() if "method" in s.attributes}
        self.complete = bool(self.attributes.get("complete"))
        self.ranges = self._ranges()
        self._arrays = Arrays(self.path, self.arrays)

    def _ranges(self) -> tuple[tuple[int, int], ...]:
        if self.complete:
            return ((0, self.attributes["num_examples"]),)
        found: list[tuple[int, int]] = []
        for record in self._records():
            touches = found and found[-1][1] == record["start"]
            found.append((found.pop()[0] if touches else record["start"], record["stop"]))
        return tuple(found)

    def _records(self) -> Iterator[Record]:
        try:
            yield from read_records(self._files)
        except ValueError as error:
            raise ValueError(f"{error}: {REPAIR}") from error

    def __len__(self) -> int:
        known = self.attributes["num_examples"]
        return max((stop for _, stop in self.ranges), default=0) if known is None else known

    def __repr__(self) -> str:
        there = "complete" if self.complete else f"{sum(stop - start for start, stop in self.ranges)} there"
        return f"Export({self.path!r}, {len(self)} examples, {there}, methods {list(self.methods)})"

    def attribution(self, method: str, index: Index = slice(None)) -> np.ndarray:
        """Return float32 maps: `[H, W]` for one place, `[n, H, W]` for several, with `[…, C]` if channels were kept.

        The map of a skipped example is NaN. A map that was not finite is NaN too, or unchanged if stored as float32.

        Args:
          method: the method's key, or the name of its array.
          index: a place, a slice, or places in any order.

        Raises:
          ValueError: for a method that was not exported, or places that are not stored yet.
        """
        name = self.name_of(method)
        encoding, stored = self.arrays[name].attributes["encoding"], self.read(name, index)
        scale = None if encoding["scale"] is None else self.read(encoding["scale"], index)
        return decode(stored, scale, encoding["dtype"], encoding["zero_point"])

    def name_of(self, method: str) -> str:
        """Return the name of a method's array, from the method's key or from that name.

        Raises:
          ValueError: for a method that was not exported.
        """
        if method in self._name_of.values():
            return method
        check_choice("method", method, self.methods)
        return self._name_of[method]

    def read(self, name: str, index: Index = slice(None)) -> np.ndarray:
        """Return entries of the array `name` as stored, without decoding.

        Raises:
          ValueError: for an unknown array, or places that are not stored yet.
        """
        check_choice("array", name, self.arrays)
        places = np.arange(len(self))[index]
        self._validate_there(np.atleast_1d(places))
        return self._arrays.read(name, places)

    def require_complete(self) -> None:
        """Raise `ValueError` unless the export is finished."""
        if not self.complete:
            raise ValueError(f"{self.path} is not finished: run the export's command again to finish it")

    def _validate_there(self, places: np.ndarray) -> None:
        if self.complete:
            return
        there = np.zeros(len(self), bool)
        for start, stop in self.ranges:
            there[start:stop] = True
        if not there[places].all():
            held = ", ".join(f"{start}…{stop - 1}" for start, stop in self.ranges) or "none"
            raise ValueError(
                f"{self.path} is not finished: example {places[~there[places]][0]} is not there yet, of {len(self)} "
                f"there are {held}. Run the export's command again to finish it"
            )

    def places(self, chosen: Index | None = None) -> np.ndarray:
        """Return places, int64 `[n]`, ascending and each once: all, or those `chosen`.

        Raises:
          ValueError: for a place that does not exist, or if none is chosen.
        """
        try:
            places = np.unique(np.arange(len(self))[slice(None) if chosen is None else chosen])
        except IndexError as error:
            raise ValueError(f"{self.path} has examples 0…{len(self) - 1}: {error}") from error
        if not places.size:
            raise ValueError(f"no example is chosen of {self.path}: name some of 0…{len(self) - 1}")
        return places

    @property
    def label(self) -> np.ndarray:
        """The true classes, int32 `[N]`; −1 = unknown."""
        return self.read("label")

    @property
    def prediction(self) -> np.ndarray:
        """The predicted classes, int32 `[N]`."""
        return self.read("prediction")

    @property
    def target(self) -> np.ndarray:
        """The explained classes, int32 `[N]`."""
        return self.read("target")

    @property
    def logits(self) -> np.ndarray:
        """The network's logits, float32 `[N, K]`."""
        return self.read("logits")

    def completeness_error(self, method: str) -> np.ndarray:
        """Return the attributions' sums minus the rises of the score from the baseline, float32 `[N]`."""
        name = self.arrays[self.name_of(method)].attributes.get("completeness_error")
        if name is None:
            raise ValueError(f"method = {method!r} has no completeness error: it gives no shares of the score")
        return self.read(name)

    @functools.cached_property
    def names(self) -> dict[int, str]:
        """The examples' names in the data, by place; only those stored if the export is not finished."""
        if self.complete:
            return {each["example_id"]: each["name"] for each in self._lines(IDS, ("example_id", "name"))}
        return dict(each for record in self._records() for each in names_of(record))

    @functools.cached_property
    def skipped(self) -> list[dict[str, Any]]:
        """The examples that could not be read and were skipped: `index` (place), `name` and `error` of each."""
        if self.complete:
            return self._lines(SKIPPED, ("index", "name", "error"))
        return [each for record in self._records() for each in record.get("skipped", ())]

    def _lines(self, key: str, fields: Sequence[str]) -> list[dict[str, Any]]:
        """Return the lines of a list, each with the fields; only the list of skipped examples may be missing."""
        content = self._files.read(key)
        try:
            found = [json.loads(line) for line in (content or b"").splitlines()]
            whole = all(isinstance(each, dict) and {*fields} <= each.keys() for each in found)
        except (ValueError, RecursionError):
            whole = False
        if not whole or (key == IDS and len(found) != len(self)):
            raise ValueError(f"{self._files.name(key)} is {'missing' if content is None else 'damaged'}: {REPAIR}")
        return found

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the checksums of all stored files: equal for equal exports."""
        content = [[record["start"], record["files"]] for record in self._records()]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def check(self) -> list[str]:
        """Verify every byte and return the problems, one line each; an empty list means that the export is whole."""
        return verify.problems(self.path)

    def maps(self) -> Maps:
        """Return the maps in the form that `evaluation.stored` takes.

        Raises:
          ValueError: when the export is not finished.
        """
        self.require_complete()
        return Maps(self.attribution, self.attributes["reduction"], self.target)


def check_same(export: Export, expected: Mapping[str, Any], source: Any) -> None:
    """Raise `ValueError` unless a finished export has the attributes `expected` and the data of `source`.

    Raises:
      ValueError: when the export differs (the error names each differing field), or is not finished.
    """
    there, here = export.attributes, reader_of(source, on_error="skip").fingerprint
    there = {**there, "data": fill_unread(there.get("data") or {}, here)}
    expected = plain_settings({**expected, "data": fill_unread(here, there["data"])})
    differences = differing_fields({name: there.get(name) for name in expected}, expected)
    if differences:
        raise ValueError(
            f"{export.path} was not made of this run and data:\n{list_shortly(differences)}\n"
            "Give the run, checkpoint, split and target that were exported, or export again."
        )
    export.require_complete()


def stored_methods(export: Export, words: Sequence[str] | None, saliency_of: str) -> dict[str, tuple[Method, bool]]:
    """Return the stored methods that `words` name (None = all), in the form of `choose_methods`.

    Raises:
      ValueError: for a method that is not stored, or whose settings differ from the stored ones.
    """
    chosen = choose_methods(words or list(export.methods))
    missing = [key for key, (_, named) in chosen.items() if key not in export.methods and named]
    if missing:
        held = ", ".join(export.methods)
        raise ValueError(f"--methods has {missing[0]}, which {export.path} does not hold; it holds: {held}")
    chosen = {key: each for key, each in chosen.items() if key in export.methods}
    if not chosen:
        raise ValueError(f"--methods names none of the methods that {export.path} holds: {', '.join(export.methods)}")
    for key, (method, _) in chosen.items():
        differences = differing_fields(export.methods[key]["settings"], plain_settings(method.settings(saliency_of)))
        if differences:
            raise ValueError(
                f"{key} in {export.path} has other settings than here:\n{list_differences(differences)}\n"
                "Export again, or use the version of sdecor that exported it."
            )
    return chosen
