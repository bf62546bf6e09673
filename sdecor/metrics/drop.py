"""What is left of the score when the map is laid over the image as a soft mask.

The map is scaled to [0, 1] by its own minimum and maximum; where it is 0, a pixel has faded to the baseline altogether.
Values are NaN for a map that is constant or not finite. Every function takes the network for one image,
`fn: image [H, W, C] -> logits [K]`.
"""

import jax
import jax.numpy as jnp

from sdecor.core.arrays import moderate, widened
from sdecor.core.chunks import map_examples
from sdecor.core.parallel import automatic
from sdecor.metrics.inputs import Fn, check_batch, in_flight
from sdecor.metrics.replacement import baseline_images, finite, map_samples, score_of, varies


@automatic
def average_drop(fn: Fn, images: jax.Array, maps: jax.Array, targets: jax.Array, **options) -> jax.Array:
    """Return the share of the target's probability that is lost under the mask; a gain counts as 0.

    Args:
      fn: the network for one image, `image [H, W, C] -> logits [K]`, in evaluation mode.
      images: `[N, H, W, C]`.
      maps: `[N, H, W]`.
      targets: classes whose score is followed, integers `[N]`.
      **options: `baseline` ("zero"; see `baseline_images`), `blur_sigma`, `saliency_of` ("probability"), `chunk_size`
        and, for the baseline "uniform" alone, `key`.

    Returns:
      `max(0, Y − O)/Y`, `[N]` in [0, 1]; lower is better. Its mean is published in per cent.

    References:
      Chattopadhay et al., "Grad-CAM++", https://arxiv.org/abs/1710.11063, 2018.
      Wang et al., "Score-CAM", https://arxiv.org/abs/1910.01279, 2020.
    """
    whole, masked = _scores(fn, images, maps, targets, **options)
    lost = jnp.maximum(whole - masked, 0) / jnp.where(whole != 0, whole, jnp.nan)
    return jnp.where(varies(maps), lost, jnp.nan)


@automatic
def average_increase(fn: Fn, images: jax.Array, maps: jax.Array, targets: jax.Array, **options) -> jax.Array:
    """Return 1 where the target's probability is greater under the mask than on the image, else 0.

    Takes the arguments of `average_drop`.

    Returns:
      `[N]`; higher is better. Its mean is published in per cent, as "increase in confidence".

    References:
      Chattopadhay et al., "Grad-CAM++", https://arxiv.org/abs/1710.11063, 2018.
    """
    whole, masked = _scores(fn, images, maps, targets, **options)
    return jnp.where(varies(maps) & jnp.isfinite(whole - masked), (masked > whole).astype(jnp.float32), jnp.nan)


def _scores(
    fn: Fn,
    images: jax.Array,
    maps: jax.Array,
    targets: jax.Array,
    *,
    baseline: str | jax.Array = "zero",
    blur_sigma: float = 5.0,
    saliency_of: str = "probability",
    chunk_size: int | None = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return the target's score on the image and under the mask, `[N]` each."""
    targets = check_batch(images, maps, targets, fn=fn)
    end = baseline_images(images, baseline, blur_sigma=blur_sigma, key=key)
    maps = moderate(maps.astype(jnp.float32), (1, 2))
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    weights = ((maps - low) / jnp.where(high > low, high - low, 1))[..., None]
    score = score_of(saliency_of)
    examples, at_once = in_flight(fn, chunk_size, images)

    def one(image: jax.Array, base: jax.Array, weight: jax.Array, target: jax.Array) -> jax.Array:
        masked = (widened(base) + weight * (widened(image) - widened(base))).astype(image.dtype)
        return map_samples(lambda hide: score(fn(jnp.where(hide, masked, image)), target), jnp.arange(2) > 0, at_once)

    scores = map_examples(one, (images, end, weights, targets), examples)
    scores = jnp.where(finite(images)[:, None], scores, jnp.nan)
    return scores[:, 0], scores[:, 1]
