"""Tests of class activation maps against captum, the papers' formulas in float64 and CAM; and of finding layers."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_network as reference
from flax import nnx

from sdecor.attribution import Contrast, explain
from sdecor.attribution.cams import (
    eigen_cam,
    finer_cam,
    grad_cam,
    grad_cam_plus_plus,
    guided_grad_cam,
    hires_cam,
    layer_cam,
    xgrad_cam,
)
from sdecor.attribution.channels import ablation_cam, score_cam
from sdecor.attribution.layers import activation_and_gradient, as_map, default_layer, named_layer
from sdecor.core.jaxpr import interpret
from sdecor.models import SmallCNN, ViT, create_model

CAMS = [grad_cam, grad_cam_plus_plus, layer_cam, hires_cam]
close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def stored():
    return reference.stored("captum_cams")


def of_reference(method, **options):
    """Return maps of the reference images for their labels."""
    run = jax.jit(partial(explain, reference.network, method=method, **options))
    return run(reference.images(), reference.labels())


def drawn(module, shape):
    """Return variables of a module for images `[1, *shape]`, drawn with NumPy."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *shape)))

    def draw(leaf):
        scale = np.sqrt(leaf.shape[-1] / leaf.size) if len(leaf.shape) > 1 else 0.5
        return jnp.asarray(rng.normal(size=leaf.shape) * scale, leaf.dtype)

    variables = jax.tree.map(draw, shapes)
    return {**variables, "batch_stats": jax.tree.map(lambda x: 0.5 + jnp.abs(x), variables.get("batch_stats", {}))}


def linen(module, shape):
    """Return `image -> logits` of a module whose first output is the logits."""
    variables = drawn(module, shape)
    return lambda image: module.apply(variables, image[None])[0][0]


def every_map(fn, image, target, **options):
    """Return the maps of all methods, `[4, H, W, 1]`."""
    return jnp.stack([method(fn, image, target, **options) for method in CAMS])


def traced(fn, shape):
    return jax.make_jaxpr(fn)(jnp.zeros(shape)).jaxpr


# Values


@pytest.mark.parametrize("layer", ["conv1", "conv2", None])
def test_equals_captum(stored, layer):
    name = layer or "relu2"
    raw = {"layer": layer, "relu": False, "upsample": None}
    close(of_reference(grad_cam, **raw), stored[f"grad_cam/{name}"])
    close(of_reference(hires_cam, **raw), stored[f"hires_cam/{name}"])
    guided = of_reference(guided_grad_cam, layer=layer, upsample="nearest")
    np.testing.assert_allclose(guided, stored[f"guided_grad_cam/{name}"], rtol=1e-4, atol=1e-8)


def test_upsampling_equals_captum(stored):
    close(of_reference(grad_cam), stored["bilinear/relu2"])


def test_formulas_in_float64(stored):
    a, g = (stored[f"{name}/relu2"].astype(np.float64) for name in ("activation", "gradient"))
    relu = partial(np.maximum, 0)
    bottom = 2 * g**2 + g**3 * a.sum((1, 2), keepdims=True)
    alpha = np.where(g == 0, 0, g**2 / np.where(g == 0, 1, bottom))
    plus_plus = (a * (alpha * relu(g)).sum((1, 2), keepdims=True)).sum(-1, keepdims=True)
    close(of_reference(grad_cam_plus_plus, upsample=None), relu(plus_plus))
    close(of_reference(layer_cam, upsample=None), relu((a * relu(g)).sum(-1, keepdims=True)))
    close(of_reference(grad_cam, upsample=None), relu((a * g.mean((1, 2), keepdims=True)).sum(-1, keepdims=True)))


