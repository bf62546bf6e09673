"""Tests of parameter randomisation and random logits against Quantus, layers replaced by hand, and known cases."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from reference_network import apply, images, labels, network, parameters, stored
from scipy.stats import spearmanr

from sdecor.attribution import gradient
from sdecor.metrics import parameters as layers, randomization

N = 4
EXPECTED = stored("quantus_robustness")
RANDOM = {name.removeprefix("random/"): jnp.asarray(x) for name, x in EXPECTED.items() if name.startswith("random/")}
BATCH = (images()[:N], labels()[:N])
TINT = jnp.array([1.0, 0.5, -0.7])

RNG = np.random.default_rng(4)
SMALL = RNG.normal(size=(3, 5, 6, 2)).astype(np.float32)
TARGETS = np.array([0, 1, 1])
PARAMS = {"b": RNG.normal(size=(60, 8)).astype(np.float32), "a": {"w": RNG.normal(size=(8, 2)).astype(np.float32)}}
OTHERS = jax.tree.map(lambda x: RNG.normal(size=x.shape).astype(np.float32), PARAMS)


def explain_with(params, x, target, key):
    return gradient(functools.partial(apply, params), x, target)


def two_layers(params, x):
    return jnp.tanh(x.ravel() @ params["b"]) @ params["a"]["w"]


def explain_two_layers(params, x, target, key):
    return gradient(functools.partial(two_layers, params), x, target)


def run(metric, *functions, **options):
    """Return the metric as a compiled function of arrays and a key."""
    compiled = jax.jit(functools.partial(metric, *functions, **options))
    return lambda *arrays, key, **more: compiled(*arrays, key=key, **more)


class TestQuantus:
    def test_cascading(self, key):
        values = run(randomization.parameter_randomization, explain_with)(parameters(), RANDOM, *BATCH, key=key)
        np.testing.assert_allclose(values, EXPECTED["mprt/top_down"], atol=2e-4)

    def test_independent(self, key):
        """Quantus goes from input to output here; our columns go from output to input, as in a cascade."""
        independent = run(randomization.parameter_randomization, explain_with, mode="independent")
        values = independent(parameters(), RANDOM, *BATCH, key=key)
        np.testing.assert_allclose(values, EXPECTED["mprt/independent"][:, ::-1], atol=2e-4)

    def test_smooth(self, key, monkeypatch):
        """Copies are Quantus's: two noisy ones and the image itself, which ours do not include."""
        noise = jnp.asarray(EXPECTED["noise"])
        draws = jnp.concatenate([noise, jnp.zeros_like(noise[:1])])
        monkeypatch.setattr(randomization, "_standard_normal", lambda key, i, shape: draws[i])
        gray = BATCH[0].mean(-1, keepdims=True)

        def explain_gray(params, x, target, key):
            return gradient(lambda x: apply(params, x * TINT[None, None]), x, target)

        smooth = run(randomization.smooth_mprt, explain_gray, samples=3, noise=0.1)
        values = smooth(parameters(), RANDOM, gray, BATCH[1], key=key)
        np.testing.assert_allclose(values, EXPECTED["smooth_mprt"], atol=2e-4)

    def test_efficient(self, key):
        efficient = run(randomization.efficient_mprt, explain_with)
        values = efficient(parameters(), RANDOM, *BATCH, key=key)
        np.testing.assert_allclose(values, EXPECTED["efficient_mprt"], atol=2e-3)  # one value may fall into another bin

    def test_random_logit(self, key):
        """Quantus's default is the SSIM of flattened maps, with neighbours in memory; ours is the SSIM of maps."""

        def explain_one(x, target, key):
            return gradient(lambda x: network(x)[:2], x, target)

        values = run(randomization.random_logit, explain_one, num_classes=2)(BATCH[0], BATCH[1] % 2, key=key)
        np.testing.assert_allclose(values, EXPECTED["random_logit"], atol=3e-4)


