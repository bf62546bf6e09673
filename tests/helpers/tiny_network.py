"""A small smooth network on 6×7 color images, in JAX and in float64, for brute-force references of metrics."""

import jax
import jax.numpy as jnp
import numpy as np

N, H, W, C = 5, 6, 7, 3
_RNG = np.random.default_rng(3)
INNER = _RNG.normal(size=(9, H * W * C)) / 8
OUTER = _RNG.normal(size=(3, 9))
IMAGES = _RNG.normal(0.3, 1.0, size=(N, H, W, C)).astype(np.float32)
MAPS = _RNG.normal(size=(N, H, W)).astype(np.float32)
TARGETS = np.array([0, 1, 2, 0, 1])
KEYS = jax.random.split(jax.random.key(4), N)


def network(image: jax.Array) -> jax.Array:
    """Return the logits `[3]` of one image."""
    return jnp.asarray(OUTER, jnp.float32) @ jnp.tanh(jnp.asarray(INNER, jnp.float32) @ image.ravel())


def logits(image: np.ndarray) -> np.ndarray:
    """Return `network` in float64."""
    return OUTER @ np.tanh(INNER @ np.asarray(image, np.float64).ravel())


def probability(image: np.ndarray, target: int) -> float:
    """Return the target's softmax probability in float64."""
    z = np.exp(logits(image) - logits(image).max())
    return z[target] / z.sum()


def replaced(image: np.ndarray, base: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the image with all channels of the masked pixels taken from `base`."""
    return np.where(mask[..., None], base, image)


def first(saliency: np.ndarray, count: int) -> np.ndarray:
    """Return the mask of the `count` most salient pixels; values are distinct."""
    mask = np.zeros(saliency.size, bool)
    mask[np.argsort(-saliency.ravel())[:count]] = True
    return mask.reshape(saliency.shape)
