"""Attribution to regions by hiding sets of them: ablation, Shapley values and local linear models; no gradients.

A region is a set of positions that are hidden together: see `sdecor.attribution.regions`. A set of regions that stay
visible is a coalition; the others become the baseline.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.attribution.baselines import Baseline, baseline_image
from sdecor.attribution.inputs import of_any_input
from sdecor.attribution.regions import Regions, labels_of
from sdecor.attribution.targets import Target, target_score
from sdecor.core.arrays import widened
from sdecor.core.checks import check_count, check_range
from sdecor.core.chunks import sum_over


class Game(NamedTuple):
    """The score of a coalition of regions.

    Attributes:
      score: function from which regions are visible, bool `[R]`, to the score.
      labels: label map of the positions.
      sizes: number of positions of each region, `[R]`; a region without positions is not part of the game.
      shape: shape of the attribution, `[*positions, 1]`, or `[F]` of features.
      whole: score of the image.
      empty: function that evaluates the score of the baseline.
    """

    score: Callable[[jax.Array], jax.Array]
    labels: jax.Array
    sizes: jax.Array
    shape: tuple[int, ...]
    whole: jax.Array
    empty: Callable[[], jax.Array]

    @property
    def count(self) -> int:
        """Return the number of regions R."""
        return self.sizes.shape[0]

    def result(self, values: jax.Array, share: bool, rise: jax.Array | None = None) -> Any:
        """Return the values of the regions, `[R]`, as an attribution; with the rise of the score, their error too."""
        values = jnp.where(self.sizes > 0, values, 0)
        each = values / jnp.maximum(self.sizes, 1) if share else values
        attribution = each[self.labels].reshape(self.shape)
        return attribution if rise is None else (attribution, values.sum() - rise)


@of_any_input
def feature_ablation(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    regions: Regions = None,
    count: int | None = None,
    baseline: Baseline = "zero",
    saliency_of: str = "logit",
    share: bool = True,
    key: jax.Array | None = None,
    chunk_size: int | None = None,
    with_error: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Return each region's drop of the score when this region alone is hidden.

    Cost: one evaluation for each region; one more, and another for the error.

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, `[H, W, C]`, another input with positions `[*positions, C]`, features `[F]`, or a tree of
        these, of which every entry is a region by default.
      target: the class to explain, a `Contrast` of two classes, or a function of the output.
      regions: label map, integers `[H, W]` from 0; the side of a grid's cells; or None, cells of an eighth of the
        longest side, or each feature of `[F]`. For a batch also `[N, H, W]`. See `sdecor.attribution.regions`.
      count: number of regions; needed if `regions` is traced by `jit`.
      baseline: replacement of hidden positions: see `baseline_image`.
      saliency_of: score of the target: "logit", "log_probability" or "probability".
      share: whether a region's value is divided among its positions, so that the attribution sums to the sum of the
        regions' values; otherwise each position has the value of its region, as in captum.
      key: random key, for a baseline that draws.
      chunk_size: evaluations at once.
      with_error: also return the completeness error.

    Returns:
      Signed drops `[H, W, 1]` in score units, or `[F]`. With `with_error` a pair of these and the scalar `Σ drops −
      (score(image) − score(baseline))`, which is 0 if regions do not interact.

    Raises:
      ValueError: for a label map that does not fit, and options out of range.
    """
    game = _game(fn, image, target, regions, count, baseline, saliency_of, key)
    places = jnp.arange(game.count)

    def drop(i: jax.Array) -> jax.Array:
        return jnp.where(places == i, game.whole - game.score(places != i), 0)

    drops = sum_over(drop, game.count, at_once=chunk_size)
    return game.result(drops, share, game.whole - game.empty() if with_error else None)


