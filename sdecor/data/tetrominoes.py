"""Drawing of `xai_tris`: tetrominoes on noise, where the pixels that decide the class are known by construction.

After Clark et al., XAI-TRIS: Non-linear image benchmarks to quantify false positive post-hoc attribution of feature
importance, 2024, https://arxiv.org/abs/2306.12816, with the sizes and weights of their published configuration. Random
numbers are raw PCG64 output, which NumPy guarantees; pixels are rounded to 8 bits.
"""

import functools
from typing import NamedTuple

import numpy as np

from sdecor.data import scenes
from sdecor.data.draws import Random

SCENARIOS = ("linear", "multiplicative", "translations_rotations", "xor")
BACKGROUNDS = ("white", "correlated", "natural")
CLASS_NAMES = {name: ("T", "L") for name in SCENARIOS} | {"xor": ("same_sign", "opposite_sign")}
CHUNK = 1000  # images drawn at once, which bounds the memory


class Size(NamedTuple):
    """Options of the drawing for one size of the images.

    Attributes:
      pixels: height and width.
      counts: number of images of each split.
      sigma: width of the Gaussian that correlates the background, in pixels.
      cell: pixels of a cell of a tetromino; `moved_cell` is that of the scenario `translations_rotations`.
      alpha: weight of the signal, for each scenario, on each of `BACKGROUNDS`.
    """

    pixels: int
    counts: dict[str, int]
    sigma: float
    cell: int
    moved_cell: int
    alpha: dict[str, tuple[float, float, float]]


SIZES = {
    "8x8": Size(
        pixels=8,
        counts={"train": 8000, "val": 1000, "test": 1000},
        sigma=3.0,
        cell=1,
        moved_cell=1,
        alpha={
            "linear": (0.18, 0.0125, 0.15),
            "multiplicative": (0.7, 0.1, 0.3),
            "translations_rotations": (0.65, 0.2, 0.5),
            "xor": (0.35, 0.15, 0.25),
        },
    ),
    "64x64": Size(
        pixels=64,
        counts={"train": 36000, "val": 2000, "test": 2000},
        sigma=10.0,
        cell=8,
        moved_cell=4,
        alpha={
            "linear": (0.03, 0.02, 0.06),
            "multiplicative": (0.65, 0.05, 0.2),
            "translations_rotations": (0.575, 0.375, 0.03),
            "xor": (0.075, 0.03, 0.13),
        },
    ),
}
T, L = np.array([[1, 0], [1, 1], [1, 0]]), np.array([[1, 0], [1, 0], [1, 1]])
CORNERS = ((1, 1), (4, 5))  # of the fixed T and L, in eighths of the image
BLUR, LEAST_CELL = 1.5, 4  # tetrominoes of at least so large cells are blurred
IMPORTANT = 0.05  # a pixel belongs to a tetromino where this is at least so large


class Images(NamedTuple):
    """Images of all splits, in the order train, val, test; in each split the classes take turns.

    Attributes:
      images: uint8 `[N, H, W]`; 127.5 is 0.
      labels: int32 `[N]`.
      masks: uint8 `[N, H, W]`, 1 where a pixel tells the class.
    """

    images: np.ndarray
    labels: np.ndarray
    masks: np.ndarray


def draw(scenario: str, background: str, size: str, *, count: int | None = None) -> Images:
    """Draw a data set: `count` images, or as many as all splits have.

    With the signal s and the background b, each divided by its Frobenius norm over the data set, an image is
    `α s + (1 − α) b`, or `(1 − α s) b` in the scenario "multiplicative", where `1 − α s` is divided by its norm. All
    images are then divided by the largest magnitude.
    """
    options = SIZES[size]
    count = sum(options.counts.values()) if count is None else count
    alpha = options.alpha[scenario][BACKGROUNDS.index(background)]
    labels = (np.arange(count) % 2).astype(np.int32)
    random = Random(SCENARIOS.index(scenario) * 1009 + BACKGROUNDS.index(background) * 101 + options.pixels)
    signals, masks, noise = [], [], []
    for start in range(0, count, CHUNK):
        of_chunk = labels[start : start + CHUNK]
        signal, mask = _signals(random, scenario, of_chunk, options)
        signals.append(signal)
        masks.append(mask)
        noise.append(_background(random, background, len(of_chunk), options))
    multiplies = scenario == "multiplicative"
    signals = [1 - alpha * signal if multiplies else signal for signal in signals]
    of_signal, of_noise = _norm(signals), _norm(noise)
    for i, (signal, b) in enumerate(zip(signals, noise, strict=True)):
        s, b = signal / of_signal, b / of_noise
        noise[i] = s * b if multiplies else alpha * s + (1 - alpha) * b
    largest = max(np.abs(chunk).max() for chunk in noise)
    images = [np.clip(np.rint(127.5 + 127.5 * (chunk / largest)), 0, 255).astype(np.uint8) for chunk in noise]
    return Images(np.concatenate(images), labels, np.concatenate(masks))


