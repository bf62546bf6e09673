"""Tests of augmentation against NumPy, and of its independence of batches and devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdecor.data.augment import augment, center_crop, crop_box, denormalise, normalise, to_float

ALL = {
    "crop": {"crop_padding": 3, "flip": True},
    "smaller": {"size": 5, "flip": True},
    "resized": {"resized_crop": (0.1, 1.0), "flip": True},
    "resized_down": {"resized_crop": (0.3, 1.0), "size": 3, "flip": True},
}


def run(key: jax.Array, images: np.ndarray, **options) -> np.ndarray:
    return np.asarray(jax.jit(functools.partial(augment, **options))(key, images))


@pytest.fixture
def images() -> np.ndarray:
    """Return images without zeros, to tell them from padding."""
    return np.random.default_rng(0).uniform(0.1, 1, (16, 8, 8, 3)).astype(np.float32)


@pytest.fixture
def keys(key) -> jax.Array:
    return jax.random.split(key, 16)


def test_nothing_asked_changes_nothing(keys, images):
    np.testing.assert_array_equal(run(keys, images), images)
    np.testing.assert_array_equal(center_crop(images, None), images)


def test_one_key_stands_for_a_key_an_example(key, images):
    expected = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(16))
    np.testing.assert_array_equal(run(key, images, **ALL["crop"]), run(expected, images, **ALL["crop"]))


@pytest.mark.parametrize(
    "options",
    [pytest.param(ALL[name], id=name, marks=pytest.mark.full if name == "resized_down" else ()) for name in ALL],
)
def test_an_example_does_not_depend_on_its_batch(keys, images, options):
    whole = run(keys, images, **options)
    assert not np.array_equal(whole, images[:, : whole.shape[1], : whole.shape[2]])
    order = np.random.default_rng(1).permutation(16)
    np.testing.assert_allclose(run(keys[order], images[order], **options), whole[order], atol=1e-6)
    parts = [run(keys[i : i + 4], images[i : i + 4], **options) for i in range(0, 16, 4)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)


def test_the_number_of_devices_changes_nothing(keys, images):
    whole = run(keys, images, **ALL["crop"])
    shards = jax.pmap(functools.partial(augment, **ALL["crop"]))(keys.reshape(8, 2), images.reshape(8, 2, 8, 8, 3))
    np.testing.assert_array_equal(np.asarray(shards).reshape(whole.shape), whole)


@pytest.mark.parametrize(("padding", "size"), [(2, 8), (2, 5), (0, 5), (1, 10)])
def test_a_crop_is_a_window_of_the_padded_image(key, images, padding, size):
    n = 200
    picks = np.arange(n) % 16
    crops = run(jax.random.split(key, n), images[picks], crop_padding=padding, size=size)
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    places = 8 + 2 * padding - size + 1
    seen = set()
    for crop, pick in zip(crops, picks, strict=True):
        match = [
            (y, x)
            for y in range(places)
            for x in range(places)
            if np.array_equal(crop, padded[pick, y : y + size, x : x + size])
        ]
        assert len(match) == 1
        seen.update(match)
    assert {y for y, _ in seen} == {x for _, x in seen} == set(range(places))


def test_half_of_the_images_are_mirrored(key):
    n = 1000
    image = np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3) / 12
    batch = np.broadcast_to(image, (n, 2, 2, 3))
    result = run(jax.random.split(key, n), batch, flip=True)
    mirrored = (result == batch[:, :, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(result[~mirrored], batch[~mirrored])
    assert 0.5 - 4 * 0.5 / n**0.5 < mirrored.mean() < 0.5 + 4 * 0.5 / n**0.5


@pytest.mark.parametrize("size", [4, 8, 11], ids=["smaller", "same", "larger"])
def test_a_resized_crop_of_everything_is_a_resize(keys, images, size):
    result = run(keys, images, resized_crop=(1.0, 1.0), size=size)
    expected = jax.image.resize(images, (16, size, size, 3), "linear")
    np.testing.assert_allclose(result, expected, atol=2e-6)


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 8), (9, 7, 4), (6, 10, 12)])
def test_a_resized_crop_is_the_scaled_box(keys, height, width, size):
    images = np.random.default_rng(2).uniform(size=(16, height, width, 2)).astype(np.float32)
    result = run(keys, images, resized_crop=(0.2, 0.9), size=size)

    @jax.jit
    @jax.vmap
    def oracle(key, image):
        y, x, box_height, box_width = crop_box(key, height, width, (0.2, 0.9))
        scale = jnp.stack([size / box_height, size / box_width])
        shift = -jnp.stack([y, x]) * scale
        return jax.image.scale_and_translate(image, (size, size, 2), (0, 1), scale, shift, method="linear")

    np.testing.assert_allclose(result, oracle(keys, images), atol=5e-6)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 30), (10, 60)], ids=["square", "wide", "strip"])
def test_boxes_lie_inside_and_have_the_area_and_aspect_asked_for(key, height, width):
    draw = jax.jit(jax.vmap(lambda k: crop_box(k, height, width, (0.08, 1.0))))
    y, x, box_height, box_width = np.asarray(draw(jax.random.split(key, 2000)), np.float64).T
    slack = 1e-4 * max(height, width)
    assert (y >= 0).all() and (y + box_height <= height + slack).all()
    assert (x >= 0).all() and (x + box_width <= width + slack).all()
    area = box_height * box_width / (height * width)
    np.testing.assert_allclose(np.quantile(area, [0, 0.25, 0.5, 0.75, 1]), [0.08, 0.31, 0.54, 0.77, 1], atol=0.04)
    # The ratio is limited too by boxes as high (area·W/H) or as wide (W/(H·area)) as the image.
    low, high = np.clip(3 / 4, area * width / height, None), np.clip(4 / 3, area * width / height, None)
    low, high = np.minimum(low, width / (height * area)), np.minimum(high, width / (height * area))
    ratio = box_width / box_height
    assert (ratio > low * 0.999).all() and (ratio < high * 1.001).all()
    free = high > low * 1.3
    assert free.sum() > 100
    position = np.log(ratio / low)[free] / np.log(high / low)[free]
    np.testing.assert_allclose(np.quantile(position, [0, 0.25, 0.5, 0.75, 1]), [0, 0.25, 0.5, 0.75, 1], atol=0.12)


def test_center_crop_of_images_and_masks():
    images = np.arange(2 * 5 * 6 * 1).reshape(2, 5, 6, 1)
    np.testing.assert_array_equal(center_crop(images, 3), images[:, 1:4, 1:4])
    np.testing.assert_array_equal(center_crop(images[..., 0], 3), images[:, 1:4, 1:4, 0])
    with pytest.raises(ValueError, match="size = 6 is larger than the images of 5×6"):
        center_crop(images, 6)


def test_normalise_and_back():
    images = np.arange(2 * 3 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 3) * 4
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    expected = (images / 255.0 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(normalise(jnp.asarray(images), mean, std), expected, atol=1e-6)
    np.testing.assert_allclose(normalise(to_float(jnp.asarray(images)), mean, std), expected, atol=1e-6)
    np.testing.assert_allclose(normalise(jnp.asarray(images[0]), mean, std), expected[0], atol=1e-6)
    np.testing.assert_allclose(denormalise(jnp.asarray(expected), mean, std), images / 255.0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_padding": -1}, "crop_padding = -1"),
        ({"size": 13, "crop_padding": 2}, "size = 13 is larger than the image of 8×8 with crop_padding = 2"),
        ({"resized_crop": (0.0, 1.0)}, r"resized_crop\[0\] = 0.0"),
        ({"resized_crop": (0.5, 1.5)}, r"resized_crop\[1\] = 1.5"),
        ({"resized_crop": (0.5, 0.25)}, r"resized_crop\[0\] = 0.5"),
        ({"resized_crop": (0.5, 1.0), "crop_padding": 1}, "choose one"),
    ],
)
def test_impossible_options_say_what_is_right(key, images, options, message):
    with pytest.raises(ValueError, match=message):
        augment(key, images, **options)


def test_impossible_arrays_say_what_is_right(key, images):
    with pytest.raises(ValueError, match="images is uint8"):
        augment(key, images.astype(np.uint8), flip=True)
    with pytest.raises(ValueError, match="mean has 2 values: the images have 3 channels"):
        normalise(jnp.asarray(images), (0.0, 0.0), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="std = "):
        normalise(jnp.asarray(images), (0.0, 0.0, 0.0), (1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="dtype int32"):
        to_float(jnp.ones((1, 2, 2, 3), jnp.int32))
