"""Explanations of images and of their neighbours: the loop that robustness and stability share.

Neighbours are drawn uniformly and independently for every pixel and channel within a radius of the image, in input
units (of the normalised image, if that is what the network takes), and no more exist at a time than are in flight.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sdecor.core.checks import check_count, check_range
from sdecor.core.chunks import map_examples
from sdecor.core.rng import per_example
from sdecor.metrics.inputs import check_classes, check_images, in_flight, nan_without_class
from sdecor.metrics.replacement import finite, map_samples

ExplainOne = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
NOISE = 0x6E6F6973  # folded in before a sample's number, so that a method that folds in small numbers shares no draw


def over_examples(
    one: Callable[..., Any],
    explain_one: ExplainOne,
    images: jax.Array,
    targets: jax.Array,
    key: jax.Array,
    attributions: jax.Array | None,
    chunk_size: int | None,
    more: tuple[jax.Array, ...] = (),
    count: int | None = None,
) -> Any:
    """Lift `one(image, target, key, attribution, at_once, *more)` over examples, explaining those not yet explained.

    It returns scalars of an example. They are NaN for an image that is not finite, and for a target that is no class,
    one of `count` where that is known.
    """
    check_images(images)
    targets, keys = check_classes(images, targets, count=count), per_example(key, images.shape[0])
    known = () if attributions is None else (attributions,)
    if any(array.shape[:1] != images.shape[:1] for array in known):
        shapes = f"images {images.shape} and attributions {known[0].shape}"
        raise ValueError(f"{shapes} do not belong together: pass [N, H, W, C] and [N, …]")
    examples, at_once = in_flight(explain_one, chunk_size, images, targets, keys)

    def example(image: jax.Array, target: jax.Array, key: jax.Array, more: tuple, *own: jax.Array) -> Any:
        own = own[0] if own else explain_one(image, target, key)
        return one(image, target, key, own.astype(jnp.float32), at_once, *more)

    values = map_examples(example, (images, targets, keys, more, *known), examples)
    return nan_without_class(targets, jax.tree.map(lambda each: jnp.where(finite(images), each, jnp.nan), values))


def over_neighbours(
    evaluate: Callable[[jax.Array], Any], image: jax.Array, key: jax.Array, *, samples: int, radius: float, at_once: int
) -> Any:
    """Return `evaluate` of `samples` images that differ from `image` by at most `radius`, stacked."""
    check_count("samples", samples)
    check_range("radius", radius, 0, low_open=True)
    key = jax.random.fold_in(key, NOISE)

    def neighbour(i: jax.Array) -> Any:
        draw = radius * symmetric_uniform(jax.random.fold_in(key, i), image.shape)
        return evaluate(image + draw.astype(image.dtype))

    return map_samples(neighbour, jnp.arange(samples), at_once)


def symmetric_uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return draws from 2¹⁶ equally spaced values in (−1, 1), symmetric about 0, float32 in `shape`.

    Two draws come from one random word, and the draw is flat: on a CPU `jax.random.uniform` of an image's shape takes
    four times as long, a quarter of a small network's gradient.
    """
    size = math.prod(shape)
    words = jax.random.bits(key, ((size + 1) // 2,))
    halves = jnp.concatenate([words >> 16, words & 0xFFFF])[:size]
    return ((halves.astype(jnp.float32) + 0.5) / 2**15 - 1).reshape(shape)


def norm(x: jax.Array) -> jax.Array:
    """Return the Euclidean norm of all entries; scaled first, so that no square leaves float32's range."""
    peak = jnp.abs(x).max()
    scale = jnp.where(peak > 0, peak, 1)
    return scale * jnp.sqrt(((x / scale) ** 2).sum())


def defined_for(attribution: jax.Array, values: jax.Array) -> jax.Array:
    """Return the values, NaN throughout for an attribution of zeros, and where they are not finite."""
    return jnp.where(jnp.isfinite(values) & (attribution != 0).any(), values, jnp.nan)
