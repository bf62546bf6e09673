"""Tests of examples that cannot be read: named errors, and examples that are left out and replaced."""

import io
import itertools
import json
import os
import pathlib
import pickle
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from test_datasets import SdecorFake
from test_loader import FakeSource, assert_equal, take

from sdecor.data import Skipping, create_dataset, evaluation_batches, load_in_memory, reading
from sdecor.data.batches import batch_indices
from sdecor.data.loader import create_loader

BROKEN = (0, 11, 38, 39)  # of 40; the first and the last ones, which the second one follows
REPLACED = {**{index: index for index in range(40)}, 0: 1, 11: 12, 38: 1, 39: 1}
KINDS = ("memory", "grain")


def skipping(**options) -> Skipping:
    return Skipping(FakeSource(n=40, **({"broken": BROKEN} | options)), split="train")


# --- training ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_next_readable_example_replaces_one_at_any_number_of_processes(kind, processes):
    for process in range(processes):
        fields = {"batch_size": 8, "process_index": process, "process_count": processes}
        loader = create_loader(skipping(), seed=3, kind=kind, **fields)
        for step, batch in enumerate(take(loader, 0, 10)):  # two epochs
            indices, positions = batch_indices(3, step, n=40, **fields)
            whole = FakeSource(n=40)
            wanted = [whole[REPLACED[index]] for index in indices.tolist()]
            np.testing.assert_array_equal(batch["image"], [each["image"] for each in wanted])
            np.testing.assert_array_equal(batch["label"], [each["label"] for each in wanted])
            np.testing.assert_array_equal(batch["position"], positions)
        assert kind == "grain" or loader.left_out == 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_gets_the_same_replacements(kind):
    batches = take(create_loader(skipping(), batch_size=8, seed=3, kind=kind), 0, 10)
    assert_equal(take(create_loader(skipping(), batch_size=8, seed=3, kind=kind), 4, 6), batches[4:])


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_uses_every_example_once_at_any_number_of_processes(kind, processes):
    epochs = []
    for process in range(processes):
        fields = {"batch_size": 8, "process_index": process, "process_count": processes}
        loader = create_loader(FakeSource(n=40), seed=3, kind=kind, **fields)
        epochs.append([batch["image"] for batch in take(loader, 0, 5)])
    seen = np.concatenate([np.concatenate(batches) for batches in zip(*epochs, strict=True)])
    order = np.concatenate([batch_indices(3, step, n=40, batch_size=8)[0] for step in range(5)])
    assert sorted(order) == list(range(40))
    np.testing.assert_array_equal(seen, [FakeSource(n=40)[index]["image"] for index in order])


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_reported_once_and_the_record_lists_it(kind, tmp_path, caplog):
    for _ in range(2):  # the second start continues the file
        source, record = skipping(), reading.Record(tmp_path / "unreadable.jsonl")
        source.keep_with(record.add)
        caplog.clear()
        loader = create_loader(source, batch_size=8, seed=3, kind=kind)
        take(loader, 0, 10)
        told = [each.getMessage() for each in caplog.records if "class/" in each.getMessage()]
        assert sorted(text.split()[0] for text in told) == [f"class/{index}.png" for index in BROKEN]
        assert all("image file is truncated. It is left out (data.on_error = 'skip')" in text for text in told)
        assert loader.left_out == 4 and source.summary() == "4 of 40 examples of train cannot be read"
        rows = [json.loads(line) for line in (tmp_path / "unreadable.jsonl").read_text().splitlines()]
        assert sorted((row["split"], row["example"]) for row in rows) == [("train", index) for index in BROKEN]
        assert rows[0]["error"].startswith(f"class/{rows[0]['example']}.png")


def test_a_damaged_line_of_the_record_hides_no_other(tmp_path):
    path = tmp_path / "unreadable.jsonl"
    path.write_text('{"split": "train", "example": 1, "error": "a"}\n{"split": "tra')
    record = reading.Record(path)
    for index in (1, 2, 3):
        record.add("train", index, "b")
    lines = path.read_text().splitlines()
    assert [json.loads(line)["example"] for line in (lines[0], *lines[2:])] == [1, 2, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_more_than_a_tenth_is_an_error(kind):
    with pytest.raises(ValueError, match=r"5 of 40 examples of train cannot be read, of which 10% may.*class/"):
        take(create_loader(skipping(broken=(*BROKEN, 20)), batch_size=8, seed=3, kind=kind), 0, 10)


@pytest.mark.parametrize("kind", KINDS)
def test_no_readable_example_is_an_error(kind, monkeypatch):
    with pytest.raises(ValueError, match="5 of 40 examples of train cannot be read"):
        create_loader(skipping(broken=range(40)), batch_size=8, seed=3, kind=kind)
    monkeypatch.setattr(reading, "MOST", 1)
    with pytest.raises(ValueError, match=r"none of the 40 examples can be read; the first: class/0\.png"):
        create_loader(skipping(broken=range(40)), batch_size=8, seed=3, kind=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_another_shape_is_left_out(kind):
    source = skipping(broken=(), odd=BROKEN[1:])
    source.shape = (4, 6, 3)
    loader = create_loader(source, batch_size=8, seed=3, kind=kind)
    assert_equal(take(loader, 0, 5), take(create_loader(skipping(broken=BROKEN[1:]), batch_size=8, seed=3), 0, 5))
    assert "(4, 6, 1): it should be uint8 (4, 6, 3)" in source.found[11]


def test_a_copy_in_a_worker_reports_nothing():
    copy = pickle.loads(pickle.dumps(skipping(broken=range(40))))
    for index in range(40):
        with pytest.raises(reading.Unreadable, match=f"class/{index}.png") as caught:
            copy[index]
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.index, str(again)) == (39, str(caught.value)) and not copy.found


# --- evaluation ---


@pytest.mark.parametrize("in_memory", [False, True])
def test_evaluation_leaves_them_out(in_memory, caplog):
    source = load_in_memory(skipping()) if in_memory else skipping()
    batches = list(evaluation_batches(source, batch_size=12))
    index, weight = (np.concatenate([batch[field] for batch in batches]) for field in ("index", "weight"))
    assert sorted(index[weight == 1]) == sorted(set(range(40)) - set(BROKEN))
    assert (index[weight == 0] == -1).all() and len(index) == 48
    images = np.concatenate([batch["image"] for batch in batches])
    np.testing.assert_array_equal(images[weight == 0], [FakeSource(n=40)[1]["image"]] * 12)
    assert "4 of 40 examples" in caplog.text


# --- stored data ---


def folder_of(root: pathlib.Path, *, count: int = 20) -> pathlib.Path:
    """Write `root/{train,val}/<class>/*.jpg` with `count` images of noise a class."""
    rng = np.random.default_rng(0)
    for split, name in itertools.product(("train", "val"), ("ant", "bee")):
        (root / split / name).mkdir(parents=True)
        for i in range(count):
            stream = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (12, 10, 3)).astype(np.uint8)).save(stream, "JPEG")
            (root / split / name / f"{i:02d}.jpg").write_bytes(stream.getvalue())
    return root


