"""Tests of path methods: closed forms, axioms, captum's results, the papers' algorithms, baselines and errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import reference_network as reference

from sdecor.attribution import Contrast, deeplift, explain, occlusion
from sdecor.attribution.baselines import BASELINES, baseline_image, blurred
from sdecor.attribution.guided_paths import guided_integrated_gradients
from sdecor.attribution.paths import (
    RULES,
    blur_integrated_gradients,
    expected_gradients,
    integrated_gradients,
    quadrature,
)

SHAPE = (6, 5, 3)
KEY = jax.random.key(0)
PATHS = {
    "integrated": integrated_gradients,
    "expected": functools.partial(expected_gradients, key=KEY),
    "blur": blur_integrated_gradients,
    "guided": guided_integrated_gradients,
}
EVERY_PATH = pytest.mark.parametrize("method", PATHS.values(), ids=PATHS)
FROM_BASELINE = pytest.mark.parametrize("method", [integrated_gradients, guided_integrated_gradients])


@pytest.fixture
def image() -> jax.Array:
    return jax.random.normal(jax.random.key(1), SHAPE)


@pytest.fixture
def baseline() -> jax.Array:
    return 0.5 * jax.random.normal(jax.random.key(2), SHAPE)


@pytest.fixture
def weights() -> jax.Array:
    return jax.random.normal(jax.random.key(3), SHAPE)


def separable(weights, function):
    """Return `image -> [Σ w φ(x), 0]`: on any path a feature contributes `w (φ(end) − φ(start))`."""
    return lambda x: jnp.stack([jnp.sum(weights * function(x)), 0.0])


def smooth(weights):
    """Return a smooth network that mixes all features."""
    return lambda x: jnp.stack([jnp.tanh((weights * x).sum((1, 2))).prod() * 3, jnp.sin((weights * x**2).sum())])


def attribute(method, fn, image, target=0, **options):
    """Return a method's result under `jit`."""
    return jax.jit(lambda image: method(fn, image, target, **options))(image)


