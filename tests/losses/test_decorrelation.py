"""Tests of decorrelation: values, gradients, hard inputs, invariances, and equality on any number of devices."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from sdecor import losses

CENTRED = losses.CENTRED
PAIRWISE = ("covariance", "correlation", "decov", "cosine")
assert {*CENTRED, *PAIRWISE, "density"} == set(losses.FORMS)
value_and_grad = jax.jit(
    lambda features, **options: jax.value_and_grad(lambda h: losses.decorrelation(h, **options))(features),
    static_argnames=("form", "gram", "spatial", "epsilon"),
)
residual = jax.jit(losses.whitening_residual)
scale_of = jax.jit(losses.feature_scale)
hinge_and_grad = jax.jit(jax.value_and_grad(losses.variance_hinge))


def correlated(n: int = 16, d: int = 6, seed: int = 0) -> np.ndarray:
    """Return correlated features with means and unequal scales."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(d) + 0.4 * rng.normal(size=(d, d))
    return (rng.normal(size=(n, d)) @ mixing + rng.normal(size=d)).astype(np.float32)


# Values and gradients


@pytest.mark.parametrize("form", losses.FORMS)
@pytest.mark.parametrize("shape", [(16, 6), (5, 8), (2, 3)])
def test_value_follows_the_definition(form, shape):
    h = correlated(*shape)
    expected = oracles.decorrelation(h.astype(np.float64), form)
    np.testing.assert_allclose(value_and_grad(h, form=form, iterations=40)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "form, gram", [*((form, gram) for form in PAIRWISE for gram in (False, True)), ("density", None)]
)
@pytest.mark.parametrize("shape", [(16, 6), (5, 8)])
def test_gradient_equals_finite_differences(form, gram, shape):
    h = correlated(*shape)
    expected = oracles.numerical_gradient(lambda x: oracles.decorrelation(x, form), h)
    gradient = value_and_grad(h, form=form, gram=gram)[1]
    np.testing.assert_allclose(gradient, expected, atol=2e-5 * np.abs(expected).max())


def test_whitening_gradient_is_that_of_the_spectrum_distance():
    h = correlated()
    expected = oracles.numerical_gradient(oracles.spectrum_distance, h)
    gradient = value_and_grad(h, form="whitening", iterations=30)[1]
    scale = (len(h) - 1) / len(h)
    np.testing.assert_allclose(gradient, scale * expected, atol=1e-4 * np.abs(expected).max())


def test_whitening_gradient_expands_what_is_narrow_and_shrinks_what_is_wide():
    rng = np.random.default_rng(0)
    h = rng.normal(size=(64, 2)).astype(np.float32) * np.float32([0.1, 5.0])
    step = -np.asarray(value_and_grad(h, form="whitening")[1])
    narrow, wide = np.sum(step * (h - h.mean(0)), axis=0)
    assert narrow > 0 > wide


@pytest.mark.parametrize("form", PAIRWISE)
def test_gram_side_gives_the_same(form):
    h = correlated(5, 24)
    plain_side, gram_side = (value_and_grad(h, form=form, gram=gram) for gram in (False, True))
    for plain, gram in zip(plain_side, gram_side, strict=True):
        np.testing.assert_allclose(gram, plain, rtol=1e-4, atol=1e-5 * np.abs(plain).max())


@pytest.mark.parametrize("form", PAIRWISE)
def test_the_smaller_side_of_the_global_batch_is_chosen(form):
    for members, n, d, is_gram in ((1, 5, 24, True), (1, 24, 5, False), (4, 3, 11, False), (4, 3, 13, True)):
        run = partial(losses.decorrelation, form=form, axis_name="batch")
        jaxpr = str(jax.make_jaxpr(jax.vmap(run, axis_name="batch"))(np.zeros((members, n, d), np.float32)))
        assert (f"{d},{d}]" not in jaxpr) == is_gram


