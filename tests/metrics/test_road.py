"""Tests of ROAD: the imputation against a direct float64 solver, the curves against brute force and Quantus 0.6.0."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import one_channel
import pytest
import scipy.sparse.linalg
import tiny_network as tiny

from sdecor.metrics.road import impute, linear_imputation, road, road_curves

RNG = np.random.default_rng(5)
KEY = jax.random.key(6)
solve = jax.jit(linear_imputation, static_argnames="tolerance")
noisily = jax.jit(lambda x, m, k: impute(x, m, key=k, noise=0.1))


def direct(image, mask):
    """Return the solution `[H, W, C]` of the published system, built pixel by pixel in float64."""
    height, width, channels = image.shape
    unknown = {tuple(place): i for i, place in enumerate(np.argwhere(mask))}
    system = scipy.sparse.lil_matrix((len(unknown), len(unknown)))
    known = np.zeros((len(unknown), channels))
    for (y, x), i in unknown.items():
        for dy, dx in np.ndindex(3, 3):
            place = (y + dy - 1, x + dx - 1)
            if (dy, dx) == (1, 1) or not (0 <= place[0] < height and 0 <= place[1] < width):
                continue
            weight = 1 / 6 if dy == 1 or dx == 1 else 1 / 12
            system[i, i] += weight
            if place in unknown:
                system[i, unknown[place]] -= weight
            else:
                known[i] += weight * image[place]
    filled = image.astype(np.float64)
    filled[mask] = scipy.sparse.linalg.spsolve(system.tocsc(), known).reshape(-1, channels)
    return filled


def masks(height, width):
    """Return masks of removed pixels: scattered, all but one, a blob, and all but the blob."""
    y, x = np.mgrid[:height, :width]
    scattered = np.random.default_rng(1).random((height, width)) < 0.5
    single = np.ones((height, width), bool)
    single[height // 3, width // 2] = False
    blob = np.hypot(y - height / 2, x - width / 2) < min(height, width) / 2.2
    return np.stack([scattered, single, blob, ~blob])


class TestImputation:
    @pytest.mark.parametrize(("height", "width"), [(16, 16), pytest.param(13, 22, marks=pytest.mark.full), (3, 9)])
    def test_against_a_direct_solver(self, height, width):
        images = RNG.normal(2.0, 1.0, size=(4, height, width, 3)).astype(np.float32)
        removed = masks(height, width)
        expected = np.stack([direct(x, m) for x, m in zip(images, removed, strict=True)])
        np.testing.assert_allclose(solve(images, removed, tolerance=1e-6), expected, atol=3e-5)
        error = np.asarray(solve(images, removed, tolerance=1e-2)) - expected
        rms = np.sqrt((error**2).sum((1, 2, 3)) / (3 * removed.sum((1, 2))))
        # The solver stops by an estimate of its error.
        assert (rms < 4e-2 * images.std()).all() and rms.max() > 1e-4

    @pytest.mark.parametrize("scale", [1.0, 0.01, np.nan])
    def test_the_start_does_not_change_the_solution(self, scale):
        images = RNG.normal(2.0, 1.0, size=(4, 16, 16, 3)).astype(np.float32)
        removed = masks(16, 16)
        expected = np.stack([direct(x, m) for x, m in zip(images, removed, strict=True)])
        start = (expected + scale * RNG.normal(size=expected.shape)).astype(np.float32)
        np.testing.assert_allclose(solve(images, removed, tolerance=1e-6, start=start), expected, atol=3e-5)
        error = np.asarray(solve(images, removed, tolerance=1e-2, start=start)) - expected
        assert (np.sqrt((error**2).sum((1, 2, 3)) / (3 * removed.sum((1, 2)))) < 4e-2 * images.std()).all()

    def test_scale_and_offset_of_the_image_do_not_matter(self):
        images, removed = RNG.normal(size=(4, 13, 22, 3)).astype(np.float32), masks(13, 22)
        filled = solve(images, removed)
        np.testing.assert_allclose(solve(images * 64, removed), filled * 64, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(solve(images + 3, removed), filled + 3, atol=1e-3)

    def test_a_plain_image_stays_as_it_is(self):
        flat = np.full((4, 16, 16, 3), 0.7, np.float32)
        np.testing.assert_allclose(solve(flat, masks(16, 16)), flat, rtol=1e-4)  # rounding differs between CPUs

    def test_an_image_does_not_depend_on_those_beside_it(self):
        images, removed = RNG.normal(size=(4, 16, 16, 3)).astype(np.float32), masks(16, 16)
        whole = solve(images, removed)
        other = np.array([2, 0, 0, 2])
        np.testing.assert_array_equal(solve(images[other], removed[other]), np.asarray(whole)[other])
        np.testing.assert_allclose(solve(images[1:2], removed[1:2]), whole[1:2], atol=1e-5)

    def test_nothing_removed_and_everything(self):
        images = RNG.normal(size=(2, 16, 16, 3)).astype(np.float32)
        removed = np.stack([np.zeros((16, 16), bool), np.ones((16, 16), bool)])
        filled = solve(images, removed)
        np.testing.assert_array_equal(filled[0], images[0])
        assert np.isnan(filled[1]).all()

    def test_noise_is_on_removed_pixels_alone(self):
        images = np.zeros((4, 16, 16, 3), np.float32)
        removed = masks(16, 16)
        keys = jax.random.split(KEY, 4)
        noisy = np.asarray(noisily(images, removed, keys))
        np.testing.assert_array_equal(noisy[~removed], 0)
        assert abs(noisy[removed].std() / 0.1 - 1) < 0.05 and abs(noisy[removed].mean()) < 0.01
        other = np.array([2, 0, 0, 2])
        np.testing.assert_array_equal(noisily(images, removed[other], keys[other]), noisy[other])

    def test_errors(self):
        images, removed = np.zeros((4, 16, 16, 3), np.float32), masks(16, 16)
        with pytest.raises(ValueError, match="do not belong together"):
            linear_imputation(images, removed[:2])
        with pytest.raises(ValueError, match="tolerance = 0"):
            linear_imputation(images, removed, tolerance=0.0)
        with pytest.raises(ValueError, match="noise = -1"):
            impute(images, removed, key=KEY, noise=-1)


class TestRoad:
    percentages = (0, 20, 50, 90)

    def expected(self, sign):
        """Return correctness and probability without noise, in float64."""
        probability = []
        predicted = []
        for x, m, t in zip(tiny.IMAGES, tiny.MAPS, tiny.TARGETS, strict=True):
            removed = [tiny.first(sign * m, p * m.size // 100) for p in self.percentages]
            filled = [x] + [direct(x, mask) for mask in removed[1:]]
            probability.append([tiny.probability(z, t) for z in filled])
            predicted.append([tiny.logits(z).argmax() == t for z in filled])
        return np.array(predicted, np.float32), np.array(probability)

    @pytest.mark.parametrize(("order", "sign"), [("morf", 1), pytest.param("lerf", -1, marks=pytest.mark.full)])
    def test_against_brute_force(self, order, sign):
        options = {"key": KEY, "percentages": self.percentages, "order": order, "noise": 0.0, "tolerance": 1e-6}
        curves = jax.jit(lambda m: road_curves(tiny.network, tiny.IMAGES, m, tiny.TARGETS, **options))(tiny.MAPS)
        predicted, probability = self.expected(sign)
        np.testing.assert_array_equal(curves.correct, predicted)
        np.testing.assert_allclose(curves.probability, probability, atol=2e-5)
        assert 0 < predicted.mean() < 1

    def test_noise_and_its_key(self):
        """The default noise and tolerance of the solver hardly change a probability."""
        options = {"percentages": self.percentages}
        run = jax.jit(lambda key: road_curves(tiny.network, tiny.IMAGES, tiny.MAPS, tiny.TARGETS, key=key, **options))
        noisy, again = run(KEY).probability, run(jax.random.key(7)).probability
        assert 0 < abs(noisy - self.expected(1)[1]).max() < 0.02
        assert 0 < abs(noisy - again).max() < 0.02

    def test_road_is_the_mean_of_the_curve(self):
        options = {"key": KEY, "percentages": self.percentages}
        both = jax.jit(
            lambda m: (
                road(tiny.network, tiny.IMAGES, m, tiny.TARGETS, **options),
                road_curves(tiny.network, tiny.IMAGES, m, tiny.TARGETS, **options).correct.mean(1),
            )
        )
        np.testing.assert_allclose(*both(tiny.MAPS), rtol=1e-6)

    def test_errors(self):
        run = functools.partial(road_curves, tiny.network, tiny.IMAGES, tiny.MAPS, tiny.TARGETS, key=KEY)
        for options, message in (
            ({"percentages": (50, 100)}, "percentages = 100"),
            ({"chunk_size": 0}, "chunk_size = 0"),
            ({"noise": -0.1}, "noise = -0.1"),
        ):
            with pytest.raises(ValueError, match=message):
                run(**options)

    def test_quantus(self):
        """Quantus takes only images of one channel, and reports only the first of several batches."""
        images, maps, labels = one_channel.examples()
        run = jax.jit(lambda m: road_curves(one_channel.network, images, m, labels, key=KEY, noise=0.0))
        found = run(maps).correct
        np.testing.assert_array_equal(found, one_channel.stored("road"))
        assert 0 < float(jnp.mean(found)) < 1
