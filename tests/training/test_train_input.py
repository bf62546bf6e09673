"""Tests of runs whose images cannot be read: an error that names the file, or a run that leaves them out."""

import itertools
import json
import math

import pytest
import tiny_runs

import train
from sdecor.evaluation import runs
from sdecor.training import logbook


@pytest.fixture
def images(tmp_path):
    """Return a folder of images, after damage to two of train and one of val."""
    root = tiny_runs.draw_images(tmp_path / "images", train=30)
    data = train.build.create_data(tiny_runs.tiny_config(root))
    for split, indices in (("train", (0, 7)), ("val", (4,))):
        for index in indices:
            with open(data.source(split).name(index), "wb") as file:
                file.write(b"no image")
    return root


def config_of(images, **changes):
    return tiny_runs.tiny_config(images, **({"data.on_error": "skip", "train.epochs": 1.0} | changes))


@pytest.mark.full
def test_a_run_that_leaves_out_images_does_not_depend_on_its_loader(images, tmp_path, caplog):
    found = {}
    for loader in ("memory", "grain"):
        folder = tmp_path / loader
        caplog.clear()
        assert train.train(config_of(images, **{"data.loader": loader}), str(folder))
        rows = [json.loads(line) for line in (folder / "unreadable.jsonl").read_text().splitlines()]
        assert sorted((row["split"], row["example"]) for row in rows) == [("train", 0), ("train", 7), ("val", 4)]
        assert "2 training examples could not be read and were replaced" in caplog.text
        (validation,) = [row for row in logbook.read_rows(folder) if row["split"] == "val"]
        assert math.isfinite(validation["cross_entropy"])
        # 15 of the 16 validation images count, so that the accuracy is a multiple of 1/15
        assert round(validation["accuracy"] * 15, 4) == round(validation["accuracy"] * 15)
        found[loader] = runs.restore(str(folder), checkpoint="latest", split="val").settings
    assert found["memory"]["parameters"] == found["grain"]["parameters"]
    assert found["memory"]["data"] == found["grain"]["data"]


@pytest.mark.full
def test_a_run_that_stopped_at_a_damaged_image_may_leave_it_out(tmp_path):
    images = tiny_runs.draw_images(tmp_path / "images", train=30)
    stop = {"data.loader": "grain", "data.on_error": "stop"}
    path = train.build.create_data(tiny_runs.tiny_config(images)).source("train").name(7)
    with pytest.MonkeyPatch.context() as patch:  # the run is interrupted after two steps, and the image damaged
        polls = itertools.count(1)
        patch.setattr(train.processes, "agree_to_stop", lambda asked: next(polls) == 2)
        assert not train.train(config_of(images, **stop, **{"train.epochs": 4.0}), str(tmp_path / "run"))
    with open(path, "wb") as file:
        file.write(b"no image")
    with pytest.raises(ValueError, match=rf"{path}: cannot be decoded.*\(example 7\)\. Repair the file, or leave out"):
        train.train(config_of(images, **stop, **{"train.epochs": 4.0}), str(tmp_path / "run"))
    changed = stop | {"data.on_error": "skip", "train.epochs": 4.0}
    assert train.train(config_of(images, **changed), str(tmp_path / "run"))
