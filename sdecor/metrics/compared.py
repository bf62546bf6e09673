"""Explanations as maps, and how alike two of them are: what the randomisation metrics are made of."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sdecor.attribution.reduce import reduce
from sdecor.core.arrays import average_ranks
from sdecor.core.checks import check_choice
from sdecor.core.chunks import map_examples
from sdecor.metrics.inputs import check_images, in_flight
from sdecor.metrics.replacement import finite
from sdecor.metrics.similarity import cosine, pearson, spearman, ssim

SIMILARITIES = {"spearman": spearman, "pearson": pearson, "cosine": cosine, "ssim": ssim}


def map_maker(
    explain_with: Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array],
    images: jax.Array,
    targets: jax.Array,
    keys: jax.Array,
    *,
    reduction: str,
    chunk_size: int | None,
) -> Callable[[Any], jax.Array]:
    """Return the function from parameters to the maps `[N, H, W]` of all images under them, NaN unless they are finite.

    Args:
      explain_with: `explain_with(params, image, target, key) -> attribution`, `[H, W]` or `[H, W, C]`.
      images: `[N, H, W, C]`.
      targets: `[N]`, or whatever `explain_with` takes, `[N, …]`.
      keys: `[N]`.
      reduction: of channels, see `sdecor.attribution.reduce`.
      chunk_size: explanations in flight; None = what the device's memory holds.
    """
    check_images(images)

    def maps(params: Any) -> jax.Array:
        def one(*example: jax.Array) -> jax.Array:
            return explain_with(params, *example)

        examples, _ = in_flight(one, chunk_size, images, targets, keys)
        found = reduced(map_examples(one, (images, targets, keys), examples), reduction)
        return jnp.where(finite(images)[:, None, None], found, jnp.nan)

    return maps


def reduced(attributions: jax.Array, reduction: str) -> jax.Array:
    """Return attributions `[N, H, W]` or `[N, H, W, C]` as maps `[N, H, W]`, float32."""
    if attributions.ndim == 4:
        return reduce(attributions, how=reduction)
    if attributions.ndim != 3:
        raise ValueError(f"attributions have shape {attributions.shape}: they are maps [N, H, W] or [N, H, W, C]")
    return attributions.astype(jnp.float32)


def likeness(own: jax.Array, similarity: str) -> Callable[[jax.Array], jax.Array]:
    """Return the function from maps `[N, H, W]` to their similarity to `own`, `[N]`; a name in `SIMILARITIES`."""
    check_choice("similarity", similarity, SIMILARITIES)
    if similarity != "spearman":
        return lambda other: SIMILARITIES[similarity](own, other)
    ranks = _ranks(own)  # once for all that it is compared with: sorting is what takes time
    return lambda other: pearson(ranks, _ranks(other))


def _ranks(maps: jax.Array) -> jax.Array:
    """Return the pixels' ranks `[N, H·W]`, NaN throughout for a map that is not finite."""
    rows = maps.reshape(maps.shape[0], -1)
    return jnp.where(jnp.isfinite(rows).all(1, keepdims=True), average_ranks(rows), jnp.nan)
