"""Correlations between the relevance of sets of pixels and the effect of their removal on the score.

The relevance of a set is the sum of the map over it. Its effect is the loss of the target's score when a baseline
replaces it, all channels of a pixel together. The score of the unchanged image is a constant that does not change a
correlation, so it is computed only where more than correlations is needed.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from sdecor.core.checks import check_count, check_range
from sdecor.core.parallel import automatic
from sdecor.metrics.inputs import Fn, check_batch
from sdecor.metrics.replacement import (
    Baseline,
    baseline_images,
    fold_sample,
    random_ranks,
    ranks,
    replaced_scores,
    score_of,
    step_counts,
    varies,
    window_sums,
)
from sdecor.metrics.similarity import pearson, spearman


@automatic
def faithfulness_correlation(
    fn: Fn,
    images: jax.Array,
    maps: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    samples: int = 100,
    subset_size: int | None = None,
    baseline: Baseline = "black",
    saliency_of: str = "logit",
    chunk_size: int | None = None,
) -> jax.Array:
    """Return the correlation of summed relevance and drop of the score over random sets of pixels.

    Args:
      fn: the network for one image, `image [H, W, C] -> logits [K]`, in evaluation mode.
      images: `[N, H, W, C]`.
      maps: `[N, H, W]`.
      targets: classes whose score is used, integers `[N]`.
      key: one key or `[N]` keys, for the sets.
      samples: number of sets. A random order of the pixels is cut into disjoint sets, then another order.
      subset_size: number of pixels in a set; None = a fifth of all pixels.
      baseline: replacement of removed pixels: see `baseline_images`.
      saliency_of: score of the target: "probability", "log_probability" or "logit".
      chunk_size: network evaluations at once. Default: as many as the device's memory holds.

    Returns:
      Pearson's correlation, `[N]` in [−1, 1]; higher is better. NaN for a map that is constant or not finite, and where
      the score never changes.

    References:
      Bhatt, Weller, Moura, "Evaluating and Aggregating Feature-based Model Explanations",
      https://arxiv.org/abs/2005.00631, 2020.
    """
    targets = check_batch(images, maps, targets, fn=fn)
    check_count("samples", samples, 2)
    features = maps[0].size
    size = max(1, features // 5) if subset_size is None else subset_size
    check_count("subset_size", size, 1, features - 1)
    orders = math.ceil(samples / (features // size))
    windows = [(j * size, (j + 1) * size) for j in range(math.ceil(samples / orders))]
    end = baseline_images(images, baseline, key=key)
    sums, scores = over_orders(
        fn, images, end, maps, targets, _random_order(maps, key), orders, windows, score_of(saliency_of), chunk_size
    )
    n = images.shape[0]
    first = [x.swapaxes(0, 1).reshape(n, -1)[:, :samples] for x in (sums, scores)]
    return jnp.where(varies(maps), -pearson(*first), jnp.nan)


@automatic
def sensitivity_n_curve(
    fn: Fn,
    images: jax.Array,
    maps: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    shares: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 0.8),
    samples: int = 100,
    baseline: Baseline = "zero",
    saliency_of: str = "probability",
    chunk_size: int | None = None,
) -> jax.Array:
    """Return the correlation of summed relevance and drop of the score over random sets of n pixels, for several n.

    Args:
      fn, images, maps, targets, key, baseline, saliency_of, chunk_size: see `faithfulness_correlation`.
      shares: values of n as shares of the pixels, in (0, 1); n is rounded and at least 1.
      samples: number of random sets for each n. A sample cuts the sets of all n from one random order of the pixels.

    Returns:
      `[N, len(shares)]` in [−1, 1].
    """
    targets = check_batch(images, maps, targets, fn=fn)
    check_count("samples", samples, 2)
    for share in shares:
        check_range("shares", share, 0, 1, low_open=True, high_open=True)
    windows = [max(1, round(share * maps[0].size)) for share in shares]
    end = baseline_images(images, baseline, key=key)
    sums, scores = over_orders(
        fn, images, end, maps, targets, _random_order(maps, key), samples, windows, score_of(saliency_of), chunk_size
    )
    by_n = jax.vmap(pearson, in_axes=2, out_axes=1)(sums.swapaxes(0, 1), scores.swapaxes(0, 1))
    return jnp.where(varies(maps)[:, None], -by_n, jnp.nan)


def sensitivity_n(fn: Fn, images: jax.Array, maps: jax.Array, targets: jax.Array, **options) -> jax.Array:
    """Return the mean of `sensitivity_n_curve` (same arguments) over n, `[N]` in [−1, 1]; higher is better.

    References:
      Ancona, Ceolini, Öztireli, Gross, "Towards Better Understanding of Gradient-based Attribution Methods for Deep
      Neural Networks", https://arxiv.org/abs/1711.06104, 2018.
    """
    return sensitivity_n_curve(fn, images, maps, targets, **options).mean(1)


def over_orders(
    fn: Fn,
    images: jax.Array,
    end: jax.Array,
    maps: jax.Array,
    targets: jax.Array,
    order: Callable[[jax.Array], jax.Array],
    orders: int,
    windows: Sequence[int | tuple[int, int]],
    score: Callable,
    chunk_size: int | None,
) -> tuple[jax.Array, jax.Array]:
    """Return summed relevance and score of each order's windows, `[orders, N, W]` each; `order(i)` returns places."""

    def windows_of(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        places = order(i)
        scores = replaced_scores(fn, images, end, places, windows, targets, score=score, chunk_size=chunk_size)
        return window_sums(maps, places, windows), scores

    return jax.lax.map(windows_of, jnp.arange(orders))


def _random_order(maps: jax.Array, key: jax.Array) -> Callable[[jax.Array], jax.Array]:
    return lambda i: random_ranks(fold_sample(key, maps.shape[0], i), maps.shape)


@automatic
def faithfulness_estimate(
    fn: Fn,
    images: jax.Array,
    maps: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    steps: int | None = 32,
    baseline: Baseline = "black",
    saliency_of: str = "logit",
    chunk_size: int | None = None,
) -> jax.Array:
    """Return the correlation of summed relevance and drop of the score over groups of pixels of similar relevance.

    Each group is removed alone.

    Args:
      fn, images, maps, targets, baseline, saliency_of, chunk_size: see `faithfulness_correlation`.
      key: one key or `[N]` keys, for the order of equal values.
      steps: number of groups of (nearly) equal size, in the order of relevance; None = one pixel per group, as in the
        publication.

    Returns:
      Pearson's correlation, `[N]` in [−1, 1]; higher is better. NaN for a map that is constant or not finite, and where
      the score never changes.

    References:
      Alvarez-Melis, Jaakkola, "Towards Robust Interpretability with Self-Explaining Neural Networks",
      https://arxiv.org/abs/1806.07538, 2018.
    """
    targets = check_batch(images, maps, targets, fn=fn)
    windows = _groups(maps, steps)
    end = baseline_images(images, baseline, key=key)
    places = ranks(maps, key)
    score = score_of(saliency_of)
    scores = replaced_scores(fn, images, end, places, windows, targets, score=score, chunk_size=chunk_size)
    return jnp.where(varies(maps), -pearson(window_sums(maps, places, windows), scores), jnp.nan)


@automatic
def monotonicity_correlation(
    fn: Fn,
    images: jax.Array,
    maps: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    steps: int | None = 32,
    samples: int = 10,
    baseline: Baseline = "uniform",
    saliency_of: str = "probability",
    chunk_size: int | None = None,
) -> jax.Array:
    """Return the rank correlation of the relevance of groups of pixels and the mean squared effect of noise on them.

    Args:
      fn, images, maps, targets, saliency_of, chunk_size: see `faithfulness_correlation`.
      key: one key or `[N]` keys, for the noise and the order of equal values.
      steps: number of groups of (nearly) equal size, in the order of relevance; None = one pixel per group, as in the
        publication.
      samples: number of draws of the baseline; a baseline that is neither "uniform" nor a function is used once.
      baseline: replacement of a group's pixels; "uniform" and functions are drawn again for each sample.

    Returns:
      Spearman's correlation, `[N]` in [−1, 1]; higher is better. NaN for a map that is constant or not finite, and
      where the score never changes.

    References:
      Nguyen, Martínez, "On quantitative aspects of model interpretability", https://arxiv.org/abs/2007.07584, 2020.
    """
    targets = check_batch(images, maps, targets, fn=fn)
    check_count("samples", samples)
    windows = _groups(maps, steps)
    places = ranks(maps, key)
    noisy = callable(baseline) or (isinstance(baseline, str) and baseline == "uniform")

    def squared_effects(sample: jax.Array) -> jax.Array:
        end = baseline_images(images, baseline, key=fold_sample(key, images.shape[0], sample))
        # The empty window gives the score of the image itself.
        scores = replaced_scores(
            fn, images, end, places, [0, *windows], targets, score=score_of(saliency_of), chunk_size=chunk_size
        )
        return (scores[:, 1:] - scores[:, :1]) ** 2

    effects = jax.lax.map(squared_effects, jnp.arange(samples if noisy else 1)).mean(0)
    return jnp.where(varies(maps), spearman(window_sums(maps, places, windows), effects), jnp.nan)


def _groups(maps: jax.Array, steps: int | None) -> list[tuple[int, int]]:
    """Return the first place and the end (exclusive) of each group of pixels."""
    features = maps[0].size
    steps = features if steps is None else steps
    check_count("steps", steps, 2, features)
    counts = step_counts(features, steps)
    return list(zip(counts[:-1], counts[1:], strict=True))
