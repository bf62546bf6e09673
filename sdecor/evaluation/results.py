"""Results of an evaluation: values per example and moments of the features, gathered, joined and stored."""

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from sdecor import metrics
from sdecor.core.files import write_file


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
    moments = {f"moments/{name}": value for name, value in results.moments.items()}
    settings = json.dumps({"run": run, "parts": parts, "versions": versions or {}})
    np.savez(buffer, settings=settings, **results.examples, **moments)
    write_file(path, buffer.getvalue())


def load(path: Any, run: Mapping[str, Any]) -> tuple[Results | None, dict[str, Any]]:
    """Read results and the settings of their parts; `(None, {})` if there are none with the same `run`."""
    return load_with_versions(path, run)[:2]


def load_with_versions(path: Any, run: Mapping[str, Any]) -> tuple[Results | None, dict[str, Any], dict[str, Any]]:
    """Read results, the settings of their parts, and the package versions of each part."""
    path = epath.Path(path)
    if not path.exists():
        return None, {}, {}
    with np.load(io.BytesIO(path.read_bytes())) as arrays:
        settings = json.loads(str(arrays["settings"])) if "settings" in arrays else {}
        if settings.get("run") != run:
            return None, {}, {}
        values = {name: arrays[name] for name in arrays if name != "settings"}
    moments = {name.removeprefix("moments/"): values.pop(name) for name in list(values) if name.startswith("moments/")}
    return Results(values, moments), settings["parts"], settings.get("versions", {})
