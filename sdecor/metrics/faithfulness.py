"""Does the prediction follow the pixels that the map calls important? Insertion and deletion curves.

All channels of a pixel are changed together, the curve has `steps + 1` points and begins with no pixel
changed, and its value is the softmax probability of the target: the convention of RISE. The area under a
curve is a trapezoid sum over [0, 1], so it lies in [0, 1] for any number of steps.

A network that was trained on masked images bears them better whatever its maps say. Next to an area, therefore, look at
its difference from a random order of pixels on the same network. Equal values are ordered at random, so a constant map
is that reference: `insertion(fn, images, maps, …) - insertion(fn, images, jnp.ones_like(maps), …)`.

Every function takes the network for one image, `fn: image [H, W, C] -> logits [K]`.

References:
  Petsiuk, Das, Saenko, "RISE", https://arxiv.org/abs/1806.07421, 2018.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sdecor.checks import check_choice, check_range
from sdecor.gaussian import blur
from sdecor.rng import per_example

BASELINES = ("zero", "mean", "blur")
Fn = Callable[[jax.Array], jax.Array]


def insertion_curve(
    fn: Fn,
    images: jax.Array,
    maps: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    steps: int = 16,
    baseline: str | jax.Array = "blur",
    blur_sigma: float = 5.0,
    chunk_size: int | None = None,
) -> jax.Array:
    """Return the target's probability as the most salient pixels enter the baseline, `[N, steps + 1]`.

    See `deletion_curve` for the arguments.
    """
    start = baseline_images(images, baseline, blur_sigma=blur_sigma)
    return replacement_curve(fn, start, images, maps, targets, key=key, steps=steps, chunk_size=chunk_size)


def deletion_curve(
    fn: Fn,
    images: jax.Array,
    maps: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    steps: int = 16,
    baseline: str | jax.Array = "zero",
    blur_sigma: float = 5.0,
    chunk_size: int | None = None,
) -> jax.Array:
    """Return the target's probability as the baseline replaces the most salient pixels, `[N, steps + 1]`.

    Args:
      fn: the network for one image, `image [H, W, C] -> logits [K]`, in evaluation mode.
      images: `[N, H, W, C]`.
      maps: `[N, H, W]`; the highest values are changed first. Equal values are ordered at random.
      targets: classes whose probability is followed, integers `[N]`; RISE follows the predicted class.
      key: one key or `[N]` keys, for the order of equal values. With keys that belong to the examples the
        result does not depend on batching.
      steps: the image changes in this many (nearly) equal steps.
      baseline: "zero" (the data set's mean colour, in normalised space), "mean" (the image's own mean colour), "blur"
        (the image blurred by a Gaussian of `blur_sigma` pixels, renormalised at the borders), or images `[N, H, W, C]`.
      chunk_size: network evaluations in flight; it bounds memory. Default: N.

    Returns:
      Probabilities `[N, steps + 1]`; column j has `round(j·H·W/steps)` pixels changed. NaN for a map of zeros
      or one that is not finite.
    """
    end = baseline_images(images, baseline, blur_sigma=blur_sigma)
    return replacement_curve(fn, images, end, maps, targets, key=key, steps=steps, chunk_size=chunk_size)


def replacement_curve(
    fn: Fn,
    start: jax.Array,
    end: jax.Array,
    maps: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    steps: int = 16,
    chunk_size: int | None = None,
) -> jax.Array:
    """Return the target's probability as `end` replaces the most salient pixels of `start`, `[N, steps + 1]`.

    What insertion and deletion are made of: `start` and `end` are images `[N, H, W, C]`; for the other
    arguments and the result see `deletion_curve`.
    """
    check_range("steps", steps, 1)
    if start.shape != end.shape or maps.shape != start.shape[:3] or targets.shape != start.shape[:1]:
        raise ValueError(
            f"images {start.shape} and {end.shape}, maps {maps.shape} and targets {targets.shape} do not belong "
            "together: pass [N, H, W, C] twice, [N, H, W] and [N]"
        )
    n, height, width, _ = start.shape
    changed = jnp.asarray([round(j * height * width / steps) for j in range(steps + 1)])
    # Under vmap the loop over steps evaluates the whole chunk at each step: the device is full, memory constant.
    return jax.lax.map(
        lambda example: _curve(fn, changed, *example),
        (start, end, maps, targets, per_example(key, n)),
        batch_size=n if chunk_size is None else min(chunk_size, n),
    )


def insertion(fn: Fn, images: jax.Array, maps: jax.Array, targets: jax.Array, **options) -> jax.Array:
    """Return the area under `insertion_curve` (same arguments), `[N]` in [0, 1]; higher is better."""
    return area_under(insertion_curve(fn, images, maps, targets, **options))


def deletion(fn: Fn, images: jax.Array, maps: jax.Array, targets: jax.Array, **options) -> jax.Array:
    """Return the area under `deletion_curve` (same arguments), `[N]` in [0, 1]; lower is better."""
    return area_under(deletion_curve(fn, images, maps, targets, **options))


def area_under(curves: jax.Array) -> jax.Array:
    """Return the trapezoid area under curves `[N, S + 1]` over the unit interval, `[N]`."""
    ends = (curves[:, 0] + curves[:, -1]) / 2
    return (curves[:, 1:-1].sum(-1) + ends) / (curves.shape[-1] - 1)


def baseline_images(images: jax.Array, baseline: str | jax.Array, *, blur_sigma: float = 5.0) -> jax.Array:
    """Return what replaces a removed pixel, `[N, H, W, C]`: see `deletion_curve` for the choices."""
    if not isinstance(baseline, str):
        baseline = jnp.asarray(baseline, images.dtype)
        if baseline.shape != images.shape:
            raise ValueError(f"baseline has shape {baseline.shape}: pass {images.shape} or one of {BASELINES}")
        return baseline
    check_choice("baseline", baseline, BASELINES)
    if baseline == "zero":
        return jnp.zeros_like(images)
    if baseline == "mean":
        return jnp.broadcast_to(images.mean((1, 2), keepdims=True), images.shape)
    return blur(images, blur_sigma)


def _curve(fn, changed, start, end, saliency, target, key):
    """Follow the target's probability from `start` to `end` of one image: `[steps + 1]`."""
    rank = _rank(saliency, key)

    def probability(count: jax.Array) -> jax.Array:
        logits = fn(jnp.where((rank < count)[..., None], end, start))
        return jax.nn.softmax(logits.astype(jnp.float32))[target]

    curve = jax.lax.map(probability, changed)
    defined = jnp.isfinite(saliency).all() & (saliency != 0).any()
    return jnp.where(defined, curve, jnp.nan)


def _rank(saliency: jax.Array, key: jax.Array) -> jax.Array:
    """Return each pixel's place, 0 for the highest value; equal values in random order."""
    flat = saliency.astype(jnp.float32).ravel()
    order = jnp.lexsort((jax.random.bits(key, flat.shape), -flat))
    places = jnp.arange(flat.size, dtype=jnp.int32)
    return jnp.zeros_like(places).at[order].set(places).reshape(saliency.shape)
