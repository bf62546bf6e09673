"""Imputation against a sparse solver in float64 and closed forms; ROAD against brute force and Quantus 0.6.0."""

import jax
import jax.numpy as jnp
import numpy as np
import one_channel
import pytest
import scipy.sparse
import scipy.sparse.linalg
import tiny_network as tiny

from sdecor.metrics import imputation
from sdecor.metrics.road import road, road_curves
from sdecor.rng import per_example

N, H, W = tiny.N, tiny.H, tiny.W
IMAGES, MAPS, TARGETS, KEY = tiny.IMAGES, tiny.MAPS, tiny.TARGETS, tiny.KEY
RNG = np.random.default_rng(8)
fill = jax.jit(imputation.linear_imputation, static_argnames="tolerance")
impute = jax.jit(imputation.impute, static_argnames=("noise", "tolerance"))
NEIGHBORS = {(r, c): 1 / 6 if r == 0 or c == 0 else 1 / 12 for r in (-1, 0, 1) for c in (-1, 0, 1) if (r, c) != (0, 0)}


def solved(image, mask):
    """Return one image `[H, W, C]` with its masked pixels from the sparse linear system, in float64."""
    height, width = mask.shape
    number = np.full(mask.shape, -1)
    number[mask] = np.arange(mask.sum())
    matrix = scipy.sparse.lil_matrix((mask.sum(), mask.sum()))
    right = np.zeros((mask.sum(), image.shape[-1]))
    for r, c in np.argwhere(mask):
        row, total = number[r, c], 0.0
        for (dr, dc), weight in NEIGHBORS.items():
            at = r + dr, c + dc
            if not (0 <= at[0] < height and 0 <= at[1] < width):
                continue
            total += weight
            if mask[at]:
                matrix[row, number[at]] = -weight
            else:
                right[row] += weight * image[at]
        matrix[row, row] = total
    filled = np.array(image, np.float64)
    if mask.any():
        filled[mask] = scipy.sparse.linalg.spsolve(matrix.tocsc(), right).reshape(right.shape)
    return filled


def smooth_images(n, height, width):
    """Return noise plus a slope, `[n, height, width, 3]`, around a mean far from zero."""
    slope = np.linspace(0, 3, height)[:, None, None] * np.array([1, -0.5, 0.2])
    return (RNG.normal(size=(n, height, width, 3)) + slope + 5).astype(np.float32)


