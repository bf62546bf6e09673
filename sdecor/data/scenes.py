"""Drawing of `digit_scenes`: real digits on real photographs, in integer arithmetic only.

The scenes are a pure function of the split's name. Random numbers are raw PCG64 output, which NumPy guarantees, and no
float is computed. Every machine therefore draws the same arrays.

Only the digit decides the class: photograph, crop, light, colors and distractor fragments are drawn independently of
it. Pixels outside the object mask therefore say nothing about the class, except where the digit ends. A model that
attends to them has learned an accident of the training images.
"""

import functools
import hashlib
from typing import NamedTuple

import numpy as np

SIZE = 32
NUM_CLASSES = 10
SPLIT_SIZES = {"train": 8000, "val": 1000, "test": 2000}
# Each split's share of the digit samples (in percent) and of the photographs' 640 columns. Splits are disjoint.
DIGIT_SHARES = {"train": (0, 65), "val": (65, 75), "test": (75, 100)}
STRIPS = {"train": (0, 384), "val": (384, 480), "test": (480, 640)}
SEEDS = {"train": 1, "val": 2, "test": 3}
FRAGMENTS = 2
# Digest of the two decoded photographs. JPEG leaves decoders some freedom; all libjpeg-turbo versions tried agree.
PHOTOGRAPHS_SHA256 = "99310b92a8963a4b9118f3a93695bf9d2f7c20a03361f1962972901ccd5560da"
DIGIT_CONTRAST, FRAGMENT_CONTRAST = (80, 160), (24, 80)  # brightness above the background, in luma of 255
CHUNK = 250  # images drawn at once, which bounds the memory

# cos and sin of -12, -8, … 12 degrees, times 1024. They are written out, because libm's last bit may differ.
COS = np.array([1002, 1014, 1022, 1024, 1022, 1014, 1002], np.int32)
SIN = np.array([-213, -143, -71, 0, 71, 143, 213], np.int32)
LUMA = np.array([77, 150, 29], np.int32)  # weights of red, green, blue, in 256ths


class Scenes(NamedTuple):
    """Scenes of one split.

    Attributes:
      images: uint8 `[N, 32, 32, 3]`.
      labels: int32 `[N]`.
      masks: uint8 `[N, 32, 32]`, 1 = object.
      boxes: int32 `[N, 4]` as `[y0, x0, y1, x1)` in pixels.
    """

    images: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray


def draw_split(split: str, *, size: int | None = None) -> Scenes:
    """Draw the first `size` scenes of a split; None = all."""
    size = SPLIT_SIZES[split] if size is None else size
    chunks = [draw_chunk(split, start) for start in range(0, size, CHUNK)]
    return Scenes(*(np.concatenate(arrays)[:size] for arrays in zip(*chunks, strict=True)))


def draw_chunk(split: str, start: int) -> Scenes:
    """Draw `CHUNK` scenes of a split, beginning at `start`, a multiple of `CHUNK`."""
    random = _Random(SEEDS[split] * 1_000_003 + start, CHUNK)
    digits, digit_labels = digit_samples(split)
    labels = (start + np.arange(CHUNK)) % NUM_CLASSES
    canvas = _backgrounds(random, photographs(split))
    for _ in range(FRAGMENTS):
        canvas = _add_fragment(random, canvas, digits)
    pick = _pick_of_class(random, labels, digit_labels)
    alpha = _stroke(random, digits[pick], low=19, high=26, margin=1)
    images = _paint(random, canvas, alpha, _bright_colours(random, canvas, alpha, DIGIT_CONTRAST)).astype(np.uint8)
    masks = (alpha >= 128).astype(np.uint8)
    return Scenes(images, labels.astype(np.int32), masks, _boxes(masks))


def photographs_as_expected() -> bool:
    """Return whether this machine decodes the two photographs to the pixels that define the data set."""
    from sklearn.datasets import load_sample_images

    pixels = b"".join(image.tobytes() for image in load_sample_images().images)
    return hashlib.sha256(pixels).hexdigest() == PHOTOGRAPHS_SHA256


@functools.cache
def photographs(split: str) -> tuple[np.ndarray, ...]:
    """Return the split's strip of each of scikit-learn's two photographs, uint8 `[427, W, 3]`."""
    from sklearn.datasets import load_sample_images

    low, high = STRIPS[split]
    return tuple(np.ascontiguousarray(image[:, low:high]) for image in load_sample_images().images)


