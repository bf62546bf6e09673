"""What an evaluation found: values of each example and moments of the features; gathered, joined and stored."""

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from sdecor import metrics
from sdecor.core.files import write_file


class Results(NamedTuple):
    """One network on one split.

    Attributes:
      examples: name → array `[N, …]`, ordered by `index`: what the network predicts under plain names, metrics of a
        method's explanations as "method/metric". NaN where an example was not measured, or a metric is undefined.
      moments: of the features, see `metrics.feature_moments`; empty where no prediction was made.
    """

    examples: dict[str, np.ndarray]
    moments: dict[str, np.ndarray]


def collect(step: Callable[[Any], tuple[Any, Any]], batches: Iterable[Any]) -> Results:
    """Run `step(batch) -> (examples, moments)` over all batches and gather what it returns on the host.

    Args:
      step: returns arrays of the batch's examples, `index` and `weight` among them, and moments or an empty dict; all
        may have a leading device axis. What it returns for some batches only is NaN for the others.
      batches: padded batches, as `step` takes them.

    Returns:
      Results without the padding (weight 0), ordered by index.

    Raises:
      ValueError: when no example has weight 1.
    """
    parts, pending = [], None
    for batch in batches:
        # The next batch is dispatched before the previous one is fetched, so that the devices do not wait.
        current = step(batch)
        if pending is not None:
            parts.append(_fetch(*pending))
        pending = current
    if pending is not None:
        parts.append(_fetch(*pending))
    return merge(parts)


def merge(parts: Sequence[Results]) -> Results:
    """Join the results of batches or of processes: examples in order of their index, moments added exactly.

    Raises:
      ValueError: when there is no example, or one occurs twice.
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
    """Add metrics that some examples have to the results of all, under `prefix`; the other examples get NaN.

    Args:
      everything: of all examples.
      part: of some of them.
      prefix: put before the names of `part`, with a slash.
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
    """Write results to an `.npz` file together with what they depend on; a reader never sees half a file.

    Args:
      path: of the file.
      results: what was found.
      run: settings that all of it depends on.
      parts: the settings of each part that is complete.
      versions: of packages, that each part was made with.
    """
    buffer = io.BytesIO()
    moments = {f"moments/{name}": value for name, value in results.moments.items()}
    settings = json.dumps({"run": run, "parts": parts, "versions": versions or {}})
    np.savez(buffer, settings=settings, **results.examples, **moments)
    write_file(path, buffer.getvalue())


def load(path: Any, run: Mapping[str, Any]) -> tuple[Results | None, dict[str, Any]]:
    """Read results and the settings of their parts; `(None, {})` where there are none with the same `run` settings."""
    return load_with_versions(path, run)[:2]


def load_with_versions(path: Any, run: Mapping[str, Any]) -> tuple[Results | None, dict[str, Any], dict[str, Any]]:
    """Read what `load` does, and the versions that the parts were made with."""
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
