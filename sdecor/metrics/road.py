"""ROAD (remove and debias): predictions while the most relevant pixels are replaced by imputation.

A removed pixel is imputed by the weighted mean of its eight neighbours, so that a hole's shape is not visible.
Neighbours that share a side have weight 1/6, those that share a corner 1/12; the mean is divided by the weight of those
inside the image. Where neighbours are removed too, this is a linear system, the discrete Laplace equation on the holes.
It is solved for all images, channels and pixels together by conjugate gradients with corrections from coarser grids.
About eight iterations are enough for holes of any shape and size. A curve starts each percentage from the imputed image
of the one before, which saves up to two fifths of them: the pixels removed before are nearly right.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.core.checks import check_range
from sdecor.core.chunks import map_examples
from sdecor.core.classes import correct
from sdecor.core.parallel import automatic
from sdecor.core.rng import normal, per_example
from sdecor.metrics.inputs import Fn, check_batch, check_images, class_count, in_flight
from sdecor.metrics.replacement import defined, finite, percentage_counts, ranks, score_of

_MOST_ITERATIONS = 200


@automatic
def impute(
    images: jax.Array, mask: jax.Array, *, key: jax.Array, noise: float = 0.01, tolerance: float = 2e-3
) -> jax.Array:
    """Return images whose masked pixels are replaced by noisy linear imputation, `[N, H, W, C]`.

    Args:
      images: `[N, H, W, C]`.
      mask: bool `[N, H, W]`, True = removed.
      key: one key or `[N]` keys, for the noise.
      noise: standard deviation of the Gaussian noise that is added to imputed pixels, in input units.
      tolerance: largest estimated error of an image at which the solver stops: the root mean square over its removed
        pixels, as a share of the standard deviation of its other pixels.

    Returns:
      Images in the dtype of `images`; NaN if all pixels of an image are removed. An image's result does not depend on
      the others.

    References:
      Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods",
      https://arxiv.org/abs/2202.00449, 2022.
    """
    check_range("noise", noise, 0)
    filled = linear_imputation(images, mask, tolerance=tolerance)
    return jnp.where(mask[..., None], filled + noise * gaussian_noise(images, key), filled)


def linear_imputation(
    images: jax.Array, mask: jax.Array, *, tolerance: float = 2e-3, start: jax.Array | None = None
) -> jax.Array:
    """Return `impute` (same arguments) without noise.

    `start`, images `[N, H, W, C]` that are near the result, changes it only within the tolerance. The mean of the other
    pixels takes the place of values that are not finite.
    """
    check_range("tolerance", tolerance, 0, low_open=True)
    check_images(images)
    if mask.shape != images.shape[:3] or mask.dtype != bool:
        raise ValueError(
            f"images {images.shape} and mask {mask.dtype} {mask.shape} do not belong together: "
            "pass [N, H, W, C] and bool [N, H, W]"
        )
    # With rows as first axis and columns as last, weights along either are matrix products without a transposition.
    turned = images.astype(jnp.float32).transpose(1, 0, 3, 2)
    near = None if start is None else start.astype(jnp.float32).transpose(1, 0, 3, 2)
    filled = _solve(turned, mask.transpose(1, 0, 2)[:, :, None], tolerance, near).transpose(1, 0, 3, 2)
    return jnp.where(mask[..., None], filled.astype(images.dtype), images)


def gaussian_noise(images: jax.Array, key: jax.Array) -> jax.Array:
    """Return standard normal noise in the shape and dtype of `images` `[N, ...]`, by one key or `[N]` keys."""
    return jax.vmap(lambda k: normal(k, images.shape[1:], images.dtype))(per_example(key, images.shape[0]))


def _solve(images: jax.Array, removed: jax.Array, tolerance: float, start: jax.Array | None) -> jax.Array:
    """Return images `[H, N, C, W]` that solve the linear system of the pixels `removed`, `[H, N, 1, W]`."""
    left = (~removed).sum((0, 3), keepdims=True, dtype=images.dtype)
    mean = jnp.where(removed, 0, images).sum((0, 3), keepdims=True) / left
    known = jnp.where(removed, 0, images - mean)
    enough = tolerance**2 * _dot(known, known) * removed.sum((0, 3), keepdims=True, dtype=images.dtype) / left
    levels = _levels(removed)
    weights = _neighbor_weights(removed)

    def apply(x: jax.Array) -> jax.Array:
        return jnp.where(removed, weights * x - _neighbors(x), 0)

    def unfinished(z: jax.Array) -> jax.Array:
        # The preconditioned residual is an estimate of the error itself.
        return _dot(z, z) > enough

    def proceed(state: tuple) -> tuple:
        i, x, residual, direction, z, product = state
        image = apply(direction)
        # A finished image no longer changes, so that its result does not depend on the other images.
        length = jnp.where(unfinished(z), product / _or_one(_dot(direction, image)), 0)
        x, residual = x + length * direction, residual - length * image
        z = _precondition(levels, residual)
        last, product = product, _dot(residual, z)
        return i + 1, x, residual, z + product / _or_one(last) * direction, z, product

    x, residual = jnp.zeros_like(known), jnp.where(removed, _neighbors(known), 0)
    if start is not None:
        # The mean of a pixel's neighbours is nearer than its own value where it is removed for the first time, and the
        # same where the system was solved before.
        near = jnp.where(removed, jnp.where(jnp.isfinite(start), start - mean, 0), known)
        x = jnp.where(removed, _neighbors(near) / weights, 0)
        residual = residual - apply(x)
    z = _precondition(levels, residual)
    state = (0, x, residual, z, z, _dot(residual, z))
    state = jax.lax.while_loop(lambda s: (s[0] < _MOST_ITERATIONS) & unfinished(s[4]).any(), proceed, state)
    return jnp.where(removed, mean + state[1], images)


def _precondition(levels: list[jax.Array], residual: jax.Array) -> jax.Array:
    """Return an estimate of the error from the residual: on this grid, and smoothly interpolated from coarser ones.

    References:
      Bramble, Pasciak, Xu, "Parallel Multilevel Preconditioners",
      https://doi.org/10.1090/S0025-5718-1990-1023042-6, 1990.
    """
    removed, *coarser = levels
    estimate = residual / _neighbor_weights(removed)
    if not coarser:
        return estimate
    rows, columns = _interpolation(removed.shape[0]), _interpolation(removed.shape[3])
    coarse = jnp.einsum("hncw,wq->hncq", residual, columns, precision="highest")
    coarse = jnp.einsum("hp,hncq->pncq", rows, coarse, precision="highest")
    coarse = _precondition(coarser, jnp.where(coarser[0], coarse, 0))
    fine = jnp.einsum("pncq,wq->pncw", coarse, columns, precision="highest")
    fine = jnp.einsum("hp,pncw->hncw", rows, fine, precision="highest")
    return estimate + jnp.where(removed, fine, 0)


def _levels(removed: jax.Array) -> list[jax.Array]:
    """Return the mask on coarser and coarser grids, each of half the side; a cell is removed if all its pixels are."""
    levels = [removed]
    while min(levels[-1].shape[0], levels[-1].shape[3]) > 2:
        fine = levels[-1]
        height, n, _, width = fine.shape
        fine = jnp.pad(fine, ((0, height % 2), (0, 0), (0, 0), (0, width % 2)), mode="edge")
        levels.append(fine.reshape((height + 1) // 2, 2, n, 1, (width + 1) // 2, 2).all((1, 5)))
    return levels


def _interpolation(side: int) -> np.ndarray:
    """Return the weights of linear interpolation from cells of two pixels, `[side, ceil(side / 2)]`."""
    smooth = (2 * np.eye(side) + np.eye(side, k=1) + np.eye(side, k=-1)) / 4
    smooth[0, 0] += 0.25
    smooth[-1, -1] += 0.25
    return (smooth @ np.eye((side + 1) // 2).repeat(2, 0)[:side]).astype(np.float32)


def _neighbors(x: jax.Array) -> jax.Array:
    """Return the weighted sum of the eight neighbours of each pixel of `[H, N, C, W]`; pixels outside count as 0."""
    # (1, 2, 1) along rows and columns weighs sides by 2, corners by 1 and the pixel itself by 4.
    return _sum_of_three(_sum_of_three(x, 0), 3) / 12 - x / 3


def _sum_of_three(x: jax.Array, axis: int) -> jax.Array:
    side = x.shape[axis]
    padded = jnp.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(x.ndim)])
    before, after = (jax.lax.slice_in_dim(padded, i, i + side, axis=axis) for i in (0, 2))
    return before + 2 * x + after


def _neighbor_weights(removed: jax.Array) -> jax.Array:
    """Return the sum of the weights of the neighbours inside the image, `[H, 1, 1, W]`."""
    height, _, _, width = removed.shape
    return _neighbors(jnp.ones((height, 1, 1, width)))


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return (a * b).sum((0, 2, 3), keepdims=True)


def _or_one(x: jax.Array) -> jax.Array:
    return jnp.where(x != 0, x, 1)


PERCENTAGES = (10, 20, 30, 40, 50, 60, 70, 80, 90)


class RoadCurves(NamedTuple):
    """Correct predictions and label probabilities at each percentage of removed pixels, `[N, S]` each."""

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
    """Return whether the label is predicted, and its probability, while more and more pixels are imputed with noise.

    Nothing is retrained, because imputed pixels do not show the network which pixels were removed.

    Args:
      fn: the network for one image, `image [H, W, C] -> logits [K]`, in evaluation mode.
      images: `[N, H, W, C]`.
      maps: `[N, H, W]`.
      labels: true classes, integers `[N]`.
      key: one key or `[N]` keys, for the order of equal values and for the noise, which is the same at each percentage.
      percentages: percentages of the pixels to remove, in [0, 100).
      order: "morf" removes the most relevant pixels first, "lerf" the least relevant, "random" any.
      noise: standard deviation of the noise on imputed pixels, in input units.
      tolerance: tolerance of the imputation: see `impute`.
      chunk_size: network evaluations at once; the imputation always uses all N images. Default: as many as the
        device's memory holds.

    Returns:
      `correct` (1 or 0; its mean over examples is the accuracy) and `probability` of the label, `[N, len(percentages)]`
      each. NaN for a map of zeros or one that is not finite.

    References:
      Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods",
      https://arxiv.org/abs/2202.00449, 2022.
    """
    check_images(images, only_for="ROAD")
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

    def at(before: jax.Array, count: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        mask = places < count
        imputed = linear_imputation(images, mask, tolerance=tolerance, start=before)
        noisy = jnp.where(mask[..., None], imputed + disturbance, imputed)
        return imputed, map_examples(one, (noisy, labels), at_once)

    nothing = images * jnp.nan  # varies over the mapped axes of `images`, as the results do
    _, curves = jax.lax.scan(at, nothing, jnp.asarray(percentage_counts(maps[0].size, percentages), jnp.int32))
    known = defined(maps) & finite(images)
    return RoadCurves(*(jnp.where(known[:, None], curve.T, jnp.nan) for curve in curves))


def road(fn: Fn, images: jax.Array, maps: jax.Array, labels: jax.Array, **options) -> jax.Array:
    """Return the share of percentages at which the label is predicted, `[N]` in [0, 1]: the mean of a ROAD curve.

    See `road_curves` for the arguments. Lower is better for "morf", higher for "lerf".
    """
    return road_curves(fn, images, maps, labels, **options).correct.mean(1)
