"""Tests of metrics that correlate relevance and effect of pixel sets: brute force, linear networks, Quantus 0.6.0."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import one_channel
import pytest
import scipy.stats
import tiny_network as tiny

from sdecor.attribution import baseline_image
from sdecor.metrics import correlations, replacement
from sdecor.metrics.infidelity import infidelity

N, H, W = tiny.N, tiny.H, tiny.W
IMAGES, MAPS, TARGETS, KEYS = tiny.IMAGES, tiny.MAPS, tiny.TARGETS, tiny.KEYS
SLOPES = np.random.default_rng(8).normal(size=(H, W, 3)).astype(np.float32)


def run(metric, maps=MAPS, *, fn=tiny.network, targets=TARGETS, **options):
    """Return the values of a metric, compiled."""
    options = {"key": KEYS} | options
    return np.asarray(jax.jit(lambda x, m, t: metric(fn, x, m, t, **options))(IMAGES, maps, targets))


def linear(image):
    """Return two logits, the first one linear in the image."""
    return jnp.stack([(image * SLOPES).sum(), 0.0])


on_linear = functools.partial(run, fn=linear, targets=np.zeros(N, int))


def responses(base, masks, softmax):
    """Return relevance and loss of score of each image's masks `[N, S, H, W]`, in float64."""
    sums, drops = [], []
    for x, b, m, t, own in zip(IMAGES, base, MAPS, TARGETS, masks, strict=True):
        score = (lambda z, t=t: tiny.probability(z, t)) if softmax else (lambda z, t=t: tiny.logits(z)[t])
        sums.append([m[mask].sum(dtype=np.float64) for mask in own])
        drops.append([score(x) - score(tiny.replaced(x, b, mask)) for mask in own])
    return np.array(sums), np.array(drops)


def random_places(sample):
    """Return the random order of the sample with this number."""
    return np.asarray(replacement.random_ranks(replacement.fold_sample(KEYS, N, jnp.int32(sample)), MAPS.shape))


def pearson(a, b):
    return [np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]


