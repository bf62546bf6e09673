"""Explanation of a batch: a method for one example, mapped over the batch in bounded memory."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.attribution.inputs import checked_inputs, example_of, wide_dtype
from sdecor.attribution.methods import METHODS
from sdecor.attribution.noise import Noise, smoothed
from sdecor.attribution.targets import Contrast, Target, checked_logits, is_function
from sdecor.core.arrays import is_array
from sdecor.core.checks import check_choice
from sdecor.core.chunks import default_chunk_size, divide, map_examples
from sdecor.core.classes import check_classes, is_class
from sdecor.core.parallel import automatic
from sdecor.core.rng import per_example

PREDICTED = "predicted"


@automatic
def explain(
    fn: Callable[[Any], Any] | tuple[Callable[[Any], Any], Callable[[Any], Any]],
    images: Any,
    targets: Target | str,
    *,
    method: str | Callable[..., Any] = "gradient",
    noise: Noise | None = None,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
    **options: Any,
) -> Any:
    """Explain a batch of images or other inputs, each for its own target.

    It works under `jit`, which saves repeated tracing, and under `pmap`.

    Args:
      fn: the network for one example, such as `image [H, W, C] -> logits [K]`, in evaluation mode (examples must not
        depend on each other). It closes over its parameters. For integer tokens, a pair `(embed, rest)`: `rest` is
        explained at the result of `embed`, and attributions have the shape of this result.
      images: floating point, `[N, H, W, C]`; another array of inputs, such as series `[N, T, C]`, volumes
        `[N, D, H, W, C]` or features `[N, F]`; or a tuple, dict or other tree of arrays `[N, …]`, which `fn` takes as
        one argument.
      targets: classes to explain, integers `[N]`, or one integer for all; "predicted", each image's most probable
        class; a `Contrast` of two classes; or a function of what `fn` returns, which may be any tree of arrays, to a
        scalar. The function may be a `jax.tree_util.Partial(function, parameters)` with parameters `[N, …]`, an entry
        for each example.
      method: a name in `METHODS`, or a function `method(fn, image, target, …options)` of one image.
      noise: if given, explain noisy copies of each image and combine them, as `smoothed` does; for any method.
      chunk_size: evaluations of `fn` at once: images, and samples or steps of each if there are fewer images. It bounds
        memory and changes the result by rounding only. Default: as many as the device's memory holds.
      key: one key or `[N]` keys, for methods that draw; other methods ignore it.
      **options: options of the method. A `baseline` of shape `[N, H, W, C]` holds an image for each example. A
        `baseline` that is a function, `(image, key) -> image`, is called for each image. For several inputs a
        `baseline` is a tree like these.

    Returns:
      Signed attributions in the shape of the inputs, `[N, H, W, C]` (C = 1 for purely spatial methods), in the dtype of
      the images, but at least float32; all NaN for an image that is not finite. With the option `with_error=True`,
      which some methods have, a pair of attributions and completeness errors `[N]`.

    Raises:
      ValueError: for an unknown method or option, wrong shapes or dtypes, an `fn` that does not return logits `[K]`
        although targets are classes, or (outside of `jit`) targets that are not classes of `fn`. Under `jit` such a
        target yields a map of NaN.
    """
    one, known, open_ended = _method(method, noise)
    fn, images = _embedded(fn, images, chunk_size)
    images, n = checked_inputs(images)
    example = example_of(images)
    classes = _class_count(fn, example, targets)
    targets = _checked_targets(targets, images, n, classes)
    for option in () if open_ended else options:
        check_choice(f"option of method {_name(method)!r}", option, [name for name in known if name != "key"])
    chunk_size = default_chunk_size(fn, example) if chunk_size is None else chunk_size
    at_once, samples = divide(n, chunk_size)
    options |= {"chunk_size": samples} if "chunk_size" in known else {}
    mapped = {"target": targets}
    if "key" in known and (key is not None or known["key"].default is inspect.Parameter.empty):
        mapped["key"] = _keys(key, n, method)
    if _is_of_examples(options.get("baseline"), images):
        mapped["baseline"] = _of_examples("baseline", options.pop("baseline"), images)

    if "regions" in known and np.ndim(options.get("regions")) == _map_axes(images):
        labels = options.pop("regions")
        labels = np.asarray(labels) if isinstance(labels, list) else labels
        if options.get("count") is None and not isinstance(labels, jax.core.Tracer):
            options["count"] = int(np.max(labels)) + 1
        mapped["regions"] = _checked_labels(labels, images)

    def explain_one(image: Any, own: dict[str, Any]) -> Any:
        target = own.pop("target")
        target = jnp.argmax(fn(image)) if isinstance(targets, _Predicted) else target
        found = one(fn, image, target, **own, **options)
        return jax.tree.map(lambda values: _finished(values, target, classes, image), found)

    return map_examples(explain_one, (images, mapped), at_once)


@jax.tree_util.register_static
class _Predicted:
    """The target "predicted": each image's own prediction."""