def test_plus_plus_weights_are_derivatives_of_the_exponential():
    """α consists of second and third derivatives of exp(score); their common factor exp(score) cancels."""
    rng = np.random.default_rng(3)
    weights = jnp.asarray(rng.normal(size=(3, 3, 2, 5)) * 0.2, jnp.float32)
    activation = jnp.asarray(np.abs(rng.normal(size=(3, 3, 2))), jnp.float32)

    def head(a):
        return jax.nn.relu(jnp.einsum("hwd,hwdk->k", a, weights))

    target = int(jnp.argmax(head(activation)))
    places = jnp.eye(18).reshape(18, 3, 3, 2)

    def derivatives(direction):
        found = [lambda t: jnp.exp(head(activation + t * direction)[target])]
        for _ in range(3):
            found.append(jax.grad(found[-1]))
        return [f(0.0) for f in found]

    whole, first, second, third = (
        np.asarray(values, np.float64).reshape(3, 3, 2) for values in jax.jit(jax.vmap(derivatives))(places)
    )
    alpha = second / (2 * second + third * np.asarray(activation).sum((0, 1)))
    w = (alpha * np.maximum(first, 0)).sum((0, 1)) / whole[0, 0, 0]
    expected = np.maximum((np.asarray(activation) * w).sum(-1, keepdims=True), 0)
    found = grad_cam_plus_plus(head, activation, target, layer=(lambda image: image, head), upsample=None)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def gap_network(key):
    shapes = [(3, 3, 3, 6), (6, 4), (4,)]
    kernel, head, bias = (jax.random.normal(jax.random.fold_in(key, i), shape) for i, shape in enumerate(shapes))

    def features(image):
        x = jax.lax.conv_general_dilated(
            image[None], kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.relu(x)[0]

    return features, lambda a: a.mean((0, 1)) @ head + bias, head, bias


def test_with_global_pooling_grad_cam_is_cam_and_hires_cam_sums_to_the_score(key):
    features, classify, head, bias = gap_network(key)
    fn = lambda image: classify(features(image))  # noqa: E731
    image = jax.random.normal(key, (8, 8, 3))
    cam = features(image) @ head[:, 2:3]  # Zhou et al., 2016
    close(grad_cam(fn, image, 2, relu=False, upsample=None), cam / 16, atol=1e-5)
    total = hires_cam(fn, image, 2, upsample=None).sum()
    np.testing.assert_allclose(total, fn(image)[2] - bias[2], rtol=1e-5)


def test_bfloat16_and_shapes(key):
    features, classify, *_ = gap_network(key)
    image = jax.random.normal(key, (8, 6, 3))
    half = lambda image: classify(features(image).astype(jnp.bfloat16)).astype(jnp.float32)  # noqa: E731
    full = jax.jit(partial(every_map, lambda image: classify(features(image)), target=1))(image)
    found = jax.jit(partial(every_map, half, target=1))(image)
    assert found.shape == (4, 8, 6, 1) and found.dtype == jnp.float32
    assert jnp.abs(found - full).max() < 0.05 * jnp.abs(full).max()
    assert jax.eval_shape(partial(every_map, half, target=1, upsample=None), image).shape == (4, 4, 3, 1)


def test_backward_ends_at_the_layer():
    fn = linen(SmallCNN(4, widths=(8, 16, 16)), (16, 16, 3))
    image = jnp.ones((16, 16, 3))

    def operations(f):
        return jax.jit(f).lower(image).compile().cost_analysis()["flops"]

    assert operations(lambda x: grad_cam(fn, x, 0)) < 1.2 * operations(fn)
    assert operations(lambda x: grad_cam(fn, x, 0, layer="conv0")) > 1.5 * operations(fn)


# Layers


def test_pair_equals_scope_for_plain_functions():
    params = reference.parameters()

    def features(image):
        x = jax.lax.conv_general_dilated(
            image[None], params["conv1/kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return x + params["conv1/bias"][None, None, None]

    def head(activation):
        def given(equation, inputs, scope):
            return [activation] if scope == "conv1" and equation.primitive.name == "add" else None

        return interpret(reference.network, given)(reference.images()[0])

    image = reference.images()[0]
    by_scope, by_pair = (
        jax.jit(partial(every_map, fn, target=3, layer=layer))
        for fn, layer in ((reference.network, "conv1"), (None, (features, head)))
    )
    close(by_pair(image), by_scope(image))


class NnxCNN(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 6, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(6, 4, rngs=rngs)

    def features(self, image):
        with jax.named_scope("stem"):
            return nnx.relu(self.conv(image[None]))

    def classify(self, activation):
        return self.head(activation.mean((1, 2)))[0]

    def __call__(self, image):
        return self.classify(self.features(image))


def test_nnx_module_by_scope_by_pair_and_by_default(key):
    model = NnxCNN(nnx.Rngs(0))
    image = jax.random.normal(key, (8, 8, 3))
    expected = grad_cam(model, image, 1)
    close(grad_cam(model, image, 1, layer="stem"), expected)
    close(grad_cam(model, image, 1, layer=(model.features, model.classify)), expected)
    assert float(jnp.abs(expected).max()) > 0


class TwoConvolutions(nnx.Module):
    """Two convolutions with a BatchNorm and no named scope; the first convolution is called twice."""

    def __init__(self, rngs: nnx.Rngs):
        self.first, self.second = (nnx.Conv(3, 3, (3, 3), rngs=rngs) for _ in range(2))
        self.norm, self.unused = nnx.BatchNorm(3, rngs=rngs), nnx.Linear(3, 3, rngs=rngs)

    def head(self, x):
        return nnx.relu(self.second(x)).mean((1, 2))

    def __call__(self, x):
        return self.head(self.norm(self.first(nnx.relu(self.first(x)))))


def test_a_layer_can_be_given_as_an_nnx_module(key):
    model = TwoConvolutions(nnx.Rngs(0))
    model.eval()
    images, kept = jax.random.normal(key, (2, 8, 8, 3)), vars(nnx.Conv)["__call__"]
    fn = lambda x: model(x[None])[0]  # noqa: E731, as in docs/attribution.md
    pairs = {
        "first": (lambda x: model.first(nnx.relu(model.first(x[None]))), lambda z: model.head(model.norm(z))[0]),
        "second": (
            lambda x: model.second(model.norm(model.first(nnx.relu(model.first(x[None]))))),
            lambda z: nnx.relu(z).mean((1, 2))[0],
        ),
    }
    maps = {}
    for name, pair in pairs.items():
        layers = getattr(model, name), pair
        runs = jax.jit(lambda x, layers=layers: [explain(fn, x, 1, method="layer_cam", layer=each) for each in layers])
        maps[name], expected = runs(images)
        close(maps[name], expected)
    assert vars(nnx.Conv)["__call__"] is kept
    assert not np.allclose(maps["second"], maps["first"])
    with ThreadPoolExecutor(4) as threads:
        layers = [model.first, model.second] * 4
        found = list(threads.map(lambda layer: grad_cam(fn, images[0], 1, layer=layer), layers))
    close(found[2:], found[:2] * 3)
    assert vars(nnx.Conv)["__call__"] is kept


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda model: model.unused, "layer, a Linear object, is not called while fn is traced: pass the object"),
        (lambda model: nnx.clone(model).first, "layer, a Conv object, is not called .* not a copy"),
        (lambda model: jnp.tanh, r"give the layer as a pair \(features_fn, head_fn\)"),
        (lambda model: lambda x: x, "is no object of a class that can be named"),
        (lambda model: 3, "layer = 3 is neither a named scope nor a module"),
    ],
)
def test_errors_about_module_objects(layer, message):
    model = TwoConvolutions(nnx.Rngs(0))
    model.eval()
    kept = nnx.Conv.__call__, nnx.Linear.__call__
    with pytest.raises(ValueError, match=message):
        grad_cam(lambda x: model(x[None])[0], jnp.ones((8, 8, 3)), 0, layer=layer(model))
    assert kept == (nnx.Conv.__call__, nnx.Linear.__call__)


class Nested(nn.Module):
    """A block under `checkpoint`, a function under `jit`, a layer called twice and a layer inside a scan."""

    @nn.compact
    def __call__(self, x):
        twice = nn.Conv(4, (3, 3), name="twice")
        x = twice(nn.Conv(4, (3, 3), name="first")(x))
        x = nn.remat(Block)(name="remat")(x)
        with jax.named_scope("compiled"):
            x = jax.jit(jax.named_scope("inner")(jnp.tanh))(x)
        x = twice(x)
        cell = nn.scan(Cell, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        x, _ = cell(name="scanned")(x, None)
        return nn.Dense(4, name="head")(x.mean((1, 2))), None


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(x + nn.Conv(4, (1, 1), name="conv")(x))


class Cell(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(4, name="dense")(x)), None


def test_layers_inside_checkpoint_and_jit_and_layers_called_twice(key):
    fn, image = linen(Nested(), (6, 6, 3)), jax.random.normal(key, (6, 6, 3))
    twice = {"params": drawn(Nested(), (6, 6, 3))["params"]["twice"]}
    names = ("remat", "Nested/remat/conv", "inner", "twice")
    found = jax.jit(lambda image: [activation_and_gradient(fn, image, 2, name) for name in names])(image)
    (block, gradient), (inside, _), (behind, gradient_behind), (last, _) = found
    assert inside.shape == block.shape and not np.allclose(inside, block)
    close(behind, jnp.tanh(block), rtol=1e-5)
    close(gradient, gradient_behind * (1 - jnp.tanh(block) ** 2), atol=1e-5)
    close(last, nn.Conv(4, (3, 3)).apply(twice, behind))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("frist", r"did you mean 'Nested/first'\?.* Its scopes are: Nested, Nested/first, Nested/twice"),
        ("dense", r"inside scan cannot be named: give the layer as a pair \(features_fn, head_fn\)"),
        ("conv", "is ambiguous: it may be 'Nested/a/conv' or 'Nested/b/conv'"),
        ("head", r"has shape \(1, 4\).* pass reshape"),
    ],
)
def test_errors_about_layers(layer, message):
    module = Nested()
    if layer == "conv":

        class Twins(nn.Module):
            @nn.compact
            def __call__(self, x):
                return Block(name="b")(Block(name="a")(nn.Dense(4)(x))).mean((1, 2)), None

        module, message = Twins(), message.replace("Nested", "Twins")
    with pytest.raises(ValueError, match=message):
        grad_cam(linen(module, (6, 6, 3)), jnp.ones((6, 6, 3)), 0, layer=layer)


