"""Tests of a split's identity, which depends on its images, labels and masks."""

import numpy as np
import pytest

from sdecor.data.batches import identity

RNG = np.random.default_rng(0)


class Source:
    """A split with given images, labels and masks."""

    def __init__(self, images, labels, masks=None, broken=()):
        self.images, self.labels, self.masks, self.broken = images, labels, masks, broken

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index in self.broken:
            raise OSError("cut short")
        example = {"image": self.images[index], "label": self.labels[index]}
        return example | ({} if self.masks is None else {"object": self.masks[index]})

    def name(self, index):
        return f"image {index}"


IMAGES = RNG.integers(0, 256, (9, 6, 6, 3), dtype=np.uint8)
LABELS = np.arange(9, dtype=np.int32) % 3
MASKS = RNG.integers(0, 2, (9, 6, 6), dtype=np.uint8)


def test_the_same_examples_are_the_same():
    assert identity(Source(IMAGES, LABELS)) == identity(Source(IMAGES.copy(), LABELS.astype(np.int64)))
    assert identity(Source(IMAGES, LABELS, MASKS))["masks"] and not identity(Source(IMAGES, LABELS))["masks"]


@pytest.mark.parametrize(
    ("other", "fields"),
    [
        (Source(255 - IMAGES, LABELS, MASKS), {"pixels"}),
        (Source(IMAGES, LABELS[::-1].copy(), MASKS), {"labels"}),
        (Source(IMAGES, LABELS, 1 - MASKS), {"pixels"}),
        (Source(IMAGES, LABELS), {"pixels", "masks"}),
        (Source(IMAGES[:8], LABELS[:8], MASKS), {"pixels", "labels", "examples"}),
        (
            Source(np.concatenate([IMAGES, IMAGES]), np.tile(LABELS, 2), np.tile(MASKS, (2, 1, 1))),
            {"examples", "labels", "pixels"},
        ),
    ],
)
def test_other_examples_are_another_split(other, fields):
    a, b = identity(Source(IMAGES, LABELS, MASKS)), identity(other)
    assert {name for name in a if a[name] != b[name]} == fields


def test_an_unreadable_image_raises_no_error_here():
    found = identity(Source(IMAGES, LABELS, broken=(3,)))
    assert found["examples"] == 9 and found["pixels"] != identity(Source(IMAGES, LABELS))["pixels"]