def _norm(chunks: list[np.ndarray]) -> np.float32:
    return np.float32(np.sqrt(sum(np.sum(np.square(chunk, dtype=np.float64)) for chunk in chunks)))


def _signals(random: Random, scenario: str, labels: np.ndarray, options: Size) -> tuple[np.ndarray, np.ndarray]:
    """Return signals, float32 `[n, H, W]`, and the masks of the pixels that tell the class, uint8."""
    if scenario == "translations_rotations":
        signals = _moved(random, labels, options)
        return signals, (signals >= IMPORTANT).astype(np.uint8)
    both = np.stack([_fixed(shape, corner, options) for shape, corner in zip((T, L), CORNERS, strict=True)])
    # That one tetromino is absent tells as much as that the other is there: the pixels of both count.
    masks = np.repeat((both.sum(axis=0) >= IMPORTANT).astype(np.uint8)[None], len(labels), axis=0)
    if scenario != "xor":
        return both[labels], masks
    sign = 1 - 2 * random.below(2, len(labels))
    signs = np.stack([sign, np.where(labels == 0, sign, -sign)], axis=1)
    return np.einsum("nk,khw->nhw", signs, both).astype(np.float32), masks


def _fixed(shape: np.ndarray, corner: tuple[int, int], options: Size) -> np.ndarray:
    eighth = options.pixels // 8
    return _place(np.kron(shape, np.ones((options.cell, options.cell))), [side * eighth for side in corner], options)


def _moved(random: Random, labels: np.ndarray, options: Size) -> np.ndarray:
    """Draw a tetromino of each label, turned by a multiple of 90 degrees, anywhere inside its image."""
    cell = np.ones((options.moved_cell, options.moved_cell))
    turned = [[np.kron(np.rot90(shape, k), cell) for k in range(4)] for shape in (T, L)]
    turns = random.below(4, len(labels))
    rows, columns = random.below(1 << 20, len(labels)), random.below(1 << 20, len(labels))
    signals = np.empty((len(labels), options.pixels, options.pixels), np.float32)
    for i, (label, turn) in enumerate(zip(labels, turns, strict=True)):
        shape = turned[label][turn]
        free = [options.pixels - side + 1 for side in shape.shape]
        signals[i] = _place(shape, [int(rows[i]) * free[0] >> 20, int(columns[i]) * free[1] >> 20], options)
    return signals


def _place(shape: np.ndarray, corner: list[int], options: Size) -> np.ndarray:
    """Return an image with a shape at a corner `(y, x)`, blurred if its cells are large."""
    from scipy.ndimage import gaussian_filter

    image = np.zeros((options.pixels, options.pixels), np.float32)
    (y, x), (height, width) = corner, shape.shape
    image[y : y + height, x : x + width] = shape
    blurred = min(options.cell, options.moved_cell) >= LEAST_CELL
    return gaussian_filter(image, BLUR) if blurred else image


def _background(random: Random, kind: str, count: int, options: Size) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    if kind == "natural":
        return _photographs(random, count, options.pixels)
    noise = 0.5 * random.normal(count, options.pixels, options.pixels)
    return noise if kind == "white" else gaussian_filter(noise, (0, options.sigma, options.sigma))


def _photographs(random: Random, count: int, pixels: int) -> np.ndarray:
    """Return random gray crops of scikit-learn's two photographs, each less its mean: float32 `[n, H, W]`."""
    grays = _grays()
    which, scale = random.below(len(grays), count), 1 + random.below(5, count)
    rows, columns = random.below(1 << 20, count), random.below(1 << 20, count)
    crops = np.empty((count, pixels, pixels), np.float32)
    for i in range(count):
        side = pixels * scale[i]
        y, x = (int(at[i]) * (free - side + 1) >> 20 for at, free in zip((rows, columns), grays[0].shape, strict=True))
        crop = grays[which[i]][y : y + side, x : x + side]
        crops[i] = crop.reshape(pixels, scale[i], pixels, scale[i]).mean(axis=(1, 3))
    return crops - crops.mean(axis=(1, 2), keepdims=True)


@functools.cache
def _grays() -> tuple[np.ndarray, ...]:
    """Return the two photographs in gray, float32 `[427, 640]`."""
    from sklearn.datasets import load_sample_images

    return tuple((image @ scenes.LUMA.astype(np.float32)) / 256 for image in load_sample_images().images)