def damage_folder(root: pathlib.Path) -> None:
    """Cut an image, replace one by another size, and take away one: three of 40, and one of val."""
    first = root / "train" / "ant" / "00.jpg"
    first.write_bytes(first.read_bytes()[:100])
    Image.new("RGB", (7, 7)).save(root / "train" / "bee" / "03.jpg")
    (root / "val" / "bee" / "04.jpg").write_bytes(b"no image")


def test_images_of_a_folder(tmp_path):
    data = create_dataset("folder", path=folder_of(tmp_path), on_error="skip")
    damage_folder(tmp_path)
    train, val = data.source("train"), data.source("val")
    (tmp_path / "train" / "bee" / "19.jpg").unlink()  # after the folder was listed
    loaders = [create_loader(train, batch_size=8, seed=0, kind=kind) for kind in KINDS]
    memory, grain = (take(loader, 0, 5) for loader in loaders)
    assert_equal(memory, grain)
    assert sorted(train.found) == [0, 23, 39]
    for index, why in ((0, "cannot be decoded as an image"), (23, "the image is 7×7"), (39, "No such file")):
        assert train.name(index) in train.found[index] and why in train.found[index]
    weights = np.concatenate([batch["weight"] for batch in evaluation_batches(val, batch_size=8)])
    assert weights.sum() == 39 and list(val.found) == [24]


def test_the_first_image_of_a_folder_may_be_left_out(tmp_path):
    damage_folder(folder_of(tmp_path))
    data = create_dataset("folder", path=tmp_path, on_error="skip")
    assert data.image_shape == (12, 10, 3) and len(data.source("train")) == 40
    with pytest.raises(ValueError, match=r"ant/00\.jpg: cannot be decoded.*\(example 0\)\. Repair.*data.on_error = 's"):
        create_dataset("folder", path=tmp_path)
    with pytest.raises(ValueError, match="data.on_error = 'ignore'"):
        create_dataset("folder", path=tmp_path, on_error="ignore")


COUNTS = {"train": 40, "validation": 20, "test": 20}


def damaged_shards(root: pathlib.Path, damage) -> str:
    """Prepare a TFDS data set of 40 examples in 20 files, and damage the fifth one: examples 8 and 9."""
    builder = type("SdecorFake", (SdecorFake,), {"counts": COUNTS}, skip_registration=True)
    made = builder(data_dir=root, file_format="array_record")
    made.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=20))
    (path,) = pathlib.Path(made.data_dir).glob("*train*00004-of-00020")
    damage(path)
    return str(path)


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: pathlib.Path) -> None:
    data = np.fromfile(path, np.uint8)
    data[len(data) // 2 :] ^= 255
    data.tofile(path)


@pytest.mark.parametrize("damage", [cut, flip, pathlib.Path.unlink])
def test_a_damaged_data_file_of_tfds(damage, tmp_path):
    path = damaged_shards(tmp_path, damage)
    with pytest.raises(ValueError, match=f"{path}: .*copy"):
        create_dataset("sdecor_fake", data_dir=tmp_path).source("train")
    data = create_dataset("sdecor_fake", data_dir=tmp_path, on_error="skip")
    train = data.source("train")
    loaders = [create_loader(train, batch_size=8, seed=0, kind=kind) for kind in KINDS]
    memory, grain = (take(loader, 0, 5) for loader in loaders)
    assert_equal(memory, grain)
    assert sorted(train.found) == [8, 9] and [loader.left_out for loader in loaders] == [2, 2]
    for index, text in train.found.items():
        assert text.startswith(f"sdecor_fake train[{index}]: {path}: ") and "copy this file anew" in text
    assert train.labels.tolist() == [-1 if i in (8, 9) else i % 2 for i in range(40)]


# --- reads that never end ---


class Asked(Exception):
    """What `check` raises."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_wait_for_a_silent_file_can_be_ended(kind, tmp_path):
    train = create_dataset("folder", path=folder_of(tmp_path, count=3), canvas=8).source("train")
    path = tmp_path / "train" / "bee" / "02.jpg"
    path.unlink()
    os.mkfifo(path)

    def check():
        raise Asked

    began = time.monotonic()
    with pytest.raises(Asked):
        take(create_loader(train, batch_size=6, seed=0, kind=kind, check=check), 0, 1)
    assert time.monotonic() - began < 5
    os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))  # the reader gets an end of the file and leaves
