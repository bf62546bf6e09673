"""Relevance against effect: closed forms on a linear network, float64 brute force on the same draws, Quantus."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import one_channel
import pytest
import scipy.stats
import tiny_network as tiny

from sdecor.metrics import correlations, groups, ranks, replacement
from sdecor.metrics.infidelity import _square, infidelity
from sdecor.metrics.similarity import pearson

N, H, W, C = tiny.N, tiny.H, tiny.W, tiny.C
IMAGES, MAPS, TARGETS, KEY = tiny.IMAGES, tiny.MAPS, tiny.TARGETS, tiny.KEY
WEIGHTS = np.random.default_rng(5).normal(size=(3, H, W, C))
SLOPES = WEIGHTS[TARGETS].astype(np.float32)
CONTRIBUTIONS = (SLOPES * IMAGES).sum(-1)
BLACK = np.broadcast_to(IMAGES.min((1, 2), keepdims=True), IMAGES.shape)
SCORES = {"logit": lambda image, target: tiny.logits(image)[target], "probability": tiny.probability}


def linear(image):
    """Logits `[3]` whose loss, when a pixel becomes zero, is that pixel's sum of weights times values."""
    return (jnp.asarray(WEIGHTS, jnp.float32) * image[None]).sum((1, 2, 3)) + 2.0


def effect(i, mask, base, saliency_of):
    """Return in float64 what image i loses of its target's score when the masked pixels become the baseline."""
    score = SCORES[saliency_of]
    return score(IMAGES[i], TARGETS[i]) - score(tiny.replaced(IMAGES[i], base[i], mask), TARGETS[i])


def relevance(i, mask):
    return MAPS[i].astype(np.float64)[mask].sum()


def drawn_places(order):
    """Return the places of the pixels in the random order of this number, `[N, H, W]`."""
    return np.asarray(ranks.random_ranks(replacement.fold_sample(KEY, N, order), MAPS.shape))


def correlation_of(masks, base, saliency_of):
    """Return Pearson's correlation of relevance and effect for each image; `masks[i]` are its sets."""
    return [
        np.corrcoef([[relevance(i, m) for m in sets], [effect(i, m, base, saliency_of) for m in sets]])[0, 1]
        for i, sets in enumerate(masks)
    ]


def compiled(metric, fn, images, maps, **options):
    """Return the metric of the tiny images' targets, compiled as a whole."""
    return jax.jit(lambda x, m: metric(fn, x, m, TARGETS, **{"key": KEY} | options))(images, maps)


LINEAR = {
    "faithfulness_correlation": functools.partial(correlations.faithfulness_correlation, samples=13),
    "sensitivity_n": functools.partial(correlations.sensitivity_n, samples=7, shares=(0.1, 0.5)),
    "faithfulness_estimate": functools.partial(groups.faithfulness_estimate, steps=6),
    "each_pixel": functools.partial(groups.faithfulness_estimate, steps=None),
}


@pytest.mark.parametrize("name", LINEAR)
def test_contributions_to_a_linear_score_correlate_perfectly(name):
    """Neither their scale nor their offset matters where all sets are of one size."""
    options = {"key": KEY, "baseline": "zero", "saliency_of": "logit"}
    run = jax.jit(lambda maps: LINEAR[name](linear, IMAGES, maps, TARGETS, **options))
    np.testing.assert_allclose(run(CONTRIBUTIONS), 1, atol=1e-5)
    np.testing.assert_allclose(run(-CONTRIBUTIONS), -1, atol=1e-5)
    np.testing.assert_allclose(run(4 * CONTRIBUTIONS - 1), 1, atol=1e-5)
    assert np.isnan(run(np.full_like(MAPS, 2))).all()


