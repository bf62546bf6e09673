"""Tests of metrics that replace pixels or regions in the map's order: brute force, Quantus 0.6.0, invariances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import one_channel
import pytest
import tiny_network as tiny
from traced import largest

from sdecor.attribution import Contrast, blurred
from sdecor.attribution.regions import grid as grid_of
from sdecor.metrics import (
    correlations,
    faithfulness,
    inputs,
    regions,
    replacement,
)
from sdecor.metrics.infidelity import infidelity
from sdecor.metrics.road import road
from sdecor.metrics.sufficiency import sufficiency as eager_sufficiency

RNG = np.random.default_rng(0)
sufficiency = jax.jit(eager_sufficiency, static_argnames=("threshold", "chunk_size"))
ranked = jax.jit(replacement.ranks, static_argnames="order")
baseline_images = jax.jit(replacement.baseline_images, static_argnames="baseline")
N, H, W = tiny.N, tiny.H, tiny.W
IMAGES, MAPS, TARGETS, KEYS = tiny.IMAGES, tiny.MAPS, tiny.TARGETS, tiny.KEYS
KEY = jax.random.key(4)


def run(metric, maps=MAPS, *, images=IMAGES, targets=TARGETS, fn=tiny.network, **options):
    """Return the values of a metric of the tiny network, compiled."""
    options = {"key": KEYS} | options
    return np.asarray(jax.jit(lambda x, m, t: metric(fn, x, m, t, **options))(images, maps, targets))


def evidence(image):
    """Return the logits `(Σ x, 0)`, for which deletion and insertion follow from sums of pixels."""
    return jnp.stack([image.sum(), 0.0])


class TestInsertionAndDeletion:
    images = RNG.normal(0.05, 0.3, size=(5, H, W, 3)).astype(np.float32)
    maps = RNG.random((5, H, W)).astype(np.float32)
    targets = np.zeros(5, int)

    def closed_form(self, images, start, steps):
        """Return probabilities as pixels of `start` are replaced by those of `images`, most salient first."""
        expected = []
        for image, base, saliency in zip(images, start, self.maps, strict=True):
            order = np.argsort(-saliency.ravel())
            gains = (image - base).astype(np.float64).sum(-1).ravel()[order]
            totals = base.sum(dtype=np.float64) + np.concatenate([[0], np.cumsum(gains)])
            taken = [round(j * H * W / steps) for j in range(steps + 1)]
            expected.append(1 / (1 + np.exp(-totals[taken])))
        return np.array(expected)

    def run(self, metric, maps, **options):
        return run(metric, maps, images=self.images, targets=self.targets, fn=evidence, **options)

    @pytest.mark.parametrize("steps", [4, H * W])
    def test_curves_in_closed_form(self, steps):
        zeros = np.zeros_like(self.images)
        deleted = self.run(faithfulness.deletion_curve, self.maps, steps=steps)
        np.testing.assert_allclose(deleted, self.closed_form(zeros, self.images, steps), rtol=2e-5)
        inserted = self.run(faithfulness.insertion_curve, self.maps, steps=steps, baseline="zero")
        np.testing.assert_allclose(inserted, self.closed_form(self.images, zeros, steps), rtol=2e-5)
        area = np.trapezoid(inserted, dx=1 / steps, axis=1)
        np.testing.assert_allclose(replacement.area_under(inserted), area, rtol=1e-5)

    def test_the_ends_are_the_image_and_the_baseline(self):
        base = baseline_images(self.images, "uniform", key=KEYS)
        curve = self.run(faithfulness.deletion_curve, self.maps, baseline="uniform", steps=2)
        ends = [jax.nn.softmax(jax.vmap(evidence)(x))[:, 0] for x in (self.images, base)]
        np.testing.assert_allclose(curve[:, 0], ends[0], rtol=1e-5)
        np.testing.assert_allclose(curve[:, -1], ends[1], rtol=1e-5)

    def test_the_true_map_beats_random_and_its_opposite_at_any_scale(self):
        true = self.images.sum(-1)
        options = {"key": KEY, "steps": H * W, "baseline": "zero"}
        area = jax.jit(lambda m: faithfulness.insertion(evidence, self.images, m, self.targets, **options))
        best, chance, worst = area(true), area(np.ones_like(true)), area(-true)
        assert (best > chance).all() and (chance > worst).all()
        np.testing.assert_array_equal(area(true * np.float32(2.0**-80)), best)

    def test_orders(self):
        morf, lerf, shuffled = (
            run(faithfulness.deletion_curve, maps, steps=6, order=order)
            for maps, order in ((MAPS, "morf"), (-MAPS, "lerf"), (MAPS, "random"))
        )
        np.testing.assert_allclose(lerf, morf, rtol=1e-6)
        assert np.abs(shuffled - morf).max() > 1e-3
        with pytest.raises(ValueError, match="order = 'lefr' is not known; did you mean 'lerf'"):
            run(faithfulness.deletion_curve, order="lefr")

    @pytest.mark.parametrize("name", ["insertion", "deletion"])
    def test_relative_to_random(self, name):
        options = {"key": KEYS, "steps": 4, "baseline": RNG.normal(size=IMAGES.shape).astype(np.float32)}
        metric = jax.jit(lambda m: getattr(faithfulness, name)(tiny.network, IMAGES, m, TARGETS, **options))
        relative = getattr(faithfulness, f"{name}_vs_random")
        ones = np.ones_like(MAPS)
        np.testing.assert_allclose(run(relative, **options), metric(MAPS) - metric(ones), atol=1e-6)
        np.testing.assert_array_equal(run(relative, 3 * ones, **options), 0)
        assert relative.__name__ == f"{name}_vs_random"


class TestBaselines:
    images = TestInsertionAndDeletion.images

    def test_against_numpy(self):
        smooth = baseline_images(self.images, functools.partial(blurred, sigma=2.0))
        i, j = np.arange(H), np.arange(W)
        rows, columns = np.exp(-((i[:, None] - i) ** 2) / 8.0), np.exp(-((j[:, None] - j) ** 2) / 8.0)
        rows, columns = rows / rows.sum(1, keepdims=True), columns / columns.sum(1, keepdims=True)
        expected = np.einsum("ij,njkc,lk->nilc", rows, self.images, columns)
        np.testing.assert_allclose(smooth, expected, rtol=1e-4, atol=1e-6)
        for how, reduce in (("mean", np.mean), ("black", np.min), ("white", np.max)):
            filled = baseline_images(self.images, how)
            expected = np.broadcast_to(reduce(self.images, axis=(1, 2), keepdims=True), self.images.shape)
            np.testing.assert_allclose(filled, expected, rtol=1e-5, atol=1e-7)
        flat = jnp.full((1, H, W, 3), 2.5)
        np.testing.assert_allclose(replacement.baseline_images(flat, "blur"), flat, rtol=1e-6)
        own = replacement.baseline_images(jnp.asarray(self.images), -self.images)
        np.testing.assert_array_equal(own, -self.images)

    def test_uniform_noise_fills_the_range_of_each_channel_and_belongs_to_the_example(self):
        keys = jax.random.split(KEY, 5)
        filled = np.asarray(baseline_images(self.images, "uniform", key=keys))
        low, high = self.images.min((1, 2), keepdims=True), self.images.max((1, 2), keepdims=True)
        share = (filled - low) / (high - low)
        assert share.min() >= 0 and share.max() <= 1 and abs(float(share.mean()) - 0.5) < 0.05
        alone = baseline_images(self.images[3:4], "uniform", key=keys[3:4])
        np.testing.assert_array_equal(alone, filled[3:4])

    def test_a_function_makes_them_and_draws_by_a_key_for_each_example(self):
        keys = jax.random.split(KEY, 5)

        def noisy(images, keys):
            return images + jax.vmap(lambda k: jax.random.normal(k, images.shape[1:]))(keys)

        drawn = baseline_images(self.images, noisy, key=keys)
        np.testing.assert_array_equal(baseline_images(self.images[3:4], noisy, key=keys[3:4]), drawn[3:4])
        assert len({float(each) for each in (drawn - self.images)[:, 0, 0, 0]}) == 5
        np.testing.assert_array_equal(baseline_images(self.images, blurred), baseline_images(self.images, "blur"))
        options = {"baseline": lambda images, keys: -images, "steps": 2}
        curve = run(faithfulness.deletion_curve, **options)
        np.testing.assert_array_equal(curve, run(faithfulness.deletion_curve, **options | {"baseline": -IMAGES}))

    def test_errors(self):
        with pytest.raises(ValueError, match="baseline has shape"):
            replacement.baseline_images(self.images, lambda images, keys: images[:1])
        with pytest.raises(ValueError, match="did you mean 'blur'"):
            replacement.baseline_images(self.images, "blurr")
        with pytest.raises(ValueError, match="baseline has shape"):
            replacement.baseline_images(self.images, jnp.zeros(3))
        with pytest.raises(ValueError, match="pass"):
            replacement.baseline_images(self.images, "uniform")


class TestRanks:
    def test_against_numpy(self):
        values = RNG.normal(size=(4, 9, 11)).astype(np.float32)
        values[0, 0, :2] = np.inf, -np.inf
        found = np.asarray(ranked(values, KEY)).reshape(4, -1)
        np.testing.assert_array_equal(np.argsort(found), np.argsort(-values.reshape(4, -1), axis=1))

    @pytest.mark.parametrize("shape", [(2, 300, 301), (3, 1, 1), (3, 2)])
    def test_sizes(self, shape):
        """More than 2¹⁶ values are ranked by other code."""
        values = RNG.integers(0, 50, shape).astype(np.float32)
        found = np.asarray(ranked(values, KEY, order="lerf")).reshape(shape[0], -1)
        ordered = np.take_along_axis(values.reshape(shape[0], -1), np.argsort(found, axis=1), 1)
        assert (np.diff(ordered, axis=1) >= 0).all()
        np.testing.assert_array_equal(np.sort(found), np.arange(found.shape[1])[None].repeat(shape[0], 0))

    @pytest.mark.parametrize("order", replacement.ORDERS)
    def test_equal_values_are_ordered_at_random_and_not_from_the_top_left(self, order):
        flat = np.where(np.arange(16) % 2, np.float32(0.0), np.float32(-0.0)).reshape(1, 4, 4).repeat(400, 0)
        found = np.asarray(ranked(flat, KEY, order=order))
        np.testing.assert_array_equal(np.sort(found.reshape(400, -1)), np.arange(16)[None].repeat(400, 0))
        means = found.mean(0)  # over 400 draws with standard deviation 4.6
        assert abs(means - 7.5).max() < 1.0
        assert np.corrcoef(found.reshape(400, -1).T)[0, 1:].max() < 0.2


def steps_of(images, bases, maps, targets, counts, sign=1):
    """Return probabilities with the first pixels replaced, `[N, len(counts)]`, in float64."""
    return np.array(
        [
            [tiny.probability(tiny.replaced(x, b, tiny.first(sign * m, k)), t) for k in counts]
            for x, b, m, t in zip(images, bases, maps, targets, strict=True)
        ]
    )


class TestPixels:
    black = np.broadcast_to(IMAGES.min((1, 2), keepdims=True), IMAGES.shape)

    @pytest.mark.parametrize("steps", [5, None])
    def test_pixel_flipping(self, steps):
        counts = [round(j * H * W / (steps or H * W)) for j in range((steps or H * W) + 1)]
        expected = steps_of(IMAGES, self.black, MAPS, TARGETS, counts)
        area = run(faithfulness.pixel_flipping, steps=steps)
        np.testing.assert_allclose(area, np.trapezoid(expected, dx=1 / (len(counts) - 1), axis=1), atol=2e-6)

    def test_scores_other_than_the_probability(self):
        log_probability, logit = (
            run(faithfulness.pixel_flipping_curve, steps=2, saliency_of=score) for score in ("log_probability", "logit")
        )
        expected = steps_of(IMAGES, self.black, MAPS, TARGETS, [0, 21, 42])
        np.testing.assert_allclose(np.exp(log_probability), expected, rtol=1e-5)
        own = [tiny.logits(x)[t] for x, t in zip(IMAGES, TARGETS, strict=True)]
        np.testing.assert_allclose(logit[:, 0], own, rtol=1e-5)

    def test_monotonicity(self):
        """Both answers occur: inserting bright pixels raises the logit of `evidence`, dark ones lower it."""
        options = {"steps": 7, "baseline": "zero", "fn": evidence, "targets": np.zeros(N, int)}
        for sign in (1, -1):
            rises = run(faithfulness.monotonicity, images=sign * np.abs(IMAGES), **options)
            np.testing.assert_array_equal(rises, sign == 1)
        counts = [round(j * H * W / 3) for j in range(1, 4)]
        expected = (np.diff(steps_of(self.black, IMAGES, MAPS, TARGETS, counts, sign=-1)) >= 0).all(1)
        found = run(faithfulness.monotonicity, steps=3)
        np.testing.assert_array_equal(found, expected)

    def test_masked_accuracy(self):
        counts = [percent * H * W // 100 for percent in range(0, 100, 10)]
        expected = [
            [np.argmax(tiny.logits(tiny.replaced(x, b, tiny.first(np.abs(m), k)))) == t for k in counts]
            for x, b, m, t in zip(IMAGES, self.black, MAPS, TARGETS, strict=True)
        ]
        assert 0 < np.mean(expected) < 1
        found = run(faithfulness.masked_accuracy_curve)
        np.testing.assert_array_equal(found, np.array(expected, np.float32))

    @pytest.mark.parametrize("baseline", ["zero", "mean"])
    def test_average_drop_and_increase(self, baseline):
        base = np.asarray(baseline_images(IMAGES, baseline))
        weight = MAPS - MAPS.min((1, 2), keepdims=True)
        weight = (weight / weight.max((1, 2), keepdims=True))[..., None]
        whole = np.array([tiny.probability(x, t) for x, t in zip(IMAGES, TARGETS, strict=True)])
        masked = [tiny.probability(x, t) for x, t in zip(base + weight * (IMAGES - base), TARGETS, strict=True)]
        lost = run(faithfulness.average_drop, baseline=baseline)
        np.testing.assert_allclose(lost, np.maximum(whole - masked, 0) / whole, atol=2e-6)
        gained = run(faithfulness.average_increase, baseline=baseline)
        np.testing.assert_array_equal(gained, masked > whole)


class TestRegions:
    def brute_force(self, base, segments, reduce, sign=1):
        """Return probabilities as segments are replaced, best first, in float64, one list per image."""
        curves = []
        for x, b, m, s, t in zip(IMAGES, base, MAPS, segments, TARGETS, strict=True):
            order = sorted(np.unique(s), key=lambda i: -sign * reduce(m[s == i].astype(np.float64)))
            masks = [np.isin(s, order[:k]) for k in range(len(order) + 1)]
            curves.append([tiny.probability(tiny.replaced(x, b, mask), t) for mask in masks])
        return curves

    def test_the_grid_keeps_what_is_left_over_as_smaller_patches(self):
        expected = [[0, 0, 0, 1, 1, 1, 2]] * 3 + [[3, 3, 3, 4, 4, 4, 5]] * 2
        np.testing.assert_array_equal(grid_of((5, 7), 3), expected)

    @pytest.mark.parametrize("order", ["morf", "lerf"])
    def test_region_perturbation(self, order):
        grid = np.broadcast_to(grid_of((H, W), 3), MAPS.shape)
        base = np.asarray(baseline_images(IMAGES, "uniform", key=KEYS))
        expected = np.array(self.brute_force(base, grid, np.mean, 1 if order == "morf" else -1))[:, :5]
        aopc = run(regions.region_perturbation, patch=3, regions=4, order=order)
        np.testing.assert_allclose(aopc, (expected[:, :1] - expected).sum(1) / 5, atol=2e-6)

    @pytest.mark.parametrize("order", ["morf", "lerf"])
    def test_a_plain_map_is_a_random_order_of_patches(self, order):
        """Patches cut by the border, with smaller sums, are ranked at random too: here only the corner's matters."""
        corner = np.zeros((300, 5, 7, 1), np.float32)
        corner[:, -1, -1] = 1
        options = {"key": KEY, "patch": 3, "order": order, "baseline": "zero", "saliency_of": "logit"}
        batch = (corner, np.ones(corner.shape[:3], np.float32), np.zeros(300, int))
        curve = jax.jit(lambda *batch: regions.region_perturbation_curve(evidence, *batch, **options))(*batch)
        np.testing.assert_allclose(curve.mean(0), 1 - np.arange(7) / 6, atol=0.1)

    def test_selectivity(self):
        grid = np.broadcast_to(grid_of((H, W), 4), MAPS.shape)
        expected = np.array(self.brute_force(np.zeros_like(IMAGES), grid, np.mean))
        area = run(regions.selectivity)
        np.testing.assert_allclose(area, np.trapezoid(expected, dx=1 / 4, axis=1), atol=2e-6)

    def test_irof_on_segments_of_any_number(self):
        """The images have 2 to 6 segments; odd numbers and the last number are never used."""
        segments = np.stack([RNG.integers(0, 2 + i, (H, W)) * 2 for i in range(N)])
        base = np.broadcast_to(IMAGES.mean((1, 2), keepdims=True), IMAGES.shape)
        curves = self.brute_force(base, segments, np.mean)
        expected = [np.trapezoid(1 - np.array(c) / c[0], dx=1 / (len(c) - 1)) for c in curves]
        np.testing.assert_allclose(run(regions.irof, segments=segments, count=12), expected, atol=1e-5)
        grid = np.broadcast_to(grid_of((H, W), 4), MAPS.shape)
        np.testing.assert_allclose(run(regions.irof), run(regions.irof, segments=grid), rtol=1e-6)
        with pytest.raises(ValueError, match="count = None"):
            jax.jit(lambda s: regions.irof(tiny.network, IMAGES, MAPS, TARGETS, key=KEY, segments=s))(segments)
        with pytest.raises(ValueError, match="segments have shape"):
            run(regions.irof, segments=segments[0])


