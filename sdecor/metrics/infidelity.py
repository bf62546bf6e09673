"""Infidelity: how well an attribution predicts the effect of a perturbation of the image on the score."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sdecor.attribution.regions import grid
from sdecor.core.checks import check_choice, check_count
from sdecor.core.chunks import map_examples
from sdecor.core.parallel import automatic
from sdecor.core.rng import normal, per_example
from sdecor.metrics.inputs import Fn, check_batch, check_images, in_flight, map_shape, over_channels
from sdecor.metrics.replacement import Baseline, baseline_images, defined, finite, map_samples, score_of

PERTURBATIONS = ("squares", "grid", "noise")
SCALINGS = ("none", "optimal")


@automatic
def infidelity(
    fn: Fn,
    images: jax.Array,
    attributions: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    perturbation: str = "squares",
    samples: int = 100,
    patch: int = 4,
    noise: float = 0.2,
    baseline: Baseline = "zero",
    contributions: bool = False,
    scaling: str = "none",
    saliency_of: str = "logit",
    chunk_size: int | None = None,
) -> jax.Array:
    """Return the mean squared error of the attribution as a linear model of the score around the image.

    It is `E_I[(Σ I·φ − (f(x) − f(x − I)))²]` over perturbations I.

    Args:
      fn: the network for one image, `image [H, W, C] -> logits [K]`, in evaluation mode.
      images: `[N, H, W, C]`.
      attributions: φ, signed and in score units per input unit: `[N, H, W, C]`, or maps `[N, H, W]`, which apply
        equally to all channels of a pixel.
      targets: classes whose score is used, integers `[N]`.
      key: one key or `[N]` keys, for the perturbations and the baseline "uniform".
      perturbation: "squares" (squares at random positions become the baseline; of a series, intervals), "grid" (each
        square of a regular grid once; nothing is random, and `samples` is not used) or "noise" (the whole image becomes
        the baseline plus Gaussian noise; `baseline=images` gives noise on the image).
      samples: number of perturbations.
      patch: side of the squares, in pixels.
      noise: standard deviation of "noise", in input units.
      baseline: replacement of the pixels: see `baseline_images`.
      contributions: whether φ is in score units, already multiplied by the distance from the baseline, as in
        input×gradient and integrated gradients. The predicted effect of a square is then the sum of φ over it.
      scaling: "none"; or "optimal", which first multiplies φ by the factor with the smallest error, so that maps in
        arbitrary units can be compared.
      saliency_of: score of the target: "probability", "log_probability" or "logit".
      chunk_size: network evaluations at once. Default: as many as the device's memory holds.

    Returns:
      `[N]` ≥ 0, in squared score units; lower is better. NaN for an attribution of zeros or one that is not finite.

    References:
      Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", https://arxiv.org/abs/1901.09392, 2019.
    """
    check_images(images)
    whole = jnp.shape(attributions) == images.shape
    own = attributions[..., 0] if whole and images.ndim > 2 else attributions
    targets = check_batch(images, own, targets, fn=fn)
    check_choice("perturbation", perturbation, PERTURBATIONS)
    check_choice("scaling", scaling, SCALINGS)
    check_count("samples", samples)
    if perturbation != "noise":
        check_count("patch", patch, 1, min(map_shape(images.shape)[1:]))
    if contributions and perturbation == "noise":
        raise ValueError("contributions = True: noise takes no share of a contribution away; use squares or grid")
    end = baseline_images(images, baseline, key=key)
    phi = attributions.astype(jnp.float32)
    if not whole:
        # A pixel's contribution is the sum over its channels; a slope holds for each channel.
        phi = jnp.broadcast_to((phi / (images.shape[-1] if contributions else 1))[..., None], images.shape)
    perturb, count = _perturbation(perturbation, images.shape[1:], samples, patch, noise)
    score = score_of(saliency_of)
    examples, at_once = in_flight(fn, chunk_size, images)

    def one(image: jax.Array, base: jax.Array, slope: jax.Array, target: jax.Array, own_key: jax.Array) -> jax.Array:
        def sample(i: jax.Array) -> tuple[jax.Array, jax.Array]:
            perturbed, replaced = perturb(i, image, base, own_key)
            weight = replaced.astype(jnp.float32) if contributions else (image - perturbed).astype(jnp.float32)
            return (weight * slope).sum(), score(fn(perturbed), target)

        # Sample 0 is the image itself.
        predicted, scores = map_samples(sample, jnp.arange(count + 1), at_once)
        return _error(predicted[1:], scores[0] - scores[1:], scaling)

    keys = per_example(key, images.shape[0])
    errors = map_examples(one, (images, end, phi, targets, keys), examples)
    return jnp.where(defined(attributions) & finite(images), errors, jnp.nan)


def _error(predicted: jax.Array, effect: jax.Array, scaling: str) -> jax.Array:
    """Return the mean squared difference of two arrays `[S]`; "optimal" scales the first one to fit."""
    if scaling == "optimal":
        square = (predicted**2).sum()
        predicted = predicted * jnp.where(square > 0, (predicted * effect).sum() / jnp.where(square > 0, square, 1), 0)
    return ((predicted - effect) ** 2).mean()


def _perturbation(
    kind: str, shape: tuple[int, ...], samples: int, patch: int, noise: float
) -> tuple[Callable[..., tuple[jax.Array, jax.Array]], int]:
    """Return `perturb(i, image, base, key) -> (perturbed image, mask of changes)` and the number of perturbations."""
    sides = map_shape((1, *shape))[1:]
    if kind == "noise":
        return lambda *sample: _noisy(*sample, noise), samples
    if kind == "grid":
        segments = grid(sides, patch)
        samples = int(segments.max()) + 1
        mask_of = lambda i, key: segments == i - 1  # noqa: E731
    else:
        mask_of = lambda i, key: _square(i, key, sides, patch)  # noqa: E731

    def replace(i: jax.Array, image: jax.Array, base: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        mask = over_channels(mask_of(i, key), image)
        return jnp.where(mask, base, image), jnp.broadcast_to(mask, shape)

    return replace, samples


def _square(i: jax.Array, key: jax.Array, sides: tuple[int, ...], patch: int) -> jax.Array:
    """Return the mask of a square at a random position inside the image, bool `[H, W]`; empty for i = 0."""
    places = jnp.array([side - patch + 1 for side in sides])
    starts = jax.random.randint(jax.random.fold_in(key, i + 1), (len(sides),), 0, places)
    inside = jnp.asarray(i > 0)
    for axis, side in enumerate(sides):
        place = jnp.arange(side).reshape(*[1] * axis, side) - starts[axis]
        inside = inside[..., None] & (place >= 0) & (place < patch)
    return inside


def _noisy(
    i: jax.Array, image: jax.Array, base: jax.Array, key: jax.Array, noise: float
) -> tuple[jax.Array, jax.Array]:
    """Return the baseline with noise and a full mask of changes; for i = 0 the image itself and an empty mask."""
    drawn = normal(jax.random.fold_in(key, i + 1), image.shape, image.dtype)
    return jnp.where(i > 0, base + noise * drawn, image), jnp.broadcast_to(i > 0, image.shape)
