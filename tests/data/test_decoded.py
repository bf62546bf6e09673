"""The arrays that are kept beside the records of digit_scenes."""

import os
import types

import numpy as np
import pytest

from sdecor.data import decoded, scenes
from sdecor.data.decode import Decoder

PREPARED = types.SimpleNamespace(name="digit_scenes", directory=None, class_names=tuple("0123456789"))


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Return a source of the first drawn examples of val, and the drawn arrays; the records are missing."""
    monkeypatch.setitem(scenes.SPLIT_SIZES, "val", 5)
    images, labels, masks, boxes = (array[:5] for array in scenes.draw_chunk("val", 0))
    rows = np.empty(5, decoded.EXAMPLE)
    decoded.fill(rows, 0, (images, labels, masks, boxes))
    decoded.write(tmp_path, "validation", rows)
    PREPARED.directory = tmp_path
    PREPARED.records = lambda split, skips: range(5)
    decoded.read.cache_clear()
    return decoded.DecodedSource(PREPARED, "validation", Decoder()), (images, labels, masks, boxes)


def test_examples_are_those_that_were_drawn(kept):
    source, (images, labels, masks, boxes) = kept
    np.testing.assert_array_equal(source.labels, labels)
    for index in range(5):
        example = source[index]
        assert example["image"].dtype == np.uint8 and example["box"].dtype == np.int32
        for field, values in (("image", images), ("object", masks), ("box", boxes), ("label", labels)):
            np.testing.assert_array_equal(example[field], values[index])


def test_another_form_or_a_damaged_file_goes_to_the_records(kept, tmp_path):
    source, _ = kept
    with pytest.raises(ValueError):  # the records of this test are no bytes
        decoded.DecodedSource(PREPARED, "validation", Decoder(channels=1))[0]
    path = decoded.path_of(tmp_path, "validation")
    with open(path, "r+b") as stream:
        stream.truncate(100)
    decoded.read.cache_clear()
    assert decoded.read(os.fspath(tmp_path), "validation", 5) is None
    assert decoded.read(os.fspath(tmp_path), "test", 5) is None
