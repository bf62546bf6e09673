"""Describe, verify and convert an export.

    python -m sdecor.export OUT.zarr [--check] [--npz=FILE] [--hdf5=DIR] [--png=DIR --examples=0,5] [--methods=…]

Images are read from the data set that was exported. --data_path and --data_dir say where its files are now.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from sdecor.core import interrupt
from sdecor.core.commands import INTERRUPTED, as_one_line
from sdecor.core.files import check_output, check_text, check_writable
from sdecor.export import convert, reader
from sdecor.export.convert import to_hdf5, to_npz
from sdecor.export.overlays import overlays


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an expected error prints its text and exits with status 1."""
    flags = _parser().parse_args(arguments)
    try:
        with as_one_line("sdecor.export", (ValueError, OSError)):
            status = run(flags)
    except KeyboardInterrupt:
        status = INTERRUPTED
    sys.exit(status)


def run(flags: argparse.Namespace) -> int:
    """Do what the flags request and return the exit status: 1 if `--check` finds damage, else 0."""
    validate_targets(flags)
    export = reader.open(flags.path)
    methods = [method for method in _listed(flags.methods) or export.methods if export.name_of(method)]
    examples = None if flags.examples is None else [_number(word) for word in _listed(flags.examples)]
    print(describe(export))
    if flags.check:
        problems = export.check()
        print("\n".join(problems) if problems else "every file is whole")
        if problems:
            print("To repair it, run the export's command again: damaged parts are computed again")
            return 1
    if flags.npz or flags.hdf5 or flags.png:
        source = _source(export, flags, needed=bool(flags.png))
        convert_all(export, source, flags, methods, examples)
    return 0


def convert_all(
    export: reader.Export, source: Any, flags: argparse.Namespace, methods: Sequence[str], examples: list[int] | None
) -> None:
    """Write the files that the flags request."""
    told = "" if examples is None else f", {len(export.places(examples))} examples"
    if flags.npz:
        stem, ending = os.path.splitext(flags.npz)
        for method in methods:
            path = flags.npz if len(methods) == 1 else f"{stem}_{export.name_of(method)}{ending or '.npz'}"
            to_npz(export, path, method=method, examples=examples, source=source)
            print(f"Written: {path}{told}")
    if flags.hdf5:
        to_hdf5(export, flags.hdf5, methods=methods, examples=examples, source=source)
        print(f"Written: {flags.hdf5}{told}")
    if flags.png:
        if examples is None:
            raise ValueError("--png draws the examples that --examples names, for example --examples=0,5,17")
        written = overlays(export, source, flags.png, examples=examples, methods=methods)
        print(f"Written: {len(written)} pictures in {flags.png}")


def validate_targets(flags: argparse.Namespace) -> None:
    """Raise `ValueError` if a flag names a path that cannot be written."""
    if flags.npz:
        check_text("--npz", flags.npz)
        check_writable("--npz", os.path.dirname(flags.npz) or os.curdir)
    for name in ("hdf5", "png"):
        if getattr(flags, name):
            check_output(f"--{name}", getattr(flags, name))
            check_writable(f"--{name}", getattr(flags, name))


def describe(export: reader.Export) -> str:
    """Return a description of an export, a few lines of text."""
    attributes, totals = export.attributes, export.attributes.get("totals") or {}
    there = sum(stop - start for start, stop in export.ranges)
    lines = [f"{export.path}: {len(export)} examples, {'complete' if export.complete else f'{there} of them there'}"]
    reduced = attributes.get("reduction") or "none, channels are kept"
    lines.append(f"  {attributes.get('dtype')}, reduction: {reduced}, target: {attributes.get('target')}")
    if totals.get("skipped"):
        lines.append(f"  skipped: {totals['skipped']}")
    for method in export.methods:
        spec = export.arrays[export.name_of(method)]
        counts = totals.get("counts", {}).get(spec.name, {})
        told = "".join(f", {count} values {name}" for name, count in counts.items() if count)
        lines.append(f"  {method}: array {spec.name}, {spec.dtype} {spec.tail}{told}")
    return "\n".join(lines)


def _source(export: reader.Export, flags: argparse.Namespace, *, needed: bool) -> Any:
    """Open the source of the images; if that fails and images are not `needed`, print why and return None."""
    try:
        return convert.open_source(export, path=flags.data_path, data_dir=flags.data_dir)
    except (ValueError, OSError) as error:
        if needed:
            raise
        print(f"  without images: {error}")
        return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sdecor.export", description=__doc__.splitlines()[0])
    parser.add_argument("path", help="path of the export, local or remote")
    parser.add_argument("--check", action="store_true", help="read every byte and compare it with its checksum")
    parser.add_argument("--npz", metavar="FILE", help="write the arrays that Quantus takes; one file per method")
    parser.add_argument("--hdf5", metavar="DIR", help="write the files that ViRelAy reads")
    parser.add_argument("--png", metavar="DIR", help="draw the maps of --examples over their images")
    parser.add_argument("--examples", metavar="0,5,…", help="which examples; default: all")
    parser.add_argument("--methods", metavar="NAME,…", help="which methods; default: all")
    parser.add_argument("--data_path", help="where the data of config.data.path are now")
    parser.add_argument("--data_dir", help="where TFDS data sets are now")
    return parser


def _listed(words: str | None) -> list[str]:
    return [word for word in (words or "").split(",") if word]


def _number(word: str) -> int:
    if not word.isdigit():
        raise ValueError(f"--examples has {word!r}: give places, numbers from 0, for example --examples=0,5")
    return int(word)


if __name__ == "__main__":
    interrupt.install()
    main()