class TestSufficiency:
    maps = RNG.normal(size=(30, 5, 4)).astype(np.float32)
    predictions = RNG.integers(0, 3, 30)

    def brute_force(self, maps, predictions, threshold):
        rows = maps.reshape(len(maps), -1).astype(np.float64)
        distance = np.sqrt((((rows[:, None] - rows[None]) / rows.std(0, ddof=1)) ** 2).sum(-1))
        near = (distance <= threshold * distance.max()) & ~np.eye(len(maps), dtype=bool)
        same = near & (predictions[:, None] == predictions[None])
        return np.where(near.any(1), same.sum(1) / np.maximum(near.sum(1), 1), np.nan)

    @pytest.mark.parametrize("threshold", [0.5, 0.8])
    def test_against_brute_force(self, threshold):
        found = sufficiency(self.maps, self.predictions, threshold=threshold, chunk_size=7)
        expected = self.brute_force(self.maps, self.predictions, threshold)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert np.isnan(expected).any() == (threshold == 0.5)

    def test_undefined_maps_are_not_compared(self):
        maps = np.concatenate([self.maps, np.zeros((1, 5, 4), np.float32), np.full((1, 5, 4), np.nan, np.float32)])
        found = sufficiency(maps, np.concatenate([self.predictions, [0, 0]]), threshold=0.8)
        np.testing.assert_allclose(found[:30], self.brute_force(self.maps, self.predictions, 0.8), rtol=1e-6)
        assert np.isnan(found[30:]).all()


