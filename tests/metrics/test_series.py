"""Tests of metrics and masking on series, volumes and features: they equal those of images of one row, or a loop."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import sdecor
from sdecor import masking, metrics
from sdecor.attribution import normalise

KEY = jax.random.key(0)
_RNG = np.random.default_rng(0)
SERIES = jnp.asarray(_RNG.normal(size=(2, 8, 3)), jnp.float32)
MAPS = jnp.asarray(_RNG.normal(size=(2, 8)), jnp.float32)
HEAD = jnp.asarray(_RNG.normal(size=(24, 3)), jnp.float32)
LABELS = jnp.array([2, 0])


def network(x):
    return jnp.tanh(x.ravel()) @ HEAD


def gradient(image, target, key):
    return jax.grad(lambda x: network(x)[target])(image)


def every_metric(images, maps):
    """Return metrics whose values do not depend on how positions are laid out."""
    found = {}
    given = {"key": KEY, "baseline": "zero"}
    for name in ("deletion", "insertion", "pixel_flipping", "monotonicity", "region_perturbation", "irof"):
        options = {"patch": 1} if name in ("region_perturbation", "irof") else {"steps": 4}
        found[name] = getattr(metrics, name)(network, images, maps, LABELS, **given, **options)
    found["average_drop"] = metrics.average_drop(network, images, maps, LABELS)
    found["correlation"] = metrics.faithfulness_estimate(network, images, maps, LABELS, steps=4, **given)
    for perturbation in ("noise", "grid"):
        options = {"perturbation": perturbation, "samples": 4, "patch": 1}
        found[perturbation] = metrics.infidelity(network, images, maps, LABELS, key=KEY, **options)
    options = {"key": KEY, "baseline": "zero"}
    found["non_sensitivity"] = metrics.non_sensitivity(network, images, maps, LABELS, **options)
    found |= {name: getattr(metrics, name)(maps) for name in ("gini", "entropy", "effective_complexity")}
    found["sensitivity"] = metrics.max_sensitivity(gradient, images, LABELS, key=KEY, samples=3)
    found["completeness"] = metrics.completeness(network, images, maps, LABELS)
    return found


@pytest.mark.full
def test_metrics_of_a_series_are_those_of_an_image_of_one_row():
    compiled = jax.jit(every_metric)
    expected = compiled(SERIES[:, None], MAPS[:, None])
    for name, values in compiled(SERIES, MAPS).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
        assert values.shape == (2,), name


def test_deletion_of_features_by_a_loop():
    rows, weights = SERIES.reshape(2, 24), jnp.asarray(_RNG.normal(size=(2, 24)), jnp.float32)
    curve = metrics.deletion_curve(network, rows, weights, LABELS, key=KEY, steps=24, saliency_of="logit")
    for row in range(2):
        x, expected = np.array(rows[row], np.float64), []
        for place in [None, *np.argsort(-np.asarray(weights[row]))]:
            if place is not None:
                x[place] = 0
            expected.append((np.tanh(x) @ np.asarray(HEAD, np.float64))[LABELS[row]])
        np.testing.assert_allclose(curve[row], expected, rtol=1e-4, atol=1e-5)


def test_intervals_of_infidelity():
    """For a linear network and its gradient the error is 0, whatever the intervals are."""
    linear = lambda x: x.ravel() @ HEAD  # noqa: E731
    slopes = HEAD[:, LABELS].T.reshape(2, 8, 3)
    values = metrics.infidelity(linear, SERIES, slopes, LABELS, key=KEY, samples=5, patch=3)
    np.testing.assert_allclose(values, 0, atol=1e-8)
    assert (metrics.infidelity(linear, SERIES, slopes + 1, LABELS, key=KEY, samples=5, patch=3) > 0.01).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.road(network, SERIES, MAPS, LABELS, key=KEY), "ROAD is defined for images"),
        (lambda: metrics.deletion(network, SERIES, SERIES, LABELS, key=KEY), r"pass \[N, T, C\] and \[N, T\]"),
        (lambda: metrics.mst_compactness(MAPS), r"maps has shape \(2, 8\): .*compactness is defined for images"),
        (lambda: metrics.grid_pointing_game(MAPS, LABELS), "the grid pointing game is defined for images"),
        (lambda: metrics.ssim(MAPS, MAPS), "structural similarity is defined for images"),
        (lambda: metrics.gini({"a": MAPS}), r"maps is a dict: pass an array; of several inputs, join all features"),
        (lambda: metrics.energy_inside(SERIES[None], SERIES[None] > 0), r"pass \[N, H, W\], or \[N, T\] of series"),
        (
            lambda: metrics.deletion(network, SERIES, MAPS, lambda y: y[0], key=KEY),
            r"of another score, pass fn=lambda x: jnp.stack\(\[score\(network\(x\)\)\]\)",
        ),
        (lambda: masking.fill(KEY, SERIES[:, 0], MAPS[:, :3] > 0), r"how = 'uniform' is taken over positions"),
        (lambda: masking.least_salient(KEY, MAPS[0], fraction=0.5), r"saliency has shape \(8,\): pass a batch"),
    ],
)
def test_what_is_not_defined_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("shape", [(2, 8, 3), (2, 3, 2, 4, 2)])
def test_masks_and_fills_of_series_and_volumes(shape):
    x = _RNG.normal(size=shape).astype(np.float32)

    @jax.jit
    def run(x):
        saliency = masking.rank_saliency(x)
        mask = masking.least_salient(KEY, saliency, fraction=0.5)
        return saliency, mask, {how: masking.fill(KEY, x, mask, how=how) for how in masking.FILLS}

    saliency, mask, fills = jax.tree.map(np.asarray, run(x))
    np.testing.assert_allclose(saliency, np.abs(x).mean(-1), rtol=1e-6)
    half = math.prod(shape[1:-1]) // 2
    for row, hidden in zip(saliency.reshape(2, -1), mask.reshape(2, -1), strict=True):
        assert hidden.sum() == half and row[hidden].max() < row[~hidden].min()
    for filled in fills.values():
        np.testing.assert_array_equal(filled[~mask], x[~mask])
        assert (filled[mask] != x[mask]).any()
    np.testing.assert_allclose(fills["mean"][0][mask[0]][0], x[0].reshape(-1, shape[-1]).mean(0), rtol=1e-5, atol=1e-6)


def test_localization_of_a_series_is_that_of_an_image_of_one_row():
    objects = jnp.asarray(_RNG.random((2, 8)) < 0.4).at[:, 0].set(True).at[:, 1].set(False)
    ignore = jnp.zeros_like(objects).at[:, 5].set(True)

    @jax.jit
    def values(maps, objects, ignore):
        names = ("energy_inside", "relevance_rank_accuracy", "roc_auc", "best_iou", "attribution_localization")
        found = {name: getattr(metrics, name)(maps, objects, ignore=ignore) for name in names}
        found |= {"top": metrics.top_k_intersection(maps, objects, k=3), "area": metrics.area_share(objects)}
        return found | {t: metrics.pointing_game(maps, objects, tolerance=float(t)) for t in "012"}

    found = values(MAPS, objects, ignore)
    for name, expected in values(MAPS[:, None], objects[:, None], ignore[:, None]).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, err_msg=name)
        assert np.isfinite(found[name]).all(), name


def test_explanations_of_a_series_again_are_those_of_an_image_of_one_row():
    """As the image moves sideways, or parameters change; the reduction over channels is the same."""

    def explained(scale, image, target, key):
        return jax.grad(lambda x: scale * network(x)[target] + jnp.sum(scale * x**2))(image)

    @jax.jit
    def values(images):
        moved = metrics.continuity(gradient, images, LABELS, key=KEY, shifts=(-2, 1))
        params = {"layer": {"scale": jnp.float32(2.0)}}, {"layer": {"scale": jnp.float32(0.1)}}
        own = lambda params, *example: explained(params["layer"]["scale"], *example)  # noqa: E731
        return moved, metrics.parameter_randomization(own, *params, images, LABELS, key=KEY)

    for found, expected in zip(values(SERIES), values(SERIES[:, None]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        assert np.isfinite(found).all()


def test_several_inputs_are_judged_as_rows_of_features():
    """The recipe of docs/metrics.md: features of a tree in one row, which the network takes apart."""
    trees = {"series": SERIES[:, :4, :2], "table": SERIES[:, 0, :]}
    weights = {"series": HEAD[:8].reshape(4, 2, 3), "table": HEAD[8:11]}

    def of_tree(tree):
        return sum(jnp.tensordot(tree[name], weights[name], tree[name].ndim) for name in tree)

    one = jax.tree.map(lambda x: x[0], trees)
    _, apart = ravel_pytree(one)
    together = jax.vmap(lambda tree: ravel_pytree(tree)[0])
    maps = jax.vmap(jax.grad(lambda tree, label: of_tree(tree)[label]), (0, 0))(trees, LABELS)
    rows, of_rows = together(trees), together(maps)
    curve = metrics.deletion_curve(
        lambda row: of_tree(apart(row)), rows, of_rows, LABELS, key=KEY, steps=11, saliency_of="logit"
    )
    order = jnp.argsort(-of_rows, axis=1)
    lost = jnp.take_along_axis(rows * of_rows, order, 1)  # of a linear network
    expected = curve[:, :1] - jnp.cumsum(lost, 1)
    np.testing.assert_allclose(curve[:, 1:], expected, rtol=1e-4, atol=1e-5)


def test_maps_are_scaled_one_by_one():
    scaled = normalise(MAPS, how="sum", axes=1)
    np.testing.assert_allclose(scaled, MAPS / jnp.abs(MAPS).sum(1, keepdims=True), rtol=1e-6)
    share = normalise(MAPS, how="percentile", percentile=75.0, axes=1)
    np.testing.assert_allclose(share, normalise(MAPS[:, None], how="percentile", percentile=75.0)[:, 0], rtol=1e-6)


def test_features_are_masked_one_by_one():
    rows = SERIES.reshape(2, 24)
    mask = masking.least_salient(KEY, masking.rank_saliency(rows), fraction=0.25)
    filled = masking.fill(KEY, rows, mask, how="zero")
    np.testing.assert_array_equal((filled == 0).sum(1), 6)
    np.testing.assert_array_equal(filled[~mask], rows[~mask])


def test_saliency_decor_of_a_series_is_that_of_an_image_of_one_row():
    """The mean fill does not depend on the layout of the positions."""

    def loss(x):
        apply = lambda params, x: (jnp.tanh(x.reshape(2, 24)) @ params, x.reshape(2, 24)[:, :6])  # noqa: E731
        return sdecor.saliency_decor(apply, HEAD, x, LABELS, key=KEY, fill="mean")[0]

    found, expected = jax.jit(loss)(SERIES), jax.jit(loss)(SERIES[:, None])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
