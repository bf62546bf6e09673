"""Tests of every registered method: dtypes, targets, cost, chunks, devices, and equal maps of equal functions."""

import functools
import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

from sdecor.attribution import ABOVE_BASELINE, ABOVE_MEAN, METHOD_INFO, METHODS, Contrast, Noise, blurred, explain
from sdecor.attribution.methods import cost

N, SHAPE, CLASSES = 8, (8, 8, 3), 4
HALVES = np.repeat([[1, 0]], 4, 1) + np.zeros((8, 1), int)  # a label map of three regions, with a pixel of its own
HALVES[5, 2] = 2
FEW = {
    "samples": 3,
    "steps": 4,
    "cells": 3,
    "window": 4,
    "regions": HALVES,
}  # values for the options that a method has
# Methods with rules for single operations: their maps depend on how the function is written.
OF_THE_PROGRAM = {"fullgrad", "guided_backpropagation", "deconvnet", "guided_grad_cam", "deeplift", "lrp"}
# Methods of transformers, tried on `transformer` and not on `network`; they drop the counting callback as well.
OF_ATTENTION = {"attention_rollout", "attention_relevance", "legrad"}
SPREAD = ("gradient", "smoothgrad", "grad_cam")  # tried on every number of devices; the first in the quick suite
close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)
# The quick suite has one method of each family. The others need one compilation more each: full suite.
QUICK = (
    "gradient",
    "smoothgrad",
    "integrated_gradients",
    "grad_cam",
    "guided_backpropagation",
    "deeplift",
    "lrp",
    "rise",
)


def in_full_unless(quick, method):
    return method if method in quick else pytest.param(method, marks=pytest.mark.full)


every_method = pytest.mark.parametrize("method", METHODS)
most_methods_in_full = pytest.mark.parametrize("method", [in_full_unless(QUICK, method) for method in METHODS])


def weights(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = {"conv1": (3, 3, 3, 5), "conv2": (3, 3, 5, 6), "head": (6, CLASSES)}
    return {name: jnp.asarray(rng.normal(size=s) / np.sqrt(np.prod(s[:-1])), dtype) for name, s in shapes.items()}


def convolved(x, kernel, stride):
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def network(image):
    """Return logits of one image in its dtype; a plain JAX function."""
    w = weights(image.dtype)
    x = jax.nn.relu(convolved(image[None], w["conv1"], 2))
    return jax.nn.relu(convolved(x, w["conv2"], 1))[0].mean((0, 1)) @ w["head"]


def transformer(image):
    """Return logits of one image by `network`'s first layer and residual attention over its outputs."""
    w = weights(image.dtype)
    x = jax.nn.relu(convolved(image[None], w["conv1"], 2)).reshape(16, 5)
    return (x + jax.nn.softmax(x @ x.T) @ x).mean(0) @ w["head"][:5]


def network_of(method):
    return transformer if method in OF_ATTENTION else network


def targets_of(method):
    """Return the predictions of the method's network for `IMAGES`."""
    return _PREDICTIONS[network_of(method)]


def rewritten(image):
    """Return `network`'s logits by other operations: scaled, permuted units, ReLU by `where`, pooling by a product."""
    w, order = weights(), jnp.array([3, 0, 5, 1, 4, 2])
    x = convolved(image[None], 4 * w["conv1"], 2)
    x = convolved(jnp.where(x > 0, x, 0), w["conv2"][..., order] / 2, 1)
    x = (x + jnp.abs(x)) / 2
    return jnp.einsum("hwd,dk->k", x[0] / 2, w["head"][order] / x[0, ..., 0].size)


class Module(nnx.Module):
    """`network` as an NNX module, or one with attention over the outputs of the second layer."""

    def __init__(self, attends=False):
        rngs, w = nnx.Rngs(0), weights()
        self.conv1 = nnx.Conv(3, 5, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.conv2 = nnx.Conv(5, 6, (3, 3), use_bias=False, rngs=rngs)
        self.head = nnx.Linear(6, CLASSES, use_bias=False, rngs=rngs)
        self.attention = (
            nnx.MultiHeadAttention(num_heads=2, in_features=6, decode=False, rngs=rngs) if attends else None
        )
        for name, kernel in w.items():
            getattr(self, name).kernel = nnx.Param(kernel)

    def __call__(self, image):
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(image[None]))))
        if self.attention is not None:
            x = (x.reshape(1, 16, 6) + self.attention(x.reshape(1, 16, 6))).reshape(x.shape)
        return self.head(x.mean((1, 2)))[0]