def same(found, expected, tolerance=1e-5):
    """Assert that maps agree, relative to the largest entry."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * float(np.abs(expected).max()))


# Closed forms


@pytest.mark.parametrize("rule", RULES)
def test_linear(image, baseline, weights, rule):
    found = integrated_gradients(separable(weights, lambda x: x), image, 0, baseline=baseline, rule=rule, steps=3)
    np.testing.assert_allclose(found, weights * (image - baseline), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", ["gauss_legendre", "riemann_middle", "trapezoid"])
def test_quadratic(image, baseline, weights, rule):
    found = integrated_gradients(separable(weights, jnp.square), image, 0, baseline=baseline, rule=rule, steps=2)
    np.testing.assert_allclose(found, weights * (image**2 - baseline**2), rtol=1e-5, atol=1e-5)


def test_sine(image, baseline, weights):
    found, error = integrated_gradients(
        separable(weights, jnp.sin), image, 0, baseline=baseline, steps=8, with_error=True
    )
    np.testing.assert_allclose(found, weights * (jnp.sin(image) - jnp.sin(baseline)), rtol=1e-5, atol=2e-6)
    assert abs(float(error)) < 1e-5


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_gauss_legendre_is_exact_for_polynomials(steps):
    places, weights = quadrature("gauss_legendre", steps)
    for degree in range(2 * steps):
        np.testing.assert_allclose(weights @ places**degree, 1 / (degree + 1), rtol=1e-13)
    assert abs(weights @ places ** (2 * steps) - 1 / (2 * steps + 1)) > 1e-6


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_weights_of_sum_one_and_converges(rule):
    places, weights = quadrature(rule, 100)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(weights @ np.exp(places), np.e - 1, rtol=6e-3)


def test_blur_and_guided_paths_of_separable_functions(image, baseline, weights):
    fn = separable(weights, jnp.sin)
    found = guided_integrated_gradients(fn, image, 0, baseline=baseline, steps=400)
    np.testing.assert_allclose(found, weights * (jnp.sin(image) - jnp.sin(baseline)), atol=0.02)
    found = blur_integrated_gradients(fn, image, 0, max_sigma=2.0, steps=50)
    blurred = oracles.gaussian_blur(np.asarray(image), 2.0)
    np.testing.assert_allclose(found, weights * (np.sin(image) - np.sin(blurred)), atol=1e-5)


# Axioms


@pytest.mark.parametrize(("method", "few", "many"), [("integrated", 2, 8), ("blur", 3, 40), ("guided", 10, 320)])
def test_completeness_improves_with_steps(image, weights, method, few, many):
    fn = smooth(weights)
    errors = [float(attribute(PATHS[method], fn, image, steps=steps, with_error=True)[1]) for steps in (few, many)]
    assert abs(errors[1]) < abs(errors[0]) / 8
    assert abs(errors[1]) < 0.02


def test_reported_error_is_the_difference(image, weights):
    fn = smooth(weights)
    found, error = attribute(integrated_gradients, fn, image, baseline="mean", steps=1, with_error=True)
    rise = fn(image)[0] - fn(baseline_image("mean", image))[0]
    np.testing.assert_allclose(error, found.sum() - rise, atol=1e-5)
    assert abs(float(error)) > 1e-3


def test_expected_gradients_average_integrated_gradients(image, weights):
    """The mean over 2000 samples is within five standard errors of the exact expectation."""
    pool = jax.random.normal(jax.random.key(5), (4, *SHAPE))
    fn = separable(weights, jnp.square)
    attribution = functools.partial(expected_gradients, fn, image, 0, baselines=pool, with_error=True)
    found, errors = jax.jit(jax.vmap(lambda key: attribution(key=key, samples=100)))(jax.random.split(KEY, 20))
    exact = weights * (image**2 - (pool**2).mean(0))
    spread = found.std(0, ddof=1) / np.sqrt(20)
    assert (jnp.abs(found.mean(0) - exact) < 5 * spread + 1e-6).all()
    assert abs(float(errors.mean())) < 5 * float(errors.std()) / np.sqrt(20)
    long = jax.jit(lambda: attribution(key=KEY, samples=6400, chunk_size=64)[1])()
    assert abs(float(long)) < float(errors.std())


@EVERY_PATH
def test_implementation_invariance(image, weights, method):
    def one(x):
        return jnp.stack([(weights * jax.nn.relu(x)).sum() ** 2, 0.0])

    def other(x):
        return jnp.stack([jnp.vdot(weights.ravel(), (0.5 * (x + jnp.abs(x))).ravel()), 0.0]) ** 2

    same(attribute(method, one, image), attribute(method, other, image))


@EVERY_PATH
def test_ignored_features_get_nothing(image, weights, method):
    ignored = weights.at[2, 3].set(0.0)
    found = attribute(method, smooth(ignored), image, 1)
    assert (found[2, 3] == 0).all()
    assert (found[2, 4] != 0).all()


@FROM_BASELINE
def test_a_feature_that_decides_gets_something_though_the_gradient_is_zero(method):
    image = jnp.zeros(SHAPE).at[1, 2, 0].set(2.0)
    found = attribute(method, lambda x: jnp.stack([1 - jax.nn.relu(1 - x[1, 2, 0]), 0.0]), image, steps=50)
    np.testing.assert_allclose(found, jnp.zeros(SHAPE).at[1, 2, 0].set(1.0), atol=0.03)


def test_linearity(image, baseline, weights):
    f, g = smooth(weights), smooth(weights[::-1])
    of_f, of_g, of_both = (
        attribute(integrated_gradients, fn, image, baseline=baseline, steps=10)
        for fn in (f, g, lambda x: 2 * f(x) - 3 * g(x))
    )
    same(of_both, 2 * of_f - 3 * of_g)


@FROM_BASELINE
def test_symmetric_features_share_equally(image, weights, method):
    """Two features that the network treats alike, with equal values in image and baseline."""
    image, weights = (x.at[4, 1, 2].set(x[0, 0, 0]) for x in (image, weights))
    found = attribute(method, lambda x: jnp.stack([jnp.tanh((weights * x).sum()), 0.0]), image)
    assert found[4, 1, 2] == pytest.approx(float(found[0, 0, 0]), rel=1e-5)
    assert found[0, 0, 0] != 0


# Published results


@pytest.fixture(scope="module")
def captum() -> dict[str, np.ndarray]:
    return reference.stored("captum_gradients")


def explained(captum, **options):
    count = len(captum["gradient"])
    run = jax.jit(lambda images, labels: explain(reference.network, images, labels, key=KEY, **options))
    return run(reference.images()[:count], reference.labels()[:count])


def test_gradients_equal_captum(captum):
    for method in ("gradient", "input_x_gradient"):
        same(explained(captum, method=method), captum[method])


IN_FULL = ("riemann_right", "riemann_middle", "trapezoid", "white", "black")  # these differ in weights and values only


def most(names):
    """Return test parameters; those in `IN_FULL` run in the full suite only."""
    return [pytest.param(name, marks=pytest.mark.full if name in IN_FULL else ()) for name in names]


@pytest.mark.parametrize("rule", most(RULES))
def test_integrated_gradients_equal_captum(captum, rule):
    found = explained(captum, method=integrated_gradients, baseline=0.5, rule=rule, steps=7)
    same(found, captum[f"rule/{rule}"])


@pytest.mark.parametrize("baseline", most(["zero", "mean", "white", "black", "own"]))
def test_baselines_and_errors_equal_captum(captum, baseline):
    given = reference.images()[:3][::-1] if baseline == "own" else baseline
    found, error = explained(captum, method=integrated_gradients, baseline=given, steps=7, with_error=True)
    same(found, captum[f"baseline/{baseline}"])
    np.testing.assert_allclose(error, captum[f"error/{baseline}"], atol=3e-6)


@pytest.mark.parametrize("method", [integrated_gradients, guided_integrated_gradients, occlusion, deeplift])
def test_a_baseline_may_be_a_function(method, weights):
    """The function is called with each image and its key."""
    images, fn = jax.random.normal(jax.random.key(4), (2, *SHAPE)), separable(weights, jnp.tanh)
    keys, steps = jax.random.split(KEY, 2), {"steps": 4} if "gradients" in method.__name__ else {}

    def darker(image, key):
        return image - jax.random.uniform(key, image.shape)

    run = functools.partial(explain, fn, images, 0, method=method, key=keys, **steps)
    starts = jax.vmap(darker)(images, keys)
    found, expected, wide = jax.jit(
        lambda: (run(baseline=darker), run(baseline=starts), run(baseline=functools.partial(blurred, sigma=2.0)))
    )()
    same(found, expected)
    assert not np.allclose(wide, found, rtol=0.1)


def test_expected_gradients_of_a_function_are_those_of_its_draws(image, weights):
    options = {"key": KEY, "samples": 5}
    named = attribute(expected_gradients, smooth(weights), image, baselines="uniform", **options)

    def drawn(image, key):
        return baseline_image("uniform", image, key=key)

    same(attribute(expected_gradients, smooth(weights), image, baselines=drawn, **options), named)


def test_the_widest_blur_is_where_the_blur_path_begins(image, weights):
    found, error = attribute(blur_integrated_gradients, smooth(weights), image, steps=40, with_error=True)
    start = blurred(image, sigma=None)
    np.testing.assert_allclose(blurred(image[None], sigma=None)[0], start, rtol=1e-6)
    rise = smooth(weights)(image)[0] - smooth(weights)(start)[0]
    np.testing.assert_allclose(found.sum() - rise, error, atol=1e-5)


def test_expected_gradients_equal_captum_on_the_same_draws(captum):
    found = explained(
        captum,
        method=expected_gradients,
        baselines=reference.images()[:3],
        samples=6,
        scale=0.1,
        relative=False,
    )
    same(found, captum["expected_gradients"])


def test_blur_path_equals_the_published_sum(image, weights):
    """The sum is the left Riemann sum over sigma with the blur's central differences, in float64."""
    steps, max_sigma = 40, 3.0
    pixels, w = np.asarray(image, np.float64), np.asarray(weights, np.float64)
    total = np.zeros(SHAPE)
    for k in range(1, steps):  # the blur's derivative at 0 is 0
        sigma = max_sigma * k / steps
        point = oracles.gaussian_blur(pixels, sigma)
        change = (oracles.gaussian_blur(pixels, sigma + 1e-5) - oracles.gaussian_blur(pixels, sigma - 1e-5)) / 2e-5
        total -= max_sigma / steps * change * w * (1 - np.tanh((w * point).sum()) ** 2)

    def fn(x):
        return jnp.stack([jnp.tanh((weights * x).sum()), 0.0])

    options = {"max_sigma": max_sigma, "steps": steps, "rule": "riemann_left"}
    found = attribute(blur_integrated_gradients, fn, image, **options)
    np.testing.assert_allclose(found, total, atol=2e-6)