def test_gram_side_is_not_negative_where_nothing_is_correlated():
    """The variances' squares are subtracted from the whole energy; rounding must not make the rest negative."""
    h = np.float32([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * 300
    energy = np.sum(np.var(h, axis=0, ddof=1, dtype=np.float64) ** 2) / 2
    assert 0.0 <= value_and_grad(h, form="covariance", gram=True)[0] < 1e-6 * energy


def test_closed_form_of_two_equal_features():
    h = np.float32([[1, 1], [2, 2], [3, 3], [4, 4]])  # variance 5/3 with N − 1, 5/4 with N
    assert value_and_grad(h, form="covariance")[0] == pytest.approx((5 / 3) ** 2, rel=1e-6)
    assert value_and_grad(h, form="correlation")[0] == pytest.approx(1.0, rel=1e-6)
    assert value_and_grad(h, form="decov")[0] == pytest.approx((5 / 4) ** 2, rel=1e-6)


@pytest.mark.parametrize("form", ["covariance", "correlation", "decov"])
def test_uncorrelated_features_score_zero(form):
    h = np.float32([[1, 2], [1, -2], [-1, 2], [-1, -2]]) + 3
    assert value_and_grad(h, form=form)[0] == pytest.approx(0.0, abs=1e-12)


def test_on_off_features_score_by_how_often_they_are_on():
    h = np.float32([[1, 0, 1, 0], [0, 2, 1, 0], [0, 0, 1, 0], [0, 0, 1, 0]])  # on in a quarter, a quarter, all, none
    assert value_and_grad(h, form="density")[0] == pytest.approx((0.25 + 0.25 + 1 + 0) / 4, rel=1e-6)
    # The first two are never on together; each has the cosine ½ with the third, and pairs count twice.
    assert value_and_grad(h, form="cosine")[0] == pytest.approx(2 * 2 * 0.25 / 12, rel=1e-6)


def test_cosines_follow_from_correlations_and_densities():
    h = np.abs(correlated(64)).astype(np.float64)
    density = h.mean(0) ** 2 / (h**2).mean(0)
    r = np.corrcoef(h.T)
    expected = r * np.sqrt(np.outer(1 - density, 1 - density)) + np.sqrt(np.outer(density, density))
    off_diagonal = expected[~np.eye(6, dtype=bool)]
    np.testing.assert_allclose(
        value_and_grad(h.astype(np.float32), form="cosine")[0], np.mean(off_diagonal**2), rtol=1e-5
    )
    np.testing.assert_allclose(value_and_grad(h.astype(np.float32), form="density")[0], density.mean(), rtol=1e-5)


def test_correlation_epsilon_is_relative_to_the_mean_variance():
    h, epsilon = correlated(), 0.3

    def damped(x: np.ndarray) -> float:
        c = oracles.covariance_matrix(x)
        variance = np.diag(c) + epsilon * np.diag(c).mean()
        r = c / np.sqrt(np.outer(variance, variance))
        return float(np.sum((r * (1 - np.eye(6))) ** 2) / 30)

    for scale in (1.0, 1e6):
        value, gradient = value_and_grad(scale * h, form="correlation", epsilon=epsilon)
        expected = oracles.numerical_gradient(damped, h) / scale
        np.testing.assert_allclose(value, damped(h), rtol=1e-5)
        np.testing.assert_allclose(gradient, expected, atol=1e-4 * np.abs(expected).max())


# Hard inputs


@pytest.mark.parametrize("form", losses.FORMS)
def test_one_sample_gives_zero(form):
    value, gradient = value_and_grad(correlated(1), form=form)
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("form", CENTRED)
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e4, 1e8])
def test_constant_features_change_nothing_and_get_no_gradient(form, constant):
    h = correlated(37, 4)
    value, gradient = value_and_grad(np.pad(h, [(0, 0), (0, 2)], constant_values=constant), form=form)
    alone = oracles.decorrelation(h.astype(np.float64), form)
    share = {"covariance": 4 / 6, "correlation": 12 / 30, "decov": 1.0, "whitening": 4 / 6}[form]
    np.testing.assert_allclose(value, share * alone, rtol=1e-4)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient[:, 4:], 0.0, atol=1e-12)