class TestParameterRandomization:
    def test_every_mode_against_layers_replaced_by_hand(self, key):
        def by_hand(w, b):
            params = {"a": {"w": (OTHERS if w else PARAMS)["a"]["w"]}, "b": (OTHERS if b else PARAMS)["b"]}
            return np.abs(explain(params, SMALL, TARGETS)).sum(-1)

        explain = jax.jit(jax.vmap(lambda p, x, y: explain_two_layers(p, x, y, None), in_axes=(None, 0, 0)))
        own, both = by_hand(False, False), by_hand(True, True)
        for mode, maps in (
            ("cascading", (by_hand(True, False), both)),
            ("independent", (by_hand(True, False), by_hand(False, True))),
            ("bottom_up", (by_hand(False, True), both)),
        ):
            values = run(randomization.parameter_randomization, explain_two_layers, mode=mode)(
                PARAMS, OTHERS, SMALL, TARGETS, key=key
            )
            expected = [[spearmanr(a.ravel(), b.ravel())[0] for b in m] for a, *m in zip(own, *maps, strict=True)]
            np.testing.assert_allclose(values, expected, atol=1e-5)

    def test_same_parameters_are_alike_in_every_similarity(self, key):
        for similarity in ("spearman", "cosine"):
            options = {"similarity": similarity, "reduction": "sum"}
            same = run(randomization.parameter_randomization, explain_two_layers, **options)
            np.testing.assert_allclose(same(PARAMS, PARAMS, SMALL, TARGETS, key=key), 1, atol=1e-6)

    def test_explanation_that_ignores_the_parameters(self, key):
        given = {"layers": {"head": ["a/w"], "body": ["b"]}, "similarity": "pearson"}
        ignoring = run(randomization.parameter_randomization, lambda p, x, y, k: x[..., 0], **given)
        np.testing.assert_allclose(ignoring(PARAMS, OTHERS, SMALL, TARGETS, key=key), np.ones((3, 2)), atol=1e-6)

    def test_chunks_batches_and_known_explanations_do_not_matter(self, key):
        keys = jax.random.split(key, 3)

        def noisy(params, x, target, key):
            shift = (jax.random.key_data(key)[1] % 7).astype(jnp.float32)  # a random shift that compiles fast
            return explain_two_layers(params, x + shift, target, key)

        plain = run(randomization.parameter_randomization, noisy, similarity="pearson")
        expected = plain(PARAMS, OTHERS, SMALL, TARGETS, key=keys)
        chunked = run(randomization.parameter_randomization, noisy, similarity="pearson", chunk_size=1)
        alone = chunked(PARAMS, OTHERS, SMALL[1:], TARGETS[1:], key=keys[1:])
        np.testing.assert_allclose(alone, expected[1:], atol=1e-5)
        known = jax.jit(jax.vmap(functools.partial(noisy, PARAMS)))(SMALL, TARGETS, keys)
        again = plain(PARAMS, OTHERS, SMALL, TARGETS, key=keys, attributions=known)
        np.testing.assert_allclose(again, expected, atol=1e-5)

    def test_undefined_is_nan(self, key):
        def flat(params, x, target, key):
            return jnp.where(target == 1, jnp.ones(x.shape), params["b"][0, 0] * x)

        values = run(randomization.parameter_randomization, flat)(PARAMS, OTHERS, SMALL, TARGETS, key=key)
        np.testing.assert_array_equal(np.isnan(values[:, 0]), TARGETS == 1)

    def test_bad_arguments_are_named(self, key):
        metric = functools.partial(randomization.parameter_randomization, explain_two_layers, PARAMS)
        for options, name in (
            ({"mode": "random"}, "mode"),
            ({"similarity": "mse"}, "similarity"),
            ({"layers": {"head": ["w"]}}, "leaf of layer 'head'"),
            ({"layers": {}}, "layers"),
            ({"chunk_size": 0}, "chunk_size"),
        ):
            with pytest.raises(ValueError, match=name):
                run(metric, **options)(OTHERS, SMALL, TARGETS, key=key)
        with pytest.raises(ValueError, match="random_params"):
            run(metric)({"b": OTHERS["b"]}, SMALL, TARGETS, key=key)
        with pytest.raises(ValueError, match="attributions have shape"):
            row = run(randomization.parameter_randomization, lambda p, x, y, k: x[0, 0] * p["b"][0, 0])
            row(PARAMS, OTHERS, SMALL, TARGETS, key=key)


@pytest.mark.parametrize(
    "metric",
    [
        functools.partial(randomization.parameter_randomization, explain_two_layers, PARAMS, OTHERS),
        functools.partial(randomization.smooth_mprt, explain_two_layers, PARAMS, OTHERS),
        functools.partial(randomization.efficient_mprt, explain_two_layers, PARAMS, OTHERS),
        functools.partial(randomization.random_logit, lambda x, y, k: x, num_classes=2),
    ],
)
def test_images_and_targets_are_checked(metric, key):
    with pytest.raises(ValueError, match="images has dtype uint8"):
        metric(np.zeros(SMALL.shape, np.uint8), TARGETS, key=key)
    with pytest.raises(ValueError, match="targets = 'predicted': pass classes"):
        metric(SMALL, "predicted", key=key)


