"""Lowering of a program for accelerators that this machine lacks, and a search for what only a CPU can run."""

import re
from collections.abc import Callable
from typing import Any

import jax

PLATFORMS = ("cuda", "tpu")
# Marks of a sharding, which the compiler removes. A call of a library, such as LAPACK, or of the host has another name.
HARMLESS = {"Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape"}
# Calls for eigenvalues, and for a system of linear equations. JAX has them for each platform, but on an accelerator
# they are slow: a program has them only where its method is defined by them.
EIGENVALUES = frozenset({"Eigh", "cusolver_syevd_ffi"})
EQUATIONS = frozenset({"LuDecomposition", "cusolver_getrf_ffi", "cu_lu_pivots_to_permutation"})


def lowered(function: Callable[..., Any], *arguments: Any, allowed: frozenset[str] = frozenset()) -> str:
    """Return a function lowered for `PLATFORMS`, as text; arguments are arrays or shapes, `allowed` names of calls.

    Raises:
      AssertionError: when the program calls a library or the host, or computes in float64.
    """
    jitted = function if hasattr(function, "lower") else jax.jit(function)
    exported = jax.export.export(jitted, platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS
    text = str(exported.mlir_module())
    foreign = set(re.findall(r"custom_call @([\w.]+)", text)) - HARMLESS - allowed
    assert not foreign, f"the program calls {', '.join(sorted(foreign))}"
    assert not re.search(r"\b(complex<)?f64\b", text), "the program computes in float64"
    return text
