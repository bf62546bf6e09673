"""Export of explanations: for any network function, or for a split as an evaluation explains it."""

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

    A call with the same arguments resumes an export, however it was stopped, and leaves a finished one unchanged. All
    local devices are used. In a job of several processes, all call this function with the same data, and each exports a
    part. The stored bytes do not depend on the number of devices and processes.

    Args:
      fn: the network, `image [H, W, C] float32 -> logits [K]`, in evaluation mode. Its parameters (the arrays that it
        closes over) must be the same when the export is resumed.
      data: a Source or an iterable of batches. A Source has `len` and `[i]`, a dict with `image` `[H, W, C]` and
        optionally `label`; it may have `.name(i)`. Series `[T, C]` and volumes `[D, H, W, C]` are taken likewise; a
        list of entries of rank 3 is one of images `[H, W, C]`, so pass batches of series as an iterator. A batch is a
        dict with `image` `[n, H, W, C]`, of any n, and optionally `label` and `id` (numbers or text) `[n]`. An iterable
        must yield the same examples in the same order at each start. Labels are classes of `fn`, or −1 if unknown. They
        are validated before anything is computed for a Source with `labels`, a list or a tuple, else when they are
        read.
      path: a local folder or `gs://…`; the name usually ends in `.zarr`.
      methods: names for `evaluation.choose_methods`, or `evaluation.Method`s.
      target: the class whose score is explained: "predicted", "label", or a class number.
      saliency_of: the score explained by methods whose default is the logit; see `attribution.SALIENCY_OF`.
      dtype: type of the stored maps: "float32"; or "float16" or "uint8", each map divided by its own scale.
      reduce: reduction of channels to one map, see `attribution.REDUCTIONS`; None keeps the channels.
      clip_percentile: percentile of an example's absolute values to which larger values are clipped, for float16 and
        uint8. Clipped values are counted.
      device_batch: examples in a device's batch.
      chunk_size: network evaluations at once on a device; by default as many as fit in its memory.
      chunk_rows: examples in a chunk, a multiple of `device_batch`; by default chunks have a few megabytes.
      shard_rows: examples in a file of several chunks (fewer and larger files, for remote storage); None = one
        chunk per file.
      seed: seed of the methods' random draws. An example's draws depend on its place, not on its batch.
      on_error: "stop" at an example that cannot be read, or "skip" it: its maps are NaN, and skipped.jsonl lists it.
      check: verification of a resumed export: "checksums" of all bytes, or only "sizes" of files.
      provenance: plain JSON stored with the maps; it must be the same when the export is resumed.
      names: names of the examples, instead of the Source's names or the `id`s.
      num_examples: number of examples of an iterable, if known.
      progress: whether to show a progress bar, or a function called with the number of newly computed examples.

    Returns:
      A `Summary` of this call, also after Ctrl-C or SIGTERM.

    Raises:
      ValueError: for an invalid choice, a target or a label that is no class of `fn`, an example that cannot be read, a
        path that holds something else or another export (the error names the differences), or a path that another job
        is writing.
      StorageError: when the export cannot be written; finished ranges are kept.
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
    """Return the given methods; names are replaced by the methods that they choose."""
    found: dict[str, Method] = {}
    for method in methods:
        named = [method] if isinstance(method, Method) else [each for each, _ in choose_methods([method]).values()]
        found |= {each.key: each for each in named}
    if not found:
        raise ValueError("methods is empty: name at least one")
    return list(found.values())


def hoisted(fn: Fn, shape: tuple[int, ...]) -> tuple[list[jax.Array], Callable[[Any], Fn]]:
    """Return the arrays that `fn` closes over, and a function that makes `fn` from such arrays.

    As arguments, the arrays are shared by all compiled programs. As constants, each program would hold a copy.
    """

    def as_usual(equation: Any, inputs: list[jax.Array], scope: str) -> None:
        return None

    # The interpreter enters compiled functions inside `fn`, so that their constants are found too.
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
    """Export the explanations that an evaluation with `setup` computes for the examples of `source`.

    Args:
      setup: the evaluation's network, input and target; its reduction and chunk size are not used.
      methods: the attribution methods.
      variables: the network's variables.
      source: the examples of a split, as stored.
      path: see `export`.
      dtype: type of the stored maps, see `export`.
      reduce: reduction of channels to one map; None keeps the channels.
      clip_percentile: see `export`.
      on_error: see `export`.
      provenance: see `export`.
      options: see `Options`; an evaluation uses seed 0.
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
