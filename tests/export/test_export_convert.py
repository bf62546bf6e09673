"""Tests of the converters: arrays for Quantus and ViRelAy, pictures, and the command line."""

import json

import numpy as np
import pytest
import stored_export
from PIL import Image
from stored_export import CLASSES, METHODS, H, N, W

from sdecor.export import __main__ as command, convert, reader, to_hdf5, to_npz
from sdecor.export.overlays import overlay, overlays

RNG = np.random.default_rng(4)
SIDE = 6
ABOUT = {
    "config": {"data": {"name": "folder"}},
    "dataset": {"split": "test", "class_names": list("abcd"), "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]},
}


class Source:
    """The exported images, two pixels larger than the network's input."""

    def __init__(self, labels, channels=3, broken=()):
        self.images = RNG.integers(0, 256, (N, SIDE + 2, SIDE + 2, channels), dtype=np.uint8)
        self.objects = RNG.integers(0, 3, (N, SIDE + 2, SIDE + 2), dtype=np.uint8)
        self.labels, self.broken = labels, broken

    def __len__(self):
        return N

    def __getitem__(self, index):
        if index in self.broken:
            raise ValueError("a broken image is not to be read")
        return {"image": self.images[index], "object": self.objects[index], "label": self.labels[index]}

    def name(self, index):
        return f"image {index}"


def exported(path, *, channels=None, skipped=(), image_channels=3, **changes):
    maps = stored_export.draw(channels, side=(SIDE, SIDE))
    reduction = None if channels else "sum"
    columns = stored_export.write(path, maps, reduction=reduction, skipped=skipped, provenance=ABOUT, **changes)
    return maps, columns, reader.open(path), Source(columns["label"], image_channels, skipped)


def loaded(path):
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays}