def _method(
    method: str | Callable[..., Any], noise: Noise | None
) -> tuple[Callable[..., Any], dict[str, inspect.Parameter], bool]:
    """Return the method, its named options, and whether it takes further ones (`**options`)."""
    if not callable(method):
        check_choice("method", method, METHODS)
        method = METHODS[method]
    known, open_ended = _options(method)
    if noise is None:
        return method, known, open_ended
    noisy = smoothed(method, noise)
    return noisy, known | _options(noisy)[0], open_ended


def _options(method: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    parameters = list(inspect.signature(method).parameters.values())
    named = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    named += [p for p in parameters[3:] if p.kind is p.POSITIONAL_OR_KEYWORD]  # after function, image and target
    return {p.name: p for p in named}, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _name(method: str | Callable[..., Any]) -> str:
    return method if isinstance(method, str) else getattr(method, "__name__", type(method).__name__)


def _embedded(fn: Any, images: Any, chunk_size: int | None) -> tuple[Callable[[Any], Any], Any]:
    """Return the function and the inputs to explain: for a pair `(embed, rest)`, `rest` and the embedded inputs."""
    if callable(fn):
        return fn, images
    if not isinstance(fn, tuple | list) or len(fn) != 2 or not all(map(callable, fn)):
        raise ValueError(f"fn = {fn!r}: pass the network of one example, or a pair of functions (embed, rest)")
    embed, rest = fn
    tokens = jax.tree.map(jnp.asarray, images)
    at_once = default_chunk_size(embed, example_of(tokens)) if chunk_size is None else chunk_size
    return rest, map_examples(embed, (tokens,), at_once)


def _class_count(fn: Callable[[Any], Any], example: Any, targets: Any) -> int | None:
    """Return the number of classes K; None for a function as target, whose network may return anything."""
    try:
        output = jax.eval_shape(fn, example)
    except Exception as error:
        shapes = jax.tree.map(lambda leaf: leaf.shape, example)
        note = f"explain calls fn with one example, here of shape {shapes}: the first axis of images is examples"
        if type(error).__name__ == "TraceContextError":  # Flax's, which is not imported here
            note = (
                "fn closes over an NNX module that uses nnx.jit, nnx.remat or nnx.scan inside: build it in fn instead, "
                "graph, state = nnx.split(model), fn = lambda x: nnx.merge(graph, state, copy=True)(x[None])[0]"
            )
        error.add_note(note)
        raise
    return None if is_function(targets) else checked_logits(output).shape[0]


def _finished(values: jax.Array, target: Target, classes: int | None, image: Any) -> jax.Array:
    """Return a result as float32 or wider; NaN for a class that does not exist or an image that is not finite.

    The method itself may hide a NaN of the image: after a ReLU, for example, its gradient is 0.
    """
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return values
    values = values.astype(wide_dtype(image))
    for leaf in jax.tree.leaves(image):
        values = jnp.where(jnp.isfinite(leaf).all(), values, jnp.nan)
    if classes is None:
        return values
    for each in target if isinstance(target, Contrast) else (target,):
        values = jnp.where(is_class(each, classes), values, jnp.nan)
    return values


def _keys(key: jax.Array | None, n: int, method: Any) -> jax.Array:
    if key is None:
        raise ValueError(f"method {_name(method)!r} draws random numbers: pass key=jax.random.key(seed)")
    return per_example(key, n)


def _is_of_examples(values: Any, images: Any) -> bool:
    """Return whether an option holds an entry for each example: arrays with the rank of the batch."""
    if is_array(images):
        return np.ndim(values) == images.ndim
    if jax.tree.structure(values) != jax.tree.structure(images):
        return False
    pairs = zip(jax.tree.leaves(values), jax.tree.leaves(images), strict=True)
    return all(np.ndim(value) == leaf.ndim for value, leaf in pairs)


def _of_examples(name: str, values: Any, images: Any) -> Any:
    for value, leaf in zip(jax.tree.leaves(values), jax.tree.leaves(images), strict=True):
        if np.shape(value) != leaf.shape:
            raise ValueError(
                f"{name} has shape {np.shape(value)}: pass {leaf.shape}, or {leaf.shape[1:]} for all examples"
            )
    return jax.tree.map(jnp.asarray, values)


def _map_axes(images: Any) -> int:
    """Return the number of axes of a batch of label maps: `[N, *positions]`, or `[N, F]` of features."""
    return max(images.ndim - 1, 2) if is_array(images) else -1


def _checked_labels(labels: Any, images: jax.Array) -> jax.Array:
    shape = images.shape[: _map_axes(images)]
    if np.shape(labels) != shape or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"regions has shape {np.shape(labels)}: pass label maps, integers {shape}, or {shape[1:]}")
    if not isinstance(labels, jax.core.Tracer) and np.min(labels) < 0:
        raise ValueError(f"regions has a label {np.min(labels)}: labels are numbered from 0")
    return jnp.asarray(labels)


