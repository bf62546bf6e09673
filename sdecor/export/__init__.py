"""Attribution maps of whole data sets in a Zarr group: written on many devices, resumable, and read back.

In order: `api` (what is exported), `plan` (how it is stored), `resume` (why a path is refused, and what is done there),
`feed` (reading examples ahead), `programs` (what is computed), `store` (what is on disk), and `loop` over these.
`reader` opens an export and `verify` verifies it. `convert` and `overlays` write other formats. `python -m
sdecor.export` does all of that from the command line.
"""

from sdecor.export.api import export, export_split
from sdecor.export.convert import open_source, to_hdf5, to_npz
from sdecor.export.encode import DTYPES, decode, encode
from sdecor.export.feed import ON_ERROR
from sdecor.export.loop import Summary
from sdecor.export.overlays import overlays
from sdecor.export.plan import Options
from sdecor.export.reader import Export, check_same, open, stored_methods
from sdecor.export.store import StorageError
from sdecor.export.verify import CHECKS

__all__ = [
    "CHECKS",
    "DTYPES",
    "ON_ERROR",
    "Export",
    "Options",
    "StorageError",
    "Summary",
    "check_same",
    "decode",
    "encode",
    "export",
    "export_split",
    "open",
    "open_source",
    "overlays",
    "stored_methods",
    "to_hdf5",
    "to_npz",
]
