"""Path methods: gradients integrated along a path from a baseline to the image."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.attribution.baselines import BASELINES, Baseline, baseline_image, widest_sigma
from sdecor.attribution.inputs import of_any_input, positions_of, with_noise
from sdecor.attribution.targets import Target, score_of
from sdecor.core.arrays import at_least_float32, blur, widened
from sdecor.core.checks import check_choice, check_count, check_range
from sdecor.core.chunks import sum_over
from sdecor.core.rng import uniform

RULES = ("gauss_legendre", "riemann_middle", "riemann_left", "riemann_right", "trapezoid")


@of_any_input
def integrated_gradients(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    baseline: Baseline = "zero",
    steps: int = 50,
    rule: str = "gauss_legendre",
    saliency_of: str = "logit",
    key: jax.Array | None = None,
    chunk_size: int | None = None,
    with_error: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Return each feature's contribution to the rise of the score along the straight path from the baseline.

    Cost: `steps` gradients; two more evaluations with the error.

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, `[H, W, C]`.
      target: the class to explain, a `Contrast` of two classes, or a function of the logits.
      baseline: start of the path: see `baseline_image`.
      steps: number of points on the path.
      rule: approximation of the integral: see `quadrature`.
      saliency_of: score of the target: "logit", "log_probability" or "probability".
      key: random key, for a baseline that draws, such as "uniform".
      chunk_size: points evaluated at once.
      with_error: also return the completeness error.

    Returns:
      Signed contributions `[H, W, C]` in score units. With `with_error` a pair of these and the scalar
      `Σ attribution − (score(image) − score(baseline))`, which tends to 0 as the rule gets finer.

    References:
      Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", https://arxiv.org/abs/1703.01365, 2017.
    """
    score = score_of(fn, target, saliency_of=saliency_of)
    start = baseline_image(baseline, image, key=key)
    way = widened(image) - widened(start)
    places, weights = (jnp.asarray(values, way.dtype) for values in quadrature(rule, steps))

    def term(i: jax.Array) -> jax.Array:
        return weights[i] * widened(jax.grad(score)((widened(start) + places[i] * way).astype(image.dtype)))

    attribution = way * sum_over(term, steps, at_once=chunk_size)
    return (attribution, completeness_error(attribution, score, image, start)) if with_error else attribution


