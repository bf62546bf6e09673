"""Tests of data sets from disk: decoding, splits, image folders, Tiny ImageNet, TFDS, and their errors."""

import contextlib
import io
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw, ImageFilter

from sdecor.data import create_dataset, dataset, splits
from sdecor.data.decode import Decoder, decode_mask
from sdecor.data.image_folders import FileSource
from sdecor.data.loader import create_loader

tfds.disable_progress_bar()

CARVED = [2, 32, 33, 41, 42, 43, 53, 88, 94, 95, 111, 127, 142, 147, 148, 150]
NOISE = np.random.default_rng(0).integers(0, 256, (64, 12, 10, 3)).astype(np.uint8)


def encode(array: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind)
    return stream.getvalue()


# --- decoding ---


def decoded(data: bytes, *, name: str, channels: int = 3) -> np.ndarray:
    return Decoder(channels=channels)(data, name=name)["image"]


def test_every_stored_mode_is_converted():
    grey = np.arange(120, dtype=np.uint8).reshape(12, 10)
    stored = {
        "grey": Image.fromarray(grey),
        "bilevel": Image.fromarray(grey > 60),
        "alpha": Image.fromarray(np.dstack([NOISE[0], grey])),
        "16 bit": Image.fromarray(grey.astype(np.uint16) * 256 + 7),
        "palette": Image.fromarray(NOISE[0] // 128 * 255).quantize(8),
    }
    expected = {
        "grey": np.dstack([grey] * 3),
        "bilevel": np.dstack([(grey > 60).astype(np.uint8) * 255] * 3),
        "alpha": NOISE[0],
        "16 bit": np.dstack([grey] * 3),
        "palette": NOISE[0] // 128 * 255,
    }
    for kind, image in stored.items():
        stream = io.BytesIO()
        image.save(stream, "PNG")
        np.testing.assert_array_equal(decoded(stream.getvalue(), name=kind), expected[kind], err_msg=kind)
    stream = io.BytesIO()
    Image.new("CMYK", (10, 12), (255, 0, 0, 0)).save(stream, "JPEG")
    assert np.abs(decoded(stream.getvalue(), name="cmyk").astype(int) - [0, 255, 255]).max() < 8
    assert decoded(encode(NOISE[0]), name="to grey", channels=1).shape == (12, 10, 1)


def photograph(height: int, width: int) -> bytes:
    """Return a JPEG with what photographs have: smooth shades, edges of every direction, texture and noise."""
    y, x = np.mgrid[:height, :width]
    shade = 90 + 60 * np.sin(x / 41) * np.cos(y / 29)
    disc = 70 * (np.hypot(y - 0.4 * height, x - 0.6 * width) < 0.25 * height)
    texture = 25 * np.sin(x * (0.3 + y / height))
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    channels = np.stack([shade + disc, shade - disc + texture, 200 - shade + texture], axis=-1)
    return encode(np.clip(channels + noise, 0, 255).astype(np.uint8), "JPEG")


def triangles(stored: int, out: int) -> np.ndarray:
    """Return the weights `[out, stored]` of bilinear resizing with antialiasing, in float64."""
    step = stored / out
    centres = (np.arange(out)[:, None] + 0.5) * step
    weights = np.maximum(1 - np.abs(np.arange(stored) + 0.5 - centres) / max(step, 1), 0)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["stretch", "crop"])
@pytest.mark.parametrize("size", [(200, 250), (301, 203), (40, 61)])
def test_a_photograph_on_the_canvas_equals_float64_resizing(size, fit, channels):
    """Two passes that round to 8 bits differ by less than 1 grey level; other builds of Pillow by a little more."""
    data, canvas = photograph(*size), (112, 96)
    scale = max(112 / size[0], 96 / size[1])
    height, width = canvas if fit == "stretch" else (round(size[0] * scale), round(size[1] * scale))
    whole = decoded(data, name="x", channels=channels).astype(np.float64)
    rows, columns = triangles(size[0], height), triangles(size[1], width)
    expected = np.einsum("ih,hwc,jw->ijc", rows, whole, columns, optimize=True)
    top, left = (height - 112) // 2, (width - 96) // 2
    expected = expected[top : top + 112, left : left + 96]
    found = Decoder(channels=channels, canvas=canvas, fit=fit)(data, name="x")["image"]
    assert found.shape == (112, 96, channels) and found.dtype == np.uint8
    difference = np.abs(found - expected)
    assert difference.max() < 1.25 and difference.mean() < 0.35
    assert expected.std() > 10  # not a flat image


