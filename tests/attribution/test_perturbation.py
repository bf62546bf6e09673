"""Tests of occlusion and RISE: brute force, closed forms, captum's results, chunks, batches and errors."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_network as reference

from sdecor.attribution import explain
from sdecor.attribution.perturbation import occlusion, rise

SHAPE = (9, 7, 3)
KEY = jax.random.key(0)
METHODS = pytest.mark.parametrize(
    ("method", "options"),
    [(occlusion, {"window": 3, "stride": 2, "baseline": "uniform"}), (rise, {"samples": 10, "cells": 3})],
    ids=["occlusion", "rise"],
)


@pytest.fixture
def image() -> jax.Array:
    return jax.random.normal(jax.random.key(1), SHAPE)


@pytest.fixture
def weights() -> jax.Array:
    return jax.random.normal(jax.random.key(3), SHAPE)


def network(weights):
    """Return a network that mixes all features and has 0 as its second logit."""
    return lambda x: jnp.stack([jnp.tanh((weights * x).sum() / 5) + (weights * x**2).sum() / 20, 0.0])


def attribute(method, fn, image, target=0, **options):
    """Return a method's result under `jit`."""
    return jax.jit(lambda image: method(fn, image, target, **options))(image)


def same(found, expected, tolerance=1e-5):
    """Assert that maps agree, relative to the largest entry."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * float(np.abs(expected).max()))


# Occlusion


@pytest.mark.parametrize(
    ("window", "stride"), [((3, 2), (2, 1)), (4, 3), ((9, 1), (9, 1)), (2, 2)], ids=["overlap", "cut", "column", "tile"]
)
def test_occlusion_equals_brute_force(image, weights, window, stride):
    (h, w), (down, right) = (pair if isinstance(pair, tuple) else (pair, pair) for pair in (window, stride))
    pixels, weight = np.asarray(image, np.float64), np.asarray(weights, np.float64)

    def score(x):
        return np.tanh((weight * x).sum() / 5) + (weight * x**2).sum() / 20

    total, times = np.zeros(SHAPE[:2]), np.zeros(SHAPE[:2])
    for row in range(math.ceil((SHAPE[0] - h) / down) + 1):
        for column in range(math.ceil((SHAPE[1] - w) / right) + 1):
            place = np.s_[row * down : row * down + h, column * right : column * right + w]
            hidden = pixels.copy()
            hidden[place] = 0.3
            total[place] += score(pixels) - score(hidden)
            times[place] += 1
    found = attribute(occlusion, network(weights), image, window=window, stride=stride, baseline=0.3)
    assert found.shape == (9, 7, 1)
    same(found[..., 0], total / times)


def test_occlusion_of_single_pixels_in_a_linear_network(image, weights):
    found = attribute(occlusion, lambda x: jnp.stack([(weights * x).sum(), 0.0]), image, window=1, baseline="mean")
    exact = (weights * (image - image.mean((0, 1), keepdims=True))).sum(-1, keepdims=True)
    same(found, exact)


@pytest.mark.parametrize(("name", "window", "stride"), [("square", 4, 2), ("cut", (5, 3), (4, 2))])
def test_occlusion_equals_captum(name, window, stride):
    expected = reference.stored("captum_gradients")[f"occlusion/{name}"]
    count = len(expected)
    options = {"window": window, "stride": stride, "baseline": 0.5}
    run = jax.jit(lambda x, y: explain(reference.network, x, y, method=occlusion, key=KEY, **options))
    same(run(reference.images()[:count], reference.labels()[:count]), expected)


def test_occlusion_has_some_two_hundred_windows_by_default():
    """The default window and stride grow with the image."""
    found = attribute(occlusion, lambda x: jnp.stack([x.sum(), 0.0]), jnp.ones((32, 64, 1)))
    np.testing.assert_allclose(found, 4 * 8, rtol=1e-6)


# RISE


def masks(samples, cells, probability, sides=SHAPE[:2]):
    """Return masks with the draws of `rise`, enlarged by `jax.image`, `[samples, H, W]`."""
    found = []
    for i in range(samples):
        *of_cells, down, right = jax.random.uniform(jax.random.fold_in(KEY, i), (math.prod(cells) + 2,)).tolist()
        grid = jnp.array([float(draw < probability) for draw in of_cells]).reshape(cells)
        size = [math.ceil(side / count) for side, count in zip(sides, cells, strict=True)]
        large = [(count + 1) * step for count, step in zip(cells, size, strict=True)]
        enlarged = jax.image.resize(grid, large, "linear")
        top, left = int(down * size[0]), int(right * size[1])
        found.append(enlarged[top : top + sides[0], left : left + sides[1]])
    return np.asarray(jnp.stack(found), np.float64)


@pytest.mark.parametrize("cells", [(2, 3), (7, 7), (9, 4)])
def test_rise_equals_brute_force(image, weights, cells):
    drawn = masks(6, cells, 0.4)
    fill = np.asarray(image, np.float64).mean((0, 1))
    total = np.zeros(SHAPE[:2])
    for mask in drawn:
        seen = np.asarray(fill + mask[..., None] * (np.asarray(image) - fill), np.float32)
        total += mask * float(jax.nn.softmax(network(weights)(seen))[0])
    options = {"samples": 6, "cells": cells, "probability": 0.4, "baseline": "mean", "key": KEY}
    found = attribute(rise, network(weights), image, **options)
    same(found[..., 0], total / (6 * 0.4))


def test_masks_are_seen_with_the_probability_given(image):
    """For a constant network the map is the masks' mean over their probability: 1 within five standard errors."""
    constant = lambda x: jnp.stack([2.0 + 0 * x.sum(), 0.0])  # noqa: E731
    found = attribute(rise, constant, image, saliency_of="logit", samples=4000, probability=0.3, key=KEY, chunk_size=50)
    assert (jnp.abs(found / 2 - 1) < 5 * np.sqrt(0.7 / 0.3 / 4000)).all()