ALL = {
    "insertion": faithfulness.insertion,
    "deletion_vs_random": faithfulness.deletion_vs_random,
    "pixel_flipping": functools.partial(faithfulness.pixel_flipping, steps=5),
    "monotonicity": functools.partial(faithfulness.monotonicity, steps=3),
    "masked_accuracy_curve": faithfulness.masked_accuracy_curve,
    "region_perturbation": functools.partial(regions.region_perturbation, patch=3),
    "selectivity": regions.selectivity,
    "irof": regions.irof,
    "average_drop": faithfulness.average_drop,
    "average_increase": faithfulness.average_increase,
    "faithfulness_correlation": functools.partial(correlations.faithfulness_correlation, samples=11),
    "sensitivity_n": functools.partial(correlations.sensitivity_n, samples=5, shares=(0.1, 0.5)),
    "faithfulness_estimate": functools.partial(correlations.faithfulness_estimate, steps=6),
    "monotonicity_correlation": functools.partial(correlations.monotonicity_correlation, steps=6, samples=3),
    "infidelity": functools.partial(infidelity, samples=7),
    "infidelity_noise": functools.partial(infidelity, samples=7, perturbation="noise"),
    "road": road,
}


# Numbers of evaluations in flight, below and above the number of examples, for each kind of loop.
CHUNK_SIZES = {
    "insertion": 2,
    "pixel_flipping": 17,
    "average_drop": 10,
    "faithfulness_correlation": 2,
    "monotonicity_correlation": 17,
    "infidelity": 17,
    "road": 2,
}


