"""Tests of the basic metrics against float64, of their invariances and undefined values, and of the registry."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdecor import metrics
from sdecor.metrics.registry import KNOWN, PRESETS
from sdecor.metrics.replacement import ranks

RNG = np.random.default_rng(0)
N, H, W = 12, 6, 7
MAPS = RNG.gamma(0.5, size=(N, H, W)).astype(np.float32)
OBJECTS = RNG.random((N, H, W)) < RNG.uniform(0.1, 0.6, (N, 1, 1))
IGNORE = RNG.random((N, H, W)) < 0.2

energy_inside = jax.jit(metrics.energy_inside)
pointing_game = jax.jit(metrics.pointing_game, static_argnames="tolerance")
gini = jax.jit(metrics.gini)
feature_moments = jax.jit(metrics.feature_moments)


class TestClassification:
    logits = RNG.normal(size=(200, 5)).astype(np.float32) * 3
    labels = RNG.integers(5, size=200)

    def test_against_numpy(self):
        z = self.logits.astype(np.float64)
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        np.testing.assert_array_equal(metrics.accuracy(self.logits, self.labels), p.argmax(1) == self.labels)
        rows = np.arange(200)
        np.testing.assert_allclose(
            metrics.cross_entropy(self.logits, self.labels), -np.log(p[rows, self.labels]), rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(metrics.confidence(self.logits), p.max(1), rtol=1e-5)

    def test_huge_logits_stay_finite_and_nan_is_wrong(self):
        huge = jnp.array([[1e30, 0.0], [jnp.nan, 0.0]])
        assert float(metrics.cross_entropy(huge[:1], jnp.array([0]))[0]) == 0
        np.testing.assert_array_equal(metrics.accuracy(huge, jnp.array([0, 0])), [1, 0])

    def test_calibration_error_against_a_loop_over_bins(self):
        confidence = RNG.uniform(0.2, 1, 500)
        confidence[:4] = [0.0, 1.0, 1 / 15, 3 / 15]
        correct = RNG.random(500) < confidence**2
        expected = 0.0
        for b in range(15):
            low, high = b / 15, (b + 1) / 15
            here = (confidence > low) & (confidence <= high) | (b == 0) & (confidence == 0)
            if here.any():
                expected += here.mean() * abs(confidence[here].mean() - correct[here].mean())
        sums = metrics.calibration_bins(confidence, correct).sum(0)
        assert metrics.calibration_error(sums, 500) == pytest.approx(expected, rel=1e-9)

    def test_calibration_error_of_known_cases(self):
        sure = metrics.calibration_bins(np.ones(10), np.zeros(10))
        assert metrics.calibration_error(sure.sum(0), 10) == 1
        assert np.isnan(metrics.calibration_error(np.zeros((2, 30)), np.zeros(2))).all()
        right = metrics.calibration_bins(np.full(4, 0.75), np.array([1, 1, 1, 0]))
        assert metrics.calibration_error(right.sum(0), 4) == pytest.approx(0)

    def test_the_fitted_temperature_is_that_of_drawn_labels_and_stationary(self):
        """Labels are drawn from the softmax of logits; at the optimum the mean logit of labels is the expected one."""
        logits = 2 * RNG.standard_normal((20_000, 5))
        labels = (logits + RNG.gumbel(size=logits.shape)).argmax(axis=1)
        for scale, tolerance in ((2.5, 0.1), (0.5, 0.02)):
            found = metrics.fit_temperature(scale * logits, labels)
            assert abs(found - scale) < tolerance
            p = np.exp(scale * logits / found)
            expected = (p / p.sum(1, keepdims=True) * logits).sum(1)
            assert abs(logits[np.arange(20_000), labels].mean() - expected.mean()) < 1e-3

    def test_a_temperature_that_cannot_be_fitted(self):
        right = 9 * np.eye(3)
        assert metrics.fit_temperature(right, np.arange(3)) < 0.3  # all right: the colder, the better
        assert metrics.fit_temperature(right, [1, 2, 0]) == pytest.approx(20, rel=1e-3)  # all wrong
        for logits, labels, message in (
            (right, [0, 1, 3], "labels"),
            (right[:, :1], [0, 0, 0], "logit"),
            (right * np.nan, [0, 1, 2], "not finite"),
            (right[:0], np.zeros(0, int), "at least one example"),
        ):
            with pytest.raises(ValueError, match=message):
                metrics.fit_temperature(logits, labels)

    @pytest.mark.filterwarnings("error")
    def test_an_example_without_confidence_is_in_no_bin(self):
        confidence = np.array(metrics.confidence(jnp.array([[jnp.nan, 0.0], [2.0, -jnp.inf], [jnp.inf, 0.0]])))
        np.testing.assert_array_equal(confidence, [np.nan, 1.0, np.nan])
        columns = metrics.calibration_bins(confidence, np.array([0.0, 1.0, 1.0]))
        np.testing.assert_array_equal(columns.sum(1), [0, 2, 0])
        assert metrics.calibration_error(columns.sum(0), 1) == 0


class TestLocalization:
    def test_energy_against_numpy(self):
        expected = [(m * o)[~i].sum() / m[~i].sum() for m, o, i in zip(MAPS, OBJECTS, IGNORE, strict=True)]
        np.testing.assert_allclose(energy_inside(MAPS, OBJECTS, ignore=IGNORE), expected, rtol=1e-5)
        area = [o[~i].mean() for o, i in zip(OBJECTS, IGNORE, strict=True)]
        np.testing.assert_allclose(metrics.area_share(OBJECTS, ignore=IGNORE), area, rtol=1e-6)

    def test_constant_map_scores_chance_everywhere(self):
        flat = jnp.full((N, H, W), 3e-20)
        chance = metrics.area_share(OBJECTS, ignore=IGNORE)
        np.testing.assert_allclose(energy_inside(flat, OBJECTS, ignore=IGNORE), chance, rtol=1e-6)
        np.testing.assert_allclose(pointing_game(flat, OBJECTS, ignore=IGNORE), chance, rtol=1e-6)

    @pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e37])
    def test_scale_does_not_matter(self, scale):
        # Scaling by 2**x is exact, so that rounding is the same.
        scaled = MAPS / MAPS.max() * np.float32(2.0 ** np.round(np.log2(scale)))
        reference = MAPS / MAPS.max()
        np.testing.assert_allclose(energy_inside(scaled, OBJECTS), energy_inside(reference, OBJECTS), rtol=1e-6)
        np.testing.assert_allclose(pointing_game(scaled, OBJECTS), pointing_game(reference, OBJECTS))
        np.testing.assert_allclose(gini(scaled), gini(reference), rtol=1e-6)

    def test_negative_values_are_no_energy(self):
        signed = jnp.array([[[2.0, -5.0], [1.0, 1.0]]])
        inside = jnp.array([[[True, True], [False, False]]])
        assert float(energy_inside(signed, inside)[0]) == 0.5

    def test_pointing_game_hits_misses_and_shares_ties(self):
        maps = np.zeros((3, 4, 4), np.float32)
        maps[0, 1, 1], maps[1, 3, 3] = 1, 1
        maps[2, 0, 0] = maps[2, 1, 1] = maps[2, 1, 2] = maps[2, 3, 3] = 5
        objects = np.zeros((3, 4, 4), bool)
        objects[:, 1:3, 1:3] = True
        np.testing.assert_array_equal(pointing_game(maps, objects), [1, 0, 0.5])

    def test_tolerance_is_a_euclidean_distance(self):
        objects = np.zeros((1, 9, 9), bool)
        objects[0, 4, 4] = True
        for dy, dx in [(0, 2), (2, 2), (1, 2), (0, 3), (3, 4)]:
            maps = np.zeros((1, 9, 9), np.float32)
            maps[0, 4 - dy, 4 - dx] = 1
            distance = np.hypot(dy, dx)
            assert float(pointing_game(maps, objects, tolerance=distance + 1e-6)[0]) == 1
            assert float(pointing_game(maps, objects, tolerance=distance - 1e-6)[0]) == 0
        with pytest.raises(ValueError, match="tolerance = -1"):
            metrics.pointing_game(maps, objects, tolerance=-1)

    def test_the_maximum_is_never_an_ignored_pixel(self):
        maps, objects = jnp.array([[[9.0, 1.0, 2.0]]]), jnp.array([[[True, True, False]]])
        ignored = jnp.array([[[True, False, False]]])
        assert float(pointing_game(maps, objects)[0]) == 1
        assert float(pointing_game(maps, objects, ignore=ignored)[0]) == 0

    def test_no_answer_is_nan_and_never_a_hit(self):
        maps, objects = np.array(MAPS[:5]), np.array(OBJECTS[:5])
        objects[0], objects[1] = False, True
        maps[2], maps[3, 1, 1] = 0, np.nan
        for values in (energy_inside(maps, objects), pointing_game(maps, objects)):
            np.testing.assert_array_equal(np.isnan(values), [True, True, True, True, False])
        np.testing.assert_array_equal(np.isnan(metrics.area_share(objects)), [True, True, False, False, False])
        hidden = np.isnan(energy_inside(maps[4:], objects[4:], ignore=objects[4:]))
        assert hidden.all()


class TestGini:
    def test_against_float64_at_224_pixels(self):
        maps = RNG.gamma(0.3, size=(3, 224, 224)).astype(np.float32)
        expected = []
        for m in maps:
            a = np.sort(m.ravel().astype(np.float64))
            i = np.arange(1, a.size + 1)
            expected.append(((2 * i - a.size - 1) * a).sum() / (a.size * a.sum()))
        np.testing.assert_allclose(gini(maps), expected, rtol=1e-5)

    def test_known_cases(self):
        maps = np.zeros((3, 4, 5), np.float32)
        maps[0], maps[1, 2, 2], maps[2, :2] = 7.0, -1.0, 3.0
        np.testing.assert_allclose(gini(maps), [0, 1 - 1 / 20, 0.5], atol=1e-6)

    def test_order_and_sign_do_not_matter(self):
        shuffled = RNG.permuted(MAPS.reshape(N, -1), axis=1).reshape(MAPS.shape)
        signed = shuffled * RNG.choice([-1, 1], shuffled.shape).astype(np.float32)
        np.testing.assert_allclose(gini(signed), gini(MAPS), rtol=1e-6)

    def test_no_answer_is_nan(self):
        maps = np.array(MAPS[:3])
        maps[0], maps[1, 0, 0] = 0, np.inf
        np.testing.assert_array_equal(np.isnan(gini(maps)), [True, True, False])


def evidence(image):
    """Return the logits `(Σ x, 0)`, for which deletion and insertion follow from sums of pixels."""
    return jnp.stack([image.sum(), 0.0])


class TestFaithfulness:
    """Tests of insertion and deletion; test_faithfulness.py has quick versions of those marked full."""

    images = RNG.normal(0.05, 0.3, size=(5, H, W, 3)).astype(np.float32)
    maps = RNG.random((5, H, W)).astype(np.float32)
    targets = jnp.zeros(5, int)
    key = jax.random.key(0)

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

    @pytest.mark.parametrize("steps", [1, *(pytest.param(s, marks=pytest.mark.full) for s in (4, 16, H * W))])
    def test_curves_in_closed_form(self, steps):
        options = {"key": self.key, "steps": steps}

        @jax.jit
        def values(images, maps, targets):
            batch = (evidence, images, maps, targets)
            deleted = metrics.deletion_curve(*batch, **options)
            inserted = metrics.insertion_curve(*batch, baseline="zero", **options)
            return deleted, inserted, metrics.insertion(*batch, baseline="zero", **options)

        zeros = np.zeros_like(self.images)
        deleted, inserted, area = values(self.images, self.maps, self.targets)
        np.testing.assert_allclose(deleted, self.closed_form(zeros, self.images, steps), rtol=2e-5)
        np.testing.assert_allclose(inserted, self.closed_form(self.images, zeros, steps), rtol=2e-5)
        np.testing.assert_allclose(area, np.trapezoid(inserted, dx=1 / steps, axis=1), rtol=1e-5)

    @pytest.mark.full
    def test_the_ends_are_the_image_and_the_baseline(self):
        @jax.jit
        def values(images):
            of = functools.partial(metrics.deletion_curve, evidence, images, self.maps, self.targets, key=self.key)
            baseline_of = functools.partial(metrics.baseline_images, images, key=self.key)
            return {how: (baseline_of(how), of(baseline=how)) for how in metrics.BASELINES}

        for base, curve in values(self.images).values():
            ends = [jax.nn.softmax(jax.vmap(evidence)(x))[:, 0] for x in (self.images, base)]
            np.testing.assert_allclose(curve[:, 0], ends[0], rtol=1e-5)
            np.testing.assert_allclose(curve[:, -1], ends[1], rtol=2e-4)  # of about 1e-30: the sum −70 is rounded

    @pytest.mark.full
    def test_baselines(self):
        blurred = metrics.baseline_images(self.images, functools.partial(metrics.blurred, sigma=2.0))
        i = np.arange(H)
        rows = np.exp(-((i[:, None] - i) ** 2) / 8.0)
        j = np.arange(W)
        columns = np.exp(-((j[:, None] - j) ** 2) / 8.0)
        rows, columns = rows / rows.sum(1, keepdims=True), columns / columns.sum(1, keepdims=True)
        expected = np.einsum("ij,njkc,lk->nilc", rows, self.images, columns)
        np.testing.assert_allclose(blurred, expected, rtol=1e-4, atol=1e-6)
        flat = jnp.full((1, H, W, 3), 2.5)
        np.testing.assert_allclose(metrics.baseline_images(flat, "blur"), flat, rtol=1e-6)
        mean = metrics.baseline_images(self.images, "mean")
        np.testing.assert_allclose(mean[:, 0, 0], self.images.mean((1, 2)), rtol=1e-5, atol=1e-7)
        own = metrics.baseline_images(jnp.asarray(self.images), -self.images)
        np.testing.assert_array_equal(own, -self.images)
        with pytest.raises(ValueError, match="did you mean 'blur'"):
            metrics.baseline_images(flat, "blurr")
        with pytest.raises(ValueError, match="baseline has shape"):
            metrics.baseline_images(flat, jnp.zeros(3))

    @pytest.mark.full
    def test_the_true_map_beats_random_and_its_opposite(self):
        true = jnp.asarray(self.images.sum(-1))
        options = {"key": self.key, "steps": H * W}
        area = jax.jit(lambda m: metrics.insertion(evidence, self.images, m, self.targets, baseline="zero", **options))
        areas = [area(m) for m in (true, jnp.ones_like(true), -true)]
        assert (areas[0] > areas[1]).all() and (areas[1] > areas[2]).all()
        assert (metrics.deletion(evidence, self.images, true, self.targets, **options) < areas[1]).all()

    @pytest.mark.full
    def test_scale_of_the_map_does_not_matter(self):
        run = jax.jit(lambda m: metrics.deletion(evidence, self.images, m, self.targets, key=self.key))
        np.testing.assert_array_equal(run(self.maps * 2.0**-80), run(self.maps))

    @pytest.mark.full
    def test_ties_are_broken_at_random_and_not_from_the_top_left(self):
        flat = jnp.ones((400, 4, 4))
        places = ranks(flat, self.key)
        assert (jnp.sort(places.reshape(400, -1)) == jnp.arange(16)[None]).all()
        assert abs(float(places[:, 0, 0].mean()) - 7.5) < 1.0
        assert abs(float(places[:, 3, 3].mean()) - 7.5) < 1.0

    @pytest.mark.full
    def test_examples_do_not_depend_on_their_batch_or_chunk(self):
        tied = jnp.asarray(np.round(self.maps, 1))
        keys = jax.random.split(self.key, 5)
        fn = lambda image: jnp.stack([jnp.tanh(image).sum(), jnp.sin(image).sum(), 0.0])  # noqa: E731
        run = jax.jit(lambda x, m, t, k, c: metrics.insertion(fn, x, m, t, key=k, chunk_size=c), static_argnums=4)
        whole = run(self.images, tied, self.targets, keys, None)
        for chunk in (1, 2, 100):
            np.testing.assert_allclose(run(self.images, tied, self.targets, keys, chunk), whole, rtol=1e-5)
        alone = run(self.images[3:4], tied[3:4], self.targets[3:4], keys[3:4], None)
        np.testing.assert_allclose(alone, whole[3:4], rtol=1e-5)

    def test_no_answer_is_nan(self):
        maps = np.array(self.maps)
        maps[1], maps[2, 0, 0] = 0, np.nan
        areas = metrics.deletion(evidence, self.images, maps, self.targets, key=self.key)
        np.testing.assert_array_equal(np.isnan(areas), [False, True, True, False, False])

    def test_errors(self):
        with pytest.raises(ValueError, match="steps = 0"):
            metrics.deletion(evidence, self.images, self.maps, self.targets, key=self.key, steps=0)
        with pytest.raises(ValueError, match="do not belong together"):
            metrics.deletion(evidence, self.images, self.maps[:, :2], self.targets, key=self.key)


class TestFeatures:
    features = (RNG.normal(size=(90, 6)) @ RNG.normal(size=(6, 6)) + RNG.normal(size=6) * 5).astype(np.float32)

    def merged(self, features, cuts, weight=None):
        weight = np.ones(len(features)) if weight is None else weight
        parts = [
            metrics.feature_moments(x, w) for x, w in zip(np.split(features, cuts), np.split(weight, cuts), strict=True)
        ]
        total = {name: np.asarray(value, np.float64) for name, value in parts[0].items()}
        for part in parts[1:]:
            total = metrics.merge_moments(total, part)
        return metrics.feature_diagnostics(total)

    def expected(self, features):
        x = features.astype(np.float64)
        r = np.abs(np.corrcoef(x.T))
        d = x.shape[1]
        spectrum = np.linalg.eigvalsh(np.cov(x.T))
        p = spectrum / spectrum.sum()
        return {
            "mean_abs_correlation": (r.sum() - d) / (d * (d - 1)),
            "effective_rank": np.exp(-(p * np.log(p)).sum()),
            "mean_std": x.std(0, ddof=1).mean(),
        }

    @pytest.mark.parametrize("cuts", [[], [45], [1, 2, 80]])
    def test_against_numpy_for_any_split(self, cuts):
        found = self.merged(self.features, cuts)
        for name, value in self.expected(self.features).items():
            assert found[name] == pytest.approx(value, rel=1e-5), name
        assert found["n"] == 90 and found["dead_features"] == 0

    def test_large_means_keep_the_variance(self):
        shifted = (self.features - self.features.mean(0) + 3000).astype(np.float32)
        found = self.merged(shifted, [30, 60])
        for name, value in self.expected(shifted).items():
            assert found[name] == pytest.approx(value, rel=1e-4), name

    def test_padding_counts_for_nothing_even_when_it_is_not_finite(self):
        padded = np.concatenate([self.features, np.full((6, 6), np.inf, np.float32)])
        found = self.merged(padded, [50], np.r_[np.ones(90), np.zeros(6)])
        assert found == pytest.approx(self.merged(self.features, [50]), rel=1e-6)
        empty = self.merged(np.concatenate([self.features, self.features[:4]]), [90], np.r_[np.ones(90), np.zeros(4)])
        assert empty["n"] == 90

    def test_dead_and_constant_features_are_counted_apart(self):
        dead = np.concatenate([self.features, np.zeros((90, 1)), np.full((90, 1), 123.4)], 1).astype(np.float32)
        found, living = self.merged(dead, [37]), self.merged(self.features, [37])
        assert found["dead_features"] == 2
        assert found["mean_abs_correlation"] == pytest.approx(living["mean_abs_correlation"], rel=1e-6)
        assert found["effective_rank"] == pytest.approx(living["effective_rank"], rel=1e-6)

    def test_known_ranks_and_floor(self):
        white = RNG.normal(size=(4000, 8)).astype(np.float32)
        found = self.merged(white, [1000])
        assert found["effective_rank"] == pytest.approx(8, rel=0.01)
        assert found["mean_abs_correlation"] == pytest.approx(found["correlation_floor"], rel=0.3)
        copies = np.repeat(white[:, :1], 8, axis=1)
        assert self.merged(copies, [])["effective_rank"] == pytest.approx(1, abs=1e-3)
        assert self.merged(copies, [])["mean_abs_correlation"] == pytest.approx(1, rel=1e-5)

    def test_too_few_examples_have_no_diagnostics(self):
        found = metrics.feature_diagnostics(metrics.feature_moments(self.features[:1]))
        assert np.isnan([found["mean_abs_correlation"], found["effective_rank"], found["mean_std"]]).all()

    def test_combined_over_devices(self):
        whole = feature_moments(self.features[:80])
        spread = jax.jit(jax.vmap(lambda x: metrics.feature_moments(x, axis_name="batch"), axis_name="batch"))(
            self.features[:80].reshape(8, 10, 6)
        )
        for name, value in whole.items():
            for device in spread[name]:
                np.testing.assert_allclose(device, value, rtol=1e-4, atol=1e-4)


def test_values_belong_to_their_example():
    """The whole batch, halves and single examples have the same values."""
    for measure in (energy_inside, pointing_game):
        whole = measure(MAPS, OBJECTS)
        np.testing.assert_allclose(
            jnp.concatenate([measure(MAPS[:6], OBJECTS[:6]), measure(MAPS[6:], OBJECTS[6:])]), whole
        )
        np.testing.assert_allclose(measure(MAPS[3:4], OBJECTS[3:4]), whole[3:4])
    np.testing.assert_allclose(gini(MAPS[3:4]), gini(MAPS)[3:4])


def test_the_register_is_complete():
    for name, metric in (metrics.METRICS | metrics.DATASET_METRICS).items():
        assert callable(metric.function) and metric.description.endswith("."), name
        assert metric.needs in metrics.NEEDS, name
        assert metric.higher_is_better in (True, False, None)
        assert metric.preset in PRESETS and metric.statistic in ("mean", "median", "ratio"), name
        assert metric.derived_from is None or metric.derived_from in metrics.METRICS, name
        if isinstance(metric.chance, str):
            assert metric.chance in {*metrics.METRICS, "correlation_floor"}, name
        if metric.reference:
            assert metric.chance is None and not metric.ranks_runs, name
            assert KNOWN[f"{name}_vs_random"].chance == 0 and KNOWN[f"{name}_vs_random"].ranks_runs, name
    assert not metrics.METRICS.keys() & metrics.DATASET_METRICS.keys()


def test_which_metrics_compare_no_runs():
    """Metrics that depend on masked images or on other images compare no runs, nor do those with a reference."""
    rows = {name: metric for name, metric in KNOWN.items() if metric.higher_is_better is not None}
    unclear = {name for name, metric in rows.items() if not metric.ranks_runs and not metric.reference}
    assert unclear == {"adcc", "arcc", "average_drop", "average_increase", "sufficiency", "consistency"}


def test_the_documentation_lists_the_register():
    text = (pathlib.Path(__file__).parents[2] / "docs/metrics.md").read_text()
    arrows = {True: "↑", False: "↓", None: ""}
    for name, metric in (metrics.METRICS | metrics.DATASET_METRICS).items():
        row = f"| `{name}` {arrows[metric.higher_is_better]} | {metric.needs} | {metric.description} |"
        assert row in text, f"docs/metrics.md lacks {row!r}"
    readme = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
    counts = re.findall(r"(\d+) metrics (?:of|judge) [\w ]*maps,? and (\d+)", readme)
    total = len(metrics.METRICS) + len(metrics.DATASET_METRICS)
    assert len(counts) == 2 and all(int(maps) + int(others) == total for maps, others in counts)
    for need in metrics.NEEDS:
        assert f"`{need}`" in text
