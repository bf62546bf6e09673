"""Tests of `xai_tris`: signal, background and masks as published, and the prepared data set."""

import numpy as np
import pytest

from sdecor.data import create_dataset, tetrominoes


def drawn(scenario, background, size="8x8", count=4000):
    found = tetrominoes.draw(scenario, background, size, count=count)
    return found, found.images.astype(np.float64) - 127.5


def linear_accuracy(images, labels):
    """Return the accuracy of a least-squares classifier on the second half of the images."""
    rows = np.column_stack([images.reshape(len(images), -1), np.ones(len(images))])
    half = len(rows) // 2
    weights, *_ = np.linalg.lstsq(rows[:half], 2.0 * labels[:half] - 1, rcond=None)
    return np.mean((rows[half:] @ weights > 0) == labels[half:])


def test_the_signal_has_the_published_place_shape_and_weight():
    found, images = drawn("linear", "white", count=20000)
    shapes = np.zeros((2, 8, 8))
    shapes[0, 1:4, 1:3] = [[1, 0], [1, 1], [1, 0]]
    shapes[1, 4:7, 5:7] = [[1, 0], [1, 0], [1, 1]]
    np.testing.assert_array_equal(found.masks, np.repeat(shapes.sum(0, keepdims=True), len(images), 0))
    difference = images[found.labels == 0].mean(0) - images[found.labels == 1].mean(0)
    noise = images[:, 0, 0].std()
    # ‖s‖ = √(4 N) and ‖b‖ = √(64 N) std, so that the signal is 4 α / (1 − α) standard deviations high.
    expected = 4 * 0.18 / 0.82 * noise * (shapes[0] - shapes[1])
    np.testing.assert_allclose(difference, expected, atol=5 * noise * (4 / len(images)) ** 0.5)
    assert np.abs(images).max() == 127.5  # the largest magnitude of all


@pytest.mark.parametrize("background", tetrominoes.BACKGROUNDS)
def test_only_the_linear_scenarios_can_be_told_by_a_linear_classifier(background):
    accuracy = {
        name: linear_accuracy(drawn(name, background)[1], drawn(name, background)[0].labels)
        for name in ("linear", "xor")
    }
    assert accuracy["linear"] > 0.75
    assert abs(accuracy["xor"] - 0.5) < 0.05


def test_classes_of_xor_are_the_product_of_two_signs():
    found, images = drawn("xor", "white")
    first, second = (
        images[:, ys, xs].sum(1) for ys, xs in (([1, 2, 3, 2], [1, 1, 1, 2]), ([4, 5, 6, 6], [5, 5, 5, 6]))
    )
    agreement = np.mean((first * second > 0) == (found.labels == 0))
    assert agreement > 0.9
    assert abs(np.mean(first > 0) - 0.5) < 0.05  # and one sign alone tells nothing


def test_moved_tetrominoes_are_everywhere_turned_and_masked_alone():
    found, images = drawn("translations_rotations", "white")
    assert (found.masks.sum((1, 2)) == 4).all()
    assert (found.masks.mean(0) > 0).all()
    for label, shape in ((0, tetrominoes.T), (1, tetrominoes.L)):
        patches = set()
        for mask in found.masks[found.labels == label][:200]:
            ys, xs = np.nonzero(mask)
            patches.add(mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].tobytes())
        assert patches == {np.rot90(shape, k).astype(np.uint8).tobytes() for k in range(4)}
    inside, outside = images[found.masks == 1].mean(), images[found.masks == 0].mean()
    assert inside > 50 and abs(outside) < 1


def test_backgrounds_are_correlated_as_named():
    def neighbours(background):
        images = drawn("xor", background, count=1000)[1]
        left, right = (images[:, :, part] - images[:, :, part].mean() for part in (slice(None, -1), slice(1, None)))
        return np.mean(left * right) / (left.std() * right.std())

    assert abs(neighbours("white")) < 0.2 and neighbours("correlated") > 0.7 and neighbours("natural") > 0.3


def test_large_tetrominoes_are_blurred_and_half_their_blur_is_important():
    found = tetrominoes.draw("linear", "white", "64x64", count=4)
    cells = np.zeros((64, 64))
    cells[8:32, 8:16] = cells[16:24, 16:24] = 1  # the T
    cells[32:56, 40:48] = cells[48:56, 48:56] = 1  # the L
    mask = found.masks[0]
    assert (mask[cells == 1] == 1).all()
    grown = np.pad(cells, 3)
    grown = sum(grown[3 + y : 67 + y, 3 + x : 67 + x] for y in range(-3, 4) for x in range(-3, 4)) > 0
    assert (mask[~grown] == 0).all() and mask.sum() > cells.sum()


def test_the_prepared_data_set_has_the_drawn_images(tmp_path, monkeypatch, capfd):
    small = tetrominoes.SIZES["8x8"]._replace(counts={"train": 12, "val": 6, "test": 4})
    monkeypatch.setitem(tetrominoes.SIZES, "8x8", small)
    name = "xai_tris/xor_white_8x8"
    data = create_dataset(name, data_dir=tmp_path, channels=1)
    assert "Preparing xai_tris/xor_white_8x8" in capfd.readouterr().err
    expected = tetrominoes.draw("xor", "white", "8x8")
    assert data.class_names == ("same_sign", "opposite_sign") and data.image_shape == (8, 8, 1)
    start = 0
    for split, count in small.counts.items():
        source = data.source(split)
        assert len(source) == count
        for i in range(count):
            example = source[i]
            np.testing.assert_array_equal(example["image"][..., 0], expected.images[start + i])
            np.testing.assert_array_equal(example["object"], expected.masks[start + i])
            assert example["label"] == expected.labels[start + i]
        start += count
    create_dataset(f"{name}:1.0.0", data_dir=tmp_path, channels=1)
    assert "Preparing" not in capfd.readouterr().err


def test_a_configuration_must_be_named_and_known(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'xai_tris/xor_white_8x8'"):
        create_dataset("xai_tris/xor_whit_8x8", data_dir=tmp_path)
    with pytest.raises(ValueError, match="data.name = 'xai_tris'.*xai_tris/linear_white_8x8"):
        create_dataset("xai_tris", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"did you mean 'xai_tris'\? "):
        create_dataset("xai_tri/xor_white_8x8", data_dir=tmp_path)
    with pytest.raises(ValueError, match="version of data.name = '2.0.0'"):
        create_dataset("xai_tris/xor_white_8x8:2.0.0", data_dir=tmp_path)
    with pytest.raises(ValueError, match="digit_scenes has no configurations"):
        create_dataset("digit_scenes/small", data_dir=tmp_path)
