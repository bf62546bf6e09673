"""Export of attribution maps of whole data sets to a Zarr group: on many devices, and resumable.

Files:
  api                     export explanations of any function, or of a split
  plan, layout            options and ranges; arrays, chunks and Zarr metadata
  resume, lock            continue an earlier export, or refuse its path; one export per path at a time
  loop                    the loop: read, explain and write at once
  feed, programs, encode  read examples ahead; predict and explain on the devices; 16 and 8 bits
  store, manifest, files  ranges on disk; their commit records; durable files, local or remote
  verify, reader          verify an export; open it
  convert, overlays       other formats: NumPy, HDF5, pictures
  __main__                the command line: python -m sdecor.export
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
