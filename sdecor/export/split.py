"""Exporting a split of a data set as it is evaluated: the same images, targets and draws, so the same explanations."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
from etils import epath

from sdecor.evaluation import Method, Setup
from sdecor.evaluation.programs import images_of, network
from sdecor.export.device import Task
from sdecor.export.feed import reader_of
from sdecor.export.plan import Options
from sdecor.export.run import Summary, run
from sdecor.export.specs import named


def export_split(
    setup: Setup,
    methods: Iterable[Method],
    variables: Any,
    source: Any,
    path: epath.PathLike,
    *,
    dtype: str = "float32",
    reduce: str | None = "abs_sum",
    clip_percentile: float = 100.0,
    on_error: str = "stop",
    provenance: Any = None,
    options: Options | None = None,
) -> Summary:
    """Export the examples of `source` as an evaluation by `setup` explains them.

    Args:
      setup: how the network is fed and what of it is explained; its reduction and chunk size are not used.
      methods: what explains.
      variables: the network's.
      source: the examples of a split, uint8.
      path: see `export`, as for the rest.
      dtype: that maps are stored in.
      reduce: from channels to a map; None keeps the channels.
      clip_percentile: see `export`.
      on_error: see `export`.
      provenance: see `export`.
      options: see `Options`; seed 0 is that of an evaluation.
    """

    def logits_of(variables: Any, images: jax.Array) -> jax.Array:
        return setup.apply(variables, images)[0]

    task = Task(
        images_of=lambda images: images_of(setup, {"image": images}),
        fn_of=partial(network, setup),
        methods=named(methods),
        logits_of=logits_of,
        target=setup.target,
        saliency_of=setup.saliency_of,
        reduction=reduce,
        dtype=dtype,
        clip_percentile=clip_percentile,
    )
    reader = reader_of(source, on_error=on_error)
    return run(task, variables, reader, path, provenance=provenance, options=options or Options())
