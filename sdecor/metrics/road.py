"""Remove and debias: is the label still predicted when the pixels that the map calls important are imputed away?"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sdecor.core.checks import check_range
from sdecor.core.chunks import map_examples
from sdecor.core.classes import correct
from sdecor.core.parallel import automatic
from sdecor.core.rng import per_example
from sdecor.metrics.imputation import gaussian_noise, linear_imputation
from sdecor.metrics.inputs import Fn, check_batch, check_images, class_count, in_flight
from sdecor.metrics.ranks import ranks
from sdecor.metrics.replacement import defined, finite, percentage_counts, score_of

PERCENTAGES = (10, 20, 30, 40, 50, 60, 70, 80, 90)


class RoadCurves(NamedTuple):
    """What is left at each percentage of removed pixels, `[N, S]` each."""

    correct: jax.Array
    probability: jax.Array


@automatic
def road_curves(
    fn: Fn,
    images: jax.Array,
    maps: jax.Array,
    labels: jax.Array,
    *,
    key: jax.Array,
    percentages: Sequence[int] = PERCENTAGES,
    order: str = "morf",
    noise: float = 0.01,
    tolerance: float = 2e-3,
    chunk_size: int | None = None,
) -> RoadCurves:
    """Return whether the label is predicted, and its probability, as ever more pixels are removed by noisy imputation.

    Nothing is retrained: imputed pixels hold nothing that the network could read the removed set from.

    Args:
      fn: the network for one image, `image [H, W, C] -> logits [K]`, in evaluation mode.
      images: `[N, H, W, C]`.
      maps: `[N, H, W]`.
      labels: the right classes, integers `[N]`.
      key: one key or `[N]` keys, for the order of equal values and for the noise, which is the same at each percentage.
      percentages: of the pixels that are removed, in [0, 100).
      order: "morf" removes the most relevant pixels, "lerf" the least relevant, "random" any.
      noise: standard deviation of the noise on imputed pixels, in input units.
      tolerance: of the imputation, see `impute`.
      chunk_size: network evaluations in flight; the imputation always works on the N images. Default: what
        the device's memory holds.

    Returns:
      `correct` (1 or 0; its mean over examples is the accuracy) and `probability` of the label, `[N, len(percentages)]`
      each. NaN for a map of zeros or one that is not finite.

    References:
      Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods",
      https://arxiv.org/abs/2202.00449, 2022.
    """
    check_images(images)
    labels = check_batch(images, maps, labels, count=class_count(fn, images), field="labels")
    for percentage in percentages:
        check_range("percentages", percentage, 0, 100, high_open=True)
    check_range("noise", noise, 0)
    places = ranks(maps, key, order=order)
    keys = jax.vmap(lambda k: jax.random.fold_in(k, 1))(per_example(key, images.shape[0]))
    disturbance = noise * gaussian_noise(images, keys)
    at_once, _ = in_flight(fn, chunk_size, images)
    probability = score_of("probability")

    def one(image: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = fn(image)
        return correct(logits, label), probability(logits, label)

    def at(count: jax.Array) -> tuple[jax.Array, jax.Array]:
        mask = places < count
        imputed = linear_imputation(images, mask, tolerance=tolerance)
        imputed = jnp.where(mask[..., None], imputed + disturbance, imputed)
        return map_examples(one, (imputed, labels), at_once)

    curves = jax.lax.map(at, jnp.asarray(percentage_counts(maps[0].size, percentages), jnp.int32))
    known = defined(maps) & finite(images)
    return RoadCurves(*(jnp.where(known[:, None], curve.T, jnp.nan) for curve in curves))


def road(fn: Fn, images: jax.Array, maps: jax.Array, labels: jax.Array, **options) -> jax.Array:
    """Return the share of percentages at which the label is predicted, `[N]` in [0, 1]: the mean of a ROAD curve.

    Takes the arguments of `road_curves`. Lower is better for "morf", higher for "lerf".
    """
    return road_curves(fn, images, maps, labels, **options).correct.mean(1)
