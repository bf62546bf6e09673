"""What differs between two exports, in few words."""

from collections.abc import Mapping
from typing import Any

from sdecor.core.files import differing_fields, list_differences

MANY = ("provenance.checkpoint.parameters", "data.images")  # of these the first difference is told, and how many


def list_shortly(differences: Mapping[str, tuple[Any, Any]]) -> str:
    """Return a line for each differing field, and one for all of `MANY`."""
    told = dict(differences)
    for field in MANY:
        inside = [name for name in told if name.startswith(f"{field}.")]
        if len(inside) > 1:
            first = f"{inside[0]} and {len(inside) - 1} {field.rpartition('.')[2]} more"
            told[first] = told[inside[0]]
            told = {name: pair for name, pair in told.items() if name not in inside}
    return list_differences(told)


def filled(data: Mapping[str, Any], other: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a fingerprint of data, its images that could not be read taken from another one.

    An export that a broken image stopped goes on when that is repaired, and when it is broken again.
    """
    own, others = data.get("images") or {}, (other or {}).get("images") or {}
    images = {place: others.get(place) if value is None else value for place, value in own.items()}
    return {**data, "images": images} if "images" in data else dict(data)


def differing_arrays(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the differences of arrays' metadata; of an array that one side lacks, only what it is."""
    both = there.keys() & here.keys()
    common = ({name: side[name] for name in both} for side in (there, here))
    found = differing_fields(*common, prefix="arrays.")
    for name in sorted(there.keys() ^ here.keys()):
        found[f"arrays.{name}"] = _described(there.get(name)), _described(here.get(name))
    return found


def _described(stored: Mapping[str, Any] | None) -> str | None:
    return None if stored is None else f"{stored['data_type']} {tuple(stored['shape'])}"
