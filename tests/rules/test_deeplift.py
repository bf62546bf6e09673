"""Tests of DeepLIFT against captum, the rescale rule in float64, and its sum for CNNs and transformers."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_network as reference
import tiny_transformer as tiny

from sdecor.attribution import explain
from sdecor.attribution.propagation import deeplift
from sdecor.models import ResNet, ViT, create_model

close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
rng = np.random.default_rng(5)


def linen(module, shape):
    """Return `image -> logits` of a module with variables drawn with NumPy."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *shape)))

    def draw(leaf):
        scale = np.sqrt(leaf.shape[-1] / leaf.size) if len(leaf.shape) > 1 else 0.5
        return jnp.asarray(rng.normal(size=leaf.shape) * scale, leaf.dtype)

    variables = jax.tree.map(draw, shapes)
    variables = {**variables, "batch_stats": jax.tree.map(lambda x: 0.5 + jnp.abs(x), variables.get("batch_stats", {}))}
    return lambda image: module.apply(variables, image[None])[0][0]


def averaging(image):
    """Return the logits of the reference network with average instead of max pooling."""
    params, x = reference.parameters(), image[None]
    for layer in ("conv1", "conv2"):
        x = jax.lax.conv_general_dilated(
            x, params[f"{layer}/kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + params[f"{layer}/bias"][None, None, None])
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    x = x[0].transpose(2, 0, 1).ravel()
    x = jax.nn.relu(x @ params["dense1/kernel"] + params["dense1/bias"])
    return x @ params["dense2/kernel"] + params["dense2/bias"]


@pytest.mark.parametrize("name", ["zero", "own"])
def test_equals_captum(name):
    """Pooling is average: behind max pooling captum's contributions do not sum to the difference of the scores."""
    images = reference.images()
    baseline = "zero" if name == "zero" else images[::-1]
    maps = jax.jit(partial(explain, averaging, method="deeplift", baseline=baseline))(images, reference.labels())
    close(maps, reference.stored("captum_rules")[f"deeplift/{name}"])


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_rescale_rule_in_float64(activation):
    w1, b1, w2 = rng.normal(size=(18, 6)) / 3, rng.normal(size=6), rng.normal(size=(6, 3))
    image, start = rng.normal(size=(2, 3, 3, 2))
    function = {
        "relu": lambda x: np.maximum(x, 0),
        "tanh": np.tanh,
        "gelu": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    }[activation]
    x, y = (v.ravel() @ w1 + b1 for v in (image, start))
    multiplier = w1 @ ((function(x) - function(y)) / (x - y) * w2[:, 1])

    def network(image):
        w1_, b1_, w2_ = (jnp.asarray(v, jnp.float32) for v in (w1, b1, w2))
        return getattr(jax.nn, activation)(image.ravel() @ w1_ + b1_) @ w2_

    image, start = (jnp.asarray(v, jnp.float32) for v in (image, start))
    found = deeplift(network, image, 1, baseline=start)
    close(found, (image - start) * multiplier.reshape(image.shape), atol=1e-5)


def test_max_pooling_in_float64():
    """A gain goes to the maximum of the image, a loss to the maximum of the baseline."""
    image, start = rng.normal(size=(2, 8, 8, 1))
    expected = np.zeros((8, 8, 1))
    for window in (np.s_[y : y + 2, x : x + 2, 0] for y in range(0, 8, 2) for x in range(0, 8, 2)):
        change = image[window].max() - start[window].max()
        winner = (image if change > 0 else start)[window].argmax()
        expected[window] = np.where(np.arange(4) == winner, change, 0).reshape(2, 2)
    assert (expected < 0).any() and (expected > 0).any()

    def network(image):
        pooled = jax.lax.reduce_window(image, -jnp.inf, jax.lax.max, (2, 2, 1), (2, 2, 1), "VALID")
        return pooled.sum(keepdims=True).ravel()

    found = deeplift(network, jnp.asarray(image, jnp.float32), 0, baseline=jnp.asarray(start, jnp.float32))
    close(found, expected)


def model(name):
    """Return a network and the shape of its images."""
    if name == "reference":
        return reference.network, (16, 16, 3)
    module, side = {
        "cnn": (create_model("cnn", num_classes=4, widths=(8, 8, 12)), 16),
        "resnet": (ResNet(num_classes=4, blocks=(1, 1)), 32),
        "vit": (ViT(num_classes=4, width=24, depth=1, heads=3, patch_size=8), 32),
    }[name]
    return linen(module, (side, side, 3)), (side, side, 3)


@pytest.mark.parametrize("name", ["reference", "cnn", "resnet", "vit"])
def test_contributions_sum_to_the_difference_of_scores(name):
    fn, shape = model(name)
    image, start = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))

    @jax.jit
    def run(image, start):
        found, error = deeplift(fn, image, 1, baseline=start, with_error=True)
        return found, error, fn(image)[1] - fn(start)[1]

    found, error, change = run(image, start)
    scale = float(jnp.abs(found).sum() + jnp.abs(change))
    assert abs(change) > 1e-3 and found.shape == shape
    assert abs(error) < 1e-5 * scale
    np.testing.assert_allclose(found.sum() - change, error, atol=1e-5 * scale)