class TestRandomSets:
    @pytest.mark.parametrize(("samples", "size"), [(9, 10), (4, None), (3, H * W - 1)])
    def test_faithfulness_correlation(self, samples, size):
        width = size or H * W // 5
        orders = -(-samples // (H * W // width))
        cut = range(-(-samples // orders))
        places = [drawn_places(o) for o in range(orders)]
        masks = [[(p[i] >= j * width) & (p[i] < (j + 1) * width) for p in places for j in cut] for i in range(N)]
        expected = correlation_of([sets[:samples] for sets in masks], BLACK, "logit")
        options = {"key": KEY, "samples": samples, "subset_size": size}
        found = compiled(correlations.faithfulness_correlation, tiny.network, IMAGES, MAPS, **options)
        np.testing.assert_allclose(found, expected, atol=2e-5)

    def test_sensitivity_n(self):
        shares, samples = (0.001, 0.2, 0.7), 6
        places = [drawn_places(o) for o in range(samples)]
        zeros = np.zeros_like(IMAGES)
        expected = [
            correlation_of([[p[i] < n for p in places] for i in range(N)], zeros, "probability")
            for n in (1, round(0.2 * H * W), round(0.7 * H * W))
        ]
        options = {"key": KEY, "samples": samples, "shares": shares}
        curve = compiled(correlations.sensitivity_n_curve, tiny.network, IMAGES, MAPS, **options)
        np.testing.assert_allclose(curve, np.transpose(expected), atol=5e-5)
        mean = compiled(correlations.sensitivity_n, tiny.network, IMAGES, MAPS, chunk_size=3, **options)
        np.testing.assert_allclose(mean, np.mean(expected, 0), atol=5e-5)

    def test_other_keys_draw_other_sets(self):
        run = functools.partial(compiled, correlations.faithfulness_correlation, tiny.network, IMAGES, MAPS, samples=5)
        assert np.abs(run(key=KEY) - run(key=jax.random.key(5))).min() > 1e-3


class TestGroups:
    def groups(self, steps):
        """Return the masks of the groups in descending order of the map, for each image."""
        ends = [round(j * H * W / steps) for j in range(steps + 1)]
        cuts = list(zip(ends[:-1], ends[1:], strict=True))
        return [[tiny.first(m, b) & ~tiny.first(m, a) for a, b in cuts] for m in MAPS]

    @pytest.mark.parametrize("steps", [5, None])
    def test_faithfulness_estimate(self, steps):
        expected = correlation_of(self.groups(steps or H * W), BLACK, "logit")
        found = compiled(groups.faithfulness_estimate, tiny.network, IMAGES, MAPS, steps=steps)
        np.testing.assert_allclose(found, expected, atol=2e-5)

    @pytest.mark.parametrize("baseline", ["uniform", "black"])
    def test_monotonicity_correlation(self, baseline):
        """The noise is another for each sample; without noise more samples change nothing."""
        keys = [replacement.fold_sample(KEY, N, s) for s in range(3 if baseline == "uniform" else 1)]
        bases = [np.asarray(replacement.baseline_images(IMAGES, baseline, key=k)) for k in keys]
        expected = [
            scipy.stats.spearmanr(
                [relevance(i, m) for m in sets],
                [np.mean([effect(i, m, base, "probability") ** 2 for base in bases]) for m in sets],
            )[0]
            for i, sets in enumerate(self.groups(9))
        ]
        options = {"key": KEY, "steps": 9, "samples": 3, "baseline": baseline}
        found = compiled(groups.monotonicity_correlation, tiny.network, IMAGES, MAPS, **options)
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_monotonicity_of_the_size_of_contributions(self):
        options = {"key": KEY, "steps": None, "baseline": "zero", "saliency_of": "logit"}
        run = functools.partial(compiled, groups.monotonicity_correlation, linear, IMAGES, **options)
        np.testing.assert_allclose(run(maps=np.abs(CONTRIBUTIONS)), 1, atol=1e-3)
        np.testing.assert_allclose(run(maps=-np.abs(CONTRIBUTIONS)), -1, atol=1e-3)

    def test_ranges(self):
        for steps in (1, H * W + 1):
            with pytest.raises(ValueError, match=f"steps = {steps}"):
                groups.faithfulness_estimate(tiny.network, IMAGES, MAPS, TARGETS, key=KEY, steps=steps)
        for metric in (correlations.faithfulness_correlation, correlations.sensitivity_n):
            with pytest.raises(ValueError, match="samples = 1"):
                metric(tiny.network, IMAGES, MAPS, TARGETS, key=KEY, samples=1)
        with pytest.raises(ValueError, match="shares = 0"):
            correlations.sensitivity_n(tiny.network, IMAGES, MAPS, TARGETS, key=KEY, shares=(0,))


def squares(samples, patch):
    """Return the masks of the random squares of each image."""
    bound = jnp.array([H - patch + 1, W - patch + 1])
    draw = lambda n, s: jax.random.randint(jax.random.fold_in(jax.random.fold_in(KEY, n), s + 2), (2,), 0, bound)  # noqa: E731
    masks = np.zeros((N, samples, H, W), bool)
    places = jax.jit(jax.vmap(draw))(*np.mgrid[:N, :samples].reshape(2, -1))
    for mask, (top, left) in zip(masks.reshape(-1, H, W), np.asarray(places), strict=True):
        mask[top : top + patch, left : left + patch] = True
    return masks


def grid_squares(patch):
    """Return the masks of a regular grid of squares, for each image."""
    rows, columns = np.mgrid[:H, :W] // patch
    masks = [(rows == r) & (columns == c) for r in range(rows.max() + 1) for c in range(columns.max() + 1)]
    return np.broadcast_to(masks, (N, len(masks), H, W))


class TestInfidelity:
    slopes = np.random.default_rng(6).normal(size=IMAGES.shape).astype(np.float32)

    def errors(self, masks, base, predicted, scaling="none"):
        """Return the mean squared error in float64; `predicted(i, mask)` is what the attribution says is lost."""
        values = []
        for i, sets in enumerate(masks):
            said = np.array([predicted(i, m) for m in sets])
            lost = np.array([effect(i, m, base, "logit") for m in sets])
            factor = (said @ lost) / (said @ said) if scaling == "optimal" else 1
            values.append(np.mean((factor * said - lost) ** 2))
        return values

    @pytest.mark.parametrize("perturbation", ["squares", "grid"])
    @pytest.mark.parametrize("scaling", ["none", "optimal"])
    def test_slopes_of_each_channel(self, perturbation, scaling):
        masks = squares(6, 4) if perturbation == "squares" else grid_squares(4)
        base = np.zeros_like(IMAGES)
        said = lambda i, m: (self.slopes[i].astype(np.float64) * IMAGES[i])[m].sum()  # noqa: E731
        options = {"key": KEY, "perturbation": perturbation, "samples": 6, "scaling": scaling}
        found = compiled(infidelity, tiny.network, IMAGES, self.slopes, **options)
        np.testing.assert_allclose(found, self.errors(masks, base, said, scaling), rtol=1e-4)

    def test_maps_are_slopes_or_contributions_of_a_pixel(self):
        gaps = (IMAGES - BLACK).astype(np.float64)
        run = functools.partial(compiled, infidelity, tiny.network, IMAGES, MAPS, samples=5, patch=3)
        slopes = self.errors(squares(5, 3), BLACK, lambda i, m: (MAPS[i][..., None] * gaps[i])[m].sum())
        np.testing.assert_allclose(run(baseline="black"), slopes, rtol=1e-4)
        shares = self.errors(squares(5, 3), BLACK, relevance)
        np.testing.assert_allclose(run(baseline="black", contributions=True), shares, rtol=1e-4)

    @pytest.mark.parametrize("perturbation", ["squares", "grid", "noise"])
    def test_a_linear_score_is_predicted_by_its_weights(self, perturbation):
        """A factor is an error of that share of the effect, and the best scaling takes it away."""
        run = functools.partial(compiled, infidelity, linear, IMAGES, perturbation=perturbation)
        np.testing.assert_allclose(run(maps=SLOPES, samples=9), 0, atol=1e-8)
        whole, half = (run(maps=factor * SLOPES, samples=9) for factor in (3.0, 1.5))
        np.testing.assert_allclose(whole, 16 * half, rtol=1e-3)  # (3 − 1)² and (1.5 − 1)²
        scaled = run(maps=3 * SLOPES, samples=9, scaling="optimal")
        np.testing.assert_allclose(scaled / whole, 0, atol=1e-8)

    def test_contributions_to_a_linear_score(self):
        run = functools.partial(compiled, infidelity, linear, IMAGES, samples=9, contributions=True)
        np.testing.assert_allclose(run(maps=SLOPES * IMAGES), 0, atol=1e-8)
        np.testing.assert_allclose(run(maps=CONTRIBUTIONS), 0, atol=1e-8)

    def test_noise_on_the_image(self):
        """With nothing attributed but to one value, the error's mean is the variance of what noise does to a score."""
        phi = np.zeros_like(SLOPES)
        phi[:, 0, 0, 0] = SLOPES[:, 0, 0, 0]
        options = {"key": KEY, "perturbation": "noise", "noise": 0.3, "baseline": jnp.asarray(IMAGES), "samples": 4000}
        found = jax.jit(lambda phi: infidelity(linear, IMAGES, phi, TARGETS, **options))(phi)
        expected = 0.09 * ((SLOPES**2).sum((1, 2, 3)) - SLOPES[:, 0, 0, 0] ** 2)
        np.testing.assert_allclose(found, expected, rtol=0.1)  # of 4000 squares; their standard error is 2 %

    def test_squares_lie_everywhere_inside(self):
        drawn = np.asarray(jax.vmap(lambda i: _square(i, KEY, H, W, 3))(jnp.arange(800)))
        np.testing.assert_array_equal(drawn.sum((1, 2)), [0] + [9] * 799)
        places = drawn[1:].reshape(799, -1).argmax(1)
        values, counts = np.unique(places, return_counts=True)
        np.testing.assert_array_equal(values, [r * W + c for r in range(H - 2) for c in range(W - 2)])
        assert scipy.stats.chisquare(counts).pvalue > 1e-3

    def test_choices(self):
        for options, message in (
            ({"perturbation": "square"}, "did you mean 'squares'"),
            ({"scaling": "best"}, "scaling = 'best'"),
            ({"patch": 7}, "patch = 7"),
            ({"samples": 0}, "samples = 0"),
            ({"perturbation": "noise", "contributions": True}, "contributions = True"),
        ):
            with pytest.raises(ValueError, match=message):
                infidelity(tiny.network, IMAGES, MAPS, TARGETS, key=KEY, **options)


class TestQuantus:
    """Equal to Quantus 0.6.0 on one channel, where a pixel is one feature, given the same sets."""

    def run(self, metric, **options):
        images, maps, labels = one_channel.examples()
        return np.asarray(jax.jit(lambda m: metric(one_channel.network, images, m, labels, key=KEY, **options))(maps))

    def test_faithfulness_correlation(self):
        """Quantus may draw a pixel twice; its sets are given, as the first places of as many orders."""
        images, maps, labels = one_channel.examples()
        subsets = one_channel.stored("subsets").astype(int)
        chosen = np.zeros((20, 8, 256), bool)
        np.put_along_axis(chosen, subsets.swapaxes(0, 1), True, 2)
        places = jnp.where(jnp.asarray(chosen), 0, 1).reshape(20, 8, 16, 16)
        end = replacement.baseline_images(images, "black")
        score = replacement.score_of("logit")
        measure = functools.partial(correlations._over_orders, one_channel.network)
        sums, scores = jax.jit(lambda x, m: measure(x, end, m, labels, lambda i: places[i], 20, [1], score, None))(
            images, maps
        )
        found = -pearson(sums[..., 0].T, scores[..., 0].T)
        np.testing.assert_allclose(found, one_channel.stored("faithfulness_correlation"), atol=1e-4)

    def test_faithfulness_estimate(self):
        found = self.run(groups.faithfulness_estimate, steps=16)
        np.testing.assert_allclose(found, one_channel.stored("faithfulness_estimate"), atol=1e-4)

    def test_monotonicity_correlation(self):
        """Quantus divides the effects by the squared probability, which no rank sees."""
        found = self.run(groups.monotonicity_correlation, steps=16, baseline="black")
        np.testing.assert_allclose(found, one_channel.stored("monotonicity_correlation"), atol=1e-5)

    def test_infidelity(self):
        """Quantus accumulates its squares; here each was replaced alone, as in the definition."""
        found = self.run(infidelity, perturbation="grid", patch=4, baseline="black")
        np.testing.assert_allclose(found, one_channel.stored("infidelity"), rtol=1e-4)

    def test_sensitivity_n(self):
        """Quantus' sets are the most relevant pixels, and it correlates over images, so that no value is an image's.

        Relevance and effect of a set are the same as ours.
        """
        images, maps, labels = one_channel.examples()
        windows = [16 * n for n in range(1, 13)]
        places, end = ranks.ranks(maps, KEY), replacement.baseline_images(images, "black")
        score = replacement.score_of("probability")
        measure = functools.partial(replacement.replaced_scores, one_channel.network, score=score)
        scores = jax.jit(lambda x, e, p: measure(x, e, p, [0, *windows], labels))(images, end, places)
        lost = scores[:, :1] - scores[:, 1:]
        found = pearson(replacement.window_sums(maps, places, windows).T, lost.T)
        np.testing.assert_allclose(found, one_channel.stored("sensitivity_n"), atol=1e-4)