def test_errors_about_functions_without_scopes_or_convolutions():
    image, linear = jnp.ones((4, 4, 3)), lambda image: image.sum((0, 1))
    with pytest.raises(ValueError, match="'conv': the function has no jax.named_scope; add one, pass the module"):
        grad_cam(linear, image, 0, layer="conv")
    with pytest.raises(ValueError, match="no convolution with an output"):
        grad_cam(linear, image, 0)
    with pytest.raises(ValueError, match="upsample = 'cubic'"):
        grad_cam(reference.network, reference.images()[0], 0, upsample="cubic")
    with pytest.raises(ValueError, match="upsample = None"):
        guided_grad_cam(reference.network, reference.images()[0], 0, upsample=None)
    with pytest.raises(ValueError, match=r"reshape returned shape \(768,\)"):
        grad_cam(reference.network, reference.images()[0], 0, reshape=jnp.ravel)


def zeros(module, shape):
    """Return `image -> logits` with zero parameters, for tracing only."""
    variables = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *shape))),
    )
    return lambda image: module.apply(variables, image[None])[0][0]


@pytest.mark.parametrize(
    ("model", "layer", "shape"),
    [("resnet18", "stage3", (1, 2, 2, 256)), ("vit_ti", "block12/norm1", (1, 5, 192))],
)
def test_default_layer_of_large_networks(model, layer, shape):
    """In ResNet-18 at 32 pixels: the last map larger than 1×1. In a ViT: the input of the last attention."""
    size = (32, 32, 3)
    jaxpr = traced(zeros(create_model(model, num_classes=4), size), size)
    found = default_layer(jaxpr)
    assert found is named_layer(jaxpr, layer)
    assert found.aval.shape == shape


