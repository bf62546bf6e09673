"""The compilation cache: programs that earlier starts compiled, in one folder for all runs of a user.

JAX keys an entry by the program, the compiler's options and version, and the devices; process 0 of a job writes and all
read. It does not tell apart the processors that programs for a CPU are compiled for
(https://github.com/openxla/xla/issues/44565 has what then happens), so that each kind of processor has a folder of its
own: a home folder may be shared between machines. The entries are code: the folder is for its user alone.
"""

import contextlib
import hashlib
import importlib.util
import os
import platform
import time
from collections.abc import Mapping

import jax
from absl import logging
from etils import epath

from sdecor.core import files

MAX_BYTES = 4 * 2**30  # of each folder; the least recently used entries are deleted beyond it
# Every program is kept: to read a small one is faster than to compile it (docs/performance.md, "Start-up").
MIN_SECONDS = 0.0
_ABANDONED = 600  # seconds after which an entry without its time of use was left by a process that was killed


def use(folder: str | None = None) -> str | None:
    """Keep compiled programs in a folder, where a later start reads them; return the folder, or None for none.

    Call it before anything is compiled. What the user has set by JAX's variables stays: JAX_COMPILATION_CACHE_DIR,
    JAX_ENABLE_COMPILATION_CACHE, JAX_COMPILATION_CACHE_MAX_SIZE and JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS.

    Args:
      folder: local or remote folder; "" for no cache; None for `default_folder`.

    Raises:
      ValueError: for a named local folder that cannot be made. A default folder that cannot be written is reported, and
        the program goes on without a cache.
    """
    if not jax.config.jax_enable_compilation_cache:
        return None
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)
    if jax.config.jax_compilation_cache_dir:
        return jax.config.jax_compilation_cache_dir
    # JAX bounds a cache, and locks it while an entry is read or written, with the package filelock.
    bounds = importlib.util.find_spec("filelock") is not None
    if folder is None:
        folder = default_folder(bounds=bounds)
        if folder is not None and (reason := _unwritable(folder)):
            logging.warning("Compiled programs are not kept (%s: %s): name a --compilation_cache", folder, reason)
            return None
    elif folder and "://" not in folder:
        files.make_folder("--compilation_cache", folder)
    if not folder:
        return None
    jax.config.update("jax_compilation_cache_dir", folder)
    if jax.config.jax_compilation_cache_max_size == -1 and bounds:
        jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    if jax.config.jax_compilation_cache_max_size != -1 and "://" not in folder:
        drop_abandoned(folder)
    return folder


def default_folder(environment: Mapping[str, str] = os.environ, *, bounds: bool = True) -> str | None:
    """Return the user's folder for this kind of processor, below $XDG_CACHE_HOME or ~/.cache; None without a home.

    Without bounds it is a folder of its own: to a cache with bounds JAX adds nothing beside an entry without a time of
    use, and it stores such entries where there are no bounds.
    """
    home = environment.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):  # such a value is to be ignored (XDG Base Directory Specification)
        home = os.path.expanduser("~/.cache")
    name = processor() if bounds else f"{processor()}-without-bounds"
    return os.path.join(home, "sdecor", "compilation", name) if os.path.isabs(home) else None


def processor(cpuinfo: str = "/proc/cpuinfo") -> str:
    """Return a short name of the processor's kind, which differs where its model or its instructions do."""
    fields = {"model name", "flags", "Features", "CPU implementer", "CPU part"}
    found = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError), open(cpuinfo, encoding="utf-8", errors="replace") as stream:
        for line in stream:
            name, _, value = line.partition(":")
            if not line.strip():
                break  # the first core stands for all
            if name.strip() in fields:
                found.append(" ".join(sorted(value.split())))
    return f"{platform.machine()}-{hashlib.sha256('|'.join(found).encode()).hexdigest()[:12]}"


def drop_abandoned(folder: str) -> None:
    """Delete entries without a time of use: a killed process left them, cut off, and JAX cannot evict beside them."""
    with contextlib.suppress(OSError):
        names = {path.name for path in epath.Path(folder).iterdir()}
        for name in names:
            if name.endswith("-cache") and f"{name.removesuffix('-cache')}-atime" not in names:
                path = os.path.join(folder, name)
                if time.time() - os.path.getmtime(path) > _ABANDONED:
                    os.unlink(path)


def _unwritable(folder: str) -> str:
    """Create a folder; return why no file can be written in it, or ""."""
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        return str(error.strerror or error)
    return "" if os.access(folder, os.W_OK | os.X_OK) else "it may not be written"