# In the full suite only: they use the same loops as others.
FULL = ("deletion_vs_random", "selectivity", "irof", "average_increase", "infidelity_noise")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.full if name in FULL else ()) for name in ALL])
def test_values_belong_to_the_example(name):
    """Values depend neither on other images nor on the chunk size, and are NaN for undefined maps."""
    maps = np.round(MAPS, 1)
    maps[1], maps[2, 0, 0] = 0, np.nan
    values = jax.jit(lambda c, x, m, t, k: ALL[name](tiny.network, x, m, t, key=k, chunk_size=c), static_argnums=0)
    whole = np.asarray(values(None, IMAGES, maps, TARGETS, KEYS))
    assert whole.shape[0] == N and whole.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(whole.reshape(N, -1)).any(1), [False, True, True, False, False])
    other = np.array([4, 3, 3, 0, 3])
    beside = values(None, IMAGES[other], maps[other], TARGETS[other], KEYS[other])
    np.testing.assert_allclose(beside, whole[other], rtol=2e-5, atol=2e-6)
    if name in CHUNK_SIZES:
        chunked = values(CHUNK_SIZES[name], IMAGES, maps, TARGETS, KEYS)
        np.testing.assert_allclose(chunked, whole, rtol=2e-5, atol=2e-6)


def test_a_batch_of_one_is_the_same():
    whole = run(faithfulness.insertion)
    alone = run(faithfulness.insertion, MAPS[3:4], images=IMAGES[3:4], targets=TARGETS[3:4], key=KEYS[3:4])
    np.testing.assert_allclose(alone, whole[3:4], rtol=2e-5)