@pytest.mark.parametrize("form", ["correlation", "whitening"])
@pytest.mark.parametrize("constant", [0.1, 1e4, 1e8])
def test_rounding_noise_on_a_constant_is_not_blown_up(form, constant):
    h = np.pad(correlated(37, 4), [(0, 0), (0, 2)], constant_values=constant)
    noisy = h.copy()
    noisy[::2, 5] = np.nextafter(np.float32(constant), np.float32(np.inf))
    for a, b in zip(value_and_grad(noisy, form=form), value_and_grad(h, form=form), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("form", ["cosine", "density"])
def test_features_that_are_never_on_get_no_gradient(form):
    h = np.abs(correlated(37, 4))
    value, gradient = value_and_grad(np.pad(h, [(0, 0), (0, 2)]), form=form)
    share = {"cosine": 12 / 30, "density": 4 / 6}[form]
    np.testing.assert_allclose(value, share * oracles.decorrelation(h.astype(np.float64), form), rtol=1e-5)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[:, 4:], 0.0)


@pytest.mark.parametrize("form", CENTRED)
def test_all_features_constant(form):
    value, gradient = value_and_grad(np.full((7, 3), 0.3, np.float32), form=form)
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("form", losses.FORMS)
def test_a_large_mean_does_not_drown_the_statistics(form):
    h = (correlated(64) + 1e4).astype(np.float32)
    value = value_and_grad(h, form=form)[0]
    np.testing.assert_allclose(value, oracles.decorrelation(h.astype(np.float64), form), rtol=1e-3)


@pytest.mark.parametrize("form", ["covariance", "decov"])
@pytest.mark.parametrize("gram", [False, True])
def test_scale_dependent_forms_are_finite_at_1e8(form, gram):
    h = 1e8 * np.sign(np.random.default_rng(0).normal(size=(8, 1))).astype(np.float32) * np.ones((1, 512), np.float32)
    value, gradient = value_and_grad(h, form=form, gram=gram)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    # All features are equal: the value is D(D − 1) times the squared variance, divided by D or halved.
    variance = np.var(h[:, 0].astype(np.float64), ddof=form == "covariance")
    np.testing.assert_allclose(value, variance**2 * {"covariance": 511, "decov": 512 * 511 / 2}[form], rtol=1e-4)


@pytest.mark.parametrize("form", ["correlation", "whitening", "cosine", "density"])
@pytest.mark.parametrize("scale", [1e-20, 1e8, 1e30, 1e37])
def test_rescaled_forms_are_finite_at_any_scale(form, scale):
    h = (correlated().astype(np.float64) * scale).astype(np.float32)
    value, gradient = value_and_grad(h, form=form)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    if form != "whitening":
        np.testing.assert_allclose(value, oracles.decorrelation(correlated().astype(np.float64), form), rtol=1e-4)
    else:
        centred = h.astype(np.float64) - h.mean(0, dtype=np.float64)
        expected = 2 / h.size * (centred - centred @ oracles.zca(h.astype(np.float64)))
        np.testing.assert_allclose(gradient, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("iterations", [5, 20, 100])
@pytest.mark.parametrize("case", ["few samples", "one direction", "steep"])
def test_whitening_of_an_ill_conditioned_batch_is_finite(case, iterations):
    rng = np.random.default_rng(0)
    h = rng.normal(size=(16, 24)).astype(np.float32)
    if case == "one direction":
        h = np.outer(h[:, 0], h[0])
    elif case == "steep":
        h = h * np.logspace(0, -9, 24, dtype=np.float32)
    value, gradient = value_and_grad(h, form="whitening", iterations=iterations)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    assert np.abs(gradient).max() < 1.0
    assert np.isfinite(residual(h, iterations=iterations))


@pytest.mark.parametrize("form", losses.FORMS)
def test_bfloat16_features_have_float32_statistics(form):
    h = jnp.asarray(correlated(32), jnp.bfloat16)
    value, gradient = value_and_grad(h, form=form)
    assert value.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, value_and_grad(h.astype(jnp.float32), form=form)[0], rtol=1e-6)


# Invariances


def test_correlation_is_free_of_scale_and_shift():
    h = correlated()
    moved = h * np.logspace(-6, 6, 6, dtype=np.float32) + np.float32([0, 0, 0, 1, 100, 1e6])
    np.testing.assert_allclose(
        value_and_grad(moved, form="correlation")[0], value_and_grad(h, form="correlation")[0], rtol=1e-3
    )


