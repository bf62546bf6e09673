"""A barrier in a program that is compiled for a CPU."""

from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata


def barrier(tree: Any) -> Any:
    """Return a tree as it is; a CPU's compiler joins no operation before it with one after it.

    Operations that are joined may round in another way, for example by a fused multiply-add. Between two barriers the
    results are therefore, bit for bit, those of a program of its own. `jax.lax.optimization_barrier` does not do this:
    XLA removes it on a CPU before it joins operations. A call that must not be inlined stays to the end.
    """
    with set_xla_metadata(inlineable="false"):
        return jax.jit(lambda x: x)(tree)
