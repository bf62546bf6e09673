"""What is said when something cannot be read or written: what is safe, and what to do."""

import contextlib
import errno
from collections.abc import Callable, Iterator

from sdecor.export.files import LocalFiles, RemoteFiles

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StorageError(OSError):
    """Something could not be written; what was recorded before is whole."""


@contextlib.contextmanager
def explained(files: LocalFiles | RemoteFiles, finished: Callable[[], int], num_examples: int | None) -> Iterator[None]:
    """Raise an error of the disk as `StorageError`, with what is finished and what to do.

    Args:
      files: the export's.
      finished: how many examples are.
      num_examples: of how many, where that is known.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        of = "" if num_examples is None else f" of {num_examples}"
        what = "free space" if error.errno in FULL else "repair that"
        raise StorageError(
            f"could not read or write {error.filename or files.name('')}: {error.strerror or error}. "
            f"{finished()}{of} examples are finished and kept: {what} and run the same command to continue"
        ) from error