@functools.cache
def digit_samples(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the split's stratified share of the UCI optdigits samples: int32 0 … 16 `[M, 8, 8]`, classes `[M]`."""
    from sklearn.datasets import load_digits

    data = load_digits()
    digits, labels = data.images.astype(np.int32), data.target.astype(np.int32)
    # Every class gives the same share, in the order of an arbitrary but fixed multiplicative hash of the index.
    order = np.argsort((np.arange(len(labels)) * 2654435761) % 2**32, kind="stable")
    chosen = []
    for label in range(NUM_CLASSES):
        members = order[labels[order] == label]
        low, high = (len(members) * share // 100 for share in DIGIT_SHARES[split])
        chosen.append(members[low:high])
    chosen = np.sort(np.concatenate(chosen))
    return digits[chosen], labels[chosen]


class _Random:
    """Random integers for `count` scenes at once, from the raw 64-bit stream of PCG64."""

    def __init__(self, seed: int, count: int):
        self._bits = np.random.PCG64(seed)
        self.count = count

    def below(self, bound: int | np.ndarray, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Return integers in `[0, bound)`, int32 `[count, *shape]`; `bound` is a number or `[count]`."""
        raw = self._bits.random_raw(self.count * int(np.prod(shape, dtype=np.int64))).reshape(self.count, *shape)
        return (((raw >> np.uint64(40)).astype(np.int64) * bound) >> 24).astype(np.int32)

    def between(self, low: int, high: int, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Return integers in `[low, high]`, both included."""
        return low + self.below(high - low + 1, shape)


def _backgrounds(random: _Random, photos: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return random crops of the photographs at three scales, mirrored and relit: int32 `[n, 32, 32, 3]`, 0 … 255."""
    which, scale, mirror = random.below(len(photos)), random.between(1, 3), random.below(2)
    height, width, _ = photos[0].shape
    top, left = random.below(height - SIZE * scale + 1), random.below(width - SIZE * scale + 1)
    gain, brightest = random.between(8, 16), random.between(60, 160)
    crops = np.empty((random.count, SIZE, SIZE, 3), np.int32)
    for i in range(random.count):
        k, y, x = scale[i], top[i], left[i]
        crop = photos[which[i]][y : y + SIZE * k, x : x + SIZE * k].astype(np.int32)
        crop = sum(crop[a::k, b::k] for a in range(k) for b in range(k)) // (k * k)
        crops[i] = crop[:, ::-1] if mirror[i] else crop
    mean = crops.sum(axis=(1, 2, 3), keepdims=True) // (SIZE * SIZE * 3)
    # Bright crops are darkened, because digits must be brighter than their background.
    relit = np.minimum(mean, brightest[:, None, None, None]) + (crops - mean) * gain[:, None, None, None] // 16
    return np.clip(relit, 0, 255)


def _add_fragment(random: _Random, images: np.ndarray, digits: np.ndarray) -> np.ndarray:
    """Paint a piece of a random digit: 4×4 of its 8×8 cells, too few to be read as a digit."""
    pick = random.below(len(digits))
    row, column = random.between(0, 4), random.between(0, 4)
    cells = np.arange(8)
    inside_rows = (cells >= row[:, None]) & (cells < row[:, None] + 4)
    inside_columns = (cells >= column[:, None]) & (cells < column[:, None] + 4)
    pieces = digits[pick] * (inside_rows[:, :, None] & inside_columns[:, None, :])
    alpha = _stroke(random, pieces, low=16, high=22, margin=-5)
    return _paint(random, images, alpha, _bright_colours(random, images, alpha, FRAGMENT_CONTRAST))


def _stroke(random: _Random, cells: np.ndarray, *, low: int, high: int, margin: int) -> np.ndarray:
    """Enlarge, turn and place 8×8 cells; return their opacity 0 … 255, int32 `[n, 32, 32]`.

    The height is drawn from `low … high` pixels, the width near it, and the position such that `margin` pixels stay
    free on each side. Each output pixel is mapped back into the cells (16 fractional bits) and interpolated bilinearly.
    """
    n = random.count
    height = random.between(low, high)
    width = np.clip(height + random.between(-4, 2), low - 3, high)
    turn = random.below(len(COS))
    cos, sin = COS[turn][:, None, None], SIN[turn][:, None, None]
    # Centres and pixel coordinates are in half pixels, which makes them integers.
    centre_y = height + 2 * margin + random.below(np.maximum(2 * SIZE - 2 * height - 4 * margin + 1, 1))
    centre_x = width + 2 * margin + random.below(np.maximum(2 * SIZE - 2 * width - 4 * margin + 1, 1))
    grid = 2 * np.arange(SIZE, dtype=np.int32) + 1
    dy = grid[None, :, None] - centre_y[:, None, None]
    dx = grid[None, None, :] - centre_x[:, None, None]
    v = (cos * dy - sin * dx) * 256 // height[:, None, None] + (4 << 16) - (1 << 15)
    u = (cos * dx + sin * dy) * 256 // width[:, None, None] + (4 << 16) - (1 << 15)
    ink = _bilinear(np.pad(cells, ((0, 0), (2, 2), (2, 2))), v + (2 << 16), u + (2 << 16), n)
    return np.clip((ink - (5 << 16)) * 255 // (4 << 16), 0, 255)  # ink from 5/16 to 9/16 becomes opacity


def _bilinear(cells: np.ndarray, v: np.ndarray, u: np.ndarray, n: int) -> np.ndarray:
    """Sample `cells` `[n, K, K]` at rows `v` and columns `u` (16 fractional bits); return the values times 2¹⁶."""
    last = cells.shape[1] - 2
    v, u = np.clip(v, 0, (last << 16) + 65535), np.clip(u, 0, (last << 16) + 65535)
    y, x, fy, fx = v >> 16, u >> 16, (v >> 8) & 255, (u >> 8) & 255
    i = np.arange(n, dtype=np.int32)[:, None, None]
    flat, k = cells.reshape(-1), cells.shape[1]
    at = (i * k + y) * k + x
    top = flat[at] * (256 - fx) + flat[at + 1] * fx
    bottom = flat[at + k] * (256 - fx) + flat[at + k + 1] * fx
    return top * (256 - fy) + bottom * fy


def _bright_colours(random: _Random, images: np.ndarray, alpha: np.ndarray, contrast: tuple[int, int]) -> np.ndarray:
    """Return one color per image that is brighter than the background under `alpha`, int32 `[n, 3]`.

    It is the first of eight random colors whose luma exceeds the background's by an amount drawn from `contrast`, or
    else the brightest of the eight.
    """
    weight = alpha[..., None]
    beneath = (images * weight).sum(axis=(1, 2)) // np.maximum(weight.sum(axis=(1, 2)), 1)
    luma = (beneath * LUMA).sum(axis=1) >> 8
    colours = random.below(256, (8, 3))
    brighter = ((colours * LUMA).sum(axis=2) >> 8) - luma[:, None]
    enough = brighter >= random.between(*contrast)[:, None]
    choice = np.where(enough.any(axis=1), enough.argmax(axis=1), brighter.argmax(axis=1))
    return colours[np.arange(random.count), choice]


def _paint(random: _Random, images: np.ndarray, alpha: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Blend colors over images by `alpha`, at 85 … 100 % strength; return int32 `[n, 32, 32, 3]`."""
    strength = random.between(217, 255)[:, None, None]
    blend = (alpha * strength // 255)[..., None]
    return (images * (255 - blend) + colours[:, None, None, :] * blend) // 255


def _pick_of_class(random: _Random, labels: np.ndarray, digit_labels: np.ndarray) -> np.ndarray:
    """Return, for every label, the index of a random digit sample of that class."""
    order = np.argsort(digit_labels, kind="stable")
    counts = np.bincount(digit_labels, minlength=NUM_CLASSES)
    starts = np.cumsum(counts) - counts
    return order[starts[labels] + random.below(counts[labels])]


def _boxes(masks: np.ndarray) -> np.ndarray:
    """Return the tight box around each mask, int32 `[n, 4]`."""
    rows, columns = masks.any(axis=2), masks.any(axis=1)
    y0, x0 = rows.argmax(axis=1), columns.argmax(axis=1)
    y1, x1 = SIZE - rows[:, ::-1].argmax(axis=1), SIZE - columns[:, ::-1].argmax(axis=1)
    return np.stack([y0, x0, y1, x1], axis=1).astype(np.int32)
