"""Tests of entropy and effective complexity, and of all complexities against Quantus. test_metrics.py tests Gini."""

import jax
import numpy as np
import pytest
from reference_network import stored
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial import ConvexHull, QhullError, distance_matrix

from sdecor.metrics import complexity

RNG = np.random.default_rng(0)
MAPS = (RNG.gamma(0.5, size=(5, 9, 7)) * RNG.choice([-1, 1], (5, 9, 7))).astype(np.float32)
gini = jax.jit(complexity.gini)
entropy = jax.jit(complexity.entropy)
checkerboard = jax.jit(complexity.checkerboard, static_argnames="period")
effective_complexity = jax.jit(complexity.effective_complexity, static_argnames=("scale", "threshold"))
mst_compactness = jax.jit(complexity.mst_compactness, static_argnames="percentile")


class TestEntropy:
    def test_against_float64_at_224_pixels(self):
        maps = RNG.gamma(0.3, size=(2, 224, 224)).astype(np.float32)
        shares = maps.astype(np.float64) / maps.sum((1, 2), dtype=np.float64, keepdims=True)
        np.testing.assert_allclose(entropy(maps), -(shares * np.log(shares)).sum((1, 2)), rtol=1e-5)

    def test_known_cases(self):
        maps = np.zeros((3, 4, 5), np.float32)
        maps[0], maps[1, 2, 2], maps[2, :2] = -7.0, 3.0, 1.0
        np.testing.assert_allclose(entropy(maps), [np.log(20), 0, np.log(10)], rtol=1e-6, atol=1e-6)


class TestCheckerboard:
    def test_against_float64(self):
        for period in (2, 3):
            places = np.add.outer(period * (np.arange(9) % period), np.arange(7) % period).ravel()
            sums = lambda values: np.bincount(places, values.ravel(), period**2)  # noqa: B023,E731
            shares = [sums(np.abs(each, dtype=np.float64)) / np.abs(each, dtype=np.float64).sum() for each in MAPS]
            expected = np.abs(np.array(shares) - sums(np.full((9, 7), 1 / 63))).sum(1) / 2
            np.testing.assert_allclose(checkerboard(MAPS, period=period), expected, rtol=1e-5)

    def test_known_cases(self):
        maps = np.zeros((6, 8, 8), np.float32)
        maps[0] = -7  # even
        maps[1, :, ::2] = 1  # every second column
        maps[2, ::2, ::2], maps[2, 1::2, 1::2] = 1, 3  # the places of a checkerboard
        maps[3, 1::2, ::2] = 2  # one pixel of four
        maps[4, 2:4, 2:4] = 5  # a block
        expected = [0, 0.5, 0.5, 0.75, 0, np.nan]
        np.testing.assert_allclose(checkerboard(maps), expected, atol=1e-6)
        np.testing.assert_allclose(checkerboard(maps[1:2, 0]), [0.5], atol=1e-6)  # series
        with pytest.raises(ValueError, match="period = 1"):
            complexity.checkerboard(maps, period=1)


class TestEffectiveComplexity:
    def test_counts(self):
        maps = np.array([[[4.0, -2.0, 0.5, 0.0]]], np.float32)
        assert effective_complexity(maps) == 3
        assert effective_complexity(maps, threshold=0.25) == 2  # relative to 4
        assert effective_complexity(maps, threshold=0.25, scale="sum") == 2  # relative to 6.5
        assert effective_complexity(maps, threshold=0.35, scale="sum") == 1
        assert effective_complexity(maps, threshold=0.25, scale="raw") == 3
        assert effective_complexity(maps, threshold=4.0, scale="raw") == 0

    def test_errors(self):
        with pytest.raises(ValueError, match="did you mean 'peak'"):
            complexity.effective_complexity(MAPS, scale="peek")
        with pytest.raises(ValueError, match="threshold = -0.1"):
            complexity.effective_complexity(MAPS, threshold=-0.1)


def mst_c(saliency: np.ndarray, percentile: float = 80.0) -> float:
    """Return MST-C of one map by SciPy: the tree of the complete graph, and Qhull's area."""
    saliency = np.abs(saliency.astype(np.float64))
    points = np.argwhere((saliency >= np.percentile(saliency, percentile)) & (saliency > 0))
    diagonal = np.hypot(*saliency.shape)
    try:
        side = np.sqrt(ConvexHull(points).volume)  # of points in the plane: the area
    except QhullError:  # fewer than three, or all on one line
        side = diagonal
    length = minimum_spanning_tree(distance_matrix(points, points)).sum()
    return 100 * diagonal * len(points) / (length * side)