@pytest.mark.parametrize("name", ALL)
def test_arrays_that_do_not_belong_together(name):
    with pytest.raises(ValueError, match="do not belong together"):
        ALL[name](tiny.network, IMAGES, MAPS[:, :2], TARGETS, key=KEY)


# "predicted" has no meaning for these: they test whether the true class is predicted.
OF_LABELS = ("masked_accuracy_curve", "road")


@pytest.mark.parametrize("name", ALL)
class TestInputs:
    def shape(self, name, images=IMAGES, targets=TARGETS, **options):
        """Return the shape of a metric's values, without compiling."""
        fixed = {"key": KEYS} | options
        return jax.eval_shape(lambda x: ALL[name](tiny.network, x, MAPS, targets, **fixed), images).shape

    def test_integer_images_are_refused(self, name):
        """Differences of unsigned integers would wrap around."""
        with pytest.raises(ValueError, match="images has dtype uint8"):
            self.shape(name, np.zeros(IMAGES.shape, np.uint8))

    def test_targets_are_those_of_explain(self, name):
        assert self.shape(name, targets=[0, 1, 2, 0, 1])[0] == self.shape(name, targets=1)[0] == N
        if name in OF_LABELS:
            with pytest.raises(ValueError, match="labels = 'predicted'"):
                self.shape(name, targets="predicted")
        else:
            assert self.shape(name, targets="predicted")[0] == N
        with pytest.raises(ValueError, match="has dtype float32: pass classes"):
            self.shape(name, targets=np.zeros(N, np.float32))

    def test_memory_is_bounded_by_default(self, name):
        """By default only as many evaluations as fill a CPU are in flight, for any number of examples."""
        many = {"images": np.resize(IMAGES, (200, *IMAGES.shape[1:])), "maps": np.resize(MAPS, (200, H, W))}
        wide = lambda image: jnp.tanh(jnp.tile(image.ravel(), 65)).reshape(3, -1).sum(1)  # noqa: E731
        targets, keys = np.resize(TARGETS, 200), jax.random.split(KEY, 200)
        traced = jax.make_jaxpr(lambda images, maps: ALL[name](wide, images, maps, targets, key=keys))(**many)
        assert largest(traced.jaxpr) <= 64 * 65 * IMAGES[0].size


