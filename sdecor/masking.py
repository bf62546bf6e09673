"""Saliency-guided masking: the choice of positions to hide, and the values that replace them.

Conventions: images are NHWC, float, in the model's normalised space; saliency maps are `[N, H, W]`; masks are bool
`[N, H, W]`, True = masked, and a masked position is masked in all channels. Other inputs are taken likewise: series
`[N, T, C]` with masks `[N, T]`, volumes, and features `[N, F]` with masks `[N, F]`.

Functions that draw random numbers take one typed key or `[N]` keys; an example's draws depend on its own key alone, not
on the rest of its batch. No gradient flows through masks and filled images.
"""

import math

import chex
import jax
import jax.numpy as jnp

from sdecor.core import rng
from sdecor.core.arrays import LAST, blur, kth_smallest, order_keys, signed, split_axis
from sdecor.core.checks import check_choice, check_count, check_range

FILLS = ("uniform", "mean", "zero", "blur")
ORDERS = ("lowest", "highest", "alternate")
RANKINGS = ("abs", "signed")
SALIENCY_OF = ("logit", "log_probability")  # the score whose gradient ranks positions


def rank_saliency(gradient: jax.Array, *, rank_by: str = "abs") -> jax.Array:
    """Reduce an input gradient to one saliency value per position.

    Args:
      gradient: `[N, H, W, C]`, or `[N, *positions, C]`; features `[N, F]` are positions without channels.
      rank_by: "abs" for the mean magnitude over channels; "signed" for the mean of the signed gradient, which ranks
        the most negative evidence lowest (as in Saliency-Guided Training's published code).

    Returns:
      Saliency `[N, H, W]`, float32.
    """
    check_choice("rank_by", rank_by, RANKINGS)
    _check_rank("gradient", gradient)
    gradient = gradient.astype(jnp.float32)
    values = jnp.abs(gradient) if rank_by == "abs" else gradient
    return values if values.ndim == 2 else jnp.mean(values, axis=-1)


def masks_highest(order: str, step: jax.Array | int) -> jax.Array | bool:
    """Return whether `step` masks the most salient positions; "alternate" does so on odd steps."""
    check_choice("order", order, ORDERS)
    return step % 2 == 1 if order == "alternate" else order == "highest"


def least_salient(
    key: jax.Array,
    saliency: jax.Array,
    *,
    fraction: jax.Array | float,
    highest: jax.Array | bool = False,
    block: int = 1,
) -> jax.Array:
    """Mask the positions of lowest saliency: exactly `floor(fraction · H · W + 1e-3)` in every image.

    With a `block` above 1 these are square blocks of pixels, ranked by their mean saliency and masked whole:
    `floor(fraction · blocks + 1e-3)` of them. A network that reads its image by a convolution with a stride can learn
    to read some of the pixels of each stride only. Masking single pixels is then no task for it; masking blocks as
    large as the stride is.

    Ties are broken uniformly at random, so that masks do not start at one corner of a flat background (gradient exactly
    0). 0.0 and -0.0 are equal; NaN ranks above every number.

    Args:
      key: one typed key, or `[N]` keys; used for ties only.
      saliency: `[N, H, W]`, or `[N, *positions]`; compared in float32.
      fraction: share of the positions in [0, 1), a number or a traced scalar. A traced scalar is rounded to a
        millionth, which float32 resolves.
      highest: mask the positions of *highest* saliency instead, a bool or a traced scalar bool.
      block: side of the blocks in pixels, a divisor of H and W.

    Returns:
      Mask, bool in the shape of `saliency`.

    Raises:
      ValueError: when `fraction` is a Python number outside [0, 1), or `block` does not divide H and W.

    References:
      Ismail et al., Improving Deep Learning Interpretability by Saliency Guided Training, 2021,
      https://arxiv.org/abs/2111.14338 (there by sorting, with no rule for ties).
    """
    _check_rank("saliency", saliency)
    check_count("block", block)
    if block > 1:
        means = _block_means(jax.lax.stop_gradient(saliency).astype(jnp.float32), block)
        return _repeat_blocks(least_salient(key, means, fraction=fraction, highest=highest), block)
    n, positions = saliency.shape[0], math.prod(saliency.shape[1:])
    keys = rng.per_example(key, n)
    values = jax.lax.stop_gradient(saliency).astype(jnp.float32).reshape(n, positions)
    order = order_keys(jnp.where(jnp.isnan(values), jnp.nan, values))  # NaN last, of either sign
    order = jnp.where(highest, ~order, order)
    k = _number_masked(fraction, positions)

    threshold = kth_smallest(order, k)[:, None]
    below, tied = order < threshold, order == threshold
    missing = k - jnp.sum(below, axis=1, dtype=jnp.int32)
    return (below | _choose_where_tied(keys, tied, missing)).reshape(saliency.shape)


