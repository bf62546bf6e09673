"""Child processes that end with their parent. It needs no JAX."""

import ctypes
import os
import signal
import sys

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent(parent: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal when its parent dies, also by kill -9; only Linux can do this.

    Call it in the child, for example as `preexec_fn`. The parent's thread that starts the child must live as long as
    the parent.

    Args:
      parent: process id of the parent, read before the child was started.
      number: the signal.
    """
    if _LIBC is not None:
        _LIBC.prctl(_DEATH_SIGNAL, number)
        if os.getppid() != parent:  # it died before
            os.kill(os.getpid(), number)