def options_of(method):
    known = inspect.signature(METHODS[method]).parameters
    return {name: value for name, value in FEW.items() if name in known}


IMAGES = jnp.asarray(np.random.default_rng(1).normal(size=(N, *SHAPE)), jnp.float32)
_PREDICTIONS = {fn: jax.vmap(fn)(IMAGES).argmax(-1) for fn in (network, transformer)}
TARGETS = _PREDICTIONS[network]
KEYS = jax.random.split(jax.random.key(7), N)


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
    """Compile with few optimisations, because most of these programs run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def explainer(method, fn=None, **options):
    """Return `(images, targets, keys) -> attributions`."""
    fn = network_of(method) if fn is None else fn
    run = functools.partial(explain, fn, method=method, **options_of(method), **options)
    return lambda images, targets, keys: run(images, targets, key=keys)


@functools.cache
def explained(method):
    """Return the maps of the whole batch and the number of evaluations, one evaluation of each example at a time."""
    calls = []

    def counted(image):
        jax.debug.callback(lambda _: calls.append(1), image[0, 0, 0])
        return network_of(method)(image)

    maps = jax.jit(explainer(method, counted, chunk_size=N))(IMAGES, targets_of(method), KEYS)
    jax.effects_barrier()
    return maps, len(calls)


@every_method
def test_maps_are_finite_and_not_trivial(method):
    maps, _ = explained(method)
    assert maps.shape[:3] == IMAGES.shape[:3] and maps.shape[3] in (1, SHAPE[2])
    assert maps.dtype == jnp.float32 and jnp.isfinite(maps).all()
    assert (jnp.abs(maps).max((1, 2, 3)) > 0).all()


@every_method
def test_rows_say_which_maps_are_signed(method):
    maps, _ = explained(method)
    assert (maps < 0).any() == METHOD_INFO[method].signed


def test_rows_agree_with_the_functions():
    assert {name: info.function for name, info in METHOD_INFO.items()} == METHODS
    assert len({info.title for info in METHOD_INFO.values()}) == len(METHODS)
    for name, info in METHOD_INFO.items():
        parameters = inspect.signature(info.function).parameters
        options = {option: p.default for option, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
        assert info.with_error == ("with_error" in options)
        if info.with_error:
            assert info.sums_to is not None, f"{name} has an error of something that its row does not name"
        if info.sums_to in (ABOVE_BASELINE, ABOVE_MEAN):
            assert info.baseline(options) is not None, f"{name} is held against a baseline that its row does not name"


def test_every_method_is_in_the_documentation():
    root = pathlib.Path(__file__).parents[2]
    rows = re.findall(r"^\| `(\w+)`", (root / "docs/attribution.md").read_text(), re.MULTILINE)
    assert rows == list(METHODS)
    counts = re.findall(r"(\d+) (?:attribution )?methods", (root / "README.md").read_text())
    assert set(counts) == {str(len(METHODS))}


@every_method
@pytest.mark.parametrize(
    "image", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.full), jnp.float32, jnp.float64]
)
def test_maps_are_at_least_float32(method, image):
    """Maps of float64 images are float64; others are float32, even with float64 enabled."""
    with jax.enable_x64(True):
        arguments = IMAGES[:2].astype(image), TARGETS[:2], KEYS[:2]
        assert arguments[0].dtype == image
        maps = jax.eval_shape(explainer(method), *arguments)
    assert maps.dtype == (jnp.float64 if image == jnp.float64 else jnp.float32)


@most_methods_in_full
def test_a_class_that_does_not_exist_gives_nan(method):
    """Under `jit` a wrong class cannot raise; the other examples keep their maps."""
    wrong = TARGETS[:4].at[1].set(CLASSES + 5).at[2].set(-1)
    first = jnp.zeros_like(wrong)
    run = explainer(method)
    kinds = (lambda y: y, lambda y: Contrast(y, first), lambda y: Contrast(first, y))
    maps_of = jax.jit(lambda y: [run(IMAGES[:4], kind(y), KEYS[:4]) for kind in kinds])
    for maps in maps_of(wrong):
        assert jnp.isnan(maps[1:3]).all()
        assert jnp.isfinite(maps[::3]).all()


@every_method
def test_cost_is_the_number_of_evaluations(method):
    """Methods that replace operations drop the counting callback; `test_cost_is_what_is_computed` covers them."""
    if METHOD_INFO[method].cost is None:
        with pytest.raises(ValueError, match="depends on the number of channels"):
            cost(method, SHAPE)
        return
    claimed = sum(cost(method, SHAPE, **options_of(method)))
    if method not in OF_THE_PROGRAM | OF_ATTENTION:
        of_all = method in ("shapley_sampling", "kernel_shap")  # one evaluation of the baseline serves the batch
        assert explained(method)[1] == N * claimed + of_all
    assert sum(cost(method, SHAPE, noise=Noise(samples=5), **options_of(method))) == 5 * claimed


def deep(image):
    """Return logits of four convolutions of equal size, for images of 16 channels."""
    rng = np.random.default_rng(0)
    x, kernels = image[None], jnp.asarray(rng.normal(size=(4, 3, 3, 16, 16)) / 12, jnp.float32)
    for kernel in kernels:
        x = jax.nn.relu(convolved(x, kernel, 1))
    return x[0].mean((0, 1))[:CLASSES]


@functools.cache
def operations(method, **options):
    """Return the operations of the compiled program for two images; `method` None is the network alone."""
    run = jax.vmap(deep) if method is None else functools.partial(explain, deep, targets=0, method=method, **options)
    images = jax.ShapeDtypeStruct((2, 8, 8, 16), jnp.float32)
    return jax.jit(run).lower(images).compile().cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("method", "options"),
    [(method, {}) for method in sorted(OF_THE_PROGRAM)]
    + [("deeplift", {"baseline": "mean"}), ("deeplift", {"baseline": 0.5}), ("grad_cam", {})]
    + [("lrp", {"rule": rule}) for rule in ("epsilon", "gamma", "z_plus")]
    + [("lrp", {"low": -4.0, "high": 4.0})],
)
def test_cost_is_what_is_computed(method, options):
    """Half a gradient more or less than claimed would be a difference of at least 25 %."""
    forward, gradient = cost(method, (8, 8, 16), **options)
    claimed = forward * operations(None) + gradient * operations("gradient")
    assert 0.95 < operations(method, **options) / claimed < 1.2


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("occlusion", {"window": 9}, "window"),
        ("occlusion", {"window": (4, 0)}, "window"),
        ("occlusion", {"window": 4, "stride": 5}, "stride"),
        ("integrated_gradients", {"rule": "simpson"}, "rule"),
        ("integrated_gradients", {"steps": 0}, "steps"),
        ("guided_integrated_gradients", {"steps": 10, "anchors": 2}, "not divisible"),
        ("lrp", {"rule": "alpha"}, "rule"),
        ("rise", {"samples": 0}, "samples"),
        ("smoothgrad", {"samples": 2.5}, "samples"),
    ],
)
def test_cost_refuses_what_the_method_refuses(method, options, message):
    with pytest.raises(ValueError, match=message) as of_cost:
        cost(method, SHAPE, **options)
    key = {"key": jax.random.key(0)} if "key" in inspect.signature(METHODS[method]).parameters else {}
    with pytest.raises(ValueError, match=message) as of_method:
        METHODS[method](network, IMAGES[0], 0, **options, **key)
    assert str(of_cost.value) == str(of_method.value)


def test_cost_of_options():
    assert cost("occlusion", (10, 16, 3), window=[4, 5], stride=[3, 2]) == (3 * 7 + 1, 0)
    assert cost("deeplift", SHAPE) == (0, 1)
    assert cost("deeplift", SHAPE, baseline=np.zeros((N, *SHAPE))) == cost("deeplift", SHAPE, baseline="blur") == (1, 1)
    assert cost("deeplift", SHAPE, baseline=blurred) == (1, 1)
    assert cost("integrated_gradients", SHAPE, steps=7, with_error=True) == (2, 7)
    assert cost("expected_gradients", SHAPE, samples=7, with_error=True) == (8, 7)
    assert cost("occlusion", (10, 16, 3), window=(4, 5), stride=(3, 2)) == (3 * 7 + 1, 0)
    assert cost("lrp", SHAPE, rule="epsilon") == (0, 1)
    with pytest.raises(ValueError, match="did you mean 'steps'"):
        cost("integrated_gradients", SHAPE, step=7)


@most_methods_in_full
def test_chunk_size_does_not_change_the_result(method):
    """Three images at a time leave a remainder of two; twenty evaluations are two samples of each of eight images."""
    for chunk_size in (3, 20) if "chunk_size" in inspect.signature(METHODS[method]).parameters else (3,):
        close(jax.jit(explainer(method, chunk_size=chunk_size))(IMAGES, targets_of(method), KEYS), explained(method)[0])


@pytest.mark.parametrize(
    ("method", "devices"),
    [(m, d) for m in SPREAD for d in (1, 2, 4, 8) if m == "gradient" or d in (1, 8)]
    + [pytest.param(m, d, marks=pytest.mark.full) for m in SPREAD if m != "gradient" for d in (2, 4)]
    + [pytest.param(m, 8, marks=pytest.mark.full) for m in METHODS if m not in SPREAD],
)
def test_neither_the_number_of_devices_nor_the_batch_size_changes_the_result(method, devices):
    """Eight images on eight devices are eight batches of one image."""
    spread = jax.tree.map(lambda x: x.reshape(devices, N // devices, *x.shape[1:]), (IMAGES, targets_of(method), KEYS))
    maps = jax.pmap(explainer(method), devices=jax.devices()[:devices])(*spread)
    close(maps.reshape(N, *maps.shape[2:]), explained(method)[0])


@pytest.mark.parametrize("method", [in_full_unless(QUICK, m) for m in METHODS if m not in ("finer_cam", "eigen_cam")])
def test_every_kind_of_target(method):
    """Finer-CAM takes no functions, and Eigen-CAM's map does not depend on the target."""
    targets = targets_of(method)
    others = (targets + 1) % CLASSES
    own, other = jax.nn.one_hot(targets, CLASSES), jax.nn.one_hot(others, CLASSES)
    common = targets[0]

    def weighted(weights, logits):
        return weights @ logits

    kinds = ["predicted", Partial(weighted, own), common, lambda z: z[common]]
    kinds += [Contrast(targets, others), Partial(weighted, own - other)]
    run = explainer(method)
    predicted, chosen, one_class, function, contrast, difference = jax.jit(
        lambda *given: [run(given[0], kind, given[1]) for kind in kinds]
    )(IMAGES, KEYS)
    maps, _ = explained(method)
    close(predicted, maps)
    close(chosen, maps)
    close(one_class[targets == common], maps[targets == common])
    close(function, one_class)
    close(contrast, difference)
    assert np.allclose(contrast, maps, rtol=1e-2) == (method == "attention_rollout")  # the same for all classes


