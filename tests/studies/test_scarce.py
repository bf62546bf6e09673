"""Tests of the study of docs/evidence/scarce.md: its cells, and its test images."""

import io

import numpy as np
import pytest
from PIL import Image

from configs.sweeps import scarce
from sdecor.data import create_dataset, splits
from sdecor.sweep import plan
from studies import resplit


def _jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG")
    return file.getvalue()


METHODS = 13  # of the preregistration


@pytest.mark.parametrize("data", scarce.DATA)
def test_every_method_has_six_settings(data):
    sweep = plan.make(scarce.get_config(f"tuning_{data}"))
    methods = [name.split("_")[0] for name in sweep.cells]
    assert {methods.count(name) for name in methods} == {6} and len(set(methods)) == METHODS
    kinds = {name: cell["method"] for name, cell in sweep.cells.items()}
    assert {kinds[name] for name in kinds if name.startswith("sdecor")} == {"sdecor"}
    assert {kinds[name] for name in kinds if name.startswith("ce")} == {"ce"}


def test_every_method_of_the_second_study_has_four_settings():
    sweep = plan.make(scarce.get_config("retuning_photographs20"))
    methods = [name.split("_")[0] for name in sweep.cells]
    assert {methods.count(name) for name in methods} == {4}
    assert {cell["optim.weight_decay"] for cell in sweep.cells.values()} == {3.0, 10.0}


def test_an_unknown_part_is_named():
    with pytest.raises(ValueError, match="'tuning_x' is not known: choose one of curve, tuning, edge"):
        scarce.get_config("tuning_x")


def test_the_test_images_are_new_and_even():
    labels = np.repeat(np.arange(20), 500)
    train, test = resplit.choose(labels)
    assert np.bincount(labels[test]).tolist() == [100] * 20
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(10_000))
    for fraction, seed in resplit.EARLIER:
        assert not set(test) & set(splits.carve(labels, fraction=fraction, seed=seed)[1])
    _, second = resplit.choose(labels, draw=2)
    validated = train[splits.carve(labels[train], fraction=scarce.VALIDATION, seed=0)[1]]
    assert np.bincount(labels[second]).tolist() == [100] * 20 and not set(second) & ({*test} | {*validated})
    _, third = resplit.choose(labels, draw=3)
    assert np.bincount(labels[third]).tolist() == [90] * 20 and not set(third) & ({*test} | {*validated} | {*second})


def test_the_directory_is_read_as_tiny_imagenet(tmp_path, monkeypatch):
    """Every image keeps its class and box."""
    monkeypatch.setattr(resplit, "DRAWS", {1: (2, 2)})
    monkeypatch.setattr(resplit, "EARLIER", ((0.25, 0),))
    source, out = tmp_path / "whole", tmp_path / "fresh"
    wnids = ("n02", "n01")
    for wnid in wnids:
        images = source / "train" / wnid / "images"
        images.mkdir(parents=True)
        rows = [f"{wnid}_{i}.JPEG\t{i}\t0\t40\t50\n" for i in range(4)]
        (source / "train" / wnid / f"{wnid}_boxes.txt").write_text("".join(rows))
        for i in range(4):
            (images / f"{wnid}_{i}.JPEG").write_bytes(_jpeg())
    (source / "wnids.txt").write_text("\n".join(wnids))
    (source / "words.txt").write_text("n01\tcrane\nn02\tbee\n")
    resplit.write(source, out)
    data = create_dataset("tiny_imagenet", path=out, val_fraction=0.5)
    seen = {split: data.source(split) for split in ("train", "val", "test")}
    counts = {split: np.bincount(found.labels).tolist() for split, found in seen.items()}
    assert counts == {"train": [1, 1], "val": [2, 2], "test": [1, 1]}
    for found in seen.values():
        for i in range(len(found)):
            wnid, number = found.name(i).rsplit("/", 1)[1].removesuffix(".JPEG").split("_")
            assert wnid == wnids[found.labels[i]] and found[i]["box"].tolist() == [0, int(number), 51, 41]
