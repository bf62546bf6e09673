"""Tests of methods on regions: exact Shapley values by enumeration, closed forms, captum's conventions, label maps."""

import itertools
import math
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_network as reference

from sdecor.attribution import METHODS, explain, regions
from sdecor.attribution.coalitions import feature_ablation, kernel_shap, lime, shapley_sampling

KEY = jax.random.key(0)
_RNG = np.random.default_rng(0)
LABELS = np.array([[0, 0, 1, 1], [0, 4, 1, 1], [2, 2, 3, 3]])
ON_DEVICE = jnp.asarray(LABELS)
IMAGES = jnp.asarray(_RNG.normal(size=(2, 3, 4, 2)), jnp.float32)
WEIGHTS, HEAD = (_RNG.normal(size=shape) for shape in ((24, 6), (6, 2)))
GIVEN = {"regions": LABELS, "baseline": 0.3, "with_error": True}
close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


def network(image):
    return jnp.tanh(image.ravel() @ jnp.asarray(WEIGHTS, jnp.float32)) @ jnp.asarray(HEAD, jnp.float32)


def score(image, seen, labels=LABELS):
    """Return the score of class 1 with hidden regions, in float64."""
    hidden = np.where(np.isin(labels, seen)[..., None], np.asarray(image, np.float64), 0.3)
    return (np.tanh(hidden.ravel() @ WEIGHTS) @ HEAD)[1]


def shapley_values(image, count=5):
    """Return the exact Shapley values by enumeration of all coalitions."""
    values = np.zeros(count)
    for region in range(count):
        others = [r for r in range(count) if r != region]
        for size in range(count):
            weight = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
            for seen in itertools.combinations(others, size):
                values[region] += weight * (score(image, [*seen, region]) - score(image, list(seen)))
    return values


def of_regions(maps, labels=LABELS):
    """Return the sum of a map over each region."""
    return np.stack([np.bincount(labels.ravel(), np.asarray(row, np.float64).ravel()) for row in maps])


@pytest.fixture(scope="module")
def found():
    """Return maps and completeness errors by all methods, with several chunk sizes."""

    def run(images):
        explained = partial(explain, network, images, 1, key=KEY)
        return {
            "exact": explained(method="kernel_shap", samples=30, chunk_size=2, **GIVEN),
            "exact at once": explained(method="kernel_shap", samples=99, chunk_size=64, **GIVEN),
            "drawn": explained(method="kernel_shap", samples=28, **GIVEN),
            "sampled": explained(method="shapley_sampling", samples=1500, **GIVEN),
            "ablated": explained(method="feature_ablation", **GIVEN),
            "shown": explained(method="feature_ablation", **GIVEN | {"share": False, "regions": ON_DEVICE}),
        }

    return jax.jit(run)(IMAGES)


def test_shapley_values_by_enumeration(found):
    expected = np.stack([shapley_values(image) for image in IMAGES])
    rise = np.array([score(image, range(5)) - score(image, []) for image in IMAGES])
    for name, tolerance in (("exact", 1e-4), ("exact at once", 1e-4), ("drawn", 0.1), ("sampled", 0.1)):
        maps, error = found[name]
        np.testing.assert_allclose(of_regions(maps), expected, atol=tolerance * np.abs(expected).max(), err_msg=name)
        np.testing.assert_allclose(error, 0, atol=2e-5, err_msg=name)
        np.testing.assert_allclose(maps.sum((1, 2, 3)), rise, atol=2e-5, err_msg=name)


def test_ablation_by_a_loop(found):
    maps, errors = found["ablated"]
    whole, empty = (np.array([score(image, seen) for image in IMAGES]) for seen in (range(5), []))
    drops = [
        [score(image, range(5)) - score(image, [r for r in range(5) if r != q]) for q in range(5)] for image in IMAGES
    ]
    close(of_regions(maps), drops)
    close(errors, np.sum(drops, 1) - (whole - empty))
    close(found["shown"][0][..., 0], np.stack(drops)[:, LABELS])  # as in captum: each position has its region's value