class TestSmooth:
    def test_linear_network_needs_no_smoothing(self, key):
        def linear(params, x, target, key):
            return gradient(lambda x: x.ravel() @ params["b"], x, target)

        arguments = (PARAMS, OTHERS, SMALL, TARGETS)
        smooth = run(randomization.smooth_mprt, linear, samples=3, similarity="cosine")(*arguments, key=key)
        plain = run(randomization.parameter_randomization, linear, similarity="cosine")(*arguments, key=key)
        np.testing.assert_allclose(smooth, plain, atol=1e-5)

    def test_averages_over_noise_of_the_documented_size(self, key):
        def square(params, x, target, key):
            return params["b"][0, 0] * (x - SMALL[0]) ** 2

        # The gradient's mean over copies of the first image is the noise's variance, nearly equal at all pixels.
        seen = []

        def tap(a, b):
            seen.append(a)
            return jnp.zeros(a.shape[0])

        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(randomization.SIMILARITIES, "pearson", tap)
            options = {"samples": 4000, "noise": 0.2, "chunk_size": 500, "similarity": "pearson"}
            arguments = (PARAMS, OTHERS, SMALL[:1], TARGETS[:1])
            own = jax.jit(lambda: (randomization.smooth_mprt(square, *arguments, key=key, **options), seen.pop())[1])()
        expected = 2 * abs(PARAMS["b"][0, 0]) * (0.2 * np.ptp(SMALL[0])) ** 2  # two channels
        np.testing.assert_allclose(own, np.full((1, 5, 6), expected), rtol=0.1)

    def test_chunks_do_not_matter(self, key):
        expected, chunked = (
            run(randomization.smooth_mprt, explain_two_layers, samples=5, similarity="pearson", chunk_size=chunk_size)(
                PARAMS, OTHERS, SMALL, TARGETS, key=key
            )
            for chunk_size in (None, 6)
        )
        np.testing.assert_allclose(chunked, expected, atol=1e-5)


class TestEfficient:
    def test_entropy_against_numpy(self):
        maps = RNG.gamma(1.0, size=(4, 9, 7)).astype(np.float32)
        maps[3] = 2.5
        for bins in (7, 100):
            values = jax.jit(functools.partial(randomization.histogram_entropy, bins=bins))(maps)
            for value, each in zip(values, maps, strict=True):
                share = np.histogram(each, bins=bins)[0] / each.size
                share = share[share > 0]
                assert value == pytest.approx(-(share * np.log(share)).sum(), abs=0.05 if bins == 100 else 1e-5)
        assert np.isnan(randomization.histogram_entropy(jnp.full((1, 3, 3), jnp.nan))).all()

    def test_known_rise_and_undefined(self, key):
        step = np.zeros((1, 5, 6), np.float32)
        step[0, 0] = 1

        def shown(params, x, target, key):
            return jnp.where(target == 0, params["m"], 0)

        params, others = {"m": step[0]}, {"m": np.arange(30, dtype=np.float32).reshape(5, 6)}
        before = -(1 / 5 * np.log(1 / 5) + 4 / 5 * np.log(4 / 5))
        efficient = run(randomization.efficient_mprt, shown, bins=30)
        values = efficient(params, others, SMALL, TARGETS, key=key)
        np.testing.assert_allclose(values, [(np.log(30) - before) / before, np.nan, np.nan], rtol=1e-5)
        known = efficient(params, others, SMALL, TARGETS, key=key, attributions=np.repeat(step, 3, 0))
        np.testing.assert_allclose(known, values, rtol=1e-5)