def test_both_loaders_serve_the_pixels_that_the_decoder_gives(tmp_path):
    paths = tuple(str(tmp_path / f"{number}.jpg") for number in range(4))
    for number, path in enumerate(paths):
        pathlib.Path(path).write_bytes(photograph(60 + number, 80))
    decoder = Decoder(canvas=(24, 24), fit="crop")
    source = FileSource(paths, np.arange(4, dtype=np.int32), decoder)
    expected = [decoder(pathlib.Path(path).read_bytes(), name="x")["image"] for path in paths]
    for kind in ("memory", "grain"):
        with contextlib.closing(create_loader(source, batch_size=4, seed=0, kind=kind).iterate()) as batches:
            batch = next(batches)
        for image, label in zip(batch["image"], batch["label"], strict=True):
            np.testing.assert_array_equal(image, expected[label], err_msg=kind)


@pytest.mark.parametrize("damage", [b"", b"no image", encode(NOISE[0])[:200], encode(NOISE[0], "JPEG")[:400]])
def test_a_damaged_image_names_the_file(damage):
    with pytest.raises(ValueError, match="cats/7.png: cannot be decoded"):
        decoded(damage, name="cats/7.png")


def test_masks_are_read_in_either_encoding():
    codes = np.array([[0, 1, 127], [128, 204, 255]], np.uint8)
    np.testing.assert_array_equal(decode_mask(encode(codes), name="m"), [[0, 0, 0], [1, 1, 1]])
    for stored in (codes > 1, codes[:, :2] % 2, (codes > 1).astype(np.uint8)):  # bilevel, and 0 and 1 in a byte
        np.testing.assert_array_equal(decode_mask(encode(stored), name="m"), stored)
    assert decode_mask(encode(np.full((2, 2), 100, np.uint8)), name="m").sum() == 0  # dark gray everywhere
    for scale in (1, 257):  # 0 … 255 and 0 … 65535, stored in 16 bits
        stored = codes.astype(np.uint16) * scale
        np.testing.assert_array_equal(decode_mask(encode(stored), name="m"), [[0, 0, 0], [1, 1, 1]])
    trimap = np.array([[1, 2], [3, 1]], np.uint8)
    np.testing.assert_array_equal(decode_mask(encode(trimap), name="m", encoding="trimap"), [[1, 0], [2, 1]])
    with pytest.raises(ValueError, match="m: its trimap holds 0 … 255"):
        decode_mask(encode(codes), name="m", encoding="trimap")


@pytest.mark.parametrize(("kind", "blur"), [("PNG", 0), ("PNG", 2), ("JPEG", 0)])
def test_the_object_of_a_graded_mask_is_its_bright_half(kind, blur):
    """Soft edges and JPEG leave small values around the object, which are background."""
    disc = Image.new("L", (64, 64))
    ImageDraw.Draw(disc).ellipse((12, 8, 50, 54), fill=255)
    graded = disc.filter(ImageFilter.GaussianBlur(blur))
    data = encode(np.asarray(graded), kind)
    expected = np.asarray(Image.open(io.BytesIO(data))) >= 128
    np.testing.assert_array_equal(decode_mask(data, name="m"), expected)
    assert abs(int(expected.sum()) - int((np.asarray(disc) > 0).sum())) < 15