def test_additive_games_are_exact_for_every_method():
    """Of a linear score, each region's contribution is its own sum; LIME's coefficients without a penalty too."""
    weights = jnp.asarray(_RNG.normal(size=(3, 4, 2)), jnp.float32)
    linear = lambda image: jnp.stack([jnp.sum(weights * image), jnp.float32(0)])  # noqa: E731
    expected = of_regions((weights[None] * (IMAGES - 0.3)).sum(-1))

    def run(images):
        given = {"regions": LABELS, "baseline": 0.3, "key": KEY, "share": True}
        explained = partial(explain, linear, images, 0)
        options = {"kernel_shap": 12, "shapley_sampling": 2, "lime": 40}
        maps = {name: explained(method=name, samples=count, **given) for name, count in options.items()}
        return maps | {
            "lime": explained(method="lime", samples=40, penalty=0.0, **given),
            "feature_ablation": explained(method="feature_ablation", **given),
        }

    for name, maps in jax.jit(run)(IMAGES).items():
        np.testing.assert_allclose(of_regions(maps), expected, rtol=2e-3, atol=2e-4, err_msg=name)


def test_values_equal_shap_s():
    """shap 0.51.0: KernelExplainer and ExactExplainer on six regions (benchmarks/references/shap_values.py)."""
    with np.load(reference.FOLDER / "shap_values.npz") as arrays:
        given = dict(arrays)
    weights, head = (jnp.asarray(given[name], jnp.float32) for name in ("weights", "head"))
    fn = lambda image: (jnp.tanh(image.ravel() @ weights) @ head)[None]  # noqa: E731
    images = jnp.asarray(given["images"], jnp.float32)
    options = {"regions": given["labels"], "baseline": 0.3, "samples": 62, "key": KEY}
    maps = jax.jit(lambda x: explain(fn, x, 0, method="kernel_shap", **options))(images)
    for name in ("kernel", "exact"):
        close(of_regions(maps, given["labels"]), given[name], rtol=2e-4, atol=1e-4, err_msg=name)


def test_values_equal_captum_s():
    """captum 0.9.0: ablation, Shapley values, KernelSHAP of all coalitions, and LIME of the coalitions that we draw."""
    stored = reference.stored("captum_regions")
    given = {"regions": stored["labels"], "baseline": 0.3, "key": KEY, "share": False}
    options = {"feature_ablation": {}, "kernel_shap": {"samples": 62}}
    options |= {"lime": {"samples": 40, "width": 0.4, "penalty": 0.7}}

    def run(images, labels):
        explained = partial(explain, reference.network, images, labels, **given)
        return {name: explained(method=name, **own) for name, own in options.items()}

    found = jax.jit(run)(reference.images()[:3], reference.labels()[:3])
    for name, of_captum in (*zip(options, options, strict=True), ("kernel_shap", "shapley")):
        expected = stored[of_captum]
        close(found[name][..., 0], expected[:, stored["labels"]], atol=2e-4 * np.abs(expected).max(), err_msg=of_captum)


def test_lime_is_a_weighted_ridge_regression():
    samples, width, penalty = 30, 0.4, 0.7
    options = {"regions": LABELS, "baseline": 0.3, "samples": samples, "width": width, "penalty": penalty}
    found = jax.jit(lambda x: lime(network, x, 1, key=KEY, **options))(IMAGES[0])
    drawn = [jax.random.bernoulli(jax.random.fold_in(KEY, i), 0.5, (5,)) for i in range(samples - 1)]
    seen = np.stack([np.ones(5), *drawn]).astype(float)  # the first coalition is the image itself
    scores = np.array([score(IMAGES[0], np.flatnonzero(row)) for row in seen])
    weights = np.exp(-0.5 * ((1 - np.sqrt(seen.mean(1))) / width) ** 2)
    rows = np.concatenate([np.ones((samples, 1)), seen], 1)
    ridge = np.diag([0.0, *[penalty] * 5])
    expected = np.linalg.solve(rows.T * weights @ rows + ridge, rows.T * weights @ scores)[1:]
    close(found[..., 0], expected[LABELS])


