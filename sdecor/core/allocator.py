"""The C library's memory allocator, from which XLA takes the temporaries of each run of a program on a CPU."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # names of glibc's `mallopt`
_KEPT = 2**31 - 1  # bytes; the largest that `mallopt` takes


def keep_freed_memory() -> bool:
    """Keep freed memory of up to 2 GiB in this process, so that a compiled program finds it at its next run.

    By default glibc maps an array above 32 MiB anew each time. The system then fills every page with zeros when it is
    first written, which takes about a tenth of a training step on a CPU (docs/performance.md). Results do not change.
    The process keeps the memory of its largest step, up to 2 GiB. All threads then share one arena, because an arena of
    a thread holds at most 64 MiB and maps what is larger. Call it before the first array is created: a thread keeps the
    arena that it has.

    Returns:
      Whether the allocator was set; False where the C library is not glibc.

    References:
      mallopt(3), https://man7.org/linux/man-pages/man3/mallopt.3.html.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    # A threshold that is set stays: glibc otherwise moves it, up to 32 MiB.
    settings = {_MMAP_THRESHOLD: _KEPT, _TRIM_THRESHOLD: _KEPT, _ARENA_MAX: 1}
    return all([library.mallopt(name, value) for name, value in settings.items()])