class TestMstCompactness:
    @pytest.mark.parametrize("percentile", [0.0, 62.5, 80.0])
    def test_against_scipy(self, percentile):
        maps = RNG.gamma(0.5, size=(6, 13, 17)).astype(np.float32)
        maps[1] = np.round(maps[1])  # ties
        maps[2] *= RNG.random((13, 17)) < 0.1  # fewer pixels than a fifth
        maps[3, :, 3:] = 0  # a narrow strip, with a hull from border to border
        expected = [mst_c(each, percentile) for each in maps]
        np.testing.assert_allclose(mst_compactness(maps, percentile=percentile), expected, rtol=1e-5)

    def test_known_cases(self):
        maps = np.zeros((5, 10, 10), np.float32)
        maps[0, 2:4, 5:7] = 1, 2  # four pixels: a tree of length 3, an area of 1
        maps[1, 4, 1:6] = 7  # five on a line: no area, so the squared diagonal counts
        maps[2, range(4), range(4)] = 1  # the same, slanted
        maps[3, 0, 0], maps[3, 9, 9] = 1, -3
        maps[4, 5, 5] = 1  # one pixel
        diagonal = np.sqrt(200)
        expected = [100 * diagonal * 4 / 3, 100 * 5 / 4, 100 * 4 / (3 * np.sqrt(2)), 100 * 2 / np.sqrt(162), np.nan]
        np.testing.assert_allclose(mst_compactness(maps), expected, rtol=1e-6)

    def test_one_cluster_is_more_compact_than_two_and_than_noise(self):
        maps = np.zeros((3, 20, 20), np.float32)
        maps[0, 4:13, 5:14] = 1
        maps[1, :9, :5] = maps[1, 11:, 16:] = 1
        maps[2] = RNG.random((20, 20)) < 0.2
        assert (np.diff(mst_compactness(maps)) < 0).all()

    def test_errors(self):
        with pytest.raises(ValueError, match="percentile = 100"):
            complexity.mst_compactness(MAPS, percentile=100)


@pytest.mark.parametrize("measure", [gini, entropy, effective_complexity, mst_compactness])
class TestEveryMetric:
    def test_belongs_to_its_map(self, measure):
        whole = measure(MAPS)
        np.testing.assert_allclose(measure(MAPS[::-1]), whole[::-1], rtol=1e-6)
        np.testing.assert_allclose(measure(MAPS[2:3]), whole[2:3], rtol=1e-6)
        np.testing.assert_allclose(measure(MAPS[:, ::-1]), whole, rtol=1e-5)

    @pytest.mark.parametrize("scale", [-(2.0**-90), 2.0**100])
    def test_scale_and_sign_do_not_matter(self, measure, scale):
        np.testing.assert_allclose(measure(MAPS * np.float32(scale)), measure(MAPS), rtol=1e-6)

    def test_no_answer_is_nan(self, measure):
        maps = MAPS[:4].copy()
        maps[0], maps[1, 0, 0], maps[2, 0, 0] = 0, np.inf, np.nan
        np.testing.assert_array_equal(np.isnan(measure(maps)), [True, True, True, False])


@pytest.mark.parametrize(
    "measure", [complexity.gini, complexity.entropy, complexity.effective_complexity, complexity.mst_compactness]
)
@pytest.mark.parametrize("maps", [MAPS[0, 0], MAPS[..., None]], ids=["one", "channels"])
def test_arrays_that_are_no_maps_are_refused(measure, maps):
    with pytest.raises(ValueError, match=r"maps has shape .*: pass \[N, H, W\]"):
        measure(maps)


class TestAgainstQuantus:
    @pytest.mark.parametrize("kind", ["signed", "positive"])
    def test_values(self, kind):
        reference = stored("quantus_localization")
        maps = reference[f"maps/{kind}"]
        # Quantus adds 1e-7 to each value before it computes sparseness, and 1e-12 inside the logarithm.
        np.testing.assert_allclose(gini(maps), reference[f"{kind}/Sparseness"], rtol=2e-5)
        np.testing.assert_allclose(entropy(maps), reference[f"{kind}/Complexity"], rtol=1e-5)
        np.testing.assert_array_equal(
            effective_complexity(maps, threshold=0.3), reference[f"{kind}/EffectiveComplexity"]
        )

    def test_a_map_does_not_change_the_values_of_its_neighbours(self):
        """Quantus divides a batch by its largest value: beside a map a hundred times larger, all others count 0."""
        reference = stored("quantus_localization")
        uneven = reference["maps/positive"].copy()
        uneven[0] *= 100
        assert (reference["defect/EffectiveComplexity"][1:] == 0).all()
        found = effective_complexity(uneven, threshold=0.3)
        np.testing.assert_array_equal(found, reference["positive/EffectiveComplexity"])