def test_default_layer_is_the_last_map_behind_its_non_linearity(key):
    fn, image = linen(SmallCNN(4, widths=(6, 8)), (12, 12, 3)), jax.random.normal(key, (12, 12, 3))
    default, normalised = (
        jax.jit(partial(activation_and_gradient, fn, layer=layer))(image, 1)[0] for layer in (None, "norm1")
    )
    close(default, jax.nn.relu(normalised))


def test_transformer_maps_leave_out_the_class_token(key):
    fn, image = linen(ViT(3, width=6, depth=2, heads=2, patch_size=4), (8, 16, 3)), jax.random.normal(key, (8, 16, 3))
    tokens, _ = jax.jit(partial(activation_and_gradient, fn, layer="block1"))(image, 0)
    assert tokens.shape == (1, 9, 6)
    close(as_map(tokens, image.shape), tokens[0, 1:].reshape(2, 4, 6))
    find = jax.jit(partial(every_map, fn, target=0, upsample=None, reshape=None), static_argnames=("layer", "reshape"))
    named = find(image, layer="block1")
    assert named.shape == (4, 2, 4, 1)
    close(named, find(image, layer="block1", reshape=lambda x: x[0, 1:].reshape(2, 4, 6)))
    assert (jnp.abs(find(image)).max((1, 2, 3)) > 0).all()