def test_classes():
    expected = [tiny.logits(x).argmax() for x in IMAGES]
    np.testing.assert_array_equal(inputs.check_classes(IMAGES, "predicted", fn=tiny.network), expected)
    np.testing.assert_array_equal(inputs.check_classes(IMAGES, np.int8(2)), np.full(N, 2))
    np.testing.assert_array_equal(inputs.check_classes(IMAGES, expected), expected)
    for targets, message in (
        ("predcited", "did you mean 'predicted'"),
        (Contrast(0, 1), "the score of one class"),
        (jnp.sum, "the score of one class"),
        ([0, 1], "do not belong together"),
    ):
        with pytest.raises(ValueError, match=message):
            inputs.check_classes(IMAGES, targets, fn=tiny.network)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deletion_vs_random", {"steps": 4, "chunk_size": 3}),
        ("region_perturbation", {"patch": 3, "regions": 2}),
        ("faithfulness_correlation", {"samples": 7, "subset_size": 10}),
        ("faithfulness_estimate", {"steps": 6}),
        ("monotonicity_correlation", {"samples": 3}),
        ("infidelity", {"samples": 7, "patch": 3}),
    ],
)
def test_counts_are_whole_numbers_of_python_or_numpy(name, options):
    def run(**options):
        return jax.eval_shape(lambda x: ALL[name](tiny.network, x, MAPS, TARGETS, key=KEYS, **options), IMAGES).shape

    assert run(**{option: np.int64(value) for option, value in options.items()}) == (N,)
    for option, value in options.items():
        with pytest.raises(ValueError, match=f"{option} = {value}.5"):
            run(**options | {option: value + 0.5})


