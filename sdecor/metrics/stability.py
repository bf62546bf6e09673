"""Relative stability: the explanation's change near an image over that of the image, the features or the logits.

A network whose logits hardly move while its explanation does explains badly; one whose features jump has a reason.
Changes of explanation, image and features are relative, entry by entry. Neighbours are drawn as in
`sdecor.metrics.neighbours`, and only those that keep the predicted class count. Lower is better.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdecor.core.parallel import automatic
from sdecor.metrics.inputs import Fn, check_images, class_count
from sdecor.metrics.neighbours import ExplainOne, defined_for, norm, over_examples, over_neighbours


class Stabilities(NamedTuple):
    """What one pass over the neighbours tells, each `[N]`; `representation` is None without a `features_fn`."""

    input: jax.Array
    output: jax.Array
    representation: jax.Array | None


@automatic
def relative_stabilities(
    explain_one: ExplainOne,
    fn: Fn,
    images: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    features_fn: Fn | None = None,
    samples: int = 10,
    radius: float = 0.02,
    epsilon: float = 1e-6,
    chunk_size: int | None = None,
    attributions: jax.Array | None = None,
) -> Stabilities:
    """Return relative input, output and representation stability over the same neighbours.

    Args:
      explain_one: explains one image, `explain_one(image, target, key) -> attribution` of any shape.
      fn: the network, `image [H, W, C] -> logits [K]`, in evaluation mode.
      images: floating point, `[N, H, W, C]`.
      targets: classes explained, integers `[N]`.
      key: one key or `[N]` keys. With keys that belong to the examples the result does not depend on batching.
      features_fn: `image -> features` of any shape, for representation stability.
      samples: neighbours of each image.
      radius: the largest change of a pixel's channel, in input units.
      epsilon: stands in for entries that are exactly 0 where a change is divided by the entry, and is the least
        denominator. Explanations with exact zeros (behind dead units, in cropped maps) score huge values by definition.
      chunk_size: neighbours in flight, each with its explanation and its forward pass. Default: what memory holds.
      attributions: `[N, ...]`, the explanations of `images` if they are known already, made with the same keys.

    Returns:
      With relative changes `δφ = (φ(x) − φ(x')) / φ(x)` the maxima over the neighbours x' that are predicted as x of
      `‖δφ‖ / ‖δx‖`, `‖δφ‖ / ‖logits(x) − logits(x')‖` and `‖δφ‖ / ‖δfeatures‖`. NaN where no neighbour keeps the
      prediction, for an attribution of zeros, and for one that is not finite.

    References:
      Agarwal et al., "Rethinking Stability for Attribution-based Explanations", https://arxiv.org/abs/2203.06877, 2022.
    """

    def one(image: jax.Array, target: jax.Array, key: jax.Array, own: jax.Array, at_once: int) -> tuple:
        def outputs(x: jax.Array) -> tuple[jax.Array, ...]:
            features = () if features_fn is None else (features_fn(x).astype(jnp.float32),)
            return x.astype(jnp.float32), fn(x).astype(jnp.float32), *features

        def relative(near: jax.Array, here: jax.Array) -> jax.Array:
            return norm((here - near) / jnp.where(here == 0, epsilon, here))

        here = outputs(image)

        def neighbour(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            near = outputs(x)
            change = relative(explain_one(x, target, key).astype(jnp.float32), own)
            # Equal logits do not differ, also where both are −inf and take a class out.
            gap = jnp.where(near[1] == here[1], 0, near[1] - here[1])
            below = (relative(near[0], here[0]), norm(gap), *map(relative, near[2:], here[2:]))
            kept = (near[1].argmax() == here[1].argmax()) & jnp.isfinite(here[1].max())
            return kept, tuple(change / jnp.maximum(size, epsilon) for size in below)

        kept, ratios = over_neighbours(neighbour, image, key, samples=samples, radius=radius, at_once=at_once)
        # The maximum over an empty set is −∞: not finite, so NaN.
        return tuple(defined_for(own, jnp.where(kept, ratio, -jnp.inf).max()) for ratio in ratios)

    check_images(images)
    classes = class_count(fn, images)
    values = over_examples(one, explain_one, images, targets, key, attributions, chunk_size, count=classes)
    return Stabilities(values[0], values[1], values[2] if features_fn is not None else None)


def relative_input_stability(
    explain_one: ExplainOne, fn: Fn, images: jax.Array, targets: jax.Array, **options: Any
) -> jax.Array:
    """Return the explanation's largest relative change over that of the image, `[N]`; see `relative_stabilities`."""
    return relative_stabilities(explain_one, fn, images, targets, **options).input


def relative_output_stability(
    explain_one: ExplainOne, fn: Fn, images: jax.Array, targets: jax.Array, **options: Any
) -> jax.Array:
    """Return the explanation's largest relative change over that of the logits, `[N]`; see `relative_stabilities`."""
    return relative_stabilities(explain_one, fn, images, targets, **options).output


def relative_representation_stability(
    explain_one: ExplainOne, fn: Fn, features_fn: Fn, images: jax.Array, targets: jax.Array, **options: Any
) -> jax.Array:
    """Return the explanation's largest relative change over that of the features, `[N]`; see `relative_stabilities`."""
    return relative_stabilities(explain_one, fn, images, targets, features_fn=features_fn, **options).representation
