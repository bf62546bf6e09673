"""Gradients gathered along a path that chooses its own way from the baseline to the image."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.attribution.baselines import Baseline, baseline_image
from sdecor.attribution.paths import completeness_error
from sdecor.attribution.targets import Target, score_of
from sdecor.core.arrays import kth_smallest, order_keys, widened
from sdecor.core.checks import check_count, check_range


def guided_integrated_gradients(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    baseline: Baseline = "zero",
    steps: int = 200,
    fraction: float = 0.25,
    max_dist: float = 0.02,
    anchors: int = 0,
    saliency_of: str = "logit",
    key: jax.Array | None = None,
    with_error: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Return contributions on a path that moves the features of least gradient first, away from noisy regions.

    Each step brings the point nearer to the image by the same L1 distance: the `fraction` of the features with the
    smallest gradient magnitude move as far as they may, then the next, until the distance is covered. Features of equal
    gradient move together. Cost: `steps` gradients one after the other; with the error, two evaluations more.

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, `[H, W, C]`.
      target: what is explained: a class, a `Contrast` of two, or a function of the logits.
      baseline: where the path starts: see `baseline_image`.
      steps: steps of the path.
      fraction: share of the features moved together, in [0, 1]; with 1 the path is straight.
      max_dist: how far, in shares of the whole way, a feature may be ahead of or behind the straight path, in [0, 1].
        0 keeps to the straight path; 1 lets features go freely.
      anchors: points of the straight path, evenly spaced, through which the path must pass. `anchors + 1` divides
        `steps`.
      saliency_of: "logit", "log_probability" or "probability".
      key: for a baseline that is drawn, such as "uniform".
      with_error: also return the completeness error.

    Returns:
      Signed contributions `[H, W, C]` in score units. With `with_error` a pair of these and the scalar
      `Σ attribution − (score(image) − score(baseline))`, which more steps bring to zero.

    References:
      Kapishnikov et al., "Guided Integrated Gradients", https://arxiv.org/abs/2106.09788, 2021. `max_dist` is from the
      authors' code.
    """
    check_range("fraction", fraction, 0, 1)
    bounds = path_bounds(steps, max_dist, anchors)
    score = score_of(fn, target, saliency_of=saliency_of)
    start = baseline_image(baseline, image, key=key)
    way = widened(image) - widened(start)
    length = jnp.abs(way)
    together = int(fraction * (image.size - 1)) + 1

    def step(state: tuple[jax.Array, jax.Array], bounds: tuple[jax.Array, ...]) -> tuple[tuple, None]:
        gone, gathered = state
        slope = widened(jax.grad(score)((widened(start) + gone * way).astype(image.dtype)))
        further = _advance(gone, slope, length, together, *bounds)
        return (further, gathered + (further - gone) * slope), None

    still = jnp.zeros_like(length)
    _, gathered = jax.lax.scan(step, (still, still), tuple(jnp.asarray(bounds, length.dtype).T))[0]
    attribution = way * gathered
    return (attribution, completeness_error(attribution, score, image, start)) if with_error else attribution


def path_bounds(steps: int, max_dist: float, anchors: int) -> np.ndarray:
    """Return `[steps, 3]`: the share of the way gone after each step, and the least and most of a single feature's."""
    check_count("steps", steps)
    check_range("max_dist", max_dist, 0, 1)
    check_count("anchors", anchors, 0)
    if steps % (anchors + 1):
        raise ValueError(f"steps = {steps} is not divisible into {anchors + 1} parts, as {anchors} anchors need")
    part = steps // (anchors + 1)
    done = np.arange(1, steps + 1)
    opening, end = (done - 1) // part * part / steps, -(-done // part) * part / steps
    goal = done / steps
    # At an anchor, and at the image, every feature must have arrived.
    low = np.where(goal == end, goal, np.maximum(goal - max_dist, opening))
    return np.stack([goal, low, np.minimum(goal + max_dist, end)], axis=1)


def _advance(
    gone: jax.Array,
    slope: jax.Array,
    length: jax.Array,
    together: int,
    goal: jax.Array,
    low: jax.Array,
    high: jax.Array,
) -> jax.Array:
    """Return which share of its way each feature has gone after a step, `[H, W, C]`.

    Their mean, weighted by the `length` of the features' ways, becomes `goal`; each is between `low` and `high`.
    """
    steepness = jnp.where(jnp.isnan(slope), jnp.inf, jnp.abs(slope))  # undefined: moved last

    def move(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        gone, _ = state
        movable = (gone < high) & (length > 0)
        keys = order_keys(jnp.where(movable, steepness, jnp.inf))
        chosen = movable & (keys <= kth_smallest(keys.reshape(1, -1), together)[0])
        missing = jnp.sum(length * (goal - gone))
        reach = jnp.sum(jnp.where(chosen, length * (high - gone), 0))
        share = jnp.clip(missing / jnp.where(reach > 0, reach, 1), 0, 1)
        moved = jnp.where(share < 1, gone + share * (high - gone), high)
        return jnp.where(chosen, moved, gone), (missing <= reach) | ~chosen.any()

    return jax.lax.while_loop(lambda state: ~state[1], move, (jnp.maximum(gone, low), low == high))[0]
