"""Series as pictures: a row for each channel, time from left to right, drawn as images are."""

from collections.abc import Sequence

import numpy as np

REACH = 3.0  # standard deviations from the mean that are drawn black and white
NOTE = "Time runs from left to right, and each row is a channel."


def series_pictures(series: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Draw series `[n, T, C]` as gray images, uint8 `[n, C, T, 1]`: the mean is gray, lower values are darker.

    Args:
      series: the series, as stored.
      mean: the data set's mean of each channel.
      std: the data set's standard deviation of each channel.
    """
    share = (np.asarray(series, np.float64) - np.asarray(mean)) / np.asarray(std) / REACH
    gray = np.rint(127.5 + 127.5 * np.clip(share, -1, 1)).astype(np.uint8)
    return gray.swapaxes(1, 2)[..., None]


def series_maps(values: np.ndarray, channels: int) -> np.ndarray:
    """Return attributions or masks of series as maps `[n, C, T]`; values of whole times are repeated in each channel.

    Args:
      values: `[n, T, C]`, `[n, T, 1]` or `[n, T]`.
      channels: C.
    """
    values = np.asarray(values)
    values = values[..., None] if values.ndim == 2 else values
    return np.broadcast_to(values, (*values.shape[:2], channels)).swapaxes(1, 2)