def transformer(before, behind, merged=False):
    """Return a transformer of two blocks over 4×4 patches, with extra tokens before and behind the patches."""
    rng = np.random.default_rng(1)
    shapes = [(4, 4, 3, 6), (16, 6), (before + behind, 6), (3, 6, 6), (24, 6), (6, 4)]
    embed, places, own, qkv, merge, head = (jnp.asarray(rng.normal(size=n) * 0.5, jnp.float32) for n in shapes)

    def fn(image):
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(image[None], embed, (4, 4), "VALID", dimension_numbers=numbers)
        x = jnp.concatenate([own[:before], x.reshape(16, 6) + places, own[before:]])
        for i in range(2):
            with jax.named_scope(f"block{i}"):
                if merged and i:
                    x = x.reshape(4, 24) @ merge
                q, k, v = (x @ w for w in qkv)
                x = x + jax.nn.softmax(q @ k.T) @ v
        return jnp.tanh(x)[0] @ head

    return fn


@pytest.mark.parametrize(("before", "behind"), [(2, 0), (5, 0), (1, 4)])
def test_default_layer_without_the_tokens_of_a_transformer_s_own(key, before, behind):
    """With extra tokens (distillation, registers) the layer is the last block's input, its patches alone."""
    fn, image = transformer(before, behind), jax.random.normal(key, (16, 16, 3))
    last = jax.make_jaxpr(fn)(image).jaxpr
    assert default_layer(last) is named_layer(last, "block0")
    patches = lambda tokens: tokens[before : before + 16].reshape(4, 4, 6)  # noqa: E731
    options = [{}, {"layer": "block0"}, {"layer": "block0", "reshape": patches}]
    found = jax.jit(lambda image: [every_map(fn, image, 1, upsample=None, **given) for given in options])(image)
    assert found[0].shape == (4, 4, 4, 1)
    close(found[0], found[2])
    close(found[1], found[2])


def test_a_layer_of_which_only_the_class_token_is_read_is_refused(key):
    """Patches that a later layer does not read have no gradient: the map would be 0."""
    fn, image = transformer(2, 0), jnp.ones((16, 16, 3))
    for given in ({}, {"reshape": lambda tokens: tokens[2:].reshape(4, 4, 6)}):
        with pytest.raises(ValueError, match=r"layer = 'block1': of the 18 tokens .* reads 0 alone .* not depend on"):
            jax.eval_shape(lambda image, given=given: grad_cam(fn, image, 1, layer="block1", **given), image)
    every = {"reshape": lambda tokens: tokens[:, None]}  # with the class token, as the score reads it
    jax.eval_shape(lambda image: grad_cam(fn, image, 1, layer="block1", **every), image)
    vit = zeros(ViT(3, width=6, depth=2, heads=2, patch_size=4), (8, 16, 3))
    with pytest.raises(ValueError, match=r"layer = 'block2': of the 9 tokens .* reads 0 alone"):
        grad_cam(vit, jnp.ones((8, 16, 3)), 1, layer="block2")
    jax.eval_shape(lambda image: grad_cam(vit, image, 1, layer="block2/norm1"), jnp.ones((8, 16, 3)))


def test_default_layer_of_merged_patches_is_asked_for():
    with pytest.raises(ValueError, match=r"sums over 4 elements, not over the 4×4 positions .* layer=, .* reshape="):
        grad_cam(transformer(0, 0, merged=True), jnp.ones((16, 16, 3)), 1)


@pytest.mark.parametrize(
    ("shape", "image", "expected"),
    [
        ((7, 5, 3), (14, 10), (7, 5, 3)),
        ((1, 1, 5, 3), (1, 10), (1, 5, 3)),
        ((1, 49, 3), (32, 32), (7, 7, 3)),
        ((50, 3), (32, 32), (7, 7, 3)),
        ((1, 9, 3), (16, 32), (2, 4, 3)),
        ((9, 3), (12, 10), (3, 3, 3)),  # patches of 4×4, with padding
        ((7, 3), (12, 10), (3, 2, 3)),  # without padding, with a class token
    ],
)
def test_as_map(shape, image, expected):
    assert as_map(jnp.zeros(shape), (*image, 3)).shape == expected


