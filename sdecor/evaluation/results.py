"""Results of an evaluation: values per example and moments of the features, gathered, joined and stored."""

import io
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath

from sdecor import metrics
from sdecor.core.files import write_file

MOMENTS = "moments/"  # prefix of the moments' names in a file


class Results(NamedTuple):
    """The results of one network on one split.

    Attributes:
      examples: name → array `[N, …]`, ordered by `index`. Predictions have plain names; metrics of a method's
        explanations are named "method/metric". NaN if an example was not measured or a metric is undefined.
      moments: moments of the features, see `metrics.feature_moments`; empty without predictions.
    """

    examples: dict[str, np.ndarray]
    moments: dict[str, np.ndarray]


def collect(step: Callable[[Any], tuple[Any, Any]], batches: Iterable[Any]) -> Results:
    """Run `step(batch) -> (examples, moments)` over all batches and gather the results on the host.

    Args:
      step: function that returns arrays of the batch's examples, `index` and `weight` among them, and moments or an
        empty dict, all with or without a leading device axis. Arrays missing for some batches are filled with NaN.
      batches: padded batches, the arguments of `step`.

    Returns:
      Results without the padding (weight 0), ordered by index.

    Raises:
      ValueError: if no example has weight 1.
    """
    parts, pending = [], None
    for batch in batches:
        # A batch is dispatched before the previous one is fetched, so that the devices do not wait.
        current = step(batch)
        if pending is not None:
            parts.append(_fetch(*pending))
        pending = current
    if pending is not None:
        parts.append(_fetch(*pending))
    return merge(parts)


def merge(parts: Sequence[Results]) -> Results:
    """Join the results of batches or processes: sort the examples by index, and merge the moments exactly.

    Raises:
      ValueError: if there is no example, or an example occurs twice.
    """
    parts = [part for part in parts if part.examples["index"].size]
    if not parts:
        raise ValueError("nothing was evaluated: the split has no examples")
    first = {name: values for part in reversed(parts) for name, values in part.examples.items()}
    examples = {
        name: np.concatenate([part.examples[name] if name in part.examples else _gap(values, part) for part in parts])
        for name, values in first.items()
    }
    order = np.argsort(examples["index"], kind="stable")
    examples = {name: values[order] for name, values in examples.items()}
    index = examples["index"]
    twice = index[1:][index[1:] == index[:-1]]
    if twice.size:
        raise ValueError(f"example {twice[0]} was evaluated twice: every example must be in one batch only")
    moments = parts[0].moments
    for part in parts[1:] if moments else ():
        moments = metrics.merge_moments(moments, part.moments)
    return Results(examples, moments)


def _gap(like: np.ndarray, part: Results) -> np.ndarray:
    return np.full((part.examples["index"].size, *like.shape[1:]), np.nan, like.dtype)


def _fetch(examples: Mapping[str, Any], moments: Mapping[str, Any]) -> Results:
    examples, moments = ({k: np.asarray(v) for k, v in tree.items()} for tree in (examples, moments))
    lead = examples["index"].ndim
    examples = {name: x.reshape(-1, *x.shape[lead:]) for name, x in examples.items()}
    real = examples["weight"] > 0
    examples = {name: x[real] for name, x in examples.items() if name != "weight"}
    if not moments:
        return Results(examples, {})
    lead = moments["count"].ndim
    devices = {name: x.reshape(-1, *x.shape[lead:]) for name, x in moments.items()}
    total = {name: x[0].astype(np.float64) for name, x in devices.items()}
    for i in range(1, devices["count"].size):
        total = metrics.merge_moments(total, {name: x[i] for name, x in devices.items()})
    return Results(examples, total)


def extend(everything: Results, part: Results, prefix: str) -> Results:
    """Add metrics of some examples to the results of all, under `prefix`; the other examples get NaN.

    Args:
      everything: results of all examples.
      part: results of some of these examples.
      prefix: prefix of the names in `part`, joined by a slash.
    """
    index = everything.examples["index"]
    place = np.searchsorted(index, part.examples["index"])
    examples = dict(everything.examples)
    for name, values in part.examples.items():
        if name != "index":
            column = np.full((index.size, *values.shape[1:]), np.nan, values.dtype)
            column[place] = values
            examples[f"{prefix}/{name}"] = column
    return Results(examples, everything.moments)


def save(
    path: Any,
    results: Results,
    run: Mapping[str, Any],
    parts: Mapping[str, Any],
    versions: Mapping[str, Any] | None = None,
) -> None:
    """Write results and the settings that they depend on to an `.npz` file; a reader never sees half a file.

    Args:
      path: path of the file.
      results: the results.
      run: settings that all results depend on.
      parts: part → its settings, for each complete part.
      versions: part → package versions that it was made with.
    """
    buffer = io.BytesIO()
    moments = {f"{MOMENTS}{name}": value for name, value in results.moments.items()}
    settings = json.dumps({"run": run, "parts": parts, "versions": versions or {}})
    np.savez(buffer, settings=settings, **results.examples, **moments)
    write_file(path, buffer.getvalue())


def load(path: Any, run: Mapping[str, Any]) -> tuple[Results | None, dict[str, Any]]:
    """Read results and the settings of their parts; `(None, {})` if there are none with the same `run`."""
    return load_with_versions(path, run)[:2]


def load_with_versions(path: Any, run: Mapping[str, Any]) -> tuple[Results | None, dict[str, Any], dict[str, Any]]:
    """Read results, the settings of their parts, and the package versions of each part.

    A damaged file counts as missing, with a warning: what it held is evaluated again.
    """
    path = epath.Path(path)
    if not path.exists():
        return None, {}, {}
    content = path.read_bytes()
    try:
        settings, arrays = _read_archive(content)
    except Exception as error:  # a damaged archive raises errors of many kinds: of zipfile, zlib, NumPy and JSON
        reason = str(error) or type(error).__name__
        logging.warning("%s is damaged (%s): what it held is evaluated again", path, reason)
        return None, {}, {}
    if settings["run"] != run:
        return None, {}, {}
    moments = {name: arrays.pop(name) for name in list(arrays) if name.startswith(MOMENTS)}
    moments = {name.removeprefix(MOMENTS): values for name, values in moments.items()}
    return Results(arrays, moments), settings["parts"], settings["versions"]


def _read_archive(content: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the settings and the arrays of an `.npz` file; raise an error of any kind if it is damaged."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} has another checksum")
    with np.load(io.BytesIO(content)) as stored:
        arrays = {name: stored[name] for name in stored}
    settings = {"run": None, "parts": {}, "versions": {}}  # of files without settings
    settings |= json.loads(str(arrays.pop("settings", "{}")))
    for field in ("parts", "versions"):
        if not isinstance(settings[field], dict):
            raise ValueError(f"{field} = {settings[field]!r} is no JSON object")
    index = arrays["index"]
    if index.ndim != 1 or index.dtype.kind != "i" or (np.diff(index) <= 0).any():
        raise ValueError("index is not ascending")
    for name, values in arrays.items():
        if values.dtype.kind not in "biuf" or (not name.startswith(MOMENTS) and values.shape[:1] != index.shape):
            raise ValueError(f"{name} is {values.dtype} {values.shape}, of {index.size} examples")
    return settings, arrays