def test_contributions_sum_for_other_ways_to_write_a_transformer():
    """Masks and weights set to 0; `jax.nn.dot_product_attention` and a norm by a power."""
    params, image = tiny.weights(), jnp.asarray(tiny.image(), jnp.float32)
    by_a_power = {"norm": lambda x, scale, bias: x * ((x**2).mean(-1, keepdims=True) + 1e-6) ** -0.5 * scale + bias}
    ways = tiny.WAYS["masked"], tiny.WAYS["dot_product_attention"] | by_a_power

    @jax.jit
    def run(image, start):
        def one(way):
            fn = partial(tiny.apply, params, blocks=1, **way)
            return *deeplift(fn, image, 1, baseline=start, with_error=True), fn(image)[1] - fn(start)[1]

        return [one(way) for way in ways]

    for found, error, change in run(image, image[::-1]):
        assert abs(error) < 1e-4 * float(jnp.abs(found).sum())
        np.testing.assert_allclose(found.sum(), change, atol=1e-4 * float(jnp.abs(found).sum()))


def small():
    """Return a network of two dense layers for images `[3, 3, 2]`."""
    w1, w2 = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((18, 6), (6, 3)))
    return lambda image: jax.nn.relu(image.ravel() @ w1 / 4) @ w2


@pytest.mark.parametrize("saliency_of", ["probability", "log_probability"])
def test_softmax_keeps_the_sum(saliency_of):
    fn, (image, start) = small(), jnp.asarray(rng.normal(size=(2, 3, 3, 2)), jnp.float32)
    run = jax.jit(partial(deeplift, fn, saliency_of=saliency_of, with_error=True))
    found, error = run(image, 2, baseline=start)
    softmax = {"probability": jax.nn.softmax, "log_probability": jax.nn.log_softmax}[saliency_of]
    assert abs(error) < 1e-5
    np.testing.assert_allclose(found.sum(), softmax(fn(image))[2] - softmax(fn(start))[2], atol=1e-5)


def test_reused_activation_and_scan():
    """A function called twice counts as two activations, and a scan equals its unrolled loop."""
    kernels = jnp.asarray(rng.normal(size=(3, 18, 18)), jnp.float32) / 3
    image, start = jnp.asarray(rng.normal(size=(2, 3, 3, 2)), jnp.float32)

    def layer(x, kernel):
        x = jax.nn.gelu(x @ kernel) + x
        return x, x.max(keepdims=True)

    def scanned(image):
        x, maxima = jax.lax.scan(layer, image.ravel(), kernels, reverse=True)
        return jnp.concatenate([x, maxima.ravel()])

    def repeated(image):
        x, maxima = image.ravel(), []
        for kernel in kernels[::-1]:
            x, maximum = layer(x, kernel)
            maxima.append(maximum)
        return jnp.concatenate([x, *maxima[::-1]])

    for target in (0, 18, 20):
        found, error = jax.jit(partial(deeplift, scanned, with_error=True))(image, target, baseline=start)
        assert abs(error) < 1e-4
        close(found, jax.jit(partial(deeplift, repeated))(image, target, baseline=start), atol=1e-5)


@pytest.mark.parametrize("form", ["rsqrt", "div", "reciprocal", "linen"])
def test_layer_norm_of_a_constant_baseline_stays_bounded(form):
    """At zero variance the product `(x − μ) · rsqrt(σ² + ε)` would have huge contributions that cancel."""
    w1, w2 = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((6, 8), (8, 3)))
    norm = nn.LayerNorm()
    variables = {"params": {"scale": jnp.asarray([1.0, -2, 0.5, 0, 1, 3]), "bias": jnp.arange(6.0)}}

    def normalised(x):
        if form == "linen":
            return norm.apply(variables, x)
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True) + 1e-6
        if form == "rsqrt":
            return centred * jax.lax.rsqrt(variance)
        return centred / jnp.sqrt(variance) if form == "div" else centred * (1 / jnp.sqrt(variance))

    def network(image):
        return (jax.nn.gelu(normalised(image.reshape(-1, 6)) @ w1) @ w2).mean(0)

    image = jnp.asarray(rng.normal(size=(3, 4, 6)), jnp.float32)
    run = jax.jit(partial(deeplift, network, with_error=True))
    for start in (jnp.zeros_like(image), jnp.full_like(image, 0.3), image[::-1]):
        found, error = run(image, 1, baseline=start)
        assert abs(error) < 1e-4
        assert float(jnp.abs(found).max()) < 10
        np.testing.assert_allclose(found.sum(), network(image)[1] - network(start)[1], atol=1e-4)


def test_quotients_sum_also_where_a_divisor_changes_its_sign():
    image, start = jnp.asarray([[[3.0, -2.0, 0.5]]]), jnp.asarray([[[1.0, 4.0, 0.25]]])
    fn = lambda image: jnp.stack([image[0, 0, 0] / image[0, 0, 1], image[0, 0, 0] / image[0, 0, 2]])  # noqa: E731
    for target in (0, 1):
        found, error = deeplift(fn, image, target, baseline=start, with_error=True)
        assert abs(error) < 1e-6
        np.testing.assert_allclose(found.sum(), fn(image)[target] - fn(start)[target], rtol=1e-5)


def test_examples_do_not_depend_on_the_chunk():
    fn, images, labels = small(), jnp.asarray(rng.normal(size=(5, 3, 3, 2)), jnp.float32), jnp.arange(5) % 3
    run = jax.jit(partial(explain, fn, method="deeplift", with_error=True), static_argnames="chunk_size")
    maps, errors = run(images, labels)
    assert maps.shape == images.shape and errors.shape == (5,)
    close(run(images, labels, chunk_size=2)[0], maps)
    close(deeplift(fn, images[3], labels[3]), maps[3])


def test_refused():
    image = jnp.ones((2, 2, 1))
    with pytest.raises(ValueError, match="deeplift cannot handle `sort` in 'net/rank'"):

        def network(image):
            with jax.named_scope("net/rank"):
                return jnp.sort(image.ravel())

        deeplift(network, image, 0)
