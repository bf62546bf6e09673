"""Sufficiency: whether images with similar maps have the same prediction."""

import jax
import jax.numpy as jnp

from sdecor.core.checks import check_count, check_range
from sdecor.core.chunks import map_examples
from sdecor.core.parallel import automatic
from sdecor.metrics.inputs import check_maps
from sdecor.metrics.replacement import defined


@automatic
def sufficiency(maps: jax.Array, predictions: jax.Array, *, threshold: float = 0.6, chunk_size: int = 64) -> jax.Array:
    """Return, for each example, the share of examples with its prediction among the others with a near map.

    It is a metric of the whole data set: pass all examples at once.

    Args:
      maps: `[N, H, W]`.
      predictions: predicted classes, integers `[N]`.
      threshold: largest distance of near maps, as a share of the largest distance in the data set. The distance is
        Euclidean, over pixels divided by their standard deviation in the data set.
      chunk_size: examples to compare with all others at once.

    Returns:
      `[N]` in [0, 1], higher is better; NaN where no other map is near. A map that is all 0 or not finite gives NaN and
      is not compared with others.

    References:
      Dasgupta, Frost, Moshkovitz, "Framework for Evaluating Faithfulness of Local Explanations",
      https://arxiv.org/abs/2202.00734, 2022.
    """
    check_range("threshold", threshold, 0, 1)
    check_count("chunk_size", chunk_size)
    check_maps(maps=maps)
    n = maps.shape[0]
    if jnp.shape(predictions) != (n,):
        raise ValueError(f"predictions has shape {jnp.shape(predictions)}: pass ({n},), one for each map")
    valid = defined(maps)
    rows = _standardised(jnp.asarray(maps, jnp.float32).reshape(n, -1), valid)
    places, predictions = jnp.arange(n), jnp.asarray(predictions)

    def distances(place: jax.Array) -> jax.Array:
        others = valid & (places != place)
        return jnp.where(others & valid[place], jnp.sqrt(((rows - rows[place][None]) ** 2).sum(1)), -jnp.inf)

    largest = map_examples(lambda place: distances(place).max(), (places,), chunk_size).max()

    def one(place: jax.Array) -> jax.Array:
        distance = distances(place)
        near = (distance >= 0) & (distance <= threshold * largest)
        agreeing = near & (predictions == predictions[place])
        return jnp.where(near.any(), agreeing.sum() / jnp.maximum(near.sum(), 1), jnp.nan)

    return map_examples(one, (places,), chunk_size).astype(jnp.float32)


def _standardised(rows: jax.Array, valid: jax.Array) -> jax.Array:
    """Return rows `[N, F]` standardised by each column's valid rows; constant columns become 0."""
    weight = valid[:, None].astype(jnp.float32)
    rows = jnp.where(valid[:, None], rows, 0)
    count = weight.sum()
    centered = (rows - rows.sum(0)[None] / jnp.maximum(count, 1)) * weight
    deviation = jnp.sqrt((centered**2).sum(0) / jnp.maximum(count - 1, 1))[None]
    return jnp.where(deviation > 0, centered / jnp.where(deviation > 0, deviation, 1), 0)
