"""Synthetic classification data whose classes appear in redundant parts of known correlation.

An image is `[T, M]`: T positions of M pixels each. In `groups` there is one position, in which every class has pixels
of its own. `parts` shows the parts of the class at some positions and clutter at the others.
"""

from typing import NamedTuple

import numpy as np

CLASSES, PARTS = 4, 4


class Examples(NamedTuple):
    """Images `[N, T, M]`, labels `[N]`, and whether a pixel shows the class, bool `[N, T, M]`."""

    images: np.ndarray
    labels: np.ndarray
    shown: np.ndarray


def groups(seed: int, count: int, *, correlation: float = 0.4, pixels: int = 4) -> Examples:
    """Draw examples of one position, in which each class adds 1 to its own four groups of pixels.

    A group's noise is common to its pixels. Its variance differs fourfold among the groups of a class. Two groups with
    the mean variance correlate by `correlation`.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=count)
    concept = (labels[:, None] == np.arange(CLASSES)).astype(float)
    variance = (1 - 1 / CLASSES) / CLASSES * (1 / correlation - 1)
    noise = np.sqrt(variance * np.geomspace(0.5, 2, PARTS)) * rng.normal(size=(count, CLASSES, PARTS))
    images = np.repeat((concept[:, :, None] + noise)[..., None], pixels, -1)
    images += 0.2 * rng.normal(size=images.shape)
    shown = np.broadcast_to(concept[:, :, None, None] > 0, images.shape)
    return Examples(images.reshape(count, 1, -1).astype(np.float32), labels, shown.reshape(count, 1, -1))


def parts(
    seed: int, count: int, *, correlation: float = 0.5, positions: int = 16, pixels: int = 16, noise: float = 0.5
) -> Examples:
    """Draw examples that show each part of their class at one of the positions, and clutter everywhere else.

    Templates have length 1. Two parts of one class have the inner product `correlation` on average. Templates depend on
    `seed % 1000` alone: seeds that differ by a thousand draw new examples of one kind.
    """
    templates, clutter = _templates(seed % 1000, correlation, pixels)
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=count)
    places = np.argsort(rng.random((count, positions)), axis=1)[:, :PARTS]
    strength = np.abs(rng.normal(size=(count, positions, len(clutter))))
    images = (strength * (rng.random(strength.shape) < 0.5)) @ clutter
    rows = np.arange(count)[:, None]
    images[rows, places] = (1.5 + 0.5 * rng.normal(size=(count, PARTS, 1))) * templates[labels]
    images += noise * rng.normal(size=images.shape)
    shown = np.zeros(images.shape, bool)
    shown[rows, places] = True
    return Examples(images.astype(np.float32), labels, shown)


def _templates(seed: int, correlation: float, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the parts `[K, PARTS, M]`, with √correlation of their class's common part, and the clutter `[4, M]`."""
    rng = np.random.default_rng(seed)

    def units(*shape: int) -> np.ndarray:
        vectors = rng.normal(size=(*shape, pixels))
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    common, own = units(CLASSES, 1), units(CLASSES, PARTS)
    own -= (own * common).sum(-1, keepdims=True) * common
    own /= np.linalg.norm(own, axis=-1, keepdims=True)
    return np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own, units(4)