def expected_gradients(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    key: jax.Array,
    baselines: Baseline = "uniform",
    samples: int = 50,
    scale: float = 0.0,
    relative: bool = True,
    saliency_of: str = "logit",
    chunk_size: int | None = None,
    with_error: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Return integrated gradients averaged over baselines: each sample is one random point of one random path.

    With noise (`scale`) the method is known as GradientSHAP. Cost: `samples` gradients; `samples + 1` more evaluations
    with the error.

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, `[H, W, C]`.
      target: the class to explain, a `Contrast` of two classes, or a function of the logits.
      key: random key for baselines, points and noise.
      baselines: images `[B, H, W, C]`, such as examples of the training set, of which each sample draws one. Or a name
        or a function as in `baseline_image`; "uniform" draws a new noise image for each sample.
      samples: number of samples.
      scale: standard deviation of Gaussian noise on the image, drawn for each sample: see `Noise`.
      relative: whether `scale` is a share of the image's range.
      saliency_of: score of the target: "logit", "log_probability" or "probability".
      chunk_size: samples evaluated at once.
      with_error: also return the completeness error.

    Returns:
      Signed contributions `[H, W, C]` in score units. With `with_error` a pair of these and the scalar
      `Σ attribution − (score(image) − mean score of the drawn baselines)`, a sampling error of order `1 / √samples`.

    References:
      Erion et al., "Improving Performance of Deep Learning Models with Axiomatic Attribution Priors and Expected
      Gradients", https://arxiv.org/abs/1906.10670, 2021.
      Lundberg, Lee, "A Unified Approach to Interpreting Model Predictions", https://arxiv.org/abs/1705.07874, 2017.
    """
    check_count("samples", samples)
    check_range("scale", scale, 0)
    score = score_of(fn, target, saliency_of=saliency_of)
    draw_baseline = _source_of(baselines, image)
    wide = jax.tree.map(widened, image)

    def sample(i: jax.Array) -> tuple[Any, ...]:
        of_start, of_place, of_noise = jax.random.split(jax.random.fold_in(key, i), 3)
        start = draw_baseline(of_start)
        end = with_noise(of_noise, wide, scale, relative) if scale else wide
        way = jax.tree.map(lambda stop, first: stop - widened(first), end, start)

        def between(first: jax.Array, step: jax.Array) -> jax.Array:
            return (widened(first) + uniform(of_place, (), step.dtype) * step).astype(first.dtype)

        slopes = jax.grad(score)(jax.tree.map(between, start, way))
        contribution = jax.tree.map(lambda step, slope: step * widened(slope), way, slopes)
        return (contribution, score(start)) if with_error else (contribution,)

    total = sum_over(sample, samples, at_once=chunk_size)
    attribution, *scores_of_baselines = jax.tree.map(lambda part: part / samples, total)
    if not with_error:
        return attribution
    found = sum(part.sum() for part in jax.tree.leaves(attribution))
    return attribution, found - (score(image).astype(found.dtype) - scores_of_baselines[0])


def quadrature(rule: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points in [0, 1] and weights, which sum to 1, that approximate `∫₀¹`; float64 `[steps]` each.

    Args:
      rule: "gauss_legendre", exact for polynomials up to degree `2 steps − 1`; "riemann_left", "riemann_middle" or
        "riemann_right", one point at that place of each of `steps` equal intervals; or "trapezoid", with both ends.
      steps: number of points, at least 1 (2 for "trapezoid").
    """
    check_choice("rule", rule, RULES)
    check_count("steps", steps, 2 if rule == "trapezoid" else 1)
    if rule == "gauss_legendre":
        places, weights = np.polynomial.legendre.leggauss(steps)
        return (places + 1) / 2, weights / 2
    if rule == "trapezoid":
        weights = np.full(steps, 1 / (steps - 1))
        weights[[0, -1]] /= 2
        return np.linspace(0, 1, steps), weights
    offset = {"riemann_left": 0.0, "riemann_middle": 0.5, "riemann_right": 1.0}[rule]
    return (np.arange(steps) + offset) / steps, np.full(steps, 1 / steps)


def completeness_error(
    attribution: jax.Array, score: Callable[[jax.Array], jax.Array], image: jax.Array, start: jax.Array
) -> jax.Array:
    """Return `Σ attribution − (score(image) − score(start))`, a scalar."""
    return attribution.sum() - (score(image) - score(start)).astype(attribution.dtype)


def _source_of(baselines: Any, image: Any) -> Callable[[jax.Array], Any]:
    """Return a function `key -> baseline image`."""
    if isinstance(baselines, str):
        check_choice("baselines", baselines, BASELINES)
    if isinstance(baselines, str) or callable(baselines):
        return lambda key: baseline_image(baselines, image, key=key)
    if jax.tree.structure(baselines) != jax.tree.structure(image):
        raise ValueError(f"baselines is {type(baselines).__name__!r}: pass arrays [B, …] with the inputs' structure")
    pool = jax.tree.map(lambda own, leaf: jnp.asarray(own, leaf.dtype), baselines, image)
    counts = {own.shape[:1] for own in jax.tree.leaves(pool)}
    for own, leaf in zip(jax.tree.leaves(pool), jax.tree.leaves(image), strict=True):
        if own.ndim != leaf.ndim + 1 or own.shape[1:] != leaf.shape or len(own) == 0 or len(counts) > 1:
            raise ValueError(f"baselines has shape {own.shape}: pass images [B, {', '.join(map(str, leaf.shape))}]")
    (count,) = counts.pop()

    def draw(key: jax.Array) -> Any:
        place = jax.random.randint(key, (), 0, count)
        return jax.tree.map(lambda own: own[place], pool)

    return draw


# Smallest blur in pixels, in effect none: the nearest neighbour's weight exp(−5000) and its derivative underflow to 0.
_SHARP = 0.01


def blur_integrated_gradients(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    max_sigma: float | None = None,
    steps: int = 50,
    rule: str = "gauss_legendre",
    saliency_of: str = "logit",
    chunk_size: int | None = None,
    with_error: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Return each pixel's contribution to the rise of the score while a Gaussian blur of the image narrows to none.

    The path needs no baseline color. Two things differ from the published code. The path's derivative is exact, not the
    difference of two blurs. The blur uses only pixels of the image, not a black border. Cost: `steps` gradients, each
    with a blur and its derivative; two more evaluations with the error.

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, `[H, W, C]`.
      target: the class to explain, a `Contrast` of two classes, or a function of the logits.
      max_sigma: standard deviation of the Gaussian at the start of the path, in pixels. Default: a quarter of the
        shorter side (the published value is 50 pixels at 224).
      steps: number of points on the path.
      rule: approximation of the integral over sigma: see `quadrature`.
      saliency_of: score of the target: "logit", "log_probability" or "probability".
      chunk_size: points evaluated at once.
      with_error: also return the completeness error.

    Returns:
      Signed contributions `[H, W, C]` in score units. With `with_error` a pair of these and the scalar
      `Σ attribution − (score(image) − score(most blurred image))`.

    References:
      Xu, Venugopalan, Sundararajan, "Attribution in Scale and Space", https://arxiv.org/abs/2004.03383, 2020.
    """
    sides = positions_of(image, "blur_integrated_gradients")
    max_sigma = widest_sigma(sides) if max_sigma is None else max_sigma
    check_range("max_sigma", max_sigma, _SHARP)
    score = score_of(fn, target, saliency_of=saliency_of)
    places, weights = quadrature(rule, steps)
    sigmas, weights = (jnp.asarray(max_sigma * values, at_least_float32(image.dtype)) for values in (places, weights))

    def blurred(sigma: jax.Array) -> jax.Array:
        return blur(image[None], jnp.maximum(sigma, _SHARP))[0]

    def term(i: jax.Array) -> jax.Array:
        point, change = jax.jvp(blurred, (sigmas[i],), (jnp.ones_like(sigmas[i]),))
        return -weights[i] * widened(change) * widened(jax.grad(score)(point))

    attribution = sum_over(term, steps, at_once=chunk_size)
    if not with_error:
        return attribution
    return attribution, completeness_error(attribution, score, image, blurred(jnp.asarray(max_sigma, sigmas.dtype)))
