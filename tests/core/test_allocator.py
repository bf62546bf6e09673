"""Freed memory that stays in the process."""

import mmap
import subprocess
import sys

import pytest

# Page faults of a second array of 96 MiB in a thread, as XLA runs its programs, after the first was freed.
_SECOND = """
import ctypes, resource, threading
from sdecor.core import allocator
{setting}
library = ctypes.CDLL(None)
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def write():
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        array = library.malloc(96 << 20)
        ctypes.memset(array, 1, 96 << 20)
        library.free(array)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=write)
thread.start()
thread.join()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator of glibc")
def test_freed_memory_is_found_again():
    def faults(setting: str) -> int:
        command = [sys.executable, "-c", _SECOND.format(setting=setting)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    pages = (96 << 20) // mmap.PAGESIZE
    assert faults("") > 0.9 * pages  # what glibc does by itself
    assert faults("assert allocator.keep_freed_memory()") < 0.01 * pages
