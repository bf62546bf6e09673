"""Does the relevance of pixels agree with what their removal does? Correlations over groups of like relevance.

The pixels are divided into groups in the order of the map, and each group is replaced alone. A group's relevance is the
sum of the map over it. Values are NaN for a map that is constant or not finite.

Every function takes the network for one image, `fn: image [H, W, C] -> logits [K]`.
"""

import jax
import jax.numpy as jnp

from sdecor.core.checks import check_count
from sdecor.core.parallel import automatic
from sdecor.metrics.inputs import Fn, check_batch
from sdecor.metrics.ranks import ranks
from sdecor.metrics.replacement import (
    baseline_images,
    fold_sample,
    replaced_scores,
    score_of,
    step_counts,
    varies,
    window_sums,
)
from sdecor.metrics.similarity import pearson, spearman


@automatic
def faithfulness_estimate(
    fn: Fn,
    images: jax.Array,
    maps: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    steps: int | None = 32,
    baseline: str | jax.Array = "black",
    blur_sigma: float = 5.0,
    saliency_of: str = "logit",
    chunk_size: int | None = None,
) -> jax.Array:
    """Return the correlation of relevance and effect over groups of pixels of like relevance, each removed alone.

    Args:
      fn, images, maps, targets, baseline, blur_sigma, saliency_of, chunk_size: see `faithfulness_correlation`.
      key: one key or `[N]` keys, for the order of equal values.
      steps: number of (nearly) equal groups, in the order of relevance; None = each pixel alone, as published.

    Returns:
      Pearson's correlation, `[N]` in [−1, 1]; higher is better. NaN also where the score never changes.

    References:
      Alvarez-Melis, Jaakkola, "Towards Robust Interpretability with Self-Explaining Neural Networks",
      https://arxiv.org/abs/1806.07538, 2018.
    """
    targets = check_batch(images, maps, targets, fn=fn)
    windows = _groups(maps, steps)
    end = baseline_images(images, baseline, blur_sigma=blur_sigma, key=key)
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
    baseline: str | jax.Array = "uniform",
    blur_sigma: float = 5.0,
    saliency_of: str = "probability",
    chunk_size: int | None = None,
) -> jax.Array:
    """Return the rank correlation of the relevance of groups of pixels and the mean squared effect of noise there.

    Args:
      fn, images, maps, targets, blur_sigma, saliency_of, chunk_size: see `faithfulness_correlation`.
      key: one key or `[N]` keys, for the noise and the order of equal values.
      steps: number of (nearly) equal groups, in the order of relevance; None = each pixel alone, as published.
      samples: draws of the noise; a baseline without noise takes one.
      baseline: what replaces a group; "uniform" is drawn anew for each sample.

    Returns:
      Spearman's correlation, `[N]` in [−1, 1]; higher is better. NaN also where the score never changes.

    References:
      Nguyen, Martínez, "On quantitative aspects of model interpretability", https://arxiv.org/abs/2007.07584, 2020.
    """
    targets = check_batch(images, maps, targets, fn=fn)
    check_count("samples", samples)
    windows = _groups(maps, steps)
    places = ranks(maps, key)
    noisy = isinstance(baseline, str) and baseline == "uniform"

    def squared_effects(sample: jax.Array) -> jax.Array:
        end = baseline_images(images, baseline, blur_sigma=blur_sigma, key=fold_sample(key, images.shape[0], sample))
        # The empty window is the image itself.
        scores = replaced_scores(
            fn, images, end, places, [0, *windows], targets, score=score_of(saliency_of), chunk_size=chunk_size
        )
        return (scores[:, 1:] - scores[:, :1]) ** 2

    effects = jax.lax.map(squared_effects, jnp.arange(samples if noisy else 1)).mean(0)
    return jnp.where(varies(maps), spearman(window_sums(maps, places, windows), effects), jnp.nan)


def _groups(maps: jax.Array, steps: int | None) -> list[tuple[int, int]]:
    """Return the first place and the end of each group of pixels."""
    features = maps[0].size
    steps = features if steps is None else steps
    check_count("steps", steps, 2, features)
    counts = step_counts(features, steps)
    return list(zip(counts[:-1], counts[1:], strict=True))
