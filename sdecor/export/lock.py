"""The lock of an export's path."""

import contextlib
import os

from etils import epath

from sdecor.core import leases
from sdecor.export.files import LocalFiles, make_folder, open_files
from sdecor.export.manifest import PRIVATE

LOCK, LEASE = f"{PRIVATE}/lock", f"{PRIVATE}/lease.json"


def hold(path: epath.PathLike) -> contextlib.AbstractContextManager[leases.Local | leases.Lease]:
    """Lock the export at `path` for this job, as `sdecor.core.leases.hold` does."""
    files = open_files(path)
    if isinstance(files, LocalFiles):
        make_folder(os.path.dirname(files.name(LOCK)))
    return leases.hold(path, lock=LOCK, lease=LEASE, busy="is being exported to")
