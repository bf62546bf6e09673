"""Statistics of a global batch of features: centring, normalising and whitening, over all members of a mapped axis.

Samples are `[N, D]`, float32 or wider. `axis_name=None` means that this batch is the global batch. Rescaling is by
powers of two, which adds no rounding.
"""

import functools

import jax
import jax.numpy as jnp

from sdecor.core.arrays import inverse_root, widened
from sdecor.core.checks import check_choice

SPATIALS = ("pool", "positions")

_DEAD = 4.0  # a feature is constant if it varies by at most this many roundings of its largest value
_SCALES = (2.0**64, 1.0, 2.0**-80)  # powers of two, for squares of numbers from 1e-25 to 1e37
_TINY = 1e-25  # smaller features count as 0: the gradients of scale-free terms would leave float32's range


def as_samples(features: jax.Array, spatial: str) -> jax.Array:
    """Convert features `[N, D]`, `[N, T, D]` or `[N, H, W, D]` to samples `[N, D]` or `[N · positions, D]`."""
    check_choice("spatial", spatial, SPATIALS)
    if features.ndim not in (2, 3, 4):
        raise ValueError(f"features has shape {features.shape}: it is [N, D], [N, T, D] or [N, H, W, D]")
    features = widened(features)
    if spatial == "positions":
        return features.reshape(-1, features.shape[-1])
    return jnp.mean(features, axis=tuple(range(1, features.ndim - 1)))


def count(samples: jax.Array, axis_name: str | None) -> int:
    """Return the number of samples on all members of the axis."""
    return samples.shape[0] * (1 if axis_name is None else jax.lax.axis_size(axis_name))


def total(x: jax.Array, axis_name: str | None) -> jax.Array:
    """Sum over the members of the axis."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def centre(samples: jax.Array, axis_name: str | None) -> jax.Array:
    """Subtract the mean twice: the second pass removes the rounding of the first, which is large for large means."""
    n = count(samples, axis_name)

    def mean(x: jax.Array) -> jax.Array:
        return total(jnp.sum(x / n, axis=0, keepdims=True), axis_name)  # divided first, because the sum may overflow

    samples = samples - jax.lax.stop_gradient(mean(samples))
    return samples - mean(samples)


def centre_live(samples: jax.Array, axis_name: str | None) -> jax.Array:
    """Centre samples, and set features that vary by rounding only to 0, so that rescaling does not amplify noise."""
    centred = centre(samples, axis_name)
    noise = _DEAD * jnp.finfo(samples.dtype).eps * _peak(samples, axis_name)
    # The test is for constant features, because it is False for NaN, which then stays.
    return jnp.where(_peak(centred, axis_name) <= jnp.maximum(noise, _TINY), 0.0, centred)


def covariance(centred: jax.Array, axis_name: str | None) -> jax.Array:
    """Return the covariance `[D, D]` of centred samples, divided by N − 1."""
    products = jnp.matmul(centred.T, centred, precision="highest")
    return total(products, axis_name) / max(count(centred, axis_name) - 1, 1)


def variances(samples: jax.Array, axis_name: str | None) -> jax.Array:
    """Return the variances `[D]` of the samples, divided by N − 1."""
    squares = jnp.sum(centre(samples, axis_name) ** 2, axis=0)
    return total(squares, axis_name) / max(count(samples, axis_name) - 1, 1)


def standard_deviations(samples: jax.Array, axis_name: str | None) -> jax.Array:
    """Return the square roots of `variances`, without gradient and in one pass over the samples.

    Both sums are taken around the first sample. Where that is k standard deviations from the mean, k² roundings are
    lost, at worst N.
    """
    n, samples = count(samples, axis_name), jax.lax.stop_gradient(samples)
    away = samples - total(samples[:1], axis_name) * (samples.shape[0] / n)
    mean, square = (
        total(jnp.stack([jnp.mean(away, axis=0), jnp.mean(away**2, axis=0)]), axis_name) * samples.shape[0] / n
    )
    return jnp.sqrt(jnp.maximum(square - mean**2, 0.0) * (n / max(n - 1, 1)))


def off_diagonal(columns: jax.Array, axis_name: str | None, *, gram: bool) -> jax.Array:
    """Return `Σ_{i≠j} (XᵀX)_ij²` of `X [N, D]`, from `XᵀX` or, with `gram`, from `XXᵀ`."""
    if gram:
        return _gram_energy(columns, axis_name)
    return _energy(jnp.matmul(columns.T, columns, precision="highest"), axis_name)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _gram_energy(columns: jax.Array, axis_name: str | None) -> jax.Array:
    """Return `Σ_{i≠j} (XᵀX)_ij²` from `XXᵀ`, of which each member computes its rows."""
    return _gram(columns, axis_name)[0]


@_gram_energy.defjvp
def _gram_energy_jvp(
    axis_name: str | None, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # The product is symmetric, so that every member has the whole derivative by its own samples. Without this rule, the
    # other members would send half of it, in a sum as large as the gathered samples.
    energy, slopes = _gram(primals[0], axis_name)
    return energy, 4.0 * total(jnp.sum(slopes * tangents[0]), axis_name)


def _gram(columns: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """Return the energy and a quarter of its derivative by this member's samples, `(XXᵀ)X − X diag(XᵀX)`."""
    everyone = columns if axis_name is None else jax.lax.all_gather(columns, axis_name, tiled=True)
    rows = jnp.matmul(columns, everyone.T, precision="highest")
    diagonal = total(jnp.sum(columns**2, axis=0, keepdims=True), axis_name)
    energy = jnp.maximum(total(jnp.sum(rows**2), axis_name) - jnp.sum(diagonal**2), 0.0)
    return energy, jnp.matmul(rows, everyone, precision="highest") - columns * diagonal


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _energy(products: jax.Array, axis_name: str | None) -> jax.Array:
    """Return `Σ_{i≠j} P_ij²` of the sum `P [D, D]` of all members' products."""
    return jnp.sum(_off_diagonal_sum(products, axis_name) ** 2)