def _checked_targets(targets: Any, images: Any, n: int, classes: int | None) -> Any:
    """Return targets as a tree whose leaves have a leading axis of `n` examples."""
    if targets is None or (isinstance(targets, str) and targets != PREDICTED):
        close = isinstance(targets, str) and difflib.get_close_matches(targets, [PREDICTED])
        hint = f"; did you mean {PREDICTED!r}?" if close else "."
        raise ValueError(
            f"targets = {targets!r} is no target{hint} Pass one class or [{n}] classes, integers from 0; "
            f"{PREDICTED!r}; a Contrast of two classes; or a function of the network's output to a scalar"
        )
    if isinstance(targets, str):
        return _Predicted()
    if isinstance(targets, Contrast):
        return Contrast(*(_checked_classes(each, images, n, classes) for each in targets))
    if not callable(targets):
        return _checked_classes(targets, images, n, classes)
    for leaf in jax.tree.leaves(targets) if isinstance(targets, jax.tree_util.Partial) else ():
        if np.shape(leaf)[:1] != (n,):
            raise ValueError(f"a parameter of the target function has shape {np.shape(leaf)}: pass [{n}, …]")
    return targets if isinstance(targets, jax.tree_util.Partial) else jax.tree_util.Partial(targets)


def _checked_classes(targets: Any, images: Any, n: int, classes: int | None) -> jax.Array:
    targets = check_classes("targets", targets, classes)
    if targets.shape not in ((), (n,)):
        shapes = ", ".join(str(leaf.shape) for leaf in jax.tree.leaves(images))
        raise ValueError(
            f"targets has shape {targets.shape}: pass one class, or [{n}] classes, one for each example of {shapes}"
        )
    return jnp.broadcast_to(targets, (n,))