@pytest.mark.parametrize("shape", [(48, 3), (2, 4, 4, 3), (3,)])
def test_as_map_refuses_what_does_not_tile_the_image(shape):
    with pytest.raises(ValueError, match="pass reshape"):
        as_map(jnp.zeros(shape), (32, 32, 3))


# Weights by principal directions, by scores of channels, and by similar classes; several layers


def small_split():
    """Return a network of one convolution, its features, head and an image, drawn once."""
    rng = np.random.default_rng(5)
    kernel, head = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 3, 2, 5), (5, 4)))

    def features(image):
        numbers = ("NHWC", "HWIO", "NHWC")
        with jax.named_scope("features"):
            x = jax.lax.conv_general_dilated(image[None], kernel, (2, 2), "SAME", dimension_numbers=numbers)
            return jax.nn.relu(x)[0]

    classify = lambda a: jnp.tanh(a.mean((0, 1))) @ head  # noqa: E731
    image = jnp.asarray(rng.normal(size=(8, 6, 2)), jnp.float32)
    return (lambda image: classify(features(image))), features, classify, image


def test_formulas_of_other_cams():
    """XGrad-CAM, Eigen-CAM, Ablation-CAM and Score-CAM by their formulas in NumPy, one channel after the other."""
    fn, features, classify, image = small_split()
    raw = {"relu": False, "upsample": None}

    def run(image):
        maps = {method.__name__: method(fn, image, 1, **raw) for method in (xgrad_cam, eigen_cam, ablation_cam)}
        maps["score_cam"] = score_cam(fn, image, 1, chunk_size=2, **raw)
        return maps, features(image), jax.grad(lambda a: classify(a)[1])(features(image))

    found, a, g = jax.tree.map(np.asarray, jax.jit(run)(image))
    score = jax.jit(lambda a: classify(a)[1])
    weights = {"xgrad_cam": [], "ablation_cam": [], "score_cam": []}
    for d in range(5):
        channel = a[..., d].astype(np.float64)
        weights["xgrad_cam"].append((channel * g[..., d]).sum() / channel.sum())
        weights["ablation_cam"].append(score(a) - score(np.where(np.arange(5) == d, 0, a)))
        mask = np.asarray(jax.image.resize(a[..., d], (8, 6), "linear"))
        mask = (mask - mask.min()) / (mask.max() - mask.min())
        weights["score_cam"].append(jax.jit(fn)(image * mask[..., None])[1])
    shares = np.exp(np.asarray(weights["score_cam"], np.float64))
    weights["score_cam"] = shares / shares.sum()
    for name, of_channels in weights.items():
        close(found[name][..., 0], a @ np.asarray(of_channels, np.float64), err_msg=name)
    u, s, _ = np.linalg.svd(a.reshape(-1, 5).astype(np.float64))
    expected = u[:, 0] * s[0] * np.sign(u[:, 0].sum())
    close(found["eigen_cam"].ravel(), expected)


def test_finer_cam_is_a_contrast_with_similar_classes():
    fn, _, _, image = small_split()
    logits = fn(image)
    near = [int(k) for k in jnp.argsort(-logits) if k != 1][:2]
    given = {"relu": False, "upsample": None}

    def run(image):
        expected = grad_cam(fn, image, lambda z: z[1] - 0.5 * (z[near[0]] + z[near[1]]) / 2, **given)
        pair = grad_cam(fn, image, Contrast(1, 3), **given)
        found = finer_cam(fn, image, 1, others=2, weight=0.5, **given)
        return (found, expected), (finer_cam(fn, image, Contrast(1, 3), **given), pair)

    for found, expected in jax.jit(run)(image):
        close(found, expected)
    with pytest.raises(ValueError, match="pass classes or a Contrast"):
        finer_cam(fn, image, lambda z: z[0])


def test_several_layers_at_once():
    fn, _, _, image = small_split()

    def run(image):
        first, second = (grad_cam(fn, image, 1, layer=each) for each in ("features", None))
        return (first / first.max() + second / second.max()) / 2, grad_cam(fn, image, 1, layer=["features", None])

    expected, found = jax.jit(run)(image)
    close(found, expected)
    with pytest.raises(ValueError, match="a way to upsample"):
        grad_cam(fn, image, 1, layer=["features"], upsample=None)
