"""Draw multivariate time series of two classes that differ in a box of times and channels alone.

After Ismail et al., Benchmarking Deep Learning Interpretability in Time Series Predictions, 2020,
https://arxiv.org/abs/2010.13924, whose series Saliency-Guided Training was tried on: 50 times and 50 channels of a base
process, and a box in which 1 is added for one class and subtracted for the other. Sizes and places of the boxes are the
published ones. All base processes have unit variance, and all times are regular.
"""

import functools
from typing import NamedTuple

import numpy as np

from sdecor.core.checks import check_choice
from sdecor.data.draws import Random
from sdecor.data.memory import MemorySource

TIMES, CHANNELS = 50, 50
CLASS_NAMES = ("negative", "positive")  # the sign of what is added in the box
COUNTS = {"train": 4000, "val": 500, "test": 500}
PROCESSES = ("gaussian", "autoregressive", "harmonic")
HEIGHT = 1.0  # added or subtracted in the box, in standard deviations of the process
COEFFICIENT = 0.9  # of the autoregressive process: the correlation of neighbouring times
PERIODS = (5.0, 25.0)  # shortest and longest period of the harmonic process, in time steps
NOISE = 0.3  # standard deviation of its noise, before the sum is divided by its own
STEP = 256  # values are multiples of 1 / STEP, so that they are the same on every machine
CHUNK = 500  # series drawn at once, which bounds the memory


class Box(NamedTuple):
    """The box that tells the class: its first time and channel, and how many it covers.

    A box that moves begins anywhere inside the series instead.
    """

    time: int
    channel: int
    times: int
    channels: int
    moves: bool = False


_FIXED = {
    "middle": Box(10, 10, 30, 30),
    "small_middle": Box(18, 18, 14, 14),
    "rare_time": Box(22, 5, 6, 40),
    "rare_channel": Box(5, 22, 40, 6),
}
BOXES = _FIXED | {f"moving_{name}": box._replace(moves=True) for name, box in _FIXED.items()}
CONFIGURATIONS = {f"{process}_{box}": (process, box) for process in PROCESSES for box in BOXES}


class Series(NamedTuple):
    """Labelled series; the classes take turns.

    Attributes:
      values: float32 `[N, T, C]`.
      labels: int32 `[N]`.
      masks: uint8 `[N, T, C]`, 1 where a value tells the class.
    """

    values: np.ndarray
    labels: np.ndarray
    masks: np.ndarray


def draw(process: str, box: str, split: str, *, count: int | None = None) -> Series:
    """Draw the series of a split.

    Args:
      process: base process, independent for each channel. "gaussian": white noise. "autoregressive": x_t = 0.9 x_{t−1}
        + noise, so that neighbouring times are correlated. "harmonic": a sine of random period and phase, with noise.
      box: a name in `BOXES`.
      split: "train", "val" or "test".
      count: number of series; None for all of the split.

    Raises:
      ValueError: for an unknown process, box or split.
    """
    check_choice("process", process, PROCESSES)
    check_choice("box", box, BOXES)
    check_choice("split", split, COUNTS)
    count = COUNTS[split] if count is None else count
    labels = (np.arange(count) % 2).astype(np.int32)
    random = Random(list(COUNTS).index(split) * 10007 + PROCESSES.index(process) * 101 + list(BOXES).index(box))
    values = np.empty((count, TIMES, CHANNELS), np.float32)
    masks = np.empty(values.shape, np.uint8)
    for start in range(0, count, CHUNK):
        part = slice(start, min(start + CHUNK, count))
        size = part.stop - part.start
        masks[part] = _boxes(random, BOXES[box], size)
        sign = (2 * labels[part] - 1)[:, None, None]
        exact = _process(random, process, size) + HEIGHT * sign * masks[part]
        values[part] = np.rint(exact * STEP) / STEP
    return Series(values, labels, masks)


def _process(random: Random, process: str, count: int) -> np.ndarray:
    """Draw a base process of unit variance, float64 `[count, T, C]`."""
    noise = random.normal(count, TIMES, CHANNELS).astype(np.float64)
    if process == "gaussian":
        return noise
    if process == "autoregressive":
        own = (1 - COEFFICIENT**2) ** 0.5
        for time in range(1, TIMES):
            noise[:, time] = COEFFICIENT * noise[:, time - 1] + own * noise[:, time]
        return noise
    shortest, longest = PERIODS
    period = shortest + (longest - shortest) * random.uniform(count, 1, CHANNELS)
    turns = random.uniform(count, 1, CHANNELS) + np.arange(TIMES)[None, :, None] / period
    return (2**0.5 * np.sin(2 * np.pi * turns) + NOISE * noise) / (1 + NOISE**2) ** 0.5


def _boxes(random: Random, box: Box, count: int) -> np.ndarray:
    """Return the masks of boxes, bool `[count, T, C]`."""
    times, channels = np.full(count, box.time), np.full(count, box.channel)
    if box.moves:
        times = random.below(TIMES - box.times + 1, count)
        channels = random.below(CHANNELS - box.channels + 1, count)
    time = np.arange(TIMES)[None] - times[:, None]
    channel = np.arange(CHANNELS)[None] - channels[:, None]
    inside_time, inside_channel = (time >= 0) & (time < box.times), (channel >= 0) & (channel < box.channels)
    return inside_time[:, :, None] & inside_channel[:, None, :]


class _Names(NamedTuple):
    """The names of a split's examples, for messages."""

    of: str

    def name(self, index: int) -> str:
        return f"{self.of}[{int(index)}]"


@functools.lru_cache(maxsize=len(COUNTS))
def open_split(configuration: str, split: str) -> MemorySource:
    """Return the examples of a split, drawn in a second or two; `image` is a series float32 `[T, C]`.

    Args:
      configuration: a name in `CONFIGURATIONS`.
      split: "train", "val" or "test".
    """
    found = draw(*CONFIGURATIONS[configuration], split)
    return MemorySource(
        found.values, found.labels, objects=found.masks, origin=_Names(f"series/{configuration} {split}")
    )