@of_any_input
def shapley_sampling(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    key: jax.Array,
    samples: int = 25,
    regions: Regions = None,
    count: int | None = None,
    baseline: Baseline = "zero",
    saliency_of: str = "logit",
    share: bool = True,
    chunk_size: int | None = None,
    with_error: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Return estimates of the regions' Shapley values: mean rises of the score as regions appear in random orders.

    See `feature_ablation` for the other arguments. Cost: `samples · (R − 1) + 2` evaluations for R regions.

    Args:
      samples: number of orders.

    Returns:
      Signed contributions `[H, W, 1]` in score units, or `[F]`. With `with_error` a pair of these and the scalar `Σ
      contributions − (score(image) − score(baseline))`, 0 up to rounding for any number of samples.

    References:
      Castro, Gómez, Tejada, "Polynomial Calculation of the Shapley Value Based on Sampling",
      https://doi.org/10.1016/j.cor.2008.04.004, 2009.
      Štrumbelj, Kononenko, "An Efficient Explanation of Individual Classifications Using Game Theory", 2010.
    """
    check_count("samples", samples)
    game = _game(fn, image, target, regions, count, baseline, saliency_of, key)
    empty = game.empty()
    total = game.whole - empty
    rise = total if with_error else None
    if game.count == 1:
        return game.result(total[None], share, rise)
    steps = game.count - 1

    def evaluated(i: jax.Array) -> jax.Array:
        """Return what one coalition adds: its score to the region that came last, and taken from the next one."""
        ranks = _ranks(jax.random.fold_in(key, i // steps), game.count)
        seen = i % steps + 1
        value = game.score(ranks < seen) - empty
        return value * ((ranks == seen - 1).astype(value.dtype) - (ranks == seen).astype(value.dtype))

    def last(i: jax.Array) -> jax.Array:
        return jnp.where(_ranks(jax.random.fold_in(key, i), game.count) == game.count - 1, total, 0)

    contributions = sum_over(evaluated, samples * steps, at_once=chunk_size) + sum_over(last, samples)
    return game.result(contributions / samples, share, rise)


@of_any_input
def kernel_shap(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    key: jax.Array,
    samples: int = 1000,
    regions: Regions = None,
    count: int | None = None,
    baseline: Baseline = "zero",
    saliency_of: str = "logit",
    share: bool = True,
    chunk_size: int | None = None,
    with_error: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Return estimates of the regions' Shapley values: the best additive model of the scores of coalitions.

    The model is fitted by least squares under the Shapley kernel, subject to the sum of its coefficients being the
    score minus that of the baseline. Coalitions are drawn by their kernel weights, each with its complement. If
    `samples` reaches all `2^R − 2` coalitions of R regions, each is evaluated once, and the values are exact. See
    `feature_ablation` for the other arguments. Cost: `min(samples, 2^R − 2) + 2` evaluations.

    Args:
      samples: number of coalitions, at least the number of regions.

    Returns:
      Signed contributions `[H, W, 1]` in score units, or `[F]`. With `with_error` a pair of these and the scalar `Σ
      contributions − (score(image) − score(baseline))`, 0 up to rounding.

    References:
      Lundberg, Lee, "A Unified Approach to Interpreting Model Predictions", https://arxiv.org/abs/1705.07874, 2017.
      Covert, Lee, "Improving KernelSHAP", https://arxiv.org/abs/2012.01536, 2021 (complements, the constrained fit).
    """
    game = _game(fn, image, target, regions, count, baseline, saliency_of, key)
    count, empty = game.count, game.empty()
    total = game.whole - empty
    rise = total if with_error else None
    check_count("samples", samples, fewest_coalitions(count))
    if count == 1:
        return game.result(total[None], share, rise)
    sizes = np.arange(1, count)
    exact = coalition_count(samples, count) == 2**count - 2
    weights = (
        1 / (sizes * (count - sizes))
        if not exact
        else (count - 1) / (np.array([math.comb(count, int(size)) for size in sizes]) * sizes * (count - sizes))
    )
    shares = jnp.asarray(weights / weights.sum(), total.dtype)

    def drawn(i: jax.Array) -> jax.Array:
        own = jax.random.fold_in(key, i // 2)
        size = jax.random.choice(own, count - 1, p=shares) + 1
        return (_ranks(jax.random.fold_in(own, 1), count) < size) ^ (i % 2 == 1)

    def term(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        seen = ((i + 1) >> jnp.arange(count)) & 1 == 1 if exact else drawn(i)
        row = seen.astype(total.dtype)
        weight = shares[seen.sum() - 1] if exact else jnp.ones((), total.dtype)
        return weight * row[:, None] * row[None, :], weight * row * (game.score(seen) - empty)

    number = coalition_count(samples, count)
    gram, moment = (part / number for part in sum_over(term, number, at_once=chunk_size))
    used = game.sizes > 0
    gram = jnp.where(used[:, None] & used[None, :], gram, 0)
    scale = jnp.trace(gram) / count
    gram = gram / scale + jnp.diag(jnp.where(used, 1e-6, 1).astype(gram.dtype))
    ones = used.astype(gram.dtype)
    solved = jnp.linalg.solve(gram, jnp.stack([jnp.where(used, moment / scale, 0), ones], 1))
    # The multiplier of the constraint moves the solution along the inverse's image of the ones.
    values = solved[:, 0] + solved[:, 1] * ((total - ones @ solved[:, 0]) / (ones @ solved[:, 1]))
    return game.result(values, share, rise)


@of_any_input
def lime(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    key: jax.Array,
    samples: int = 1000,
    regions: Regions = None,
    count: int | None = None,
    width: float = 0.25,
    penalty: float = 1.0,
    baseline: Baseline = "zero",
    saliency_of: str = "logit",
    share: bool = False,
    chunk_size: int | None = None,
) -> jax.Array:
    """Return the coefficients of a linear model of the score of random coalitions near the image ("LIME").

    The first coalition is the image itself; in the others each region is visible with probability 1/2. A coalition z of
    R regions has the weight `exp(−d² / (2 width²))` with its cosine distance `d = 1 − √(Σz / R)` from the image. The
    model is a weighted ridge regression with an intercept that is not penalised. See `feature_ablation` for the other
    arguments. Cost: `samples` evaluations.

    Args:
      samples: number of coalitions.
      width: width of the kernel, positive.
      penalty: weight of the squared coefficients, at least 0. It is added to a sum over samples, as in scikit-learn.

    Returns:
      Signed coefficients `[H, W, 1]` in score units, or `[F]`.

    References:
      Ribeiro, Singh, Guestrin, "Why Should I Trust You?", https://arxiv.org/abs/1602.04938, 2016. The published code
      for images takes the square root of `exp(−d² / width²)`, which is this weight.
    """
    check_count("samples", samples, 2)
    check_range("width", width, 0, low_open=True)
    check_range("penalty", penalty, 0)
    game = _game(fn, image, target, regions, count, baseline, saliency_of, key)
    count = game.count

    def term(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        seen = jax.random.bernoulli(jax.random.fold_in(key, i), 0.5, (count,))
        value = game.score(seen)
        row = jnp.concatenate([jnp.ones(1, value.dtype), seen.astype(value.dtype)])
        distance = 1 - jnp.sqrt(seen.mean(dtype=value.dtype))
        weight = jnp.exp(-0.5 * (distance / width) ** 2)
        return weight * row[:, None] * row[None, :], weight * row * (value - game.whole)

    gram, moment = sum_over(term, samples - 1, at_once=chunk_size)
    gram += 1  # the image itself, of weight 1, whose row is all ones and whose value is 0
    ridge = jnp.full(count + 1, penalty, gram.dtype).at[0].set(0)
    return game.result(jnp.linalg.solve(gram + jnp.diag(ridge), moment)[1:], share)


def coalition_count(samples: int, regions: int) -> int:
    """Return the number of coalitions that `kernel_shap` evaluates: at most all but the empty and the full one."""
    return min(samples, 2**regions - 2)


def fewest_coalitions(regions: int) -> int:
    """Return the smallest number of coalitions that `kernel_shap` takes."""
    return max(1, min(regions, 2**regions - 2))


def _game(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    regions: Regions,
    count: int | None,
    baseline: Baseline,
    saliency_of: str,
    key: jax.Array | None,
) -> Game:
    own = None if key is None else jax.random.fold_in(key, 2**31 - 1)
    hidden = baseline_image(baseline, image, key=own)
    labels, count = labels_of(regions, count, image)

    def score_of(x: jax.Array) -> jax.Array:
        return widened(target_score(fn(x), target, saliency_of=saliency_of))

    def score(seen: jax.Array) -> jax.Array:
        visible = seen[labels]
        return score_of(jnp.where(visible[..., None] if image.ndim > 1 else visible, image, hidden))

    sizes = jnp.zeros(count, widened(image).dtype).at[labels.ravel()].add(1)
    shape = (*labels.shape, 1) if image.ndim > 1 else labels.shape
    return Game(score, labels, sizes, shape, score_of(image), partial(score_of, hidden))


def _ranks(key: jax.Array, count: int) -> jax.Array:
    """Return a random permutation of 0 … count − 1."""
    return jnp.argsort(jax.random.bits(key, (count,)))