def guided_oracle(gradient, start, end, steps, fraction, max_dist, anchors):
    """Return the map by Kapishnikov et al., Algorithm 1 with bounds, in float64, segment by segment between anchors."""
    points = [start + (end - start) * k / (anchors + 1) for k in range(anchors + 2)]
    total, x = np.zeros_like(start), start.copy()
    for opening, close in zip(points[:-1], points[1:], strict=True):
        part = steps // (anchors + 1)
        room = max_dist * (anchors + 1)
        length = np.abs(close - opening).sum()
        for t in range(1, part + 1):
            slope, before = gradient(x), x.copy()
            nearest = opening + (close - opening) * min(t / part + room, 1)
            farthest = opening + (close - opening) * max(t / part - room, 0)
            behind = np.abs(close - x) > np.abs(close - farthest)
            x = np.where(behind, farthest, x)
            while np.abs(close - x).sum() - length * (1 - t / part) > 1e-9:
                order = np.where(np.abs(nearest - x) < 1e-12, np.inf, np.abs(slope))
                chosen = order <= np.quantile(order, fraction, method="lower")
                chosen &= np.isfinite(order)
                reach = np.abs(nearest - x)[chosen].sum()
                share = min((np.abs(close - x).sum() - length * (1 - t / part)) / reach, 1)
                x[chosen] += share * (nearest - x)[chosen]
            total += (x - before) * slope
    return total