@pytest.mark.parametrize("channels", [None, 3])
def test_quantus_arrays(tmp_path, channels):
    """`quantus.helpers.asserts` requires channels first, equal heights and widths, and masks of 0 and 1."""
    maps, columns, export, source = exported(tmp_path / "a.zarr", channels=channels, skipped=(5,))
    to_npz(export, tmp_path / "maps.npz", method="gradient", source=source)
    arrays = loaded(tmp_path / "maps.npz")
    kept = np.delete(np.arange(N), 5)
    np.testing.assert_array_equal(arrays["index"], kept)
    expected = maps["gradient"][kept]
    expected = expected[:, None] if channels is None else expected.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(arrays["a_batch"], expected)
    np.testing.assert_array_equal(arrays["y_batch"], columns["target"][kept])
    assert arrays["a_batch"].dtype == np.float32 and arrays["y_batch"].dtype == np.int64
    inner = source.images[kept][:, 1:-1, 1:-1] / 255
    images = (inner - np.array(ABOUT["dataset"]["mean"])) / np.array(ABOUT["dataset"]["std"])
    np.testing.assert_allclose(arrays["x_batch"], images.transpose(0, 3, 1, 2), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(arrays["s_batch"], (source.objects[kept][:, None, 1:-1, 1:-1] == 1))
    assert arrays["s_batch"].shape[1] == 1 and set(np.unique(arrays["s_batch"])) <= {0, 1}


def test_an_archive_is_of_one_method_and_of_the_examples_chosen(tmp_path):
    _, columns, export, _ = exported(tmp_path / "a.zarr")
    with pytest.raises(ValueError, match="one of gradient, integrated_gradients:steps=4"):
        to_npz(export, tmp_path / "maps.npz")
    assert not list(tmp_path.glob("*.npz*"))
    to_npz(export, tmp_path / "deep" / "maps.npz", method="integrated_gradients:steps=4", examples=[9, 3])
    arrays = loaded(tmp_path / "deep" / "maps.npz")
    assert arrays.keys() == {"a_batch", "y_batch", "label", "prediction", "index"}
    np.testing.assert_array_equal(arrays["index"], [3, 9])
    np.testing.assert_array_equal(arrays["label"], columns["label"][[3, 9]])


@pytest.mark.parametrize(("channels", "image_channels"), [(None, 3), (3, 3), (None, 1), (1, 1)])
def test_virelay_files(tmp_path, channels, image_channels):
    """`virelay.model` reads a data set, attributions with the index of their rows in it, and class names."""
    h5py = pytest.importorskip("h5py")
    maps, columns, export, source = exported(
        tmp_path / "a.zarr", channels=channels, image_channels=image_channels, skipped=(5,)
    )
    chosen = [1, 4, 5, 8]
    to_hdf5(export, tmp_path / "virelay", examples=chosen, source=source)
    with h5py.File(tmp_path / "virelay" / "dataset.h5") as file:
        assert file["data"].shape == (4, 3, SIDE, SIDE) and file["data"].dtype == np.uint8
        image = source.images[4, 1:-1, 1:-1].transpose(2, 0, 1)
        np.testing.assert_array_equal(file["data"][1], np.broadcast_to(image, (3, SIDE, SIDE)))
        assert not file["data"][2].any() and file["label"][2] == -1
        np.testing.assert_array_equal(file["label"][[0, 1, 3]], columns["label"][[1, 4, 8]])
    for method, name in METHODS.items():
        with h5py.File(tmp_path / "virelay" / f"{name}.attribution.h5") as file:
            np.testing.assert_array_equal(file["index"], [0, 1, 3])
            np.testing.assert_array_equal(file["example_id"], [1, 4, 8])
            values = maps[method][[1, 4, 8]]
            total = values if channels is None else values.sum(-1)
            assert file["attribution"].shape == (3, 3, SIDE, SIDE)
            np.testing.assert_allclose(np.sum(file["attribution"], 1), total, rtol=1e-5, atol=1e-12)
            np.testing.assert_array_equal(file["prediction"], columns["logits"][[1, 4, 8]])
            np.testing.assert_array_equal(file["label"], columns["label"][[1, 4, 8]])
            assert np.issubdtype(file["label"].dtype, np.integer)
    labels = json.loads((tmp_path / "virelay" / "label-map.json").read_text())
    assert [entry["index"] for entry in labels] == [*range(CLASSES), -1] and labels[1]["name"] == "b"
    assert all(entry.keys() == {"index", "word_net_id", "name"} for entry in labels)


def test_hdf5_without_h5py_or_to_a_remote_folder_is_a_clear_error(tmp_path, monkeypatch):
    _, _, export, _ = exported(tmp_path / "a.zarr")
    with pytest.raises(ValueError, match="gs://x/y is remote"):
        to_hdf5(export, "gs://x/y")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ValueError, match="pip install h5py"):
        to_hdf5(export, tmp_path / "virelay")


def test_other_data_than_was_exported_are_refused(tmp_path):
    _, columns, export, source = exported(tmp_path / "a.zarr")
    relabelled = Source((columns["label"] + 1) % CLASSES)
    with pytest.raises(ValueError, match="example 0 of the source is 'image 0' of class"):
        to_npz(export, tmp_path / "x.npz", method="gradient", source=relabelled)
    renamed = type("Renamed", (Source,), {"name": lambda self, i: f"picture {i}"})(columns["label"])
    with pytest.raises(ValueError, match="'picture 3'.*'image 3'"):
        convert.pictures(export, renamed, [3])
    shorter = type("Shorter", (Source,), {"__len__": lambda self: N - 1})(columns["label"])
    with pytest.raises(ValueError, match="10 examples, and .* 11"):
        convert.pictures(export, shorter, [0])
    assert not list(tmp_path.glob("*.npz*"))


