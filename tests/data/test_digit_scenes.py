"""Tests of the embedded data set: equal arrays on every machine, exact masks, disjoint splits, preparation."""

import hashlib
import multiprocessing

import numpy as np
import pytest

from sdecor.data import create_dataset, dataset, scenes

SHA256 = {
    "train": "76927463fdc593d044bdab30b664b069ab45bb75723912987c10feb7daae9f2c",
    "val": "c87007d96f71b9700f4e7c3ce759242d1f9bfe4d436c57bf05229e1345399e84",
    "test": "4a4b7a51385741e9680668a44109d9c4afcedb220e8985ba749325f95c4b9ba5",
}
HINT = "another digit_scenes: if that is meant, raise VERSION in digit_scenes.py; put in the new hashes and statistics"


def digest(drawn: scenes.Scenes) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in drawn)).hexdigest()


@pytest.fixture(scope="module")
def drawn() -> dict[str, scenes.Scenes]:
    return {split: scenes.draw_split(split) for split in scenes.SPLIT_SIZES}


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_same_on_every_machine(drawn, split):
    assert digest(drawn[split]) == SHA256[split], HINT


def test_published_statistics(drawn):
    pixels = drawn["train"].images.reshape(-1, 3) / 255.0
    mean, std = dataset.PUBLISHED["digit_scenes"]
    np.testing.assert_allclose(mean, pixels.mean(0), atol=2e-6, err_msg=HINT)
    np.testing.assert_allclose(std, pixels.std(0), atol=2e-6, err_msg=HINT)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_arrays(drawn, split):
    images, labels, masks, boxes = drawn[split]
    n = scenes.SPLIT_SIZES[split]
    assert images.shape == (n, 32, 32, 3) and images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [n // 10] * 10
    area = masks.mean(axis=(1, 2))
    assert area.min() > 0.03 and 0.1 < area.mean() < 0.2 and area.max() < 0.35
    for mask, (y0, x0, y1, x1) in zip(masks[:200], boxes[:200], strict=True):
        inside = mask[y0:y1, x0:x1]
        assert inside.sum() == mask.sum()
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
    assert len(np.unique(images.reshape(n, -1), axis=0)) == n


def test_a_short_split_is_a_prefix(drawn):
    for short, whole in zip(scenes.draw_split("val", size=30), drawn["val"], strict=True):
        np.testing.assert_array_equal(short, whole[:30])


def test_the_mask_is_exactly_where_the_digit_was_painted(monkeypatch):
    """The digit is painted last; only the mask and its blended rim may differ from the scene before it."""
    painted, paint = [], scenes._paint

    def record(random, images, alpha, colours):
        painted.append((images, paint(random, images, alpha, colours), alpha))
        return painted[-1][1]

    monkeypatch.setattr(scenes, "_paint", record)
    drawn = scenes.draw_chunk("val", 0)
    before, after, alpha = painted[-1]
    assert len(painted) == scenes.FRAGMENTS + 1
    np.testing.assert_array_equal(drawn.images, after)
    changed = (before != after).any(axis=3)
    assert not changed[alpha == 0].any()
    assert changed[drawn.masks == 1].mean() > 0.99 and (drawn.masks == (alpha >= 128)).all()
    assert (changed & (drawn.masks == 0)).mean() < 0.1


def test_splits_share_neither_digits_nor_photographs():
    from sklearn.datasets import load_digits

    digits = {split: scenes.digit_samples(split) for split in scenes.SPLIT_SIZES}
    assert sum(len(samples) for samples, _ in digits.values()) == 1797
    # optdigits holds no two equal samples, so equal values mean the same sample.
    every = np.concatenate([samples for samples, _ in digits.values()]).reshape(1797, -1)
    assert len(np.unique(every, axis=0)) == len(np.unique(load_digits().data, axis=0)) == 1797
    for split, (_, labels) in digits.items():
        low, high = scenes.DIGIT_SHARES[split]
        assert np.abs(np.bincount(labels) / np.bincount(load_digits().target) - (high - low) / 100).max() < 0.02
    ends = sorted(scenes.STRIPS.values())
    assert all(before[1] <= after[0] for before, after in zip(ends, ends[1:], strict=False)) and ends[-1][1] <= 640
    for split, (low, high) in scenes.STRIPS.items():
        assert all(photo.shape == (427, high - low, 3) for photo in scenes.photographs(split))


@pytest.fixture
def small(monkeypatch):
    """Reduce each split to one chunk."""
    monkeypatch.setattr(scenes, "SPLIT_SIZES", dict.fromkeys(scenes.SPLIT_SIZES, scenes.CHUNK))


def test_prepared_arrays_are_the_drawn_ones(small, tmp_path, drawn, capfd):
    data = create_dataset("digit_scenes", data_dir=tmp_path)
    out, err = capfd.readouterr()
    assert out == "" and "Preparing digit_scenes" in err and "Downloading" not in err
    for split in ("train", "val", "test"):
        source = data.source(split)
        assert len(source) == scenes.CHUNK
        for i in range(scenes.CHUNK):
            example = source[i]
            np.testing.assert_array_equal(example["image"], drawn[split].images[i])
            np.testing.assert_array_equal(example["object"], drawn[split].masks[i])
            np.testing.assert_array_equal(example["box"], drawn[split].boxes[i])
            assert example["label"] == drawn[split].labels[i]
        assert source.name(7) == f"digit_scenes {'validation' if split == 'val' else split}[7] ({split}_00007)"
    assert not list(tmp_path.glob(".*"))
    create_dataset("digit_scenes", data_dir=tmp_path)
    assert "Preparing" not in capfd.readouterr().err


def test_it_is_a_registered_tfds_builder(small, tmp_path):
    import tensorflow_datasets as tfds

    import sdecor.data.digit_scenes  # noqa: F401  (registers it)

    create_dataset("digit_scenes", data_dir=tmp_path)
    builder = tfds.builder("digit_scenes", data_dir=tmp_path)
    assert str(builder.version) == "1.0.0" and builder.info.splits["validation"].num_examples == scenes.CHUNK
    example = builder.as_data_source("test")[3]
    assert example["image"].shape == (32, 32, 3) and example["id"] == b"test_00003"


def _prepare(data_dir, barrier):
    from sdecor.data import embedded

    scenes.SPLIT_SIZES = dict.fromkeys(scenes.SPLIT_SIZES, scenes.CHUNK)
    barrier.wait()
    embedded.prepare("digit_scenes", data_dir)


@pytest.mark.full
def test_two_processes_may_prepare_at_once(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["sdecor.data.digit_scenes", "sdecor.data.embedded"]
    )  # imported once for both: the import takes seconds
    barrier = context.Barrier(2)
    processes = [context.Process(target=_prepare, args=(tmp_path, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(create_dataset("digit_scenes", data_dir=tmp_path).source("val")) == scenes.CHUNK
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digit_scenes"]


def test_a_failed_preparation_leaves_nothing_behind(small, tmp_path, monkeypatch):
    def fail(split, start):
        raise RuntimeError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(scenes, "draw_chunk", fail)
        with pytest.raises(Exception, match="disk full"):
            create_dataset("digit_scenes", data_dir=tmp_path)
    assert not list(tmp_path.rglob("*.json"))
    assert len(create_dataset("digit_scenes", data_dir=tmp_path).source("train")) == scenes.CHUNK


def test_other_pixels_of_the_photographs_are_told(small, tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "PHOTOGRAPHS_SHA256", "0" * 64)
    with pytest.warns(UserWarning, match="differs slightly from the published one"):
        create_dataset("digit_scenes", data_dir=tmp_path)


def test_a_remote_data_dir_is_refused():
    with pytest.raises(ValueError, match="data.data_dir = 'gs://bucket/data' is remote"):
        create_dataset("digit_scenes", data_dir="gs://bucket/data")