@pytest.mark.parametrize(
    ("fraction", "max_dist", "anchors"),
    [(0.25, 0.02, 0), (0.1, 1.0, 0), (0.4, 0.2, 0), (0.25, 1.0, 3), (0.0, 0.3, 1)],
)
def test_guided_path_equals_the_published_algorithm(image, baseline, weights, fraction, max_dist, anchors):
    def fn(x):
        return jnp.stack([jnp.sum(jnp.sin(3 * x) * weights) * jnp.sum(jnp.cos(x)), 0.0])

    w = np.asarray(weights, np.float64)

    def gradient(x):
        return 3 * np.cos(3 * x) * w * np.cos(x).sum() - (np.sin(3 * x) * w).sum() * np.sin(x)

    ends = (np.asarray(x, np.float64) for x in (baseline, image))
    options = {"steps": 20, "fraction": fraction, "max_dist": max_dist, "anchors": anchors}
    found = attribute(guided_integrated_gradients, fn, image, baseline=baseline, **options)
    same(found, guided_oracle(gradient, *ends, **options), 2e-5)


@pytest.mark.parametrize("options", [{"max_dist": 0.0}, {"fraction": 1.0}, {"anchors": 19}])
def test_a_guided_path_without_freedom_is_straight(image, baseline, weights, options):
    common = {"baseline": baseline, "steps": 20}
    found = attribute(guided_integrated_gradients, smooth(weights), image, **common, **options)
    same(found, attribute(integrated_gradients, smooth(weights), image, rule="riemann_left", **common))


def test_a_guided_path_moves_equal_gradients_together(image):
    """With equal gradients each step must move every feature, so the path is straight."""

    def fn(x):
        return jnp.stack([jnp.sum(x) ** 2, 0.0])

    found = attribute(guided_integrated_gradients, fn, image, steps=20, max_dist=1.0)
    same(found, attribute(integrated_gradients, fn, image, steps=20, rule="riemann_left"))


@FROM_BASELINE
def test_an_image_equal_to_its_baseline_gets_zeros(image, weights, method):
    found, error = attribute(method, smooth(weights), image, baseline=image, steps=10, with_error=True)
    assert (found == 0).all()
    assert abs(float(error)) < 1e-6


# What must not change the result


@pytest.mark.parametrize("name", ["integrated", "expected", pytest.param("blur", marks=pytest.mark.full)])
def test_chunk_size_does_not_change_a_map(image, weights, name):
    options = {"with_error": True, "samples" if name == "expected" else "steps": 10}
    whole = attribute(PATHS[name], smooth(weights), image, **options)
    for chunk_size in (1, 3, 100):
        chunked = attribute(PATHS[name], smooth(weights), image, chunk_size=chunk_size, **options)
        same(chunked[0], whole[0])
        np.testing.assert_allclose(chunked[1], whole[1], atol=1e-5)


@EVERY_PATH
def test_maps_belong_to_the_image(weights, method):
    """A map depends neither on the rest of the batch nor on `chunk_size`; guided paths are also run on four devices."""
    method = method.func if isinstance(method, functools.partial) else method
    images, keys = jax.random.normal(jax.random.key(4), (8, *SHAPE)), jax.random.split(KEY, 8)
    options = {"samples": 5} if method is expected_gradients else {"steps": 5}
    options |= {"baseline": "uniform"} if method in (integrated_gradients, guided_integrated_gradients) else {}

    def run(images, targets, keys, chunk_size=None):
        return explain(smooth(weights), images, targets, method=method, chunk_size=chunk_size, key=keys, **options)

    batch = (images, jnp.arange(8) % 2, keys)
    whole = jax.jit(run)(*batch)
    assert jnp.isfinite(whole).all()
    same(jax.jit(functools.partial(run, chunk_size=3))(*(x[3:8] for x in batch)), whole[3:8])
    if method is guided_integrated_gradients:
        spread = jax.pmap(run)(*(x.reshape(4, 2, *x.shape[1:]) for x in batch))
        same(spread.reshape(whole.shape), whole)


