"""Encoding of maps in 16 or 8 bits: each map is divided by its own scale, and lost values are counted.

Gradients of a trained network are often smaller than the smallest float16. A scale therefore maps the largest value of
a map to the largest stored number. The scale is stored as float32 and restores the values.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.core.arrays import key_values, kth_largest, order_keys
from sdecor.core.checks import check_choice, check_range

DTYPES = ("float32", "float16", "uint8")
COUNTS = ("clipped", "underflowed", "nonfinite")  # columns of the counts that `encode` returns
SIGNED_ZERO = 128  # the uint8 that stands for 0 in maps with both signs
_FLOAT16_TOP = 2.0**15  # a power of two, so that the scale is not rounded


def zero_point(dtype: str, *, signed: bool) -> int:
    """Return the stored number that stands for 0."""
    return SIGNED_ZERO if dtype == "uint8" and signed else 0


def encode(
    maps: jax.Array, dtype: str, *, signed: bool = True, clip_percentile: float = 100.0
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """Divide each map by its scale and round it to `dtype`; runs on the device.

    Args:
      maps: `[n, …]`.
      dtype: "float32" (unchanged, without a scale), "float16" or "uint8".
      signed: whether values may be negative: uint8 then holds −127 … 127 around 128, else 0 … 255.
      clip_percentile: percentile of a map's absolute values, in (0, 100], that becomes the largest stored number;
        larger values are clipped to it. 100 clips nothing.

    Returns:
      `(stored, scales, counts)`. The stored maps are `[n, …]`. Scales are float32 `[n]`, NaN for a map that is not
      finite everywhere and 0 for a map of zeros; None for "float32". Counts are int32 `[n, 3]`: for each map the number
      of clipped values, the number of values other than 0 stored as 0, and 1 if a value is not finite.
    """
    check_choice("dtype", dtype, DTYPES)
    check_range("clip_percentile", clip_percentile, 0, 100, low_open=True)
    flat = maps.astype(jnp.float32).reshape(maps.shape[0], -1)
    finite = jnp.isfinite(flat).all(1)
    if dtype == "float32":
        nothing = jnp.zeros_like(finite, jnp.int32)
        return maps.astype(jnp.float32), None, jnp.stack([nothing, nothing, ~finite], 1).astype(jnp.int32)
    flat = jnp.where(finite[:, None], flat, 0)
    magnitude = jnp.abs(flat)
    peak = _peak(magnitude, clip_percentile)
    zero = zero_point(dtype, signed=signed)
    top = _FLOAT16_TOP if dtype == "float16" else 127.0 if signed else 255.0
    # The scale is at least the smallest normal number, because the division might overflow otherwise.
    scale = jnp.where(peak > 0, jnp.maximum(peak / top, jnp.finfo(jnp.float32).tiny), 0)
    values = jnp.clip(flat / jnp.where(scale > 0, scale, 1)[:, None], -top if signed else 0, top)
    stored = values.astype(jnp.float16) if dtype == "float16" else (jnp.round(values) + zero).astype(jnp.uint8)
    lost = (flat != 0) & (stored == zero)
    counts = [(magnitude > peak[:, None]).sum(1), lost.sum(1), ~finite]
    scale = jnp.where(finite, scale, jnp.nan)
    return stored.reshape(maps.shape), scale, jnp.stack([x.astype(jnp.int32) for x in counts], 1)


def decode(stored: Any, scale: Any, dtype: str, zero_point: int = 0) -> np.ndarray:
    """Return the float32 maps that `encode` stored.

    Args:
      stored: `[n, …]`, or one map.
      scale: `[n]`, or one number; ignored for "float32".
      dtype: dtype given to `encode`.
      zero_point: the stored number that stands for 0, as returned by `zero_point`.
    """
    values = np.asarray(stored).astype(np.float32)
    if dtype == "float32":
        return values
    scale = np.asarray(scale, np.float32)
    if zero_point:
        values -= np.float32(zero_point)
    values *= scale.reshape(scale.shape + (1,) * (values.ndim - scale.ndim))
    return values


def _peak(magnitude: jax.Array, percentile: float) -> jax.Array:
    """Return each row's percentile, or its largest value where the percentile is 0."""
    largest = magnitude.max(1)
    if percentile == 100:
        return largest
    above = math.floor(magnitude.shape[1] * (100 - percentile) / 100)
    chosen = key_values(kth_largest(order_keys(magnitude), jnp.full(magnitude.shape[0], above + 1, jnp.int32)))
    return jnp.where(chosen > 0, chosen, largest)
