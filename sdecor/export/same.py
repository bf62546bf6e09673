"""Whether an export is of the run and the data at hand, and its methods those that are known here."""

from collections.abc import Mapping, Sequence
from typing import Any

from sdecor.core.files import differing_fields, list_differences
from sdecor.evaluation import Method, choose_methods
from sdecor.evaluation.plan import plain
from sdecor.export.differences import filled, list_shortly
from sdecor.export.feed import reader_of
from sdecor.export.reader import Export


def check_same(export: Export, expected: Mapping[str, Any], source: Any) -> None:
    """Check that a finished export is of what the attributes `expected` tell, and of the data of `source`.

    Raises:
      ValueError: when it is of something else, naming each differing field; or when it is not finished.
    """
    there, here = export.attributes, reader_of(source, on_error="skip").fingerprint
    there = {**there, "data": filled(there.get("data") or {}, here)}
    expected = plain({**expected, "data": filled(here, there["data"])})
    differences = differing_fields({name: there.get(name) for name in expected}, expected)
    if differences:
        raise ValueError(
            f"{export.path} was not made of this run and data:\n{list_shortly(differences)}\n"
            "Give the run, checkpoint, split and target that were exported, or export again."
        )
    if not export.complete:
        raise ValueError(f"{export.path} is not finished: run the export's command again to finish it")


def stored_methods(export: Export, words: Sequence[str] | None, saliency_of: str) -> dict[str, tuple[Method, bool]]:
    """Return the methods that `words` name, all stored ones for None, as `choose_methods` does.

    Raises:
      ValueError: for a method that is not stored, or whose settings here are others than those stored.
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
        differences = differing_fields(export.methods[key]["settings"], plain(method.settings(saliency_of)))
        if differences:
            raise ValueError(
                f"{key} in {export.path} has other settings than here:\n{list_differences(differences)}\n"
                "Export again, or use the version of sdecor that exported it."
            )
    return chosen