def test_overlays_show_where_the_map_is(tmp_path):
    _, _, export, source = exported(tmp_path / "a.zarr", skipped=(5,))
    written = overlays(export, source, tmp_path / "png", examples=[2, 4, 5])
    names = {path.name for path in written}
    assert names == {f"000004_{name}.png" for name in METHODS.values()}  # the map of 2 is zeros, 5 was skipped
    with Image.open(written[0]) as picture:
        assert picture.size == (252, 252) and picture.mode == "RGB"
    image = np.full((H, W, 3), 100, np.uint8)
    values = np.zeros((H, W), np.float32)
    values[2, 3] = 1
    drawn = overlay(image, values)
    factor = drawn.shape[0] // H
    small = drawn[::factor, ::factor].astype(int)
    assert (np.abs(np.delete(small.reshape(-1, 3), 2 * W + 3, axis=0) - 100) == 0).all() and (small[2, 3] > 200).any()
    values[4, 1] = -1
    small = overlay(image, values)[::factor, ::factor].astype(int)
    assert small[2, 3, 0] > small[2, 3, 2] and small[4, 1, 2] > small[4, 1, 0]  # red for positive, blue for negative
    assert overlay(image, np.full((H, W), np.nan)) is None and overlay(image, np.zeros((H, W))) is None
    assert overlay(RNG.normal(size=(H, W, 1)), values).shape == (drawn.shape[0], drawn.shape[1], 3)


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as status:
        command.main([str(argument) for argument in arguments])
    return status.value.code, capsys.readouterr().out


def test_the_command_line_describes_checks_and_converts(tmp_path, capsys, monkeypatch):
    _, columns, export, source = exported(tmp_path / "a.zarr")
    monkeypatch.setattr(convert, "open_source", lambda export, **changes: source)
    code, output = call(capsys, tmp_path / "a.zarr", "--check", f"--npz={tmp_path / 'm.npz'}", "--methods=gradient")
    assert code == 0 and "11 examples, complete" in output and "every file is whole" in output
    assert "gradient: array gradient, float32 (6, 6), 9 values clipped" in output
    assert loaded(tmp_path / "m.npz").keys() >= {"a_batch", "x_batch", "s_batch"}
    code, _ = call(capsys, tmp_path / "a.zarr", f"--npz={tmp_path / 'n.npz'}", f"--hdf5={tmp_path / 'h'}")
    assert code == 0 and {path.name for path in tmp_path.glob("n*.npz")} == {f"n_{m}.npz" for m in METHODS.values()}
    assert {path.suffix for path in (tmp_path / "h").iterdir()} == {".h5", ".json"}
    code, output = call(capsys, tmp_path / "a.zarr", f"--png={tmp_path / 'p'}", "--examples=0,4")
    assert code == 0 and "4 pictures" in output
    chunk = next(path for path in (tmp_path / "a.zarr" / "gradient").iterdir() if path.name != "zarr.json")
    chunk.write_bytes(chunk.read_bytes()[:-1])
    code, output = call(capsys, tmp_path / "a.zarr", "--check")
    assert code == 1 and chunk.name in output and "run the export's command again" in output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--png=x"], "--examples"),
        (["--npz=x.npz", "--methods=gradent"], "did you mean 'gradient'"),
        (["--npz=x.npz", "--examples=0,first"], "--examples has 'first'"),
        (["--npz=x.npz", "--examples=99"], "examples 0…10"),
        (["--npz=/proc/x.npz"], "--npz = '/proc': no file can be written in /proc"),
        (["--hdf5=/proc/x"], "--hdf5 = '/proc/x': no file can be written in /proc"),
    ],
)
def test_what_cannot_be_converted_is_one_clear_line(tmp_path, capsys, monkeypatch, flags, message):
    _, _, _, source = exported(tmp_path / "a.zarr")
    monkeypatch.setattr(convert, "open_source", lambda export, **changes: source)
    monkeypatch.chdir(tmp_path)
    code, _ = call(capsys, tmp_path / "a.zarr", *flags)
    assert message in code and code.startswith("sdecor.export: ")


def test_images_of_an_export_that_does_not_tell_where_they_lie(tmp_path, capsys):
    stored_export.write(tmp_path / "a.zarr", stored_export.draw(), reduction="sum")
    with pytest.raises(ValueError, match="does not tell where its images lie"):
        convert.open_source(reader.open(tmp_path / "a.zarr"))
    code, output = call(capsys, tmp_path / "a.zarr", f"--npz={tmp_path / 'm.npz'}", "--methods=gradient")
    assert code == 0 and "without images" in output and "x_batch" not in loaded(tmp_path / "m.npz")