class TestFaithfulnessCorrelation:
    def test_against_brute_force(self):
        """An order of 42 pixels gives four sets of 10, so 7 sets come from two orders."""
        masks = [(p // 10 == j) for p in map(random_places, range(2)) for j in range(4)][:7]
        masks = np.stack(masks, axis=1)
        assert (masks.sum((2, 3)) == 10).all()
        base = np.broadcast_to(IMAGES.min((1, 2), keepdims=True), IMAGES.shape)
        expected = pearson(*responses(base, masks, softmax=False))
        found = run(correlations.faithfulness_correlation, samples=7, subset_size=10)
        np.testing.assert_allclose(found, expected, atol=2e-5)

    def test_contributions_to_a_linear_network_agree_perfectly(self):
        maps = (IMAGES * SLOPES).sum(-1)
        correlation = functools.partial(on_linear, correlations.faithfulness_correlation, samples=9, baseline="zero")
        np.testing.assert_allclose(correlation(maps), 1, atol=1e-5)
        np.testing.assert_allclose(correlation(-maps, subset_size=30), -1, atol=1e-5)

    def test_undefined_where_nothing_varies(self):
        assert np.isnan(run(correlations.faithfulness_correlation, np.full_like(MAPS, 0.3), samples=5)).all()
        constant = lambda image: jnp.array([1.0, 2.0, 3.0]) + 0 * image.sum()  # noqa: E731
        assert np.isnan(run(correlations.faithfulness_correlation, fn=constant, samples=5)).all()

    def test_errors(self):
        for options, message in (({"samples": 1}, "samples = 1"), ({"subset_size": 42}, "subset_size = 42")):
            with pytest.raises(ValueError, match=message):
                run(correlations.faithfulness_correlation, **options)


class TestSensitivityN:
    def test_against_brute_force(self):
        expected = []
        for n in (4, 21):
            masks = np.stack([random_places(sample) < n for sample in range(6)], axis=1)
            expected.append(pearson(*responses(np.zeros_like(IMAGES), masks, softmax=True)))
        found = run(correlations.sensitivity_n_curve, samples=6, shares=(0.1, 0.5))
        np.testing.assert_allclose(found, np.transpose(expected), atol=2e-4)
        mean = run(correlations.sensitivity_n, samples=6, shares=(0.1, 0.5))
        np.testing.assert_allclose(mean, np.mean(expected, axis=0), atol=2e-4)

    def test_contributions_to_a_linear_network_agree_perfectly(self):
        found = on_linear(correlations.sensitivity_n, (IMAGES * SLOPES).sum(-1), samples=6, saliency_of="logit")
        np.testing.assert_allclose(found, 1, atol=1e-4)

    def test_errors(self):
        with pytest.raises(ValueError, match="shares = 1.5"):
            run(correlations.sensitivity_n, shares=(1.5,))


def groups_of(steps):
    """Return masks of nearly equal groups of pixels in the map's order, `[N, steps, H, W]`."""
    places = np.argsort(np.argsort(-MAPS.reshape(N, -1), axis=1), axis=1).reshape(MAPS.shape)
    edges = [round(j * H * W / steps) for j in range(steps + 1)]
    return np.stack([(places >= a) & (places < b) for a, b in zip(edges[:-1], edges[1:], strict=True)], axis=1)


class TestGroups:
    @pytest.mark.parametrize("steps", [5, None])
    def test_faithfulness_estimate(self, steps):
        base = np.broadcast_to(IMAGES.min((1, 2), keepdims=True), IMAGES.shape)
        expected = pearson(*responses(base, groups_of(steps or H * W), softmax=False))
        np.testing.assert_allclose(run(correlations.faithfulness_estimate, steps=steps), expected, atol=2e-5)

    def test_contributions_to_a_linear_network_agree_perfectly(self):
        found = on_linear(correlations.faithfulness_estimate, (IMAGES * SLOPES).sum(-1), steps=6, baseline="zero")
        np.testing.assert_allclose(found, 1, atol=1e-5)

    def test_monotonicity_correlation(self):
        """The effect is the mean square over three draws of noise."""
        squares = []
        for sample in range(3):
            keys = replacement.fold_sample(KEYS, N, jnp.int32(sample))
            base = np.asarray(replacement.baseline_images(IMAGES, "uniform", key=keys))
            sums, drops = responses(base, groups_of(7), softmax=True)
            squares.append(drops**2)
        expected = [scipy.stats.spearmanr(a, b)[0] for a, b in zip(sums, np.mean(squares, axis=0), strict=True)]
        np.testing.assert_allclose(run(correlations.monotonicity_correlation, steps=7, samples=3), expected, atol=1e-5)
        noise = jax.vmap(lambda image, key: baseline_image("uniform", image, key=key))
        found = run(correlations.monotonicity_correlation, steps=7, samples=3, baseline=noise)
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_undefined_where_nothing_varies(self):
        for metric in (correlations.faithfulness_estimate, correlations.monotonicity_correlation):
            assert np.isnan(run(metric, np.ones_like(MAPS), steps=4)).all()

    def test_errors(self):
        with pytest.raises(ValueError, match="steps = 43"):
            run(correlations.faithfulness_estimate, steps=43)


class TestInfidelity:
    phi = np.random.default_rng(9).normal(size=IMAGES.shape).astype(np.float32)

    def brute_force(self, phi, masks, optimal=False):
        """Return the definition in float64, where I is the part of the image that the mask removes."""
        errors = []
        for x, p, t, own in zip(IMAGES.astype(np.float64), phi, TARGETS, masks, strict=True):
            perturbed = [tiny.replaced(x, np.zeros_like(x), mask) for mask in own]
            predicted = np.array([((x - z) * p).sum() for z in perturbed])
            drops = np.array([tiny.logits(x)[t] - tiny.logits(z)[t] for z in perturbed])
            factor = (predicted @ drops) / (predicted @ predicted) if optimal else 1
            errors.append(((factor * predicted - drops) ** 2).mean())
        return errors

    @pytest.mark.parametrize("scaling", ["none", "optimal"])
    def test_on_the_grid_against_brute_force(self, scaling):
        rows, columns = np.arange(H) // 4, np.arange(W) // 4
        masks = [[(rows == i)[:, None] & (columns == j) for i in (0, 1) for j in (0, 1)]] * N
        found = run(infidelity, self.phi, perturbation="grid", scaling=scaling)
        np.testing.assert_allclose(found, self.brute_force(self.phi, masks, scaling == "optimal"), rtol=1e-4)
        spread = np.broadcast_to(MAPS[..., None], IMAGES.shape)
        mapped = run(infidelity, MAPS, perturbation="grid", scaling=scaling)
        np.testing.assert_allclose(mapped, self.brute_force(spread, masks, scaling == "optimal"), rtol=1e-4)

    def test_squares_are_whole_and_anywhere(self):
        """For an image of ones, a network that sums sees the size of a square: 9 pixels with 3 channels."""
        seen = lambda image: jnp.stack([image.sum(), 0.0])  # noqa: E731
        ones, zeros = np.ones_like(IMAGES), np.zeros(N, int)
        few = jax.jit(lambda phi: infidelity(seen, ones, phi, zeros, key=KEYS, patch=3, samples=5))
        found = few(2 * ones)
        np.testing.assert_allclose(found, 27.0**2, rtol=1e-5)
        # Squares cover a middle pixel more often than the corner: the mean error is proportional to how often.
        many = jax.jit(lambda phi: infidelity(seen, ones, phi, zeros, key=KEYS, patch=3, samples=400))
        for place, share in (((0, 0), 1 / 20), ((2, 3), 9 / 20)):
            phi = ones.copy()
            phi[:, *place] += 1  # 3 too much wherever a square covers the pixel
            found = many(phi)
            assert abs(float(found.mean()) / 9 - share) < 0.04

    @pytest.mark.parametrize("perturbation", ["squares", "grid", "noise"])
    def test_the_slopes_of_a_linear_network_predict_everything(self, perturbation):
        slopes = np.broadcast_to(SLOPES, IMAGES.shape)
        options = {"key": KEYS, "samples": 6, "perturbation": perturbation, "baseline": "mean"}

        @functools.partial(jax.jit, static_argnames="scaling")
        def error(phi, scaling="none"):
            return infidelity(linear, IMAGES, phi, np.zeros(N, int), scaling=scaling, **options)

        np.testing.assert_allclose(error(slopes), 0, atol=1e-8)
        np.testing.assert_allclose(error(-3 * slopes, scaling="optimal"), 0, atol=1e-8)
        assert (error(2 * slopes) > 1e-3).all()

    def test_contributions_to_a_linear_network_predict_everything(self):
        products = IMAGES * SLOPES
        for attributions in (products, products.sum(-1)):
            found = on_linear(infidelity, attributions, samples=6, contributions=True)
            np.testing.assert_allclose(found, 0, atol=1e-8)

    def test_noise_has_its_size(self):
        """For a map of ones and a network of zeros the error is the noise's variance times the number of values."""
        nothing = lambda image: jnp.zeros(2)  # noqa: E731
        ones = np.ones_like(IMAGES)
        options = {"perturbation": "noise", "noise": 0.5, "baseline": IMAGES, "samples": 400, "key": KEYS}
        found = infidelity(nothing, IMAGES, ones, np.zeros(N, int), **options)
        assert abs(float(found.mean()) / (0.25 * ones[0].size) - 1) < 0.1

    def test_errors(self):
        for options, message in (
            ({"perturbation": "grids"}, "did you mean 'grid'"),
            ({"scaling": "best"}, "scaling = 'best'"),
            ({"patch": 7}, "patch = 7"),
            ({"perturbation": "noise", "contributions": True}, "contributions = True"),
        ):
            with pytest.raises(ValueError, match=message):
                run(infidelity, **options)


class TestQuantus:
    """Tests against Quantus 0.6.0 with its random sets, on one channel, where a pixel is one feature."""

    images, maps, labels = one_channel.examples()

    def run(self, metric, **options):
        values = jax.jit(
            lambda m: metric(one_channel.network, self.images, m, self.labels, key=jax.random.key(0), **options)
        )
        return np.asarray(values(self.maps))

    def test_faithfulness_correlation(self, monkeypatch):
        """Our sets are disjoint, so Quantus's overlapping sets are cut from copies of the image side by side.

        The network sums the copies' logits: a set changes the sum by as much as it changes its own copy's logits.
        """
        places = np.full((8, 20, 256), 20 * 40, np.int32)
        sets = one_channel.stored("subsets").astype(int)
        np.put_along_axis(places, sets, np.arange(20 * 40).reshape(1, 20, 40), axis=2)
        order = jnp.asarray(places.reshape(8, 20 * 16, 16))
        monkeypatch.setattr(correlations, "_random_order", lambda maps, key: lambda i: order)
        correlation = jax.jit(
            lambda x, m: correlations.faithfulness_correlation(
                lambda image: jax.vmap(one_channel.network)(image.reshape(20, 16, 16, 1)).sum(0),
                *(jnp.tile(x, (1, 20, 1, 1)), jnp.tile(m, (1, 20, 1)), self.labels),
                **{"key": KEYS[0], "samples": 20, "subset_size": 40, "chunk_size": 8},
            )
        )
        expected = one_channel.stored("faithfulness_correlation")
        np.testing.assert_allclose(correlation(self.images, self.maps), expected, atol=2e-4)

    def test_faithfulness_estimate(self):
        found = self.run(correlations.faithfulness_estimate, steps=16)
        np.testing.assert_allclose(found, one_channel.stored("faithfulness_estimate"), atol=2e-5)

    def test_monotonicity_correlation(self):
        found = self.run(correlations.monotonicity_correlation, steps=16, baseline="black")
        np.testing.assert_allclose(found, one_channel.stored("monotonicity_correlation"), atol=1e-6)

    def test_infidelity(self):
        """Quantus's own perturbation would keep earlier patches replaced too."""
        found = self.run(infidelity, perturbation="grid", baseline="black")
        np.testing.assert_allclose(found, one_channel.stored("infidelity"), rtol=1e-4)

    def test_sensitivity_n(self, monkeypatch):
        """Quantus correlates over examples, the effect of the most salient pixels with the relevance of the last step.

        Ours correlates over pixel sets of one image. Therefore the examples are put side by side in one image, whose
        scores the network sums. A set belongs to one example, and relevance is 0 at the pixels of earlier steps.
        """
        steps = np.array([0, 5, 11])
        maps = np.asarray(self.maps).reshape(8, 256)
        places = np.argsort(np.argsort(-maps, axis=1), axis=1)
        orders = np.full((8, 8, 256), 8 * 256)
        orders[np.arange(8), np.arange(8)] = places
        orders = jnp.asarray(orders.reshape(8, 1, 128, 16).repeat(3, 1), jnp.int32)
        monkeypatch.setattr(correlations, "_random_order", lambda maps, key: lambda i: orders[i])
        last = np.where(places[None] >= 16 * steps[:, None, None], maps[None], 0).reshape(3, 128, 16)

        def together(image):
            logits = jax.vmap(one_channel.network)(image.reshape(8, 16, 16, 1))
            return jnp.stack([jax.nn.softmax(logits)[jnp.arange(8), self.labels].sum(), 0.0])

        def beside(images):
            return jnp.tile(images.reshape(1, 128, 16, 1), (3, 1, 1, 1))

        black = beside(replacement.baseline_images(self.images, "black"))
        options = {"shares": tuple(16 * (steps + 1) / 2048), "samples": 8, "baseline": black, "saliency_of": "logit"}
        curve = jax.jit(
            lambda x, m: correlations.sensitivity_n_curve(together, x, m, 0, key=KEYS[0], chunk_size=3, **options)
        )
        expected = one_channel.stored("sensitivity_n")[steps]
        np.testing.assert_allclose(np.diag(curve(beside(self.images), last)), expected, atol=2e-4)
