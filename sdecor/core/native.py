"""Native handlers of signals: those that libraries in C++ set, and that Python cannot see."""

import ctypes
from collections.abc import Callable
from signal import Signals

CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int)  # type of a handler; keep a handler alive while it is set

_NONE = (None, 0, 1, ctypes.c_void_p(-1).value)  # default, ignored, or an error


def replace_handler(number: Signals, handler: Callable | None) -> Callable[[int], None] | None:
    """Set the native handler of a signal, and return the former one.

    Args:
      number: the signal.
      handler: a `CALLBACK`; None for the system's default.

    Returns:
      A function of the signal's number; None if there was no handler.
    """
    library = ctypes.CDLL(None)
    library.signal.restype, library.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    former = library.signal(number, None if handler is None else ctypes.cast(handler, ctypes.c_void_p))
    return None if former in _NONE else CALLBACK(former)
