"""Tests of similarities of maps against SciPy, scikit-image's stored values and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_network import stored
from scipy import stats

from sdecor.metrics import similarity

RNG = np.random.default_rng(0)
N, H, W = 6, 13, 14
A = RNG.normal(size=(N, H, W)).astype(np.float32)
B = (A + RNG.normal(size=A.shape)).astype(np.float32)
MEASURES = {
    "pearson": jax.jit(similarity.pearson),
    "spearman": jax.jit(similarity.spearman),
    "cosine": jax.jit(similarity.cosine),
    "ssim": jax.jit(similarity.ssim, static_argnames="window"),
}
pearson, spearman, cosine, ssim = MEASURES.values()


def reference(measure, a, b):
    return [measure(x.ravel().astype(np.float64), y.ravel().astype(np.float64))[0] for x, y in zip(a, b, strict=True)]


class TestCorrelation:
    @pytest.mark.parametrize("a, b", [(A, B), (A.round(), B.round()), (3e30 * A, 1e-30 * B), (1000 + 0.01 * A, -B)])
    def test_against_scipy_with_ties_scales_and_offsets(self, a, b):
        np.testing.assert_allclose(pearson(a, b), reference(stats.pearsonr, a, b), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(spearman(a, b), reference(stats.spearmanr, a, b), rtol=1e-5, atol=1e-6)

    def test_at_224_pixels(self):
        a = RNG.normal(size=(1, 224, 224)).astype(np.float32)
        b = (a + RNG.normal(size=a.shape)).round(1).astype(np.float32)
        np.testing.assert_allclose(pearson(a, b), reference(stats.pearsonr, a, b), rtol=1e-5)
        np.testing.assert_allclose(spearman(a, b), reference(stats.spearmanr, a, b), rtol=1e-5)

    def test_rank_correlation_sees_only_the_order(self):
        np.testing.assert_allclose(spearman(A, np.exp(A)), 1, rtol=1e-6)
        np.testing.assert_allclose(spearman(A, -(A**3)), -1, rtol=1e-6)
        np.testing.assert_allclose(spearman(np.exp(A), B), spearman(A, B), rtol=1e-6)

    def test_any_rank_of_array(self):
        np.testing.assert_allclose(pearson(A[..., None], B[..., None]), pearson(A, B), rtol=1e-6)
        np.testing.assert_allclose(spearman(A.reshape(N, -1), B.reshape(N, -1)), spearman(A, B), rtol=1e-6)


def test_cosine_against_numpy():
    expected = [(a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()) for a, b in zip(A, B, strict=True)]
    np.testing.assert_allclose(cosine(A, B), expected, rtol=1e-5)
    np.testing.assert_allclose(cosine(1e-30 * A, 1e30 * B), expected, rtol=1e-5)
    np.testing.assert_allclose(cosine(A, -A), -1, rtol=1e-6)
    np.testing.assert_allclose(cosine(np.ones_like(A), np.full_like(A, 3)), 1, rtol=1e-6)


class TestStructuralSimilarity:
    a = stored("quantus_localization")["maps/signed"]
    b = a + stored("quantus_localization")["maps/positive"]

    @pytest.mark.parametrize("window", similarity.WINDOWS)
    def test_against_scikit_image(self, window):
        expected = stored("quantus_localization")
        found = ssim(self.a, self.b, window=window, data_range=2)
        np.testing.assert_allclose(found, expected[f"ssim/{window}/2"], rtol=1e-5, atol=1e-6)
        found = ssim(self.a, self.b, window=window)
        np.testing.assert_allclose(found, expected[f"ssim/{window}/pair"], rtol=1e-5, atol=1e-6)

    def test_one_range_a_pair(self):
        ranges = jnp.linspace(1, 3, len(self.a))
        expected = [ssim(self.a[i : i + 1], self.b[i : i + 1], data_range=ranges[i])[0] for i in range(len(self.a))]
        np.testing.assert_allclose(ssim(self.a, self.b, data_range=ranges), expected, rtol=1e-5)

    def test_closed_forms(self):
        np.testing.assert_allclose(ssim(A, A), 1, rtol=1e-6)
        # Constant maps have no structure: only the luminance term is left.
        one, two = jnp.full((1, H, W), 1.0), jnp.full((1, H, W), 2.0)
        np.testing.assert_allclose(ssim(one, two, data_range=2.0), (4 + 4e-4) / (5 + 4e-4), rtol=1e-6)

    def test_a_common_factor_does_not_matter_to_the_pair_s_own_range(self):
        np.testing.assert_allclose(ssim(A * 2.0**-70, B * 2.0**-70), ssim(A, B), rtol=1e-6)

    def test_a_large_offset_leaves_the_variances(self):
        exact = functools.partial(ssim, window="uniform", data_range=1.0)
        np.testing.assert_allclose(exact(A, A + 1e-3 * B), exact(A + 64, A + 64 + 1e-3 * B), rtol=2e-3)

    def test_errors(self):
        with pytest.raises(ValueError, match="did you mean 'uniform'"):
            similarity.ssim(A, B, window="unifrom")
        with pytest.raises(ValueError, match="13×10 pixels are smaller than the window: ssim needs 11×11"):
            similarity.ssim(A[:, :, :10], B[:, :, :10])


@pytest.mark.parametrize("name", MEASURES)
class TestEverySimilarity:
    def test_is_symmetric_and_belongs_to_its_pair(self, name):
        measure = MEASURES[name]
        whole = measure(A, B)
        np.testing.assert_allclose(measure(B, A), whole, rtol=1e-5)
        np.testing.assert_allclose(measure(A[::-1], B[::-1]), whole[::-1], rtol=1e-6)
        np.testing.assert_allclose(measure(A[2:3], B[2:3]), whole[2:3], rtol=1e-6)

    def test_is_nan_where_undefined(self, name):
        a, b = A.copy(), B.copy()
        a[0], a[1], a[2, 0, 0], b[3, 1, 1] = 0, 2.5, np.nan, np.inf
        b[1] = 2.5 if name == "ssim" else b[1]  # two equal constants have no range
        undefined = {"cosine": [1, 0, 1, 1, 0, 0], "ssim": [0, 1, 1, 1, 0, 0]}.get(name, [1, 1, 1, 1, 0, 0])
        np.testing.assert_array_equal(np.isnan(MEASURES[name](a, b)), undefined)

    def test_shapes_must_agree(self, name):
        with pytest.raises(ValueError, match="do not belong together"):
            MEASURES[name](A, B[:, :12])