@pytest.mark.parametrize("fit", ["stretch", "crop"])
@pytest.mark.parametrize("size", [(60, 80), (80, 60), (40, 40), (16, 48)])
def test_image_mask_and_box_move_together(fit, size):
    """A white rectangle on black must be at the same place in the resized image, mask and box."""
    height, width = size
    y0, x0, y1, x1 = height // 4, width // 4, 3 * height // 4, 5 * width // 8
    mask = np.zeros(size, np.uint8)
    mask[y0:y1, x0:x1] = 1
    image = encode(np.dstack([mask * 255] * 3))
    out = Decoder(canvas=(32, 24), fit=fit)(image, name="x", mask=mask, box=np.array([y0, x0, y1, x1]))
    assert out["image"].shape == (32, 24, 3) and out["object"].shape == (32, 24)
    rows, columns = np.flatnonzero(out["object"].any(1)), np.flatnonzero(out["object"].any(0))
    seen = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
    assert np.abs(out["box"] - seen).max() <= 1
    bright = out["image"][..., 0] > 127
    assert (bright != out["object"]).mean() < 0.1
    assert out["box"].dtype == np.int32


def test_boxes_keep_a_pixel_unless_cropped_away():
    image = encode(np.zeros((64, 128, 3), np.uint8))
    crop = Decoder(canvas=(32, 32), fit="crop")
    assert crop(image, name="x", box=np.array([0, 0, 10, 20]))["box"].tolist() == [0, 0, 0, 0]
    tiny = Decoder(canvas=(8, 8))(image, name="x", box=np.array([63, 127, 64, 128]))["box"]
    assert tiny.tolist() == [7, 7, 8, 8]


# --- splits ---


def test_carving_is_stratified_seeded_and_complete():
    labels = np.repeat([0, 1, 2, 3], [100, 50, 3, 1])
    kept, carved = splits.carve(labels, fraction=0.1, seed=0)
    assert np.bincount(labels[carved], minlength=4).tolist() == [10, 5, 1, 0]
    assert sorted([*kept, *carved]) == list(range(len(labels)))
    # Every published number depends on the choice: these indices must never change.
    assert carved.tolist() == CARVED
    assert set(splits.carve(labels, fraction=0.1, seed=1)[1]) != set(carved)
    with pytest.raises(ValueError, match="nothing to carve"):
        splits.carve(np.arange(5), fraction=0.5, seed=0)


