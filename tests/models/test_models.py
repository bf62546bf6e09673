"""Tests of the classifiers: shapes, dtypes, parameter counts and errors."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdecor.models import MODELS, ResNet, Tap, ViT, WideResNet, create_model
from sdecor.models.layers import REMATS, halve_by_maximum, he_fan_out
from sdecor.models.vit import patch_product

# (model, classes, image shape, options, parameters), counted by torchvision (VGG-16 and ResNets), timm (ViT), common
# PyTorch implementations (CIFAR variants; VGG with convolution biases) and PyTorch's MNIST example; width 16 by hand.
COUNTS = [
    ("mnist_net", 10, (28, 28, 1), {}, 1_199_882),
    ("vgg16", 10, (32, 32, 3), {}, 14_728_266),
    ("vgg16", 1000, (224, 224, 3), {"head": "imagenet"}, 138_365_992),
    ("resnet18", 1000, (224, 224, 3), {}, 11_689_512),
    ("resnet34", 1000, (224, 224, 3), {}, 21_797_672),
    ("resnet50", 1000, (224, 224, 3), {}, 25_557_032),
    ("resnet18", 10, (32, 32, 3), {"stem": "cifar"}, 11_173_962),
    ("resnet18", 10, (32, 32, 3), {"stem": "cifar", "width": 16}, 701_466),
    ("wide_resnet28_10", 10, (32, 32, 3), {}, 36_479_194),
    ("vit_ti", 1000, (224, 224, 3), {}, 5_717_416),
    ("vit_s", 1000, (224, 224, 3), {}, 22_050_664),
]
SMALL = {"cnn1d": ((32, 3), {}), "mnist_net": ((28, 28, 1), {}), "vit_ti": ((32, 32, 3), {"patch_size": 4})}
SMALL["vit_s"] = SMALL["vit_ti"]
WIDTHS = {
    "cnn": 128,
    "cnn1d": 128,
    "mnist_net": 128,
    "vgg16": 512,
    "resnet18": 512,
    "resnet34": 512,
    "resnet50": 2048,
    "wide_resnet28_10": 640,
    "vit_ti": 192,
    "vit_s": 384,
}


def normal(shape):
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def init(module, *arguments):
    """Return variables drawn with NumPy, because initialisers take seconds to compile."""
    rng = np.random.default_rng(2)

    def draw(leaf):
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(max(1, leaf.size // leaf.shape[-1])), leaf.dtype)

    drawn = jax.tree.map(draw, jax.eval_shape(module.init, jax.random.key(0), *arguments))
    return {**drawn, "batch_stats": jax.tree.map(lambda x: 0.1 + jnp.abs(x), drawn.get("batch_stats", {}))}


def abstract_init(model, image_shape):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, *image_shape)))


def abstract_train(model, variables, image_shape, n=2):
    def apply(variables, images, key):
        return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key})

    images = jax.ShapeDtypeStruct((n, *image_shape), jnp.float32)
    return jax.eval_shape(apply, variables, images, jax.random.key(0))


@pytest.mark.parametrize("name,num_classes,image_shape,options,expected", COUNTS)
def test_parameter_counts_are_the_literature_s(name, num_classes, image_shape, options, expected):
    variables = abstract_init(create_model(name, num_classes=num_classes, **options), image_shape)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])) == expected


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32(name):
    image_shape, options = SMALL.get(name, ((32, 32, 3), {}))
    model = create_model(name, num_classes=7, dtype="bfloat16", **options)
    variables = abstract_init(model, image_shape)
    (logits, features), updates = abstract_train(model, variables, image_shape)
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
    assert (features.shape, features.dtype) == ((2, WIDTHS[name]), jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, updates))} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    "name,options",
    [
        *((name, {}) for name in MODELS),
        ("cnn", {"norm": "none", "widths": (4, 6)}),
        ("resnet18", {"stem": "cifar"}),
        ("vgg16", {"head": "imagenet"}),
    ],
)
def test_activations_are_what_the_relus_see(name, options, monkeypatch):
    seen = []

    def recorded(function):
        def call(x, **arguments):
            seen.append((x, function(x, **arguments)))
            return seen[-1][1]

        return call

    for function in ("relu", "gelu"):
        monkeypatch.setattr(nn, function, recorded(getattr(nn, function)))
    image_shape, small = SMALL.get(name, ((32, 32, 3), {}))
    model = create_model(name, num_classes=3, **small, **options)

    def check(images):
        (_, tapped), _ = Tap(model, model.activations).init_with_output(jax.random.key(0), images)
        assert tuple(tapped) == model.activations and len(seen) == len(tapped)
        for (before, after), output in zip(seen, tapped.values(), strict=True):
            assert output is before or output is after
        return images

    jax.eval_shape(check, jnp.zeros((2, *image_shape)))


def test_every_model_has_a_width_here():
    assert set(WIDTHS) == set(MODELS)


@pytest.mark.parametrize("norm", ["batch", "layer", "group", "none"])
def test_cnn_trains_and_evaluates_with_every_norm(norm):
    model = create_model("cnn", num_classes=3, widths=[4, 6], norm=norm)  # 6 channels: 2 groups
    images = normal((4, 9, 8, 3))
    variables = init(model, images)
    assert bool(variables["batch_stats"]) == (norm == "batch")

    @jax.jit
    def loss_and_gradients(params, images):
        def loss(params, images):
            variables_ = {**variables, "params": params}
            (logits, _), updates = model.apply(variables_, images, train=True, mutable=["batch_stats"])
            return jax.nn.log_softmax(logits)[:, 0].sum(), updates

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, images)

    (value, updates), (grads, image_grads) = loss_and_gradients(variables["params"], images)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))
    assert np.mean(np.asarray(image_grads[:, :8]) != 0) > 0.5
    logits, features = jax.jit(model.apply)({**variables, **updates}, images)
    assert logits.shape == (4, 3) and features.shape == (4, 6)
    kernel, bias = variables["params"]["head"]["kernel"], variables["params"]["head"]["bias"]
    np.testing.assert_allclose(np.asarray(features) @ np.asarray(kernel) + np.asarray(bias), logits, rtol=1e-4)


def test_bfloat16_cnn_agrees_with_float32():
    images = normal((8, 16, 16, 3))
    models = [create_model("cnn", num_classes=3, widths=(8, 8), dtype=dtype) for dtype in ("float32", "bfloat16")]
    variables = init(models[0], images)
    outputs = [
        jax.jit(lambda model=model: model.apply(variables, images, train=True, mutable=["batch_stats"]))()
        for model in models
    ]
    np.testing.assert_allclose(outputs[0][0][0], outputs[1][0][0], atol=0.05)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.02, atol=2e-3), outputs[0][1], outputs[1][1])


@pytest.mark.parametrize("name,none,much", [("cnn", 0.0, 0.9), ("mnist_net", (0.0, 0.0), (0.0, 0.9))])
def test_features_come_before_dropout_of_the_last_layer(name, none, much, key):
    images = normal((2, 8, 8, 1))
    variables = init(create_model(name, num_classes=3), images)

    def train(dropout):
        model = create_model(name, num_classes=3, dropout=dropout)
        return jax.jit(lambda: model.apply(variables, images, train=True, mutable=True, rngs={"dropout": key})[0])()

    np.testing.assert_allclose(train(much)[1], train(none)[1], rtol=1e-6)
    assert not np.allclose(train(much)[0], train(none)[0])


@pytest.mark.parametrize(
    "name,layer,zero",
    [
        ("resnet18", "norm2", True),
        ("resnet18", "norm2", False),
        ("resnet50", "norm3", True),
        ("wide_resnet28_10", "conv2", True),
    ],
)
def test_residual_blocks_start_as_the_identity(name, layer, zero):
    model = create_model(name, num_classes=2, zero_init_residual=zero)

    @jax.jit  # computes this layer alone: the rest is dead code
    def start(key):
        params = model.init(key, jnp.zeros((1, 32, 32, 3)))["params"]["stage1"]["block1"]
        return params[layer]["kernel" if layer == "conv2" else "scale"]

    assert (np.abs(start(jax.random.key(0))).max() == 0) == zero


def test_batch_norm_statistics_run_over_the_device_axis():
    images = normal((8, 8, 8, 3))
    model = create_model("cnn", num_classes=3, widths=(4, 4), axis_name="batch")
    alone = create_model("cnn", num_classes=3, widths=(4, 4))
    variables = init(model, images)  # without the axis

    def train(model, images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    (logits, _), updates = jax.jit(lambda x: train(alone, x))(images)
    mapped = jax.pmap(lambda x: train(model, x), axis_name="batch")
    (split_logits, _), split_updates = mapped(images.reshape(4, 2, 8, 8, 3))
    np.testing.assert_allclose(split_logits.reshape(8, 3), logits, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-5, atol=1e-6), split_updates, updates)
    jax.jit(model.apply)(variables, images)  # eval mode needs no axis either


def test_vit_refuses_another_image_size_than_it_was_made_for():
    model = create_model("vit_ti", num_classes=2, patch_size=8)
    variables = abstract_init(model, (32, 32, 3))
    assert variables["params"]["positions"].shape == (1, 17, 192)
    with pytest.raises(ValueError, match="positions for 16"):
        abstract_train(model, variables, (40, 40, 3))
    with pytest.raises(ValueError, match="patch_size = 8 must divide"):
        abstract_init(model, (36, 32, 3))


def test_vit_positions_break_the_symmetry_of_patches():
    model = create_model("vit_ti", num_classes=2, patch_size=8).clone(depth=1, width=8, heads=2)
    images = normal((2, 16, 16, 3))
    variables = init(model, images)
    turned = jnp.concatenate([images[:, :, 8:], images[:, :, :8]], axis=2)  # the same patches, elsewhere
    apply = jax.jit(lambda variables, images: model.apply(variables, images)[1])
    assert not np.allclose(apply(variables, images), apply(variables, turned), atol=1e-6)
    params = {**variables["params"], "positions": jnp.zeros((1, 5, 8))}
    np.testing.assert_allclose(apply({"params": params}, images), apply({"params": params}, turned), atol=1e-5)


def test_patch_product_is_the_convolution_with_its_gradients():
    images, kernel, weights = normal((2, 8, 12, 3)), normal((4, 4, 3, 5)), normal((2, 2, 3, 5))
    own = lambda images, kernel: jnp.sum(weights * jnp.sin(patch_product(images, kernel)))  # noqa: E731

    def convolved(images, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        maps = jax.lax.conv_general_dilated(images, kernel, (4, 4), "VALID", dimension_numbers=numbers)
        return jnp.sum(weights * jnp.sin(maps))

    found, expected = (jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(images, kernel) for f in (own, convolved))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)


def test_vit_is_the_same_in_train_mode_without_dropout():
    model = ViT(3, width=8, depth=1, heads=2, patch_size=4)
    images = normal((2, 8, 12, 3))
    variables = init(model, images)
    found, expected = (jax.jit(partial(model.apply, train=train))(variables, images)[1] for train in (True, False))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_max_pool_equals_the_windowed_one():
    import flax.linen as nn

    x = normal((2, 7, 6, 3))
    np.testing.assert_array_equal(halve_by_maximum(x), nn.max_pool(x, (2, 2), (2, 2)))


@pytest.mark.parametrize(
    "network",
    [
        ResNet(3, blocks=(1,), stem="cifar"),
        pytest.param(ViT(3, width=8, depth=1, heads=2, patch_size=4, dropout=0.5), marks=pytest.mark.full),
        pytest.param(WideResNet(3, depth=10, widen=1, dropout=0.5), marks=pytest.mark.full),
    ],
    ids=lambda network: type(network).__name__,
)
def test_remat_stores_less_and_changes_no_value_gradient_or_parameter(network):
    images = normal((4, 8, 8, 3))
    variables = init(network, images)

    def loss(params, model):
        rngs = {"dropout": jax.random.key(0)}
        variables_now = {**variables, "params": params}
        (logits, _), updates = model.apply(variables_now, images, train=True, mutable=["batch_stats"], rngs=rngs)
        return jnp.sum(jnp.sin(logits)), updates

    losses = {remat: partial(loss, model=network.clone(remat=remat)) for remat in REMATS}
    compute = jax.jit(
        lambda params: {remat: jax.value_and_grad(f, has_aux=True)(params) for remat, f in losses.items()}
    )
    found, stored = compute(variables["params"]), {}
    for remat, f in losses.items():
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found[remat], found["none"])
        pull_back = jax.eval_shape(lambda params, f=f: jax.vjp(f, params, has_aux=True)[1], variables["params"])
        stored[remat] = sum(leaf.size for leaf in jax.tree.leaves(pull_back))
    assert stored["blocks"] < stored["none"]


@pytest.mark.parametrize(
    "name,options,message",
    [
        ("cnn", {"remat": "blocks"}, "option of model 'cnn'"),
        ("resnet18", {"remat": "block"}, "did you mean 'blocks'"),
        ("resnet81", {}, "resnet18"),
        ("cnn", {"width": (4,)}, "did you mean 'widths'"),
        ("cnn", {"norm": "bach"}, "did you mean 'batch'"),
        ("cnn", {"widths": ()}, "widths = .* positive"),
        ("cnn", {"dropout": 1.0}, "dropout = 1.0"),
        ("cnn", {"stem_stride": 3}, "stem_stride"),
        ("cnn", {"dtype": "float8"}, "bfloat16"),
        ("cnn", {"dtype": "float16"}, "'float32', 'bfloat16'$"),
        ("cnn", {"num_classes": 0}, "num_classes"),
        ("mnist_net", {"dropout": (0.1,)}, "two rates"),
        ("resnet18", {"stem": "cifar10"}, "did you mean 'cifar'"),
        ("resnet18", {"blocks": (1,)}, "is not known"),
        ("resnet18", {"width": 0}, "width = 0 "),
        ("vgg16", {"head": "large"}, "'cifar', 'imagenet'"),
        ("vit_s", {"patch_size": 0}, "patch_size"),
    ],
)
def test_errors_say_what_is_right(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **{"num_classes": 10, **options})


@pytest.mark.parametrize("name,image_shape", [("vgg16", (28, 28, 3)), ("cnn", (7, 32, 3)), ("mnist_net", (5, 28, 1))])
def test_too_small_images_are_refused(name, image_shape):
    with pytest.raises(ValueError, match="must be at least|must be \\[N"):
        abstract_init(create_model(name, num_classes=10), image_shape)


def test_kernels_are_drawn_as_by_variance_scaling(key):
    same = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    for shape in ((3, 3, 4, 6), (1, 1, 2, 5)):
        np.testing.assert_array_equal(he_fan_out(key, shape), same(key, shape, jnp.float32))