def fill(
    key: jax.Array,
    images: jax.Array,
    mask: jax.Array,
    *,
    how: str = "uniform",
    blur_sigma: jax.Array | float = 2.0,
) -> jax.Array:
    """Replace the masked positions of images.

    Args:
      key: one typed key, or `[N]` keys; used by "uniform" only.
      images: `[N, H, W, C]`, or `[N, *positions, C]`, or features `[N, F]`, whose only fill is "zero".
      mask: bool `[N, H, W]`, or `[N, *positions]`, or `[N, F]`; True = replace.
      how: "uniform" draws each position and channel uniformly within the image's range of that channel; "mean" uses the
        image's mean of that channel; "zero" is the data set's mean color in normalised space; "blur" uses the image
        smoothed by a Gaussian, which is renormalised at the borders (nothing outside the image counts).
      blur_sigma: the Gaussian's standard deviation in pixels.

    Returns:
      Images in the shape and dtype of `images`, through which no gradient flows.

    Raises:
      ValueError: when `how` is not one of `FILLS`, or needs positions that features `[N, F]` do not have, or
        `blur_sigma` is a Python number that is not positive.
    """
    check_choice("how", how, FILLS)
    _check_rank("images", images)
    axes = tuple(range(1, images.ndim - 1))
    chex.assert_shape(mask, images.shape[:-1] if axes else images.shape)
    if not axes and how != "zero":
        raise ValueError(f"how = {how!r} is taken over positions, and features {images.shape} have none: use 'zero'")
    images = jax.lax.stop_gradient(images)
    values = images.astype(jnp.float32)
    if how == "uniform":
        filler = _uniform_within(rng.per_example(key, images.shape[0]), values)
    elif how == "mean":
        filler = jnp.mean(values, axis=axes, keepdims=True)
    elif how == "zero":
        filler = jnp.zeros_like(values)
    else:
        filler = blur(values, blur_sigma)
    return jnp.where(mask[..., None] if axes else mask, filler.astype(images.dtype), images)


def _block_means(values: jax.Array, block: int) -> jax.Array:
    """Return the means of blocks of `block` positions along each axis: `[N, H, W] -> [N, H / block, W / block]`."""
    positions = values.shape[1:]
    if any(size % block for size in positions):
        raise ValueError(f"block = {block} does not divide the positions {positions}: use a divisor of all")
    for axis in range(1, values.ndim):
        values = split_axis(values, axis, block).mean(axis + 1)
    return values


def _repeat_blocks(mask: jax.Array, block: int) -> jax.Array:
    """Return the mask of all positions, of one for each block."""
    for axis in range(1, mask.ndim):
        mask = jnp.repeat(mask, block, axis=axis)
    return mask


def _check_rank(name: str, array: jax.Array) -> None:
    if array.ndim < 2:
        raise ValueError(f"{name} has shape {array.shape}: pass a batch, such as [N, H, W] or [N, H, W, C]")


def _number_masked(fraction: jax.Array | float, positions: int) -> jax.Array:
    """Return `floor(fraction · positions + 1e-3)`, int32; a traced fraction is rounded to a millionth first.

    For a large image, float32 rounds both the product and the fraction by more than the guard 1e-3. The nearest
    millionth is the intended decimal number, and the rest is exact in integers. With `fraction = (1000 a + b) / 1e6`
    and `positions = 1000 c + d` it is two nested floors, whose terms hardly exceed `positions`.
    """
    if isinstance(fraction, int | float):
        check_range("fraction", fraction, 0.0, 1.0, high_open=True)
        # Rounded, because for a product that ends in .999 the last bit would otherwise decide the integer.
        return jnp.int32(int(round(fraction * positions + 1e-3, 6)))
    millionths = jnp.round(jnp.clip(jnp.asarray(fraction, jnp.float32), 0.0, 1.0) * 1e6).astype(jnp.int32)
    a, b = millionths // 1000, millionths % 1000
    c, d = divmod(positions, 1000)
    return a * c + (a * d + b * c + b * d // 1000 + 1) // 1000


@jax.custom_batching.custom_vmap
def _choose_where_tied(keys: jax.Array, tied: jax.Array, missing: jax.Array) -> jax.Array:
    """Choose `missing [N]` of the tied positions `[N, P]`; draw only where there is a choice."""
    # If values are distinct, a tie is one position and needs no draw: the second branch then costs nothing.
    # Both branches agree in this case, so an example's mask does not depend on its batch.
    return jax.lax.cond(
        jnp.any(jnp.sum(tied, axis=1, dtype=jnp.int32) > missing),
        lambda: _choose_tied(keys, tied, missing),
        lambda: tied & (missing > 0)[:, None],
    )


@_choose_where_tied.def_vmap
def _choose_in_all(size: int, batched: list[bool], *arrays: jax.Array) -> tuple[jax.Array, bool]:
    """Merge the batches of a `vmap` into one, because the `vmap` of a `cond` computes both branches."""
    full = [x if has else jnp.broadcast_to(x[None], (size, *x.shape)) for x, has in zip(arrays, batched, strict=True)]
    merged = _choose_where_tied(*(x.reshape(-1, *x.shape[2:]) for x in full))
    return merged.reshape(size, -1, merged.shape[-1]), True


def _choose_tied(keys: jax.Array, tied: jax.Array, missing: jax.Array) -> jax.Array:
    """Choose `missing [N]` of the tied positions `[N, P]` uniformly: those with the smallest unique random integers."""
    positions = tied.shape[1]
    place_bits = (positions - 1).bit_length()
    # The position in the low bits makes the integers unique; it decides only between equal draws of the high bits.
    draw = jax.vmap(lambda key: jax.random.bits(key, (positions,)))(keys) >> place_bits << place_bits
    draw = jnp.where(tied, signed(draw | jnp.arange(positions, dtype=jnp.uint32)[None]), LAST)
    return tied & (draw <= kth_smallest(draw, missing)[:, None]) & (missing > 0)[:, None]


def _uniform_within(keys: jax.Array, images: jax.Array) -> jax.Array:
    axes = tuple(range(1, images.ndim - 1))
    low, high = (extreme(images, axis=axes, keepdims=True) for extreme in (jnp.min, jnp.max))
    share = jax.vmap(lambda key: rng.uniform(key, images.shape[1:]))(keys)
    return jnp.minimum(low + share * (high - low), high)  # rounding may exceed `high`
