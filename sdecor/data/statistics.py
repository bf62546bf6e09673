"""Mean and standard deviation that images are normalised by: given, published, or computed from training images."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from sdecor.data.order import epoch_order
from sdecor.data.splits import Source

SAMPLE = 4096  # images from which mean and std are computed
PUBLISHED = {  # mean and std of the training images, in [0, 1]
    "digit_scenes": ((0.379278, 0.399056, 0.322808), (0.272799, 0.242677, 0.218832)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn_cropped": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def resolve(
    name: str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    *,
    channels: int,
    train: Callable[[], Source],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return `mean` and `std`, one value a channel; what is None is looked up by name or computed from `train()`."""
    if mean is None or std is None:
        published = PUBLISHED.get(name.partition(":")[0])
        fits = published is not None and len(published[0]) in (1, channels)
        found = published if fits else compute(train())
        mean, std = found[0] if mean is None else mean, found[1] if std is None else std
    return _per_channel("data.mean", mean, channels), _per_channel("data.std", std, channels, positive=True)


def compute(source: Source, *, sample: int = SAMPLE) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, of pixel values in [0, 1], over at most `sample` examples.

    They are chosen at random, always the same: examples often follow a pattern, of which a stride would see a part. The
    sums are whole numbers, so the result does not depend on their order. A constant channel gets 1/255 as its standard
    deviation, so that dividing by it is harmless.
    """
    total = squares = pixels = 0
    for i in np.sort(epoch_order(0, 0, len(source))[:sample]):
        image = source[int(i)]["image"].astype(np.int64)
        total = total + image.sum(axis=(0, 1))
        squares = squares + (image * image).sum(axis=(0, 1))
        pixels += image.shape[0] * image.shape[1]
    mean, std = [], []
    for s, q in zip(total.tolist(), squares.tolist(), strict=True):
        mean.append(round(s / (255 * pixels), 6))
        variance = (pixels * q - s * s) / (255 * pixels) ** 2
        std.append(round(max(math.sqrt(variance), 1 / 255), 6))
    return tuple(mean), tuple(std)


def _per_channel(field: str, values: Sequence[float], channels: int, *, positive: bool = False) -> tuple[float, ...]:
    values = tuple(float(value) for value in values)
    values = values * channels if len(values) == 1 else values  # grey images in three channels
    if len(values) != channels or not all(math.isfinite(v) and (v > 0 or not positive) for v in values):
        kind = "positive number" if positive else "number"
        raise ValueError(
            f"{field} = {values!r}: give one {kind} for each of the {channels} channels, for pixels in [0, 1]"
        )
    return values
