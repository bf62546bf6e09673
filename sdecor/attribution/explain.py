"""Explaining a batch: one method for one image, lifted over the examples in bounded memory."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.attribution.methods import METHODS
from sdecor.attribution.noise import Noise, smoothed
from sdecor.attribution.targets import Contrast, Target
from sdecor.checks import check_choice
from sdecor.chunks import default_chunk_size, divide, map_examples
from sdecor.rng import per_example

PREDICTED = "predicted"


def explain(
    fn: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    targets: Target | str,
    *,
    method: str | Callable[..., Any] = "gradient",
    noise: Noise | None = None,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
    **options: Any,
) -> Any:
    """Explain a batch of images, each for its own target. Works under `jit` and `pmap`.

    Args:
      fn: the network for one image, `image [H, W, C] -> logits [K]`, with parameters closed over and in
        evaluation mode (examples must not depend on one another).
      images: floating point, `[N, H, W, C]`.
      targets: what is explained: classes, integers `[N]`, or one integer for all; "predicted", each image's most
        probable class; a `Contrast` of two classes; or a function `logits [K] -> scalar` (a
        `jax.tree_util.Partial(function, parameters)` has parameters `[N, …]`, an entry for each example).
      method: a name in `METHODS`, or a function `method(fn, image, target, *, …options)` of one image.
      noise: explain noisy copies of each image and average, as `smoothed` does; with any method.
      chunk_size: evaluations of `fn` in flight: images, and samples or steps of an image where there are fewer images.
        It bounds memory and does not change the result beyond rounding. Default: what the device's memory holds.
      key: one key, or `[N]` keys, for the methods that draw; the others ignore it.
      **options: passed on to the method. A `baseline` of `[N, H, W, C]` has an image for each example.

    Returns:
      Signed attributions `[N, H, W, C]` (C = 1 for purely spatial methods); with the option `with_error=True`, for
      the methods that have it, a pair of these and the completeness errors `[N]`.

    Raises:
      ValueError: for an unknown method or option, wrong shapes or dtypes, or (outside of `jit`) targets that
        are not classes of `fn`. Under `jit` such a target yields a map of NaN.
    """
    one = _method(method, noise)
    images = _checked_images(images)
    n, example = images.shape[0], jax.ShapeDtypeStruct(images.shape[1:], images.dtype)
    targets = _checked_targets(fn, example, n, targets)
    known = {name: p for name, p in inspect.signature(one).parameters.items() if p.kind is p.KEYWORD_ONLY}
    for option in options:
        check_choice(f"option of method {method!r}", option, [name for name in known if name != "key"])
    chunk_size = default_chunk_size(fn, example) if chunk_size is None else chunk_size
    at_once, samples = divide(n, chunk_size)
    options |= {"chunk_size": samples} if "chunk_size" in known else {}
    mapped = {"target": targets}
    if "key" in known and (key is not None or known["key"].default is inspect.Parameter.empty):
        mapped["key"] = _keys(key, n, method)
    if np.ndim(options.get("baseline")) == 4:
        mapped["baseline"] = _of_examples("baseline", options.pop("baseline"), images.shape)

    def explain_one(image: jax.Array, own: dict[str, Any]) -> Any:
        target = own.pop("target")
        target = jnp.argmax(fn(image)) if isinstance(targets, _Predicted) else target
        return one(fn, image, target, **own, **options)

    return map_examples(explain_one, (images, mapped), at_once)


@jax.tree_util.register_static
class _Predicted:
    """Stands for each image's own prediction."""


def _method(method: str | Callable[..., Any], noise: Noise | None) -> Callable[..., Any]:
    if not callable(method):
        check_choice("method", method, METHODS)
        method = METHODS[method]
    return method if noise is None else smoothed(method, noise)


def _keys(key: jax.Array | None, n: int, method: Any) -> jax.Array:
    if key is None:
        raise ValueError(f"method {method!r} draws random numbers: pass key=jax.random.key(seed)")
    return per_example(key, n)


def _of_examples(name: str, values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    if np.shape(values) != shape:
        raise ValueError(f"{name} has shape {np.shape(values)}: pass {shape}, or {shape[1:]} for all examples")
    return jnp.asarray(values)


def _checked_images(images: jax.Array) -> jax.Array:
    images = jnp.asarray(images)
    if images.ndim != 4:
        raise ValueError(f"images has shape {images.shape}: pass a batch [N, H, W, C]")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images has dtype {images.dtype}: pass floating point, as the network expects it")
    return images


def _checked_targets(fn: Callable, example: jax.ShapeDtypeStruct, n: int, targets: Any) -> Any:
    """Return targets as a tree whose leaves have a leading axis of `n` examples."""
    if isinstance(targets, str):
        check_choice("targets", targets, (PREDICTED,))
        return _Predicted()
    if isinstance(targets, Contrast):
        return Contrast(*(_checked_classes(fn, example, n, classes) for classes in targets))
    if not callable(targets):
        return _checked_classes(fn, example, n, targets)
    for leaf in jax.tree.leaves(targets) if isinstance(targets, jax.tree_util.Partial) else ():
        if np.shape(leaf)[:1] != (n,):
            raise ValueError(f"a parameter of the target function has shape {np.shape(leaf)}: pass [{n}, …]")
    return targets if isinstance(targets, jax.tree_util.Partial) else jax.tree_util.Partial(targets)


def _checked_classes(fn: Callable, example: jax.ShapeDtypeStruct, n: int, targets: jax.Array | int) -> jax.Array:
    targets = jnp.asarray(targets)
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"targets has dtype {targets.dtype}: pass integer classes")
    if targets.shape not in ((), (n,)):
        raise ValueError(f"targets has shape {targets.shape}: pass one class, or [{n}] classes")
    if not isinstance(targets, jax.core.Tracer):
        logits = jax.eval_shape(fn, example)
        classes, values = logits.shape[-1] if logits.shape else 0, np.atleast_1d(np.asarray(targets))
        wrong = values[(values < 0) | (values >= classes)]
        if logits.ndim == 1 and wrong.size:
            raise ValueError(f"targets contains {wrong[0]}: fn has {classes} classes, 0 to {classes - 1}")
    return jnp.broadcast_to(targets, (n,))