@EVERY_PATH
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_places_and_weights_have_the_dtype_of_the_image(method, dtype):
    """This holds with float64 enabled too; bfloat16 images are weighted in float32."""
    with jax.enable_x64(True):
        image = jnp.ones(SHAPE, dtype)
        run = functools.partial(method, lambda x: (x**2).sum((0, 1)), target=0, with_error=True)
        found, error = jax.eval_shape(lambda image: run(image=image), image)
    assert found.dtype == error.dtype == jnp.promote_types(dtype, jnp.float32)


def test_contrasts_and_functions_of_the_logits(image, weights):
    found = [
        attribute(integrated_gradients, smooth(weights), image, target, steps=5)
        for target in (0, 1, Contrast(0, 1), lambda logits: logits[0] - logits[1])
    ]
    same(found[2], found[0] - found[1])
    same(found[3], found[2])


def test_memory_does_not_grow_with_steps(image):
    wide = jax.random.normal(jax.random.key(3), (5000, image.size))

    def fn(x):
        return jnp.tanh(wide @ x.ravel()) @ jnp.ones((5000, 2))

    def temporary(steps):
        run = jax.jit(lambda x: integrated_gradients(fn, x, 0, steps=steps, chunk_size=4))
        return run.lower(image).compile().memory_analysis().temp_size_in_bytes

    assert temporary(400) < 1.2 * temporary(8)


# Baselines and bad input


def test_baselines(image):
    pixels = np.asarray(image)
    expected = {
        "zero": np.zeros(3),
        "mean": pixels.mean((0, 1)),
        "white": pixels.max((0, 1)),
        "black": pixels.min((0, 1)),
        "blur": oracles.gaussian_blur(pixels, 5.0),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(baseline_image(name, image), np.broadcast_to(value, SHAPE), atol=1e-6)
    noise = baseline_image("uniform", image, key=KEY)
    assert (noise >= image.min((0, 1), keepdims=True)).all()
    assert (noise <= image.max((0, 1), keepdims=True)).all()
    assert len(np.unique(noise)) == noise.size
    for own in (0.25, np.arange(3.0), pixels):
        np.testing.assert_array_equal(baseline_image(own, image), np.broadcast_to(own, SHAPE).astype(np.float32))
    assert set(BASELINES) == {*expected, "uniform"}


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (integrated_gradients, {"baseline": "uniform"}, "baseline = 'uniform' draws random numbers: pass key="),
        (integrated_gradients, {"baseline": "means"}, "did you mean 'mean'"),
        (integrated_gradients, {"baseline": jnp.zeros((6, 5))}, r"baseline has shape \(6, 5\): pass \(6, 5, 3\)"),
        (integrated_gradients, {"rule": "gausslegendre"}, "did you mean 'gauss_legendre'"),
        (integrated_gradients, {"steps": 0}, "steps = 0"),
        (integrated_gradients, {"steps": 1, "rule": "trapezoid"}, "steps = 1"),
        (expected_gradients, {"key": KEY, "baselines": jnp.zeros(SHAPE)}, r"pass images \[B, 6, 5, 3\]"),
        (expected_gradients, {"key": KEY, "baselines": "noise"}, "baselines = 'noise'"),
        (expected_gradients, {"key": KEY, "samples": 0}, "samples = 0"),
        (expected_gradients, {"key": KEY, "scale": -1.0}, "scale = -1.0"),
        (blur_integrated_gradients, {"max_sigma": 0.0}, "max_sigma = 0.0"),
        (guided_integrated_gradients, {"fraction": 1.5}, "fraction = 1.5"),
        (guided_integrated_gradients, {"max_dist": -0.1}, "max_dist = -0.1"),
        (guided_integrated_gradients, {"steps": 10, "anchors": 2}, "steps = 10 is not divisible into 3 parts"),
    ],
)
def test_errors_say_what_is_wrong(image, weights, method, options, message):
    with pytest.raises(ValueError, match=message):
        method(smooth(weights), image, 0, **options)
