"""How much does an explanation change when its image hardly does? Lower is better; 0 is an explanation that stays.

Every function takes an explanation of one image, `explain_one(image [H, W, C], target, key) -> attribution` of any
shape, in evaluation mode. An example's image and its neighbours are explained with the same key, so that a method which
draws (SmoothGrad, say) is compared under equal draws and only the image differs.

Values are NaN for an attribution of zeros and for one that is not finite.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdecor.core.checks import check_count
from sdecor.core.chunks import map_examples
from sdecor.core.parallel import automatic
from sdecor.metrics.neighbours import ExplainOne, defined_for, norm, over_examples, over_neighbours
from sdecor.metrics.replacement import baseline_images, map_samples


class Sensitivities(NamedTuple):
    """What one pass over the neighbours tells, each `[N]`."""

    maximum: jax.Array
    average: jax.Array
    lipschitz: jax.Array


@automatic
def sensitivities(
    explain_one: ExplainOne,
    images: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    samples: int = 10,
    radius: float = 0.02,
    relative: bool = True,
    chunk_size: int | None = None,
    attributions: jax.Array | None = None,
) -> Sensitivities:
    """Return max-sensitivity, average sensitivity and the local Lipschitz estimate over the same neighbours.

    Args:
      explain_one: explains one image; see the module's first lines.
      images: floating point, `[N, H, W, C]`.
      targets: classes explained, integers `[N]`; they stay, whatever is predicted for a neighbour.
      key: one key or `[N]` keys. With keys that belong to the examples the result does not depend on batching.
      samples: neighbours of each image.
      radius: the largest change of a pixel's channel, in input units.
      relative: whether `lipschitz` is divided by the norm of the image's explanation, as the sensitivities always are.
        It makes networks comparable whose scores have different scales; the paper's estimate is not divided.
      chunk_size: explanations in flight; it bounds memory. Default: what the device's memory holds.
      attributions: `[N, ...]`, the explanations of `images` if they are known already, made with the same keys.

    Returns:
      `maximum` and `average` of `‖φ(x + u) − φ(x)‖ / ‖φ(x)‖`, and `lipschitz`, the maximum of
      `‖φ(x + u) − φ(x)‖ / ‖u‖`, over `u` (Euclidean norms of all entries).

    References:
      Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", https://arxiv.org/abs/1901.09392, 2019.
      Alvarez-Melis, Jaakkola, "On the Robustness of Interpretability Methods", https://arxiv.org/abs/1806.08049, 2018.
    """

    def one(image: jax.Array, target: jax.Array, key: jax.Array, own: jax.Array, at_once: int) -> Sensitivities:
        # In units of the largest value, so that no square leaves float32's range.
        peak = jnp.abs(own).max()
        unit = jnp.where(peak > 0, peak, 1)
        size = norm(own) / unit

        def neighbour(near: jax.Array) -> tuple[jax.Array, jax.Array]:
            change = (explain_one(near, target, key).astype(jnp.float32) - own) / unit
            step = (near - image).astype(jnp.float32)
            return jnp.sqrt((change**2).sum()), jnp.sqrt((step**2).sum())

        changes, steps = over_neighbours(neighbour, image, key, samples=samples, radius=radius, at_once=at_once)
        changes = defined_for(own, changes)
        slopes = changes / steps * (1 / size if relative else unit)
        return Sensitivities((changes / size).max(), (changes / size).mean(), slopes.max())

    return over_examples(one, explain_one, images, targets, key, attributions, chunk_size)


def max_sensitivity(explain_one: ExplainOne, images: jax.Array, targets: jax.Array, **options: Any) -> jax.Array:
    """Return the largest relative change of the explanation near the image, `[N]` ≥ 0; see `sensitivities`."""
    return sensitivities(explain_one, images, targets, **options).maximum


def avg_sensitivity(explain_one: ExplainOne, images: jax.Array, targets: jax.Array, **options: Any) -> jax.Array:
    """Return the mean relative change of the explanation near the image, `[N]` ≥ 0; see `sensitivities`."""
    return sensitivities(explain_one, images, targets, **options).average


def local_lipschitz(explain_one: ExplainOne, images: jax.Array, targets: jax.Array, **options: Any) -> jax.Array:
    """Return the steepest change of the explanation near the image, `[N]` ≥ 0; see `sensitivities`.

    In 1 / input units, or with `relative=False` in units of the attribution / input units.
    """
    return sensitivities(explain_one, images, targets, **options).lipschitz


@automatic
def continuity(
    explain_one: ExplainOne,
    images: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    shifts: Sequence[int] = (-4, -3, -2, -1, 1, 2, 3, 4),
    baseline: str | jax.Array = "zero",
    relative: bool = True,
    chunk_size: int | None = None,
    attributions: jax.Array | None = None,
) -> jax.Array:
    """Return the steepest change of the explanation as the image moves sideways.

    Args:
      shifts: distances in pixels, to the right if positive; none is 0.
      baseline: what enters at the other side, see `baseline_images`.
      relative: whether the change is divided by the explanation's own sum of absolute values; the paper's is not.

    The other arguments are those of `sensitivities`.

    Returns:
      The maximum of `‖φ(x') − φ(x)‖₁ / ‖x' − x‖₂` over the moved images x', `[N]` ≥ 0; NaN where one of them is x.

    References:
      Montavon, Samek, Müller, "Methods for Interpreting and Understanding Deep Neural Networks",
      https://arxiv.org/abs/1706.07979, 2018.
    """
    if not len(shifts) or 0 in shifts:
        raise ValueError(f"shifts = {shifts!r}: pass distances in pixels other than 0, at least one")
    fills = baseline_images(images, baseline, key=key)

    def one(image, target, key, own, at_once, fill):
        columns = jnp.arange(image.shape[1])

        def moved(shift: jax.Array) -> jax.Array:
            source = columns - shift
            inside = ((source >= 0) & (source < columns.size))[None, :, None]
            near = jnp.where(inside, image[:, jnp.clip(source, 0, columns.size - 1)], fill)
            change = jnp.abs(explain_one(near, target, key).astype(jnp.float32) - own).sum()
            return change / norm((near - image).astype(jnp.float32))

        slopes = map_samples(moved, jnp.asarray(shifts, jnp.int32), at_once)
        return defined_for(own, slopes / (jnp.abs(own).sum() if relative else 1)).max()

    return over_examples(one, explain_one, images, targets, key, attributions, chunk_size, (fills,))


@automatic
def consistency(codes: jax.Array, predictions: jax.Array, *, chunk_size: int = 64) -> jax.Array:
    """Return for each example the share of others with its prediction among those with its explanation.

    A measure of the whole data set: pass all examples at once.

    Args:
      codes: discrete explanations, `[N]` or `[N, D]`, equal where the explanations count as the same: what that is,
        is the user's choice (the most salient pixel, a class of segments, …).
      predictions: predicted classes, integers `[N]`.
      chunk_size: examples compared with all at a time.

    Returns:
      `[N]` in [0, 1], higher is better; NaN where no other example has the same explanation.

    References:
      Dasgupta, Frost, Moshkovitz, "Framework for Evaluating Faithfulness of Local Explanations",
      https://arxiv.org/abs/2202.00734, 2022.
    """
    check_count("chunk_size", chunk_size)
    n = codes.shape[0]
    if jnp.shape(predictions) != (n,):
        raise ValueError(f"predictions has shape {jnp.shape(predictions)}: pass ({n},), one for each explanation")
    codes = codes.reshape(n, -1)

    def one(place: jax.Array) -> jax.Array:
        same = (codes == codes[place][None]).all(1) & (jnp.arange(n) != place)
        agreeing = same & (predictions == predictions[place])
        return jnp.where(same.any(), agreeing.sum() / jnp.maximum(same.sum(), 1), jnp.nan)

    return map_examples(one, (jnp.arange(n),), chunk_size).astype(jnp.float32)