def test_ranges():
    for options, message in (({"steps": 0}, "steps = 0"), ({"chunk_size": 0}, "chunk_size = 0")):
        with pytest.raises(ValueError, match=message):
            faithfulness.deletion(tiny.network, IMAGES, MAPS, TARGETS, key=KEY, **options)
    with pytest.raises(ValueError, match="percentages = 101"):
        faithfulness.masked_accuracy_curve(tiny.network, IMAGES, MAPS, TARGETS, key=KEY, percentages=(101,))
    with pytest.raises(ValueError, match="patch = 8"):
        regions.selectivity(tiny.network, IMAGES, MAPS, TARGETS, key=KEY, patch=8)


class TestQuantus:
    """Tests against Quantus 0.6.0 on one channel, where a pixel is one feature.

    Quantus's curves lack the unperturbed point, and its areas and IROF count steps, not shares of the image.
    """

    def run(self, metric, **options):
        images, maps, labels = one_channel.examples()
        return np.asarray(jax.jit(lambda m: metric(one_channel.network, images, m, labels, key=KEY, **options))(maps))

    def test_pixel_flipping(self):
        curve = self.run(faithfulness.pixel_flipping_curve, steps=16)
        np.testing.assert_allclose(curve[:, 1:], one_channel.stored("pixel_flipping"), atol=2e-5)

    @pytest.mark.parametrize("order", ["morf", "lerf"])
    def test_region_perturbation(self, order):
        options = {"patch": 4, "regions": 10, "order": order, "baseline": "black"}
        curve = self.run(regions.region_perturbation_curve, **options)
        expected = one_channel.stored(f"region_perturbation_{order}")
        np.testing.assert_allclose(curve[:, :1] - curve[:, 1:], expected, atol=2e-5)

    def test_selectivity(self):
        curve = self.run(regions.selectivity_curve, baseline="black")
        np.testing.assert_allclose(curve[:, 1:], one_channel.stored("selectivity"), atol=2e-5)

    def test_irof(self):
        curve = self.run(regions.irof_curve)
        in_steps = 16 - np.trapezoid(curve[:, 1:], axis=1)
        np.testing.assert_allclose(in_steps, one_channel.stored("irof"), rtol=1e-4, atol=1e-4)

    def test_monotonicity(self):
        """Quantus's own perturbation replaces the baseline by itself, which makes every map monotonic."""
        found = self.run(faithfulness.monotonicity, steps=4)
        np.testing.assert_array_equal(found, one_channel.stored("monotonicity"))
        assert 0 < found.mean() < 1

    def test_sufficiency(self):
        """Quantus returns 0 where no other explanation is near."""
        _, maps, labels = one_channel.examples()
        found = sufficiency(maps, labels, threshold=0.95)
        np.testing.assert_allclose(np.nan_to_num(found), one_channel.stored("sufficiency"), rtol=1e-6)