def masks_of(share, height, width):
    """Return scattered pixels, whole blocks in order of their size, and a large hole: `[3, height, width]`."""
    count = round(share * height * width)
    scattered = RNG.permutation(height * width).reshape(height, width) < count
    blocks = np.kron(RNG.random((-(-height // 4), -(-width // 4))), np.ones((4, 4)))[:height, :width]
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - height / 2, columns - width / 3)
    return np.stack([scattered, tiny.first(blocks, count), tiny.first(-distance, count)])


def errors(found, expected, images, masks):
    """Return the error of each image over its removed pixels as a share of the deviation of the others."""
    return np.array(
        [
            np.sqrt(((np.asarray(f)[m] - e[m]) ** 2).mean() / x[~m].astype(np.float64).var(0).mean())
            for f, e, x, m in zip(found, expected, images, masks, strict=True)
        ]
    )


class TestImputation:
    @pytest.mark.parametrize("shape", [(16, 16), (13, 19)])
    def test_against_a_sparse_solver(self, shape):
        """10 to 95 % of the pixels removed, in holes of any form: 18 images solved together."""
        masks = np.concatenate([masks_of(share, *shape) for share in (0.1, 0.3, 0.5, 0.7, 0.9, 0.95)])
        images = smooth_images(len(masks), *shape)
        expected = np.array([solved(x, m) for x, m in zip(images, masks, strict=True)])
        for tolerance in (3e-3, 1e-5):
            found = fill(images, masks, tolerance=tolerance)
            np.testing.assert_array_equal(np.asarray(found)[~masks], images[~masks])
            assert errors(found, expected, images, masks).max() < 3 * tolerance

    def test_a_row_is_interpolated_linearly(self):
        """Beyond the last known pixel it is constant."""
        image = RNG.normal(size=(1, 1, 12, 3)).astype(np.float32)
        mask = np.ones((1, 1, 12), bool)
        mask[0, 0, [2, 3, 8]] = False
        found = fill(image, mask, tolerance=1e-5)[0, 0]
        known = np.flatnonzero(~mask[0, 0])
        expected = [np.interp(np.arange(12), known, image[0, 0, known, c]) for c in range(3)]
        np.testing.assert_allclose(found, np.transpose(expected), atol=1e-4)

    def test_a_slope_is_continued_into_the_hole(self):
        rows, columns = np.mgrid[:9, :11]
        plane = (2 * rows - columns + 1.0)[None, ..., None].astype(np.float32)
        mask = np.zeros((1, 9, 11), bool)
        mask[0, 1:8, 1:10] = True
        found = fill(plane, mask, tolerance=1e-5)
        np.testing.assert_allclose(found, plane, atol=1e-3)

    @pytest.mark.parametrize("left", [0, 1, H * W])
    def test_extremes(self, left):
        """Nothing left is undefined, one pixel fills the image, and nothing removed changes nothing."""
        mask = np.arange(H * W).reshape(1, H, W) >= left
        found = np.asarray(fill(IMAGES[:1], mask))
        expected = {0: np.full_like(IMAGES[:1], np.nan), 1: IMAGES[:1, :1, :1], H * W: IMAGES[:1]}[left]
        np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=1e-5)

    def test_an_image_does_not_depend_on_those_beside_it(self):
        """Not even on one without a pixel left, nor on one that takes many more iterations."""
        masks = np.stack([*masks_of(0.4, 16, 16), *masks_of(0.95, 16, 16), np.ones((16, 16), bool)])
        images, keys = smooth_images(7, 16, 16), jax.random.split(KEY, 7)
        together = impute(images, masks, key=keys)
        assert np.isnan(together[6]).all() and np.isfinite(together[:6]).all()
        for i in (0, 5):
            one = slice(i, i + 1)
            alone = impute(images[one], masks[one], key=keys[one])
            np.testing.assert_allclose(alone, together[one], atol=1e-4)

    def test_noise(self):
        """On removed pixels alone, of the given deviation, and drawn by the key of the example."""
        images, masks = smooth_images(3, 40, 40), masks_of(0.6, 40, 40)
        clean = fill(images, masks)
        noisy = impute(images, masks, key=KEY, noise=0.2)
        np.testing.assert_array_equal(impute(images, masks, key=KEY, noise=0), clean)
        np.testing.assert_array_equal(noisy, impute(images, masks, key=per_example(KEY, 3), noise=0.2))
        difference = np.asarray(noisy - clean)
        np.testing.assert_array_equal(difference[~masks], 0)
        deviation = [d[m].std() for d, m in zip(difference, masks, strict=True)]
        np.testing.assert_allclose(deviation, 0.2, rtol=0.06)
        other = impute(images, masks, key=jax.random.key(5), noise=0.2)
        assert abs(np.corrcoef((other - clean)[masks].ravel(), difference[masks].ravel())[0, 1]) < 0.05

    def test_dtype_and_errors(self):
        half = fill(jnp.asarray(IMAGES, jnp.bfloat16), MAPS > 0)
        assert half.dtype == jnp.bfloat16
        np.testing.assert_allclose(half.astype(jnp.float32), fill(IMAGES, MAPS > 0), atol=0.05)
        for mask in (MAPS, MAPS[:2] > 0):
            with pytest.raises(ValueError, match="do not belong together"):
                imputation.linear_imputation(IMAGES, mask)
        for options in ({"noise": -1}, {"tolerance": 0}):
            with pytest.raises(ValueError, match=f"{next(iter(options))} = "):
                imputation.impute(IMAGES, MAPS > 0, key=KEY, **options)


class TestRoad:
    percentages = (0, 25, 50, 90)

    def brute_force(self, maps, noise):
        """Return correctness and probability in float64, `[N, S]` each, with the noise that the key gives."""
        keys = jax.vmap(lambda k: jax.random.fold_in(k, 1))(per_example(KEY, N))
        drawn = np.asarray(imputation.gaussian_noise(jnp.asarray(IMAGES), keys), np.float64)
        curves = np.zeros((2, N, len(self.percentages)))
        for i, target in enumerate(TARGETS):
            for s, percentage in enumerate(self.percentages):
                mask = tiny.first(maps[i], percentage * H * W // 100)
                imputed = solved(IMAGES[i], mask) + noise * drawn[i] * mask[..., None]
                curves[:, i, s] = tiny.logits(imputed).argmax() == target, tiny.probability(imputed, target)
        return curves

    @pytest.mark.parametrize(("order", "noise"), [("morf", 0.0), ("morf", 0.5), ("lerf", 0.01)])
    def test_against_brute_force(self, order, noise):
        options = {"key": KEY, "percentages": self.percentages, "order": order, "noise": noise, "tolerance": 1e-5}
        run = jax.jit(lambda maps: road_curves(tiny.network, IMAGES, maps, TARGETS, **options))
        found = run(MAPS)
        correct, probability = self.brute_force(MAPS if order == "morf" else -MAPS, noise)
        assert found.correct.shape == found.probability.shape == (N, 4)
        np.testing.assert_allclose(found.probability, probability, atol=1e-4)
        np.testing.assert_array_equal(found.correct, correct)
        assert 0 < correct.mean() < 1

    def test_the_true_map_is_told_from_its_opposite_and_from_chance(self):
        """The label's evidence is a bright square, which imputation takes away only if all of it is removed."""
        images = RNG.normal(0, 0.1, size=(4, 12, 12, 3)).astype(np.float32)
        images[:, 3:7, 4:8] += 2
        maps, labels = images.sum(-1), jnp.zeros(4, int)
        fn = lambda image: jnp.stack([image.mean(), 0.1])  # noqa: E731
        run = jax.jit(lambda order: road(fn, images, maps, labels, key=KEY, order=order), static_argnums=0)
        found = {order: run(order).mean() for order in ("morf", "random", "lerf")}
        assert found["morf"] < 0.3 and found["random"] > 0.5 and found["lerf"] > 0.8

    def test_values_belong_to_the_example(self):
        keys, maps = jax.random.split(KEY, N), np.round(MAPS, 1)
        maps[1], maps[2, 0, 0] = 0, np.nan
        run = jax.jit(
            lambda images, maps, labels, key, chunk_size=None: road_curves(
                tiny.network, images, maps, labels, key=key, percentages=(10, 95), noise=0.3, chunk_size=chunk_size
            ),
            static_argnames="chunk_size",
        )
        whole = run(IMAGES, maps, TARGETS, key=keys)
        for curve in whole:
            np.testing.assert_array_equal(np.isnan(curve).all(1), [False, True, True, False, False])
        parts = [run(IMAGES, maps, TARGETS, key=keys, chunk_size=2)]
        rows = [slice(0, 3), slice(3, N)]
        halves = [run(IMAGES[r], maps[r], TARGETS[r], key=keys[r]) for r in rows]
        parts.append([np.concatenate(both) for both in zip(*halves, strict=True)])
        for part in parts:
            for curve, expected in zip(part, whole, strict=True):
                np.testing.assert_allclose(curve, expected, atol=1e-5)

    def test_ranges(self):
        for options, message in (
            ({"percentages": (100,)}, "percentages = 100"),
            ({"noise": -0.1}, "noise = -0.1"),
            ({"order": "most"}, "order = 'most'"),
            ({"chunk_size": 0}, "chunk_size = 0"),
        ):
            with pytest.raises(ValueError, match=message):
                road(tiny.network, IMAGES, MAPS, TARGETS, key=KEY, **options)

    def test_quantus(self):
        """Equal on one channel; with three it fails, and its accuracy is of the first batch alone."""
        images, maps, labels = one_channel.examples()
        run = jax.jit(lambda m: road_curves(one_channel.network, images, m, labels, key=KEY, noise=0.0, tolerance=1e-4))
        found = run(maps)
        np.testing.assert_array_equal(found.correct, one_channel.stored("road"))
        assert 0 < found.correct.mean() < 1