def test_label_maps_of_each_image_and_unused_labels(found):
    """Images may have other regions and other numbers of them; labels without positions take nothing."""
    labels = np.stack([LABELS, np.where(LABELS == 4, 0, LABELS)])
    run = lambda images: explain(  # noqa: E731
        network, images, 1, method="kernel_shap", key=KEY, samples=30, baseline=0.3, regions=labels, with_error=True
    )
    maps, errors = jax.jit(run)(IMAGES)
    close(maps[0], found["exact"][0][0])
    np.testing.assert_allclose(errors, 0, atol=2e-5)
    options = {"key": KEY, "samples": 14, "baseline": 0.3, "regions": labels[1]}
    close(maps[1], jax.jit(lambda image: kernel_shap(network, image, 1, **options))(IMAGES[1]))


@pytest.mark.full
def test_default_regions_grids_and_features():
    np.testing.assert_array_equal(regions.grid((3, 4), 2), [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]])
    np.testing.assert_array_equal(regions.grid((5,), 2), [0, 0, 1, 1, 2])
    rows = IMAGES.reshape(2, 24)
    found = explain(lambda x: (x * jnp.arange(24.0)).sum()[None], rows, 0, method="feature_ablation")
    close(found, np.asarray(rows) * np.arange(24))
    tree = {"a": rows[:, :3], "b": IMAGES}
    total = lambda x: (2 * x["a"].sum() + x["b"].sum())[None]  # noqa: E731
    found = jax.jit(lambda x: explain(total, x, 0, method="shapley_sampling", key=KEY, samples=1))(tree)
    close(found["a"], 2 * tree["a"], atol=1e-4)
    close(found["b"], IMAGES, atol=1e-4)


def test_superpixels_are_label_maps():
    pytest.importorskip("skimage")
    images = np.zeros((2, 16, 16, 3), np.float32)
    images[:, :, 8:] = 1
    labels = regions.superpixels(images, segments=8)
    assert labels.shape == (2, 16, 16) and labels.dtype == np.int32
    for each in labels:
        np.testing.assert_array_equal(np.unique(each), np.arange(each.max() + 1))
    assert not np.intersect1d(labels[0][:, :8], labels[0][:, 8:]).size  # none crosses the edge
    with pytest.raises(ValueError, match=r"images\[1\] is not finite"):
        regions.superpixels(np.stack([images[0], images[0] * np.nan]))


def test_superpixels_say_what_is_missing_or_wrong(monkeypatch):
    images = np.zeros((1, 8, 8, 3), np.float32)
    for options in ({"segments": 0}, {"compactness": 0.0}, {"sigma": -1.0}):
        (name,) = options
        with pytest.raises(ValueError, match=name):
            regions.superpixels(images, **options)
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)  # as where it is not installed
    with pytest.raises(ValueError, match="superpixels needs scikit-image: pip install scikit-image; or use a grid"):
        regions.superpixels(images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regions": LABELS[:2]}, r"regions has shape \(2, 4\) .* pass a label map, integers \(3, 4\)"),
        ({"regions": LABELS[:2].tolist()}, r"regions has shape \(2, 4\)"),
        ({"regions": LABELS * 1.0}, "dtype float64: pass a label map"),
        ({"regions": LABELS - 1}, r"labels from -1 to 3"),
        ({"regions": LABELS, "count": 4}, r"pass labels in \[0, 4\)"),
        ({"regions": LABELS, "method": "kernel_shap", "samples": 3}, "samples = 3"),
        ({"regions": 9}, "size = 9"),
        ({"method": "lime", "width": 0.0}, "width = 0.0"),
    ],
)
def test_errors_about_regions(options, message):
    options = {"method": "feature_ablation", "key": KEY} | options
    with pytest.raises(ValueError, match=message):
        explain(network, IMAGES, 0, **options)


def test_traced_regions_need_their_number():
    run = lambda labels, **options: feature_ablation(network, IMAGES[0], 0, regions=labels, **options)  # noqa: E731
    with pytest.raises(ValueError, match="count = None: the number of regions must be given"):
        jax.jit(run)(LABELS)
    close(jax.jit(partial(run, count=5))(LABELS), run(LABELS))


def test_all_are_methods_by_name():
    assert {"feature_ablation", "kernel_shap", "lime", "shapley_sampling"} <= METHODS.keys()
    assert METHODS["shapley_sampling"] is shapley_sampling
