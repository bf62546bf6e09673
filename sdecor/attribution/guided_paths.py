"""Guided integrated gradients: gradients along an adaptive path from a baseline to the image."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.attribution.baselines import Baseline, baseline_image
from sdecor.attribution.inputs import of_any_input
from sdecor.attribution.paths import completeness_error
from sdecor.attribution.targets import Target, score_of
from sdecor.core.arrays import kth_smallest, order_keys, widened
from sdecor.core.checks import check_count, check_range


@of_any_input
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
    """Return contributions along a path that avoids noisy regions: features with the smallest gradient move first.

    Each step moves the point towards the image by the same L1 distance. The `fraction` of features with the smallest
    gradient magnitude moves first, as far as `max_dist` and `anchors` allow. Then the next features move, until the
    distance is covered. Features of equal gradient move together. Cost: `steps` gradients, one after the other; two
    more evaluations with the error.

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, `[H, W, C]`.
      target: the class to explain, a `Contrast` of two classes, or a function of the logits.
      baseline: start of the path: see `baseline_image`.
      steps: number of steps of the path.
      fraction: share of the features that move together, in [0, 1]; with 1 the path is straight.
      max_dist: largest deviation of a feature from the straight path, ahead or behind, as a share of its whole way, in
        [0, 1]. 0 gives the straight path, 1 no limit.
      anchors: number of evenly spaced points of the straight path that the path must pass through. `anchors + 1` must
        divide `steps`.
      saliency_of: score of the target: "logit", "log_probability" or "probability".
      key: random key, for a baseline that draws, such as "uniform".
      with_error: also return the completeness error.

    Returns:
      Signed contributions `[H, W, C]` in score units. With `with_error` a pair of these and the scalar
      `Σ attribution − (score(image) − score(baseline))`, which tends to 0 with more steps.

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
    """Return `[steps, 3]`: after each step, the mean share of the way that is covered, and a feature's two bounds."""
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
    """Return the share of its way that each feature has covered after a step, `[H, W, C]`.

    The mean of the shares, weighted by the `length` of the features' ways, becomes `goal`. Each share is between `low`
    and `high`.
    """
    steepness = jnp.where(jnp.isnan(slope), jnp.inf, jnp.abs(slope))  # features with a NaN gradient move last

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