def test_a_limited_split_is_even_over_the_classes():
    labels = np.repeat([0, 1, 2], [100, 50, 2])
    chosen = splits.pick(labels, 12, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [5, 5, 2]
    assert splits.pick(labels, 1000, seed=0).tolist() == list(range(152))
    assert set(splits.pick(labels, 6, seed=0)) <= set(chosen)


# --- image folders ---


@pytest.fixture
def root(tmp_path):
    """Return a folder of two classes with mixed file types and channels: 20 images each in train, 3 each in test."""
    for split, count in (("train", 20), ("test", 3)):
        for label, name in enumerate(("ant", "bee")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = NOISE[i + label]
                suffix, kind = (("png", "PNG"), ("JPG", "JPEG"), ("jpeg", "JPEG"))[i % 3]
                data = encode(pixels[..., 0] if i % 4 == 0 else pixels, kind)
                (tmp_path / split / name / f"{i:02d}.{suffix}").write_bytes(data)
    return tmp_path


def test_folder(root):
    data = create_dataset("folder", path=root)
    train, val, test = (data.source(split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (36, 4, 6)
    assert data.class_names == ("ant", "bee") and data.num_classes == 2 and data.image_shape == (12, 10, 3)
    assert not {train.name(i) for i in range(36)} & {val.name(i) for i in range(4)}
    assert train.labels.dtype == np.int32 and np.bincount(val.labels).tolist() == [2, 2]
    assert test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(test[0]["image"], np.dstack([NOISE[0][..., 0]] * 3))
    assert test[4]["label"] == 1 and test.name(4).endswith("bee/01.JPG")
    copy = pickle.loads(pickle.dumps(val))
    np.testing.assert_array_equal(copy[1]["image"], val[1]["image"])
    assert json.loads(json.dumps(data.info()))["sizes"] == {"train": 36, "val": 4}


def test_folder_statistics_are_exact(root):
    data = create_dataset("folder", path=root)
    pixels = np.concatenate([data.source("train")[i]["image"].reshape(-1, 3) for i in range(36)]) / 255.0
    np.testing.assert_allclose(data.mean, pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(data.std, pixels.std(0), atol=1e-6)
    given = create_dataset("folder", path=root, mean=(0.5,), std=(0.1, 0.2, 0.3))
    assert given.mean == (0.5, 0.5, 0.5) and given.std == (0.1, 0.2, 0.3)
    with pytest.raises(ValueError, match="data.std = .*positive number for each of the 3 channels"):
        create_dataset("folder", path=root, std=(0.1, 0.0, 0.3))
    half = dataset.compute(data.source("train"), sample=18)[0]
    assert half != data.mean


def test_statistics_of_a_sample_are_not_those_of_a_stride():
    """Examples alternate between black and white: with a stride of 2 all would be black."""
    images = [{"image": np.full((2, 2, 1), 255 * (i % 2), np.uint8)} for i in range(400)]
    mean, _ = dataset.compute(images, sample=200)
    assert mean[0] == pytest.approx(0.5, abs=0.1)
    assert dataset.compute(images, sample=200)[0] == mean


def test_folder_own_val_canvas_grey_and_limit(root):
    (root / "test").rename(root / "validation")
    data = create_dataset("folder", path=root, canvas=(8, 6), channels=1, limit=4)
    assert [len(data.source(split)) for split in ("train", "val")] == [4, 4]
    assert data.source("val")[0]["image"].shape == data.image_shape == (8, 6, 1)
    assert np.bincount(data.source("train").labels).tolist() == [2, 2]
    with pytest.raises(ValueError, match="no folder 'test'.*rename"):
        data.source("test")


def test_test_data_is_not_opened_unless_asked_for(root):
    for file in (root / "test" / "ant").iterdir():
        file.unlink()
    data = create_dataset("folder", path=root)
    data.info()
    with pytest.raises(ValueError, match="test/ant: the class folder has no images"):
        data.source("test")


def test_images_in_folders_within_a_class_are_read(root):
    (root / "train" / "ant" / "more" / "deep").mkdir(parents=True)
    (root / "train" / "ant" / ".thumbnails").mkdir()
    for place in ("more/x.png", "more/deep/y.jpeg", ".thumbnails/z.png"):
        (root / "train" / "ant" / place).write_bytes(encode(NOISE[0]))
    (root / "train" / "bee" / "linked").symlink_to(root / "train" / "ant" / "more")
    names = [source.name(i) for source in map(create_dataset("folder", path=root).source, ("train", "val"))
             for i in range(len(source))]  # fmt: skip
    assert len(names) == 40 + 2 + 2 and not [name for name in names if "thumbnails" in name]
    assert sum("/ant/more/" in name for name in names) == 2 == sum("/bee/linked/" in name for name in names)


def test_images_that_are_left_out_are_told(root, caplog):
    (root / "train" / "bee" / "in").mkdir()
    for name in ("train/a.png", "train/ant/b.webp", "train/ant/c.BMP", "train/bee/in/d.tif", "train/ant/notes.txt"):
        (root / name).write_bytes(b"")
    train = create_dataset("folder", path=root).source("train")
    assert len(train) == 36
    (told,) = [record.getMessage() for record in caplog.records]
    for part in (f"{root}/train/a.png", f"{root}/train/ant/b.webp", "c.BMP", "(4 in all)", ".jpg, .jpeg, .png"):
        assert part in told
    assert "notes.txt" not in told


@pytest.mark.parametrize("link", ["train/ant/x.jpg", "train/ant/more", "train/cat", "val"])
def test_a_link_that_leads_nowhere_is_an_error(root, link):
    (root / link).symlink_to(root / "lost")
    with pytest.raises(ValueError, match=f"{root}/{link}.*(put back what|they lead to)"):
        create_dataset("folder", path=root).source("train")


def test_a_link_in_a_circle_is_an_error(root):
    (root / "train" / "ant" / "again").symlink_to(root / "train" / "ant")
    with pytest.raises(ValueError, match="train/ant/again is a link to a folder that it lies in"):
        create_dataset("folder", path=root)


def test_classes_are_compared_as_composed_unicode(root):
    """Some systems decompose the é of a name when they unpack it."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    (root / "train" / "ant").rename(root / "train" / composed)
    (root / "test" / "ant").rename(root / "test" / decomposed)
    data = create_dataset("folder", path=root)
    assert data.class_names == ("bee", composed)
    test = data.source("test")
    assert test.labels.tolist() == [0, 0, 0, 1, 1, 1] and test.name(3).endswith(f"{decomposed}/00.png")
    shutil.copytree(root / "train" / composed, root / "train" / decomposed)
    with pytest.raises(ValueError, match=r"look alike.*cafe\\u0301.*caf\\xe9.*merge or rename"):
        create_dataset("folder", path=root)


def test_names_that_are_not_utf8_are_read_and_shown_escaped(root):
    for split in ("train", "test"):
        folder = root / split / os.fsdecode(b"caf\xe9")
        (root / split / "bee").rename(folder)
        (folder / "00.png").rename(folder / os.fsdecode(b"\xfc.png"))
    data = create_dataset("folder", path=root)
    test = data.source("test")
    assert data.class_names == ("ant", "caf\\xe9") and test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert test.name(5) == f"{root}/test/caf\\xe9/\\xfc.png"
    np.testing.assert_array_equal(test[5]["image"], np.dstack([NOISE[1][..., 0]] * 3))
    json.dumps([data.info(), [test.name(i) for i in range(6)]], ensure_ascii=False).encode()
    os.unlink(test.paths[5])
    with pytest.raises(ValueError, match=r"caf\\xe9/\\xfc.png: cannot be read"):
        test[5]


def test_a_data_path_that_is_not_utf8_is_refused(root):
    other = root.parent / os.fsdecode(b"donn\xe9es")
    root.rename(other)
    with pytest.raises(ValueError, match=r"data.path = .*donn\\\\xe9es' is not UTF-8: rename"):
        create_dataset("folder", path=other)
    (root.parent / "link").symlink_to(other)
    assert len(create_dataset("folder", path=root.parent / "link").source("test")) == 6
    other.rename(root)


def test_folder_errors(root, tmp_path):
    def fails(match, **options):
        with pytest.raises(ValueError, match=match):
            data = create_dataset("folder", **{"path": root, **options})
            for split in ("train", "test"):
                [data.source(split)[i] for i in range(len(data.source(split)))]

    fails("data.path is not set", path=None)
    fails("data.path = .*nowhere.* is not a folder", path=root / "nowhere")
    fails("has no folder 'train' .it holds 'ant', 'bee'", path=root / "train")
    fails("data.canvas = 0", canvas=0)
    fails("data.channels = 2 is not known", channels=2)
    fails("data.canvas_fit = 'croop'.*did you mean 'crop'", canvas_fit="croop")
    fails("data.limit = 0", limit=0)
    fails("data.val_fraction = 1.5", val_fraction=1.5)
    fails("data.train_fraction = 0", train_fraction=0.0)
    (root / "test" / "cow").mkdir()
    fails("test/cow: there is no class 'cow'")
    (root / "test" / "cow").rmdir()
    odd = root / "test" / "bee" / "99.png"
    odd.write_bytes(encode(NOISE[0][:6]))
    fails("bee/99.png: the image is 6×10 .*first one 12×10: set data.canvas")
    odd.write_bytes(b"nothing")
    fails("bee/99.png: cannot be decoded")
    odd.unlink()
    (root / "train" / "cow").mkdir()
    (root / "train" / "cow" / "a.txt").touch()
    fails("train/cow: the class folder has no images .*it holds 'a.txt'")


# --- Tiny ImageNet ---


@pytest.fixture
def tiny(tmp_path):
    (tmp_path / "wnids.txt").write_text("n02\nn01\n")
    (tmp_path / "words.txt").write_text("n01\tcrane, a bird\nn02\tcrane\nn03\tnot used\n")
    for wnid in ("n01", "n02"):
        (tmp_path / "train" / wnid / "images").mkdir(parents=True)
        rows = []
        for i in range(4):
            pixels = np.zeros((64, 64), np.uint8) if i == 0 else np.zeros((64, 64, 3), np.uint8)
            (tmp_path / "train" / wnid / "images" / f"{wnid}_{i}.JPEG").write_bytes(encode(pixels, "JPEG"))
            rows.append(f"{wnid}_{i}.JPEG\t{i}\t10\t63\t62\n")
        (tmp_path / "train" / wnid / f"{wnid}_boxes.txt").write_text("".join(rows))
    (tmp_path / "val" / "images").mkdir(parents=True)
    (tmp_path / "val" / "images" / "val_0.JPEG").write_bytes(encode(np.zeros((64, 64, 3), np.uint8), "JPEG"))
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01\t0\t32\t44\t62\n")
    return tmp_path


def test_tiny_imagenet(tiny):
    data = create_dataset("tiny_imagenet", path=tiny, val_fraction=0.25)
    assert data.class_names == ("crane (n02)", "crane (n01)")
    assert [len(data.source(split)) for split in ("train", "val", "test")] == [6, 2, 1]
    example = data.source("test")[0]
    assert example["label"] == 1 and example["box"].tolist() == [32, 0, 63, 45]
    train = data.source("train")
    for i in range(6):
        assert train[i]["box"].tolist() == [10, int(train.name(i)[-6]), 63, 64]
        assert train[i]["image"].shape == (64, 64, 3)
    small = create_dataset("tiny_imagenet", path=tiny, canvas=32)
    assert small.source("test")[0]["box"].tolist() == [16, 0, 32, 23]


def test_a_share_of_train_is_nested_and_leaves_val_alone(tiny):
    def names(share, split):
        source = create_dataset("tiny_imagenet", path=tiny, val_fraction=0.25, train_fraction=share).source(split)
        return [source.name(i) for i in range(len(source))], np.bincount(source.labels).tolist()

    whole, two_thirds, third = (names(share, "train") for share in (1.0, 2 / 3, 1 / 3))
    assert [len(each) for each, _ in (whole, two_thirds, third)] == [6, 4, 2]
    assert set(third[0]) < set(two_thirds[0]) < set(whole[0])
    assert two_thirds[1] == [2, 2] and third[1] == [1, 1]
    assert names(1 / 3, "val") == names(1.0, "val") and names(1 / 3, "test") == names(1.0, "test")


def test_tiny_imagenet_errors(tiny):
    def fails(match):
        with pytest.raises(ValueError, match=match):
            create_dataset("tiny_imagenet", path=tiny).source("test")

    table = tiny / "val" / "val_annotations.txt"
    table.write_text("val_0.JPEG\tn07\t0\t32\t44\t62\n")
    fails("val_annotations.txt:1: .* has no class")
    table.write_text("val_0.JPEG\tn01\t0\t32\tx\t62\n")
    fails("val_annotations.txt:1: expected a box")
    table.write_text("val_0.JPEG\tn01\t0\t32\t44\t62\nval_1.JPEG\tn01\t0\t32\t44\t62\n")
    fails("val_1.JPEG: listed in val_annotations.txt")
    (tiny / "train" / "n01" / "n01_boxes.txt").unlink()
    fails("n01_boxes.txt: the file is missing")


# --- TFDS ---


class SdecorFake(tfds.core.GeneratorBasedBuilder):
    """A data set of gray and color images of several sizes with mask and box; tests change its attributes."""

    VERSION = tfds.core.Version("1.0.0")
    counts = {"train": 40, "test": 6}
    unlabelled = ()
    without = ()
    trimap = False

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["a", "b"]),
            "segmentation_mask": tfds.features.Image(shape=(None, None, 1)),
            "bbox": tfds.features.BBoxFeature(),
            "file_name": tfds.features.Text(),
        }
        kept = {key: feature for key, feature in features.items() if key not in self.without}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(kept), disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.counts}

    def _generate_examples(self, split):
        for i in range(self.counts[split]):
            mask = np.full((12, 10), 2 if self.trimap else 0, np.uint8)
            mask[2:8, 3:6] = 1
            mask[2, 3] = 3 if self.trimap else 1
            pixels = NOISE[i, ..., 0] if i % 2 else NOISE[i]
            example = {
                "image": encode(pixels),
                "label": -1 if split in self.unlabelled else i % 2,
                "segmentation_mask": encode(mask),
                "bbox": tfds.features.BBox(ymin=2 / 12, xmin=0.3, ymax=8 / 12, xmax=0.6),
                "file_name": f"{split}_{i}.png",
            }
            yield i, {key: value for key, value in example.items() if key not in self.without}


def prepare_fake(data_dir, file_format="array_record", **attributes):
    builder = type("SdecorFake", (SdecorFake,), attributes, skip_registration=True)
    made = builder(data_dir=data_dir, file_format=file_format)
    made.download_and_prepare()
    return pathlib.Path(made.data_dir)


def test_tfds_source(tmp_path):
    prepare_fake(tmp_path)
    data = create_dataset("sdecor_fake", data_dir=tmp_path)
    assert [len(data.source(split)) for split in ("train", "val", "test")] == [36, 4, 6]
    assert data.class_names == ("a", "b") and data.image_shape == (12, 10, 3)
    test = data.source("test")
    assert test.labels.tolist() == [0, 1, 0, 1, 0, 1]
    copy = pickle.loads(pickle.dumps(test))
    for i, source in enumerate((test, copy)):
        example = source[i]
        expected = np.dstack([NOISE[i, ..., 0]] * 3) if i else NOISE[i]
        np.testing.assert_array_equal(example["image"], expected)
        assert example["label"] == i and example["box"].tolist() == [2, 3, 8, 6]
        assert example["object"].sum() == 18 and example["object"][2:8, 3:6].all()
        assert source.name(i) == f"sdecor_fake test[{i}] (test_{i}.png)"
    half = create_dataset("sdecor_fake:1.0.0", data_dir=tmp_path, canvas=(6, 5)).source("test")[0]
    assert half["image"].shape == (6, 5, 3) and half["box"].tolist() == [1, 2, 4, 3]


def test_tfds_trimap_and_path(tmp_path):
    directory = prepare_fake(tmp_path, trimap=True, without=("bbox",))
    example = create_dataset("oxford_iiit_pet", path=directory).source("test")[0]
    assert "box" not in example
    assert example["object"][2, 3] == 2 and example["object"][3, 3] == 1 and example["object"][0, 0] == 0
    same = create_dataset("sdecor_fake", data_dir=tmp_path, mask_encoding="trimap").source("test")[0]
    np.testing.assert_array_equal(same["object"], example["object"])


@pytest.mark.parametrize(
    "name, counts, sizes",
    [
        ("sdecor_fake", {"train": 40, "validation": 6}, (36, 4, 6)),  # its validation is our test
        ("sdecor_fake", {"train": 40, "validation": 6, "test": 8}, (40, 6, 8)),
        ("imagenet2012:5.1.0", {"train": 40, "validation": 6, "test": 8}, (36, 4, 6)),  # its test has no labels
    ],
)
def test_tfds_split_policy(tmp_path, name, counts, sizes):
    directory = prepare_fake(tmp_path, counts=counts, unlabelled=("test",) if name != "sdecor_fake" else ())
    data = create_dataset(name, path=directory)
    assert tuple(len(data.source(split)) for split in ("train", "val", "test")) == sizes
    assert data.source("test").labels.min() == 0


def test_training_does_not_touch_a_tfds_test_split(tmp_path):
    directory = prepare_fake(tmp_path, counts={"train": 8, "validation": 4, "test": 4}, unlabelled=("test",))
    with pytest.raises(ValueError, match="label -1 is outside 0 … 1 .4 of 4 .*the split has no labels"):
        create_dataset("sdecor_fake", data_dir=tmp_path).source("test")
    next(directory.glob("*-test.*")).unlink()
    data = create_dataset("sdecor_fake", data_dir=tmp_path)
    assert data.info()["sizes"] == {"train": 8, "val": 4}
    with pytest.raises(ValueError, match="the data file is missing"):
        data.source("test")


def test_labels_are_scanned_once_for_both_parts_of_train(tmp_path, monkeypatch):
    from sdecor.data.tfds_source import TfdsSource

    prepare_fake(tmp_path)
    scanned, scan = [], TfdsSource._scan_labels
    monkeypatch.setattr(TfdsSource, "_scan_labels", lambda self: scanned.append(self.split) or scan(self))
    data = create_dataset("sdecor_fake", data_dir=tmp_path)
    assert len(data.source("train").labels) + len(data.source("val").labels) == 40
    assert scanned == ["train"]


def test_labels_of_a_large_split_are_kept(tmp_path, monkeypatch):
    from sdecor.data import tfds_source

    directory = prepare_fake(tmp_path, without=("segmentation_mask", "bbox"))
    monkeypatch.setattr(tfds_source, "LARGE", 10)
    first = create_dataset("sdecor_fake", data_dir=tmp_path).source("train").labels
    monkeypatch.setattr(tfds_source.TfdsSource, "_scan_labels", lambda self: pytest.fail("scanned again"))
    np.testing.assert_array_equal(create_dataset("sdecor_fake", data_dir=tmp_path).source("train").labels, first)
    assert (tmp_path / "sdecor_fake" / "1.0.0" / "labels-train.npy").exists() and str(tmp_path) in str(directory)


def test_tfds_errors(tmp_path):
    def fails(match, name="sdecor_fake", split="test", **options):
        with pytest.raises(ValueError, match=match):
            create_dataset(name, **{"data_dir": tmp_path, **options}).source(split)

    fails("'cifar10' is not prepared(.|\n)*file_format=.array_record.(.|\n)*download_and_prepare", "cifar10")
    fails("ILSVRC2012_img_train.tar", "imagenet2012")
    fails("'cifar11' is not known: did you mean .*'cifar10'", "cifar11")
    fails("digit_scene' is not known: did you mean 'digit_scenes'", "digit_scene")
    fails("holds no dataset_info.json", path=tmp_path)
    for feature in ("image", "label"):
        directory = prepare_fake(tmp_path / feature, without=(feature,))
        fails(f"has no feature '{feature}'", path=directory)
    fails("no split 'test' or 'validation'", path=prepare_fake(tmp_path / "only", counts={"train": 4}))
    fails("no split 'train'.*'test'", path=prepare_fake(tmp_path / "none", counts={"test": 4}))
    fails(
        r"test\[0\] .test_0.png.: label -1 is outside 0 … 1 .4 of 4",
        path=prepare_fake(tmp_path / "labels", counts={"train": 4, "test": 4}, unlabelled=("test",)),
    )
    directory = prepare_fake(tmp_path / "files")
    next(directory.glob("*-test.*")).unlink()
    fails("sdecor_fake-test.array_record.*: the data file is missing", path=directory)


def test_several_configurations_must_be_told_apart(tmp_path):
    for config in ("one", "two"):
        directory = prepare_fake(tmp_path / config, counts={"train": 4})
        (tmp_path / "sdecor_fake").mkdir(exist_ok=True)
        directory.parent.rename(tmp_path / "sdecor_fake" / config)
    with pytest.raises(ValueError, match="name one of them: 'sdecor_fake/one', 'sdecor_fake/two'"):
        create_dataset("sdecor_fake", data_dir=tmp_path)
    assert len(create_dataset("sdecor_fake/two", data_dir=tmp_path, val_fraction=0.5).source("train")) == 2


def test_nothing_imports_tensorflow(tmp_path):
    """A fake package `tensorflow`, which ends the process, replaces the installed one."""
    prepare_fake(tmp_path)
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('tensorflow was imported')")
    code = f"""
from sdecor.data import create_dataset
data = create_dataset('sdecor_fake', data_dir={str(tmp_path)!r})
assert data.source('test')[0]['image'].shape == (12, 10, 3)
"""
    root = pathlib.Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment)
