"""Attribution maps of whole data sets in a Zarr group: written on many devices, resumable, and read back.

In order: `feed` (reading examples ahead), `device` (what is computed), `ranges` (rows put together), `store` (what is
on disk), `run` (the loop over these); `function` and `split` say what is exported. `open` reads, `npz`,
`hdf5` and `overlays` write other formats, and `python -m sdecor.export` does both from the command line.
"""

from sdecor.export.api import export, export_split
from sdecor.export.convert import open_source, to_hdf5, to_npz
from sdecor.export.encode import DTYPES, decode, encode
from sdecor.export.feed import ON_ERROR
from sdecor.export.loop import Summary
from sdecor.export.overlays import overlays
from sdecor.export.plan import CHECKS, Options
from sdecor.export.reader import Export, check_same, open, stored_methods
from sdecor.export.store import StorageError

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
