"""Tests of `series`: processes, boxes and masks as described, and the data set in every loader."""

import jax.numpy as jnp
import numpy as np
import pytest

from sdecor import metrics
from sdecor.data import create_dataset, create_loader, series, splits
from sdecor.data.batches import training_batch

NAME = "series/autoregressive_moving_rare_time"


@pytest.fixture
def few(monkeypatch):
    """Let a split have few series; what is drawn is cached, so that the cache is emptied before and after."""
    monkeypatch.setattr(series, "COUNTS", {"train": 24, "val": 8, "test": 8})
    series.open_split.cache_clear()
    yield
    series.open_split.cache_clear()


@pytest.mark.parametrize("process", series.PROCESSES)
def test_the_box_alone_tells_the_class(process):
    found = series.draw(process, "moving_rare_time", "test", count=400)
    inside = found.masks.astype(bool)
    sign = 2.0 * found.labels - 1
    assert abs(sign.sum()) == 0 and found.values.dtype == np.float32
    in_box = np.where(inside, found.values, 0).sum((1, 2)) / inside.sum((1, 2))
    around = np.where(inside, 0, found.values).sum((1, 2)) / (~inside).sum((1, 2))
    assert np.mean(np.sign(in_box) == sign) > 0.99  # a linear readout of the box
    assert abs(np.mean(np.sign(around) == sign) - 0.5) < 0.1
    base = found.values - sign[:, None, None] * inside
    np.testing.assert_allclose([base.mean(), base.std()], [0, 1], atol=0.03)
    np.testing.assert_array_equal(found.values * series.STEP, np.rint(found.values * series.STEP))


def test_processes_are_correlated_in_time_as_described():
    def neighbours(process):
        values = series.draw(process, "middle", "val", count=200).values[:, :, :10]  # channels before the box
        return np.mean(values[:, 1:] * values[:, :-1])

    assert abs(neighbours("gaussian")) < 0.02
    np.testing.assert_allclose(neighbours("autoregressive"), 0.9, atol=0.02)
    periods = np.linspace(*series.PERIODS, 10001)
    expected = np.cos(2 * np.pi / periods).mean() / (1 + series.NOISE**2)  # that of a sine of random phase, with noise
    np.testing.assert_allclose(neighbours("harmonic"), expected, atol=0.02)


@pytest.mark.parametrize("name", series.BOXES)
def test_masks_are_boxes_of_the_published_size(name):
    masks, box = series.draw("gaussian", name, "val", count=300).masks, series.BOXES[name]
    times, channels = masks.any(2), masks.any(1)
    np.testing.assert_array_equal(masks, times[:, :, None] & channels[:, None, :])
    for sides, size in ((times, box.times), (channels, box.channels)):
        assert (sides.sum(1) == size).all()
        assert (np.abs(np.diff(sides.astype(int), axis=1)).sum(1) <= 2).all()  # without a gap
    if box.moves:
        assert times.any(0).all() and channels.any(0).all()
    else:
        assert (masks == masks[:1]).all() and times[0].argmax() == box.time and channels[0].argmax() == box.channel
    uniform = metrics.energy_inside(jnp.ones(times.shape), jnp.asarray(times))
    np.testing.assert_allclose(uniform, box.times / series.TIMES, rtol=1e-5)


def test_draws_are_repeated_and_splits_differ():
    draws = [series.draw("harmonic", "middle", split, count=2).values for split in ("train", "train", "val", "test")]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).mean() > 0.9 and (draws[2] != draws[3]).mean() > 0.9


def test_the_data_set_and_its_loaders(few):
    data = create_dataset(NAME, channels=50)
    assert (data.image_shape, data.dtype, data.class_names) == ((50, 50), "float32", ("negative", "positive"))
    train = data.source("train")
    np.testing.assert_allclose(data.mean, train.images.mean((0, 1), dtype=np.float64), atol=1e-6)
    np.testing.assert_allclose(data.std, train.images.std((0, 1), dtype=np.float64), atol=1e-6)
    assert data.source("test").name(3) == f"{NAME} test[3]"
    options = {"batch_size": 6, "seed": 3}
    batches = {kind: create_loader(train, kind=kind, **options).batch(1) for kind in ("memory", "grain", "device")}
    expected = train.images[batches["device"]["index"]]
    for kind in ("memory", "grain"):
        assert batches[kind]["image"].dtype == np.float32
        np.testing.assert_array_equal(batches[kind]["image"], expected)
    assert create_loader(train, **options).describe().startswith("memory: 24 series of 50×50, ")
    picked = create_dataset(NAME, channels=50, limit=5).source("val")
    assert isinstance(picked, splits.Subset) and len(picked) == 5


def test_what_is_wrong_is_named(few):
    with pytest.raises(ValueError, match=r"data.channels = 3: the series have 50 channels"):
        create_dataset(NAME)
    with pytest.raises(ValueError, match=r"data.canvas = 32 is for images"):
        create_dataset(NAME, channels=50, canvas=32)
    with pytest.raises(ValueError, match="did you mean 'series/gaussian_middle'"):
        create_dataset("series/gaussian_midle", channels=50)
    mixed = [{"image": np.zeros((4, 2), dtype), "label": 0} for dtype in (np.float32, np.float64, np.uint8)]

    class Source(list):
        def name(self, index):
            return "mine"

    with pytest.raises(ValueError, match=r"float64 \(4, 2\): it should be uint8 \[H, W, C\], or float32"):
        training_batch(Source(mixed), np.array([0, 1]), np.arange(2), (4, 2))
    mixed[1]["image"] = np.zeros((4, 2, 1), np.uint8)
    with pytest.raises(ValueError, match=r"it should be uint8 \(4, 2\)"):
        training_batch(Source(mixed), np.array([0, 1]), np.arange(2), (4, 2))
    images = [{"image": np.zeros((4, 2, 1), dtype), "label": 0} for dtype in (np.uint8, np.float32)]
    with pytest.raises(ValueError, match="has an image of float32: it should be uint8 as the others"):
        training_batch(Source(images), np.array([0, 1]), np.arange(2), (4, 2, 1))