@pytest.mark.parametrize("form", ["cosine", "density"])
def test_uncentred_forms_are_free_of_the_features_scales(form):
    h = correlated()
    scaled = h * np.logspace(-6, 6, 6, dtype=np.float32)
    np.testing.assert_allclose(value_and_grad(scaled, form=form)[0], value_and_grad(h, form=form)[0], rtol=1e-4)


def test_whitening_does_not_change_under_rotation_and_its_gradient_rotates():
    h = correlated()
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0].astype(np.float32)
    value, gradient = value_and_grad(h, form="whitening", iterations=30)
    turned, turned_gradient = value_and_grad(h @ rotation, form="whitening", iterations=30)
    np.testing.assert_allclose(turned, value, rtol=1e-4)
    np.testing.assert_allclose(turned_gradient, gradient @ rotation, atol=1e-5)


@pytest.mark.parametrize("form", losses.FORMS)
def test_order_of_samples_and_of_features_does_not_matter(form):
    h, rng = correlated(), np.random.default_rng(1)
    shuffled = h[rng.permutation(16)][:, rng.permutation(6)]
    np.testing.assert_allclose(value_and_grad(shuffled, form=form)[0], value_and_grad(h, form=form)[0], rtol=1e-4)


@pytest.mark.parametrize("shape", [(8, 3, 5), (8, 2, 3, 5)])
def test_maps_are_pooled_or_give_a_sample_a_position(shape):
    maps = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    rows = maps.reshape(8, -1, 5)
    pooled, each = (value_and_grad(maps, spatial=spatial)[0] for spatial in losses.SPATIALS)
    np.testing.assert_allclose(pooled, value_and_grad(rows.mean(1))[0], rtol=1e-5)
    np.testing.assert_allclose(each, value_and_grad(rows.reshape(-1, 5))[0], rtol=1e-5)
    assert losses.sample_count(maps, spatial="pool") == 8
    assert losses.sample_count(maps, spatial="positions") == 8 * rows.shape[1]


# Whitening's iteration


def test_more_iterations_whiten_further():
    h = correlated(64)
    residuals = np.array([residual(h, iterations=i) for i in (1, 2, 3, 4, 6, 8)])
    assert (np.diff(residuals) < 1e-6).all()
    assert residuals[0] > 0.5 and residuals[3] < 0.5 * residuals[0] and residuals[-1] < 1e-3
    assert residual(h, iterations=60) < 1e-3


def test_too_few_samples_leave_the_least_residual_possible():
    np.testing.assert_allclose(residual(correlated(5, 12), iterations=30), np.sqrt((12 - 5 + 1) / 12), atol=1e-3)


def test_value_and_residual_come_from_one_iteration():
    h = correlated(32)
    value, left = jax.jit(partial(losses.whitening, iterations=4))(h)
    assert value == value_and_grad(h, form="whitening", iterations=4)[0]
    assert left == residual(h, iterations=4) > 1e-3
    jaxpr = str(jax.make_jaxpr(losses.whitening)(h))
    assert jaxpr.count("while[") + jaxpr.count("scan[") == 1
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda h: losses.whitening(h)[1]))(h), 0.0)
    with pytest.raises(ValueError, match="epsilon = -1"):
        losses.whitening_residual(h, epsilon=-1)


# Logged values


def test_variance_hinge_value_and_gradient():
    h = correlated() * np.float32([0.1, 0.5, 1, 2, 0.01, 0.3])
    value, gradient = hinge_and_grad(h)
    np.testing.assert_allclose(value, oracles.variance_hinge(h), rtol=1e-5)
    np.testing.assert_allclose(gradient, oracles.numerical_gradient(oracles.variance_hinge, h), atol=1e-5)


def test_variance_hinge_is_safe_at_constant_huge_and_single_samples():
    for h, expected in ((np.ones((4, 3)), 0.99), (1e30 * correlated(), 0.0), (correlated(1), 0.0)):
        value, gradient = hinge_and_grad(h.astype(np.float32))
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        np.testing.assert_array_equal(gradient, 0.0)


def test_feature_scale_is_the_mean_standard_deviation():
    h = correlated() + np.float32(100)
    np.testing.assert_allclose(scale_of(h), h.std(axis=0, ddof=1).mean(), rtol=1e-4)


