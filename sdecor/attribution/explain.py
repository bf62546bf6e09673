"""Explanation of a batch: a method for one image, mapped over the examples in bounded memory."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.attribution.methods import METHODS
from sdecor.attribution.noise import Noise, smoothed
from sdecor.attribution.targets import Contrast, Target, checked_logits
from sdecor.core.arrays import at_least_float32
from sdecor.core.checks import check_choice
from sdecor.core.chunks import default_chunk_size, divide, map_examples
from sdecor.core.classes import check_classes, is_class
from sdecor.core.parallel import automatic
from sdecor.core.rng import per_example

PREDICTED = "predicted"


@automatic
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
    """Explain a batch of images, each for its own target.

    It works under `jit`, which saves repeated tracing, and under `pmap`.

    Args:
      fn: the network for one image, `image [H, W, C] -> logits [K]`, in evaluation mode (examples must not depend on
        each other). It closes over its parameters.
      images: floating point, `[N, H, W, C]`.
      targets: classes to explain, integers `[N]`, or one integer for all; "predicted", each image's most probable
        class; a `Contrast` of two classes; or a function `logits [K] -> scalar`. The function may be a
        `jax.tree_util.Partial(function, parameters)` with parameters `[N, …]`, an entry for each example.
      method: a name in `METHODS`, or a function `method(fn, image, target, …options)` of one image.
      noise: if given, explain noisy copies of each image and combine them, as `smoothed` does; for any method.
      chunk_size: evaluations of `fn` at once: images, and samples or steps of each if there are fewer images. It bounds
        memory and changes the result by rounding only. Default: as many as the device's memory holds.
      key: one key or `[N]` keys, for methods that draw; other methods ignore it.
      **options: options of the method. A `baseline` of shape `[N, H, W, C]` holds an image for each example. A
        `baseline` that is a function, `(image, key) -> image`, is called for each image.

    Returns:
      Signed attributions `[N, H, W, C]` (C = 1 for purely spatial methods) in the dtype of the images, but at least
      float32; all NaN for an image that is not finite. With the option `with_error=True`, which some methods have, a
      pair of attributions and completeness errors `[N]`.

    Raises:
      ValueError: for an unknown method or option, wrong shapes or dtypes, an `fn` that does not return logits `[K]`, or
        (outside of `jit`) targets that are not classes of `fn`. Under `jit` such a target yields a map of NaN.
    """
    one, known, open_ended = _method(method, noise)
    images = _checked_images(images)
    n, example = images.shape[0], jax.ShapeDtypeStruct(images.shape[1:], images.dtype)
    (classes,) = checked_logits(jax.eval_shape(fn, example)).shape
    targets = _checked_targets(targets, n, classes)
    for option in () if open_ended else options:
        check_choice(f"option of method {_name(method)!r}", option, [name for name in known if name != "key"])
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


def _finished(values: jax.Array, target: Target, classes: int, image: jax.Array) -> jax.Array:
    """Return a result as float32 or wider; NaN for a class that does not exist or an image that is not finite.

    The method itself may hide a NaN of the image: after a ReLU, for example, its gradient is 0.
    """
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return values
    values = values.astype(at_least_float32(image.dtype))
    values = jnp.where(jnp.isfinite(image).all(), values, jnp.nan)
    if not isinstance(target, Contrast) and callable(target):
        return values
    for each in target if isinstance(target, Contrast) else (target,):
        values = jnp.where(is_class(each, classes), values, jnp.nan)
    return values


def _keys(key: jax.Array | None, n: int, method: Any) -> jax.Array:
    if key is None:
        raise ValueError(f"method {_name(method)!r} draws random numbers: pass key=jax.random.key(seed)")
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


def _checked_targets(targets: Any, n: int, classes: int) -> Any:
    """Return targets as a tree whose leaves have a leading axis of `n` examples."""
    if isinstance(targets, str):
        check_choice("targets", targets, (PREDICTED,))
        return _Predicted()
    if isinstance(targets, Contrast):
        return Contrast(*(_checked_classes(each, n, classes) for each in targets))
    if not callable(targets):
        return _checked_classes(targets, n, classes)
    for leaf in jax.tree.leaves(targets) if isinstance(targets, jax.tree_util.Partial) else ():
        if np.shape(leaf)[:1] != (n,):
            raise ValueError(f"a parameter of the target function has shape {np.shape(leaf)}: pass [{n}, …]")
    return targets if isinstance(targets, jax.tree_util.Partial) else jax.tree_util.Partial(targets)


def _checked_classes(targets: jax.Array | int, n: int, classes: int) -> jax.Array:
    targets = check_classes("targets", targets, classes)
    if targets.shape not in ((), (n,)):
        raise ValueError(f"targets has shape {targets.shape}: pass one class, or [{n}] classes")
    return jnp.broadcast_to(targets, (n,))
