"""Lowering of a program for accelerators that this machine lacks, and a search for what only a CPU can run."""

import re
from collections.abc import Callable
from typing import Any

import jax

PLATFORMS = ("cuda", "tpu")
# Marks of a sharding, which the compiler removes. A call of a library, such as LAPACK, or of the host has another name.
HARMLESS = {"Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape"}
# Solvers of small dense systems and eigenvalues, which JAX has for each platform.
HARMLESS |= {"Eigh", "cusolver_syevd_ffi"}
HARMLESS |= {"LuDecomposition", "cusolver_getrf_ffi", "cu_lu_pivots_to_permutation"}


def lowered(function: Callable[..., Any], *arguments: Any) -> str:
    """Return a function lowered for `PLATFORMS`, as text; arguments are arrays or shapes.

    Raises:
      AssertionError: when the program calls a library or the host, or computes in float64.
    """
    jitted = function if hasattr(function, "lower") else jax.jit(function)
    exported = jax.export.export(jitted, platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS
    text = str(exported.mlir_module())
    foreign = set(re.findall(r"custom_call @([\w.]+)", text)) - HARMLESS
    assert not foreign, f"the program calls {', '.join(sorted(foreign))}"
    assert not re.search(r"\b(complex<)?f64\b", text), "the program computes in float64"
    return text
