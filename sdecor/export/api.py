"""Exporting explanations: of any function, or of a split as it is evaluated."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.extend import core

from sdecor.attribution.targets import checked_logits
from sdecor.core import jaxpr
from sdecor.core.files import digest
from sdecor.evaluation import Method, Setup, choose_methods
from sdecor.evaluation.programs import images_of, network
from sdecor.export.feed import reader_of
from sdecor.export.loop import Summary, run
from sdecor.export.plan import Options
from sdecor.export.programs import Task, named

Fn = Callable[[jax.Array], jax.Array]


def export(
    fn: Fn,
    data: Any,
    path: epath.PathLike,
    *,
    methods: Sequence[str | Method] = ("gradient",),
    target: str | int = "predicted",
    saliency_of: str = "logit",
    dtype: str = "float32",
    reduce: str | None = "abs_sum",
    clip_percentile: float = 100.0,
    device_batch: int | None = None,
    chunk_size: int | None = None,
    chunk_rows: int | None = None,
    shard_rows: int | None = None,
    seed: int = 0,
    on_error: str = "stop",
    check: str = "checksums",
    provenance: Any = None,
    names: Sequence[str] | None = None,
    num_examples: int | None = None,
    progress: bool | Callable[[int], Any] = True,
) -> Summary:
    """Explain every example of `data` by each method and store maps, predictions and labels as a Zarr group.

    Started again with the same arguments, it goes on where it was stopped, whatever stopped it; a finished export is
    left as it is. All local devices are used and, in a job of several processes that all call this with the same data,
    each exports a part. The stored bytes depend on neither.

    Args:
      fn: the network, `image [H, W, C] float32 -> logits [K]`, in evaluation mode. Its parameters (the arrays that it
        closes over) are part of what an export is recognised by.
      data: a Source: `len`, `[i]` a dict with `image` `[H, W, C]` and maybe `label`, and maybe `.name(i)`. Or an
        iterable of batches, dicts with `image` `[n, H, W, C]` of any n and maybe `label` and `id` (numbers or text)
        `[n]`; it has to yield the same examples in the same order at each start. Labels are classes of `fn`, or −1 for
        unknown. They are checked before anything is computed where they are known: of a Source with `labels`, a list
        or a tuple. Others are checked when they are read.
      path: a local folder or `gs://…`, by habit ending in `.zarr`.
      methods: what `evaluation.choose_methods` takes, or `evaluation.Method`s.
      target: whose score is explained: "predicted", "label", or a class.
      saliency_of: what is explained by methods whose own choice is the logit: see `attribution.SALIENCY_OF`.
      dtype: maps are stored as "float32", or divided by a scale of each example as "float16" or "uint8".
      reduce: from channels to a map, see `attribution.REDUCTIONS`; None keeps the channels.
      clip_percentile: in float16 and uint8, the percentile of an example's absolute values to which larger ones are
        clipped. How many were is counted.
      device_batch: examples that a device gets at a time.
      chunk_size: network evaluations in flight on a device; by default what its memory holds.
      chunk_rows: examples of a chunk, a multiple of `device_batch`; by default a few megabytes.
      shard_rows: examples of a file of several chunks (fewer and larger files, for remote storage); None = of one.
      seed: of all that methods draw; a draw belongs to its example.
      on_error: "stop" at an example that cannot be read, or "skip" it: its maps are NaN, and skipped.jsonl names it.
      check: how finished work is checked when the export goes on: by "checksums" of all bytes, or "sizes" alone.
      provenance: plain JSON that is stored with the maps, and has to be the same when the export goes on.
      names: of the examples, instead of the Source's or the `id`s.
      num_examples: of an iterable, where it is known.
      progress: whether to show a progress bar, or a function that is told how many more examples were computed.

    Returns:
      What was done, also when Ctrl-C or SIGTERM stopped it.

    Raises:
      ValueError: for a choice that is not known, a target or a label that is no class of `fn`, an example that cannot
        be read, a path that holds something else or another export (naming what differs), or one that another job is
        writing.
      StorageError: when it cannot be written; what is finished is kept.
    """
    reader = reader_of(data, on_error=on_error, names=names, count=num_examples)
    variables, fn_of = hoisted(fn, reader.shape)
    task = Task(
        images_of=lambda images: images.astype(jnp.float32),
        fn_of=fn_of,
        methods=named(methods_of(methods)),
        target=target,
        saliency_of=saliency_of,
        reduction=reduce,
        dtype=dtype,
        clip_percentile=clip_percentile,
    )
    options = Options(device_batch, chunk_size, chunk_rows, shard_rows, seed, check, progress)
    provenance = {"parameters": digest(variables), "given": provenance}
    return run(task, variables, reader, path, provenance=provenance, options=options)


def methods_of(methods: Sequence[str | Method]) -> list[Method]:
    """Return the methods that are named, or given."""
    found: dict[str, Method] = {}
    for method in methods:
        named = [method] if isinstance(method, Method) else [each for each, _ in choose_methods([method]).values()]
        found |= {each.key: each for each in named}
    if not found:
        raise ValueError("methods is empty: name at least one")
    return list(found.values())


def hoisted(fn: Fn, shape: tuple[int, ...]) -> tuple[list[jax.Array], Callable[[Any], Fn]]:
    """Return the arrays that `fn` closes over, and the function from these to `fn`.

    As arguments of the compiled programs they are shared by these; as constants, each would hold a copy.
    """

    def as_usual(equation: Any, inputs: list[jax.Array], scope: str) -> None:
        return None

    # Interpreted, what is compiled inside of `fn` is entered, and its constants come to the surface too.
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    checked_logits(jax.eval_shape(fn, image))
    closed = jax.make_jaxpr(jaxpr.interpret(fn, as_usual))(image)

    def fn_of(variables: Any) -> Fn:
        own = core.ClosedJaxpr(closed.jaxpr, variables)
        return lambda image: jaxpr.run(own, [image], as_usual)[0]

    return list(closed.consts), fn_of


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
