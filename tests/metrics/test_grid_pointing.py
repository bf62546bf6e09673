"""Tests of the grid pointing game: choice of images, mosaics and score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_network import stored

from sdecor.metrics import grid

RNG = np.random.default_rng(0)
grid_pointing_game = jax.jit(grid.grid_pointing_game, static_argnames="size")


class TestChoice:
    labels = RNG.integers(0, 6, 200)
    confidences = RNG.uniform(0.2, 1, 200)
    correct = RNG.random(200) < 0.7

    def choose(self, **options):
        return grid.choose_mosaics(self.labels, self.confidences, self.correct, **{"count": 8, "seed": 0, **options})

    @pytest.mark.parametrize("size, count", [(2, 1), (2, 8), (2, 30)])
    def test_mosaics_hold_different_classes_and_no_image_twice(self, size, count):
        members = self.choose(size=size, count=count)
        assert members.shape == (count, size**2) and self.correct[members].all()
        assert np.unique(members).size == members.size
        assert all(np.unique(row).size == size**2 for row in self.labels[members])

    def test_the_most_confident_images_are_chosen(self):
        members = self.choose()
        limit = self.confidences[members].min()
        passed_over = np.setdiff1d(np.flatnonzero(self.correct & (self.confidences > limit)), members)
        # A more confident image is skipped only if its class is in every mosaic already.
        assert (np.bincount(self.labels[members.ravel()])[self.labels[passed_over]] == 8).all()

    def test_the_seed_places_the_images_but_does_not_choose_them(self):
        first, again, other = self.choose(), self.choose(), self.choose(seed=1)
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()
        np.testing.assert_array_equal(np.sort(first, axis=None), np.sort(other, axis=None))

    def test_every_class_reaches_every_cell(self):
        cells = {(self.labels[m], c) for seed in range(30) for row in self.choose(seed=seed) for c, m in enumerate(row)}
        assert len(cells) == 6 * 4

    def test_nothing_without_confidence_is_chosen(self):
        confidences = np.where(np.arange(200) % 2, self.confidences, np.nan)
        members = grid.choose_mosaics(self.labels, confidences, self.correct, count=8, seed=0)
        assert (members % 2 == 1).all()

    def test_one_class_may_be_in_every_mosaic_and_none_twice(self):
        labels, sure = np.array([0] * 50 + [1, 2, 3] * 2), np.r_[np.ones(50), np.full(6, 0.5)]
        members = grid.choose_mosaics(labels, sure, np.ones(56), count=2, seed=0)
        np.testing.assert_array_equal(np.sort(labels[members]), [[0, 1, 2, 3]] * 2)
        with pytest.raises(ValueError, match="count = 3 mosaics of 4 different classes: .* make at most 2"):
            grid.choose_mosaics(labels, sure, np.ones(56), count=3, seed=0)

    def test_errors(self):
        with pytest.raises(ValueError, match="6 classes .* a mosaic of 9 cells needs 9 classes"):
            self.choose(size=3)
        with pytest.raises(ValueError, match="0 classes"):
            grid.choose_mosaics(self.labels, self.confidences, np.zeros(200), count=1, seed=0)
        with pytest.raises(ValueError, match="size = 1"):
            self.choose(size=1)
        with pytest.raises(ValueError, match="count = 0"):
            self.choose(count=0)


class TestMosaics:
    images = jnp.asarray(RNG.normal(size=(3, 4, 6, 8, 3)), jnp.float32)

    def test_cells_are_the_images_row_by_row(self):
        mosaics = grid.make_mosaics(self.images)
        assert mosaics.shape == (3, 12, 16, 3)
        for cell in range(4):
            y, x = divmod(cell, 2)
            found = mosaics[:, 6 * y : 6 * y + 6, 8 * x : 8 * x + 8]
            np.testing.assert_array_equal(found, self.images[:, cell])

    def test_shrunk_mosaics_keep_the_input_s_size(self):
        mosaics = grid.make_mosaics(self.images, resize=True)
        assert mosaics.shape == (3, 6, 8, 3)
        expected = jax.image.resize(self.images[:, 1], (3, 3, 4, 3), "linear")
        np.testing.assert_allclose(mosaics[:, :3, 4:], expected, rtol=1e-6)
        flat = jnp.broadcast_to(jnp.arange(4.0)[None, :, None, None, None], self.images.shape)
        halves = grid.make_mosaics(flat, resize=True)  # cells do not mix
        np.testing.assert_allclose(halves[0, :, :, 0].reshape(2, 3, 2, 4).mean((1, 3)), [[0, 1], [2, 3]], rtol=1e-6)

    def test_errors(self):
        with pytest.raises(ValueError, match="a mosaic of 3×3 cells takes"):
            grid.make_mosaics(self.images, 3)
        with pytest.raises(ValueError, match="6×8 pixels do not divide into 3×3 cells"):
            grid.make_mosaics(jnp.zeros((1, 9, 6, 8, 3)), 3, resize=True)


class TestScore:
    maps = RNG.normal(size=(9, 12, 18)).astype(np.float32)

    def test_against_slices(self):
        cells = np.arange(9)
        expected = []
        for m, cell in zip(np.maximum(self.maps, 0).astype(np.float64), cells, strict=True):
            y, x = divmod(cell, 3)
            expected.append(m[4 * y : 4 * y + 4, 6 * x : 6 * x + 6].sum() / m.sum())
        np.testing.assert_allclose(grid_pointing_game(self.maps, cells, size=3), expected, rtol=1e-5)

    @pytest.mark.parametrize("size", [2, 3])
    def test_constant_map_scores_chance_and_the_right_cell_all(self, size):
        cells = RNG.integers(0, size**2, 9)
        flat = jnp.full(self.maps.shape, 0.3)
        np.testing.assert_allclose(grid_pointing_game(flat, cells, size=size), 1 / size**2, rtol=1e-6)
        images = jnp.zeros((9, size**2, 12, 18, 1)).at[jnp.arange(9), cells].set(1)
        exact = grid.make_mosaics(images, size)[..., 0]
        np.testing.assert_array_equal(grid_pointing_game(exact, cells, size=size), 1)

    def test_no_answer_is_nan(self):
        maps, cells = self.maps.copy(), np.zeros(9, int)
        maps[0], maps[1], maps[2, 0, 0], cells[3] = 0, -1, np.nan, 4
        np.testing.assert_array_equal(np.isnan(grid_pointing_game(maps, cells)), [1, 1, 1, 1, 0, 0, 0, 0, 0])

    def test_values_belong_to_their_example(self):
        cells = np.arange(9) % 4
        whole = grid_pointing_game(self.maps, cells)
        np.testing.assert_allclose(grid_pointing_game(self.maps[4:5], cells[4:5]), whole[4:5], rtol=1e-6)
        np.testing.assert_allclose(grid_pointing_game(self.maps * 2.0**-80, cells), whole, rtol=1e-6)

    def test_maps_must_divide_into_cells(self):
        with pytest.raises(ValueError, match="12×18 pixels do not divide into 4×4 cells: pass a multiple of 4"):
            grid_pointing_game(self.maps, np.zeros(9, int), size=4)

    @pytest.mark.parametrize("kind", ["signed", "positive"])
    def test_against_focus_of_quantus(self, kind):
        reference = stored("quantus_localization")
        found = grid_pointing_game(reference[f"maps/{kind}"], reference["cells"])
        np.testing.assert_allclose(found, reference[f"{kind}/Focus"], rtol=1e-5)