@pytest.mark.parametrize("form", losses.FORMS)
@pytest.mark.parametrize("n, d", [(48, 16), (24, 32)])
def test_white_floor_is_the_mean_over_white_batches(form, n, d):
    batches = jax.random.normal(jax.random.key(0), (200, n, d))
    mean = jax.jit(lambda b: jnp.mean(jax.vmap(partial(losses.decorrelation, form=form, iterations=25))(b)))(batches)
    np.testing.assert_allclose(mean, losses.white_floor(n, d, form=form), rtol=0.08 if form == "whitening" else 0.03)


def test_white_floor_of_the_covariance_form_is_its_formula():
    assert losses.white_floor(128, 64) == pytest.approx(63 / 127)
    assert losses.white_floor(1, 64) == 0.0
    assert losses.white_floor(8, 1, form="correlation") == 0.0


# Devices

CASES = [(form, gram) for form in PAIRWISE for gram in (False, True)] + [("whitening", None), ("density", None)]
MAIN = [("covariance", False), ("covariance", True), ("density", None)]  # training uses one of these by default


def network(params: dict, x: jax.Array) -> jax.Array:
    """Return features of a small nonlinear network, so that gradients of parameters mix all samples."""
    return jnp.tanh(x @ params["a"]) @ params["b"] + jnp.sin(x @ params["c"])


def global_batch() -> tuple[dict, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 7), "b": (7, 6), "c": (4, 6)}
    return {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}, correlated(16, 4)


def losses_and_gradients(params: dict, x: jax.Array, *, axis_name: str | None, cases: list = CASES) -> dict:
    """Return the loss and gradients of each form (one program compiles faster than one per form)."""

    def loss(params: dict, form: str, gram: bool | None) -> jax.Array:
        h = network(params, x)
        hinge = losses.variance_hinge(h, axis_name=axis_name, target=3.0)
        return losses.decorrelation(h, form=form, axis_name=axis_name, gram=gram) + 0.1 * hinge

    results = {f"{form} gram={gram}": jax.value_and_grad(loss)(params, form, gram) for form, gram in cases}
    return results if axis_name is None else jax.lax.pmean(results, axis_name)


@pytest.fixture(scope="module")
def whole() -> dict:
    return jax.jit(partial(losses_and_gradients, axis_name=None))(*global_batch())


def assert_equal_to_rounding(results: dict, expected: dict, cases: list = CASES) -> None:
    assert results.keys() == {f"{form} gram={gram}" for form, gram in cases}
    for case, (value, found) in results.items():
        loss, gradients = expected[case]
        np.testing.assert_allclose(value, loss, rtol=1e-5, err_msg=case)
        for name, gradient in gradients.items():
            tolerance = 2e-5 * np.abs(gradient).max()
            np.testing.assert_allclose(found[name], gradient, atol=tolerance, err_msg=f"{case} {name}")


@pytest.mark.parametrize(
    ("devices", "cases"),
    [(1, CASES), (2, MAIN), (4, MAIN), (8, CASES)]
    + [pytest.param(devices, CASES, marks=pytest.mark.full, id=f"{devices}-every") for devices in (2, 4)],
)
def test_losses_and_gradients_do_not_depend_on_the_number_of_devices(whole, devices, cases):
    """The main forms run on 1, 2, 4 and 8 devices; the others on 1 and 8 in the quick suite."""
    params, x = global_batch()
    step = partial(losses_and_gradients, axis_name="batch", cases=cases)
    step = jax.pmap(step, axis_name="batch", in_axes=(None, 0), out_axes=None, devices=jax.devices()[:devices])
    assert_equal_to_rounding(jax.block_until_ready(step(params, x.reshape(devices, -1, 4))), whole, cases)


def test_vmap_with_an_axis_name_gives_the_same(whole):
    params, x = global_batch()
    step = partial(losses_and_gradients, axis_name="batch")
    step = jax.jit(jax.vmap(step, axis_name="batch", in_axes=(None, 0), out_axes=None))
    assert_equal_to_rounding(step(params, x.reshape(4, 4, 4)), whole)


def test_statistics_of_a_shard_alone_would_be_another_loss():
    params, x = global_batch()
    h = network(params, x)
    shards = np.mean([value_and_grad(shard)[0] for shard in h.reshape(4, 4, 6)])
    assert abs(shards / value_and_grad(h)[0] - 1) > 0.2