def test_an_image_that_is_all_seen_has_its_score_everywhere(image, weights):
    found = attribute(rise, network(weights), image, samples=3, probability=1.0, key=KEY)
    np.testing.assert_allclose(found, jax.nn.softmax(network(weights)(image))[0], rtol=1e-5)


def test_rise_finds_the_pixels_that_matter():
    image, where = jnp.ones((16, 16, 1)), (slice(3, 7), slice(9, 13))
    fn = lambda x: jnp.stack([8 * x[where].mean(), 4.0])  # noqa: E731
    found = attribute(rise, fn, image, samples=1000, cells=5, key=KEY, chunk_size=50)[..., 0]
    inside = np.zeros((16, 16), bool)
    inside[where] = True
    assert inside[np.unravel_index(found.argmax(), found.shape)]
    assert found[inside].min() > found[~inside].mean() + 2 * found[~inside].std()


# Both


@METHODS
def test_implementation_invariance(image, weights, method, options):
    def other(x):
        flat, w = x.ravel(), weights.ravel()
        return jnp.stack([jnp.tanh(jnp.vdot(w, flat) * 0.2) + flat @ (w * flat) * 0.05, 0.0])

    same(*(attribute(method, fn, image, key=KEY, **options) for fn in (network(weights), other)))


def test_an_ignored_pixel_gets_nothing_from_its_own_window(image, weights):
    ignored = weights.at[2, 3].set(0.0)
    found = attribute(occlusion, network(ignored), image, window=1)
    assert found[2, 3, 0] == 0
    assert (np.delete(found.ravel(), 2 * 7 + 3) != 0).all()


@METHODS
def test_chunk_size_does_not_change_a_map(image, weights, method, options):
    whole = attribute(method, network(weights), image, key=KEY, **options)
    for chunk_size in (1, 3, 100):
        same(attribute(method, network(weights), image, key=KEY, chunk_size=chunk_size, **options), whole)


@METHODS
def test_maps_belong_to_the_image(weights, method, options):
    """A map depends neither on the rest of the batch nor on `chunk_size`."""
    images, keys = jax.random.normal(jax.random.key(4), (8, *SHAPE)), jax.random.split(KEY, 8)

    def run(images, targets, keys, chunk_size=None):
        fn = network(weights)
        return explain(fn, images, targets, method=method, chunk_size=chunk_size, key=keys, **options)

    batch = (images, jnp.arange(8) % 2, keys)
    whole = jax.jit(run)(*batch)
    assert whole.shape == (8, 9, 7, 1)
    same(jax.jit(functools.partial(run, chunk_size=3))(*(x[3:8] for x in batch)), whole[3:8])


def test_memory_does_not_grow_with_samples(image):
    wide = jax.random.normal(jax.random.key(3), (5000, image.size))

    def fn(x):
        return jnp.tanh(wide @ x.ravel()) @ jnp.ones((5000, 2))

    def temporary(samples):
        run = jax.jit(lambda x: rise(fn, x, 0, key=KEY, samples=samples, chunk_size=4))
        return run.lower(image).compile().memory_analysis().temp_size_in_bytes

    assert temporary(400) < 1.2 * temporary(8)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (occlusion, {"window": 8}, "width of window = 8 is out of range: it is a number in \\[1, 7\\]"),
        (occlusion, {"window": (2, 3), "stride": 3}, "height of stride = 3"),
        (occlusion, {"window": 0}, "window = 0 is no such count"),
        (occlusion, {"window": 2.5}, "window = 2.5 is no such count"),
        (occlusion, {"baseline": "uniform"}, "baseline = 'uniform' draws random numbers"),
        (rise, {"key": KEY, "cells": (3, 3, 3)}, r"cells = \(3, 3, 3\): pass a positive integer, or two"),
        (rise, {"key": KEY, "probability": 0.0}, "probability = 0.0"),
        (rise, {"key": KEY, "samples": 0}, "samples = 0"),
    ],
)
def test_errors_say_what_is_wrong(image, weights, method, options, message):
    with pytest.raises(ValueError, match=message):
        method(network(weights), image, 0, **options)


@METHODS
def test_no_gradient_is_taken_so_that_forward_mode_goes_through(method, options, image, weights):
    def map_of(x):
        return method(lambda x: jnp.stack([jnp.vdot(weights, x) ** 2, 0.0]), x, 0, key=KEY, **options)

    change = jax.random.normal(jax.random.key(2), SHAPE)
    _, along = jax.jvp(map_of, (image,), (change,))
    step = 1e-2 * change
    np.testing.assert_allclose(along, (map_of(image + step) - map_of(image - step)) / 2e-2, rtol=2e-2, atol=0.1)