@_energy.defjvp
def _energy_jvp(
    axis_name: str | None, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # Every member has all of P, so that scalars alone are summed here, and in the pull-back. Without this rule, the
    # pull-back would sum a matrix over the members again.
    everyone = _off_diagonal_sum(primals[0], axis_name)
    return jnp.sum(everyone**2), 2.0 * total(jnp.sum(everyone * tangents[0]), axis_name)


def _off_diagonal_sum(products: jax.Array, axis_name: str | None) -> jax.Array:
    # The diagonal is removed before squaring: subtracted from the sum, it would leave rounding errors. Multiplying by
    # 0, instead of replacing, keeps the NaN of a single feature.
    return total(products, axis_name) * (1 - jnp.eye(products.shape[0], dtype=products.dtype))


def unit_columns(samples: jax.Array, axis_name: str | None, *, epsilon: float = 0.0) -> jax.Array:
    """Scale each feature to length 1: `XᵀX` holds cosines, or correlations of centred samples. A 0 stays 0."""
    scale = _power_of_two(_peak(samples, axis_name))
    scaled = samples / scale
    squares = total(jnp.sum(scaled**2, axis=0, keepdims=True), axis_name)
    live = squares > 0
    if epsilon:
        scale = jnp.where(live, scale, 0.0)
        scale = jnp.maximum(scale / jnp.maximum(jnp.max(scale), _TINY), 1e-15)
        squares = squares + epsilon * jnp.mean(squares * scale**2) / scale**2
    return scaled * jnp.where(live, jax.lax.rsqrt(jnp.where(live, squares, 1.0)), 0.0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def mean_density(samples: jax.Array, axis_name: str | None) -> jax.Array:
    """Return the mean over features of the density `(E h)² / E h²`; 0 for a feature that is always 0."""
    return jnp.mean(_density(samples, axis_name)[0])


@mean_density.defjvp
def _mean_density_jvp(
    axis_name: str | None, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # By hand, the derivative is a linear function of each sample, with two coefficients a feature: it joins the ReLU's
    # own derivative in one pass. JAX would store a scaled copy of the samples, and sum vectors over the members.
    samples, (tangent,) = primals[0], tangents
    densities, slopes = _density(samples, axis_name)
    change = total(jnp.sum(slopes * (1 - slopes * samples) * tangent), axis_name)
    return jnp.mean(densities), 2.0 / (count(samples, axis_name) * densities.size) * change


def _density(samples: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """Return each feature's density, and `E h / E h²`, `[1, D]`.

    The squares are summed at three scales, of which each feature uses one that stays in float32's range: a scale from
    the largest sample would need a pass of its own.
    """
    n = count(samples, axis_name)
    squares = ((samples * scale) ** 2 for scale in _SCALES)
    sums = [jnp.sum(each, axis=0, keepdims=True) for each in (samples / n, *squares)]
    mean, *squares = total(jnp.stack(sums), axis_name)
    tiny, plain, huge = (square / n for square in squares)
    low, in_range = plain < 1e-30, plain < jnp.inf  # False for NaN, which then stays
    square = jnp.where(low, tiny, jnp.where(in_range, plain, huge))
    scale = jnp.where(low, _SCALES[0], jnp.where(in_range, _SCALES[1], _SCALES[2]))
    zero = square <= (scale * _TINY) ** 2
    scaled = mean * scale
    ratio = jnp.where(zero, 0.0, scaled / jnp.where(zero, 1.0, square))
    return ratio * scaled, ratio * scale


def whiten(
    samples: jax.Array, axis_name: str | None, *, epsilon: float, iterations: int
) -> tuple[jax.Array, jax.Array]:
    """Return the centred samples, and the samples whitened (ZCA) by their covariance's `inverse_root`, as constants."""
    centred = centre_live(samples, axis_name)
    scaled = jax.lax.stop_gradient(centred)
    scaled = scaled / _power_of_two(jnp.max(_peak(scaled, axis_name)))
    root = inverse_root(covariance(scaled, axis_name), epsilon=epsilon, iterations=iterations)
    return centred, jnp.matmul(scaled, root, precision="highest")


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def bounded_square(x: jax.Array, limit: float) -> jax.Array:
    """Square `x`, capped at `limit²`, with the gradient `2x` everywhere."""
    return jnp.clip(x, -limit, limit) ** 2


@bounded_square.defjvp
def _bounded_square_jvp(
    limit: float, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return bounded_square(primals[0], limit), 2.0 * primals[0] * tangents[0]


def _peak(samples: jax.Array, axis_name: str | None) -> jax.Array:
    """Return each feature's largest magnitude `[1, D]`, without gradient."""
    peak = jnp.max(jnp.abs(jax.lax.stop_gradient(samples)), axis=0, keepdims=True)
    return peak if axis_name is None else jax.lax.pmax(peak, axis_name)


def _power_of_two(peak: jax.Array) -> jax.Array:
    """Return the largest power of two up to `peak` that has a reciprocal in float32; 1 where `peak` is tiny."""
    return jnp.where(peak > _TINY, jnp.ldexp(jnp.ones_like(peak), jnp.minimum(jnp.frexp(peak)[1] - 1, 126)), 1.0)