def test_diagnostics_are_those_of_the_global_batch():
    h = correlated(16).reshape(4, 4, 6)

    def diagnostics(h: jax.Array) -> tuple:
        count = losses.sample_count(h, axis_name="batch")
        assert count == 16
        return losses.feature_scale(h, axis_name="batch"), losses.whitening_residual(h, axis_name="batch")

    scale, left = jax.jit(jax.vmap(diagnostics, axis_name="batch", out_axes=None))(h)
    np.testing.assert_allclose(scale, scale_of(h.reshape(16, 6)), rtol=1e-6)
    np.testing.assert_allclose(left, residual(h.reshape(16, 6)), atol=1e-4)


# Errors


def test_wrong_arguments_are_named():
    h = correlated()
    with pytest.raises(ValueError, match="form = 'covarience'.*did you mean 'covariance'.*whitening"):
        losses.decorrelation(h, form="covarience")
    with pytest.raises(ValueError, match="spatial = 'all'.*pool.*positions"):
        losses.decorrelation(h, spatial="all")
    for form in ("whitening", "density"):
        with pytest.raises(ValueError, match=f"gram = True is not possible with form = '{form}'"):
            losses.decorrelation(h, form=form, gram=True)
    with pytest.raises(ValueError, match="epsilon"):
        losses.decorrelation(h, form="correlation", epsilon=-1.0)
    with pytest.raises(ValueError, match=r"features has shape \(16,\)"):
        losses.decorrelation(h[:, 0])
    with pytest.raises(ValueError, match="form"):
        losses.white_floor(8, 4, form="none")


@pytest.mark.parametrize(("form", "gram"), [("covariance", False), ("correlation", False), ("covariance", True)])
def test_the_matrix_of_features_is_summed_once_or_the_samples_are_gathered_once(form, gram):
    """The pull-back sums scalars and means over the members, but no second matrix, and no samples."""
    h, width = correlated(24, 6), 6
    alone, own_gradient = value_and_grad(h, form=form, gram=gram)
    run = jax.value_and_grad(partial(losses.decorrelation, form=form, axis_name="batch", gram=gram))
    values, gradients = jax.jit(jax.vmap(run, axis_name="batch"))(h.reshape(4, 6, width))
    np.testing.assert_allclose(values, np.full(4, alone), rtol=1e-5)
    together = np.asarray(gradients).reshape(24, width) / 4  # the mean over members of what each adds to the loss
    np.testing.assert_allclose(together, own_gradient, rtol=1e-3, atol=1e-5 * np.abs(own_gradient).max())
    program = jax.pmap(run, axis_name="batch", devices=jax.devices()[:4]).lower(h.reshape(4, 6, width)).as_text()
    summed = re.findall(r"\}\) : \((tensor<[^>]*>)\) -> tensor", program)
    assert summed.count(f"tensor<{width}x{width}xf32>") == (0 if gram else 1), summed
    assert program.count("stablehlo.all_gather") == (1 if gram else 0) and "reduce_scatter" not in program
    assert not gram or not [shape for shape in summed if "24x6x" in shape or "24x24x" in shape], summed


@pytest.mark.parametrize("gram", [False, True])
def test_second_derivatives_of_both_sides(gram):
    """The rule of a side's derivative can itself be differentiated, forward and in reverse."""
    h = correlated(8, 3)
    direction = correlated(8, 3, seed=1)
    plain = lambda x: jnp.sum(jnp.where(jnp.eye(3) > 0, 0.0, jnp.cov(x.T)) ** 2) / 3  # noqa: E731
    ours = partial(losses.decorrelation, gram=gram)
    found = []
    for of in (ours, plain):
        slope = lambda x, of=of: jnp.vdot(jax.grad(of)(x), direction)  # noqa: E731
        found += [
            jax.jit(jax.grad(slope))(h),
            jax.jit(lambda x, of=of: jax.jvp(jax.grad(of), (x,), (direction,))[1])(h),
        ]
    for each in found[1:]:
        np.testing.assert_allclose(each, found[0], rtol=2e-3, atol=2e-4 * float(jnp.abs(found[0]).max()))