class TestRandomLogit:
    def test_other_classes_are_equally_likely_and_belong_to_the_example(self, key):
        count = 600
        targets = jnp.arange(count) % 4
        ramp = jnp.arange(30.0).reshape(5, 6)

        def turned(x, target, key):  # its correlation with the map of class 0 tells the class
            return jnp.where(target == 0, ramp, jnp.where(target == 1, -ramp, jnp.where(target == 2, ramp**2, ramp**4)))

        batch = jnp.zeros((count, 5, 6, 1))
        options = {"num_classes": 4, "similarity": "pearson"}
        values = np.asarray(run(randomization.random_logit, turned, **options)(batch, targets, key=key))
        kinds, counts = np.unique(values[targets == 0].round(3), return_counts=True)
        assert len(kinds) == 3 and kinds.max() < 1
        assert counts.min() > 30  # out of 150
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
        alone = run(randomization.random_logit, turned, chunk_size=7, **options)(
            batch[5:25], targets[5:25], key=keys[5:25]
        )
        np.testing.assert_allclose(alone, values[5:25], atol=1e-6)

    def test_known_explanations(self, key):
        maps = RNG.random((3, 11, 12)).astype(np.float32)
        other = run(randomization.random_logit, lambda x, y, k: x[..., 0], num_classes=3)
        values = other(maps[..., None], TARGETS, key=key, attributions=maps)
        np.testing.assert_allclose(values, 1, atol=1e-5)
        with pytest.raises(ValueError, match="num_classes"):
            randomization.random_logit(lambda x, y, k: x, SMALL, TARGETS, num_classes=1, key=key)


class Named(nn.Module):
    """A network whose layers are not used in alphabetical order."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (3, 3), name="stem")(x[None]))
        x = jax.jit(nn.BatchNorm(use_running_average=True, name="norm").__call__)(x)
        return nn.Dense(4, name="head")(x.mean((1, 2)))[0]


class TestLayers:
    def test_order_of_use(self):
        found = layers.layers_of(apply, parameters(), images()[0])
        assert list(found) == ["dense2", "dense1", "conv2", "conv1"]
        assert set(found["conv1"]) == {"conv1/kernel", "conv1/bias"}
        explained = layers.layers_of(explain_with, parameters(), images()[0], 0, jax.random.key(0))
        assert list(explained) == list(found)

    def test_order_in_linen_with_casts_and_statistics_apart(self, key):
        model = Named()
        shapes = jax.eval_shape(model.init, key, SMALL[0])
        variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)

        def fn(params, x):
            params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)  # all at once, in alphabetical order
            return model.apply({"params": params, "batch_stats": variables["batch_stats"]}, x)

        assert list(layers.layers_of(fn, variables["params"], SMALL[0])) == ["head", "norm", "stem"]
        looped = layers.layers_of(
            lambda params, x: jax.lax.map(functools.partial(fn, params), x), variables["params"], SMALL
        )
        assert list(looped) == ["head", "norm", "stem"]

    def test_nnx(self):
        class Two(nnx.Module):
            def __init__(self, rngs):
                self.z_first = nnx.Linear(2, 3, rngs=rngs)
                self.a_last = nnx.Linear(3, 2, rngs=rngs)

            def __call__(self, x):
                return self.a_last(nnx.relu(self.z_first(x)))

        graph, state = nnx.split(Two(nnx.Rngs(0)))
        found = layers.layers_of(lambda state, x: nnx.merge(graph, state)(x), state, SMALL[0])
        assert {name: sorted(leaves) for name, leaves in found.items()} == {
            "a_last": ["a_last/bias", "a_last/kernel"],
            "z_first": ["z_first/bias", "z_first/kernel"],
        }

    def test_unused_leaves_are_in_no_layer(self):
        found = layers.layers_of(lambda p, x: x * p["b"][0, 0], PARAMS, SMALL[0])
        assert found == {"b": ("b",)}


class TestRedraw:
    def test_normal_keeps_mean_and_spread(self, key):
        params = {"w": 3 + 2 * RNG.normal(size=(200, 100)).astype(np.float32), "bias": np.full(4, 0.5, np.float32)}
        drawn = layers.redraw(key, params)
        assert drawn["w"].mean() == pytest.approx(3, abs=0.05) and drawn["w"].std() == pytest.approx(2, rel=0.03)
        np.testing.assert_array_equal(drawn["bias"], params["bias"])
        assert abs(np.corrcoef(drawn["w"].ravel(), params["w"].ravel())[0, 1]) < 0.03

    def test_permutation_keeps_values(self, key):
        drawn = layers.redraw(key, PARAMS, how="permutation")
        np.testing.assert_array_equal(np.sort(drawn["b"].ravel()), np.sort(PARAMS["b"].ravel()))
        assert not np.array_equal(drawn["b"], PARAMS["b"])
        with pytest.raises(ValueError, match="how"):
            layers.redraw(key, PARAMS, how="zero")
