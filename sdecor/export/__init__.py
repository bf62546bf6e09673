"""Attribution maps of whole data sets in a Zarr group: written on many devices, resumable, and read back.

In order: `api` (what is exported), `plan` (how it is stored), `resume` (why a path is refused, and what is done there),
`feed` (reading examples ahead), `programs` (what is computed), `store` (what is on disk), and `loop` over these.
`reader` opens an export and `verify` verifies it. `convert` and `overlays` write other formats. `python -m
sdecor.export` does all of that from the command line.
"""

from sdecor.export.api import export as export, export_split as export_split
from sdecor.export.convert import open_source as open_source, to_hdf5 as to_hdf5, to_npz as to_npz
from sdecor.export.encode import DTYPES as DTYPES, decode as decode, encode as encode
from sdecor.export.feed import ON_ERROR as ON_ERROR
from sdecor.export.loop import Summary as Summary
from sdecor.export.overlays import overlays as overlays
from sdecor.export.plan import Options as Options
from sdecor.export.reader import (
    Export as Export,
    check_same as check_same,
    open as open,
    stored_methods as stored_methods,
)
from sdecor.export.store import StorageError as StorageError
from sdecor.export.verify import CHECKS as CHECKS