@most_methods_in_full
def test_any_function_of_an_image_will_do(method):
    """Every method traces an NNX module; maps are equal where the module gives the same program."""
    arguments, module = (IMAGES[:2], targets_of(method)[:2], KEYS[:2]), Module(method in OF_ATTENTION)
    assert jax.eval_shape(explainer(method, module), *arguments).shape[:3] == (2, 8, 8)
    if method in SPREAD:
        close(jax.jit(explainer(method, module))(*arguments), explained(method)[0][:2])


@pytest.mark.parametrize(
    "method", [in_full_unless(QUICK, m) for m in METHODS if m not in OF_THE_PROGRAM | OF_ATTENTION]
)
def test_equal_functions_have_equal_maps(method):
    """Class activation maps are invariant to the scale and order of a layer's units."""
    close(jax.jit(explainer(method, rewritten))(IMAGES, TARGETS, KEYS), explained(method)[0])


@most_methods_in_full
def test_every_method_can_be_smoothed(method):
    """With zero noise the mean over copies is the map itself, unless the method draws anew for each copy."""
    smooth = explainer(method, noise=Noise(samples=2, scale=0.0))
    arguments = IMAGES[:2], targets_of(method)[:2], KEYS[:2]
    if "key" in inspect.signature(METHODS[method]).parameters:
        assert jax.eval_shape(smooth, *arguments).shape == explained(method)[0][:2].shape
    else:
        close(jax.jit(smooth)(*arguments), explained(method)[0][:2])
