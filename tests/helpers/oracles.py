"""Float64 NumPy references, written from the definitions; they share no code with the package."""

from collections.abc import Callable

import numpy as np


def covariance_matrix(h: np.ndarray, ddof: int = 1) -> np.ndarray:
    """Return the covariance `[D, D]` of `h [N, D]` in float64."""
    centred = np.asarray(h, np.float64) - np.mean(h, axis=0, dtype=np.float64)
    return centred.T @ centred / max(len(h) - ddof, 1)


def zca(h: np.ndarray) -> np.ndarray:
    """Return `cov(h)^-½`, zero on the null space, by an eigendecomposition."""
    values, vectors = np.linalg.eigh(covariance_matrix(h))
    live = values > 1e-12 * values.max()
    return (vectors[:, live] / np.sqrt(values[live])) @ vectors[:, live].T


def decorrelation(h: np.ndarray, form: str) -> float:
    """Return a decorrelation form by its definition."""
    n, d = h.shape
    if form in ("cosine", "density"):
        squares = [float(np.sum(h[:, i] ** 2)) for i in range(d)]
        if form == "density":
            return sum(np.sum(h[:, i]) ** 2 / (n * squares[i]) for i in range(d) if squares[i] > 0) / d
        pairs = [(i, j) for i in range(d) for j in range(d) if i != j and squares[i] * squares[j] > 0]
        return sum(float(h[:, i] @ h[:, j]) ** 2 / (squares[i] * squares[j]) for i, j in pairs) / (d * (d - 1))
    if form == "whitening":
        centred = h - h.mean(axis=0)
        return float(np.sum((centred - centred @ zca(h)) ** 2) / (n * d))
    c = covariance_matrix(h, ddof=0 if form == "decov" else 1)
    if form == "correlation":
        std = np.sqrt(np.diag(c))
        c = c / np.outer(np.where(std > 0, std, np.inf), np.where(std > 0, std, np.inf))
    energy = sum(c[i, j] ** 2 for i in range(d) for j in range(d) if i != j)
    return float({"covariance": energy / d, "correlation": energy / (d * (d - 1)), "decov": energy / 2}[form])


def spectrum_distance(h: np.ndarray) -> float:
    """Return `mean_i (σ_i − 1)²` over the standard deviations along the principal axes."""
    values = np.linalg.eigvalsh(covariance_matrix(h))
    return float(np.mean((np.sqrt(np.maximum(values, 0.0)) - 1.0) ** 2))


def variance_hinge(h: np.ndarray, target: float = 1.0, epsilon: float = 1e-4) -> float:
    """Return VICReg's variance term."""
    std = np.sqrt(np.var(np.asarray(h, np.float64), axis=0, ddof=1) + epsilon)
    return float(np.mean(np.maximum(target - std, 0.0)))


def softmax(z: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis."""
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def numerical_gradient(fn: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Return the gradient of `fn` at `x` by central differences in float64."""
    x = np.asarray(x, np.float64)
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        shift = np.zeros_like(x)
        shift[index] = step
        gradient[index] = (fn(x + shift) - fn(x - shift)) / (2 * step)
    return gradient


def least_salient(saliency: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions `[N, H, W]` that must be masked, and those tied at the threshold, which may be."""
    rows = saliency.reshape(len(saliency), -1)
    if k == 0:
        return np.zeros(saliency.shape, bool), np.zeros(saliency.shape, bool)
    threshold = np.sort(rows, axis=1)[:, k - 1 : k]
    return (rows < threshold).reshape(saliency.shape), (rows == threshold).reshape(saliency.shape)


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Return one blurred image `[H, W, C]`; weights are renormalised inside the image."""
    height, width, _ = image.shape
    rows, columns = np.mgrid[:height, :width]
    result = np.zeros(image.shape, np.float64)
    for i, j in np.ndindex(height, width):
        weights = np.exp(-((rows - i) ** 2 + (columns - j) ** 2) / (2 * sigma**2))
        result[i, j] = np.tensordot(weights, image, axes=([0, 1], [0, 1])) / weights.sum()
    return result
