"""Random numbers of the drawn data sets, the same on every machine and with every version of NumPy."""

import numpy as np


class Random:
    """Random numbers from the raw 64-bit stream of PCG64, which NumPy guarantees."""

    def __init__(self, seed: int):
        self._bits = np.random.PCG64(seed)

    def below(self, bound: int, count: int) -> np.ndarray:
        """Return `count` integers in `[0, bound)`."""
        raw = self._bits.random_raw(count) >> np.uint64(40)
        return ((raw.astype(np.int64) * bound) >> 24).astype(np.int64)

    def uniform(self, *shape: int) -> np.ndarray:
        """Return numbers in (0, 1), float64."""
        raw = self._bits.random_raw(int(np.prod(shape))) >> np.uint64(11)
        return ((raw.astype(np.float64) + 0.5) * 2.0**-53).reshape(shape)

    def normal(self, *shape: int) -> np.ndarray:
        """Return standard normal numbers, float32, by the inverse of their distribution function."""
        from scipy.special import ndtri

        return ndtri(self.uniform(*shape)).astype(np.float32)
