"""Tests of the tap on modules that are not written for it."""

import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdecor.models import Tap, create_model, layer_names


class Plain(nn.Module):
    """A network that returns only logits, with dropout, BatchNorm and a nested block."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = Block(name="block")(nn.relu(x))
        x = nn.Dropout(0.5, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(3)(x)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Conv(4, (1, 1), name="inner")(x)


class Shared(nn.Module):
    """A network that calls a layer twice; built in `setup`."""

    def setup(self):
        self.twice = nn.Dense(5)
        self.once = nn.Dense(5)

    def __call__(self, x):
        return self.twice(self.once(self.twice(x)))


class Rematerialised(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.remat(Block)(name="block")(nn.relu(nn.Dense(4, name="first")(x))).mean((1, 2)))


def init(module, *arguments):
    """Return variables drawn with NumPy, because initialisers take seconds to compile."""
    rng = np.random.default_rng(2)

    def draw(leaf):
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(max(1, leaf.size // leaf.shape[-1])), leaf.dtype)

    drawn = jax.tree.map(draw, jax.eval_shape(module.init, jax.random.key(0), *arguments))
    return {**drawn, "batch_stats": jax.tree.map(lambda x: 0.1 + jnp.abs(x), drawn.get("batch_stats", {}))}


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 6, 3)), jnp.float32)


@pytest.fixture(scope="module")
def variables(images):
    return init(Plain(), images)


def test_variables_and_random_numbers_are_the_module_s(images, variables, key):
    tap = Tap(Plain(), ("block/inner", "Dense_0"))
    tapped = init(tap, images)
    jax.tree.map(np.testing.assert_array_equal, tapped, variables)

    def train(module):
        return module.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key})

    logits, updates = jax.jit(lambda: train(Plain()))()
    (tap_logits, outputs), tap_updates = jax.jit(lambda: train(tap))()
    np.testing.assert_array_equal(tap_logits, logits)
    jax.tree.map(np.testing.assert_array_equal, tap_updates, updates)
    assert set(outputs) == {"block/inner", "Dense_0"}
    np.testing.assert_array_equal(outputs["Dense_0"], logits)


def test_outputs_are_the_layer_s_and_gradients_flow_through_them(images, variables):
    tap = Tap(Plain(), ("Conv_0", "BatchNorm_0"))

    def tapped(params, images):
        return tap.apply({**variables, "params": params}, images)[1]["Conv_0"]

    def alone(params, images):
        return nn.Conv(4, (3, 3)).apply({"params": params["Conv_0"]}, images)

    def derivatives(f):
        loss = jax.value_and_grad(lambda params, images: jnp.sum(f(params, images) ** 2), argnums=(0, 1))
        return jax.jit(loss)(variables["params"], images)

    gradients = [derivatives(tapped), derivatives(alone)]
    assert np.abs(gradients[0][1][0]["Conv_0"]["kernel"]).max() > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *gradients)


def test_works_under_vmap_vjp_and_pmap(images, variables):
    tap = Tap(Plain(), ["block"])
    expected = jax.jit(tap.apply)(variables, images)

    def one(image):
        logits, outputs = tap.apply(variables, image[None])
        return logits[0], jax.tree.map(lambda x: x[0], outputs)

    for mapped in (jax.jit(jax.vmap(one))(images), jax.pmap(one)(images)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), mapped, expected)

    def pull_back(images):
        outputs, pull = jax.vjp(lambda x: tap.apply(variables, x), images)
        return pull(jax.tree.map(jnp.ones_like, outputs))[0]

    assert np.abs(jax.jit(pull_back)(images)).max() > 0


def test_tuples_give_their_first_element_as_logits(key):
    model = create_model("cnn", num_classes=3, widths=(4, 4))
    images = jnp.ones((2, 8, 8, 3))
    (logits, outputs), _ = jax.eval_shape(Tap(model, ("norm1",)).init_with_output, key, images)
    assert logits.shape == (2, 3) and outputs["norm1"].shape == (2, 2, 2, 4)


class Returning(nn.Module):
    """A network that returns `wrap` of its logits."""

    wrap: Callable

    @nn.compact
    def __call__(self, x):
        return self.wrap(nn.Dense(3)(x))


WRAPS = {
    "dict": (lambda z: {"logits": z, "features": z}, "a dict with keys 'logits', 'features'"),
    "dict in a tuple": (lambda z: ({"logits": z}, z), "a tuple (dict, float32 array (2, 3))"),
    "tuple in a tuple": (lambda z: ((z, z), z), "a tuple (tuple, float32 array (2, 3))"),
    "list": (lambda z: [z, z], "list"),
    "none": (lambda z: None, "NoneType"),
    "empty": (lambda z: (), "a tuple ()"),
    "classes": (lambda z: z.argmax(-1), "int32 array (2,)"),
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_what_is_not_logits_is_refused(wrap, key):
    function, found = WRAPS[wrap]
    message = f"the tapped module returned {found}: a Tap takes a module that returns logits"
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(Tap(Returning(function), ("Dense_0",)).init, key, jnp.ones((2, 5)))


def test_inside_another_module_names_stay_relative(images, key):
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            logits, outputs = Tap(Plain(name="net"), ("block/inner",))(x)
            return logits + outputs["block/inner"].mean()

    logits, variables = jax.eval_shape(Outer().init_with_output, key, images)
    assert set(variables["params"]["net"]) == {"Conv_0", "BatchNorm_0", "block", "Dense_0"}
    assert logits.shape == (2, 3)


def test_unknown_layers_are_named_with_what_is_close_and_what_there_is(images, variables):
    with pytest.raises(ValueError, match="'Dense_1' is not called .* did you mean 'Dense_0'.* block/inner"):
        jax.eval_shape(Tap(Plain(), ("Dense_1",)).apply, variables, images)
    with pytest.raises(ValueError, match="sequence of names"):
        Tap(Plain(), "Dense_0")


def test_a_layer_called_twice_is_refused_and_not_listed(key):
    x = jnp.ones((2, 5))
    with pytest.raises(ValueError, match="'twice' is called 2 times"):
        jax.jit(Tap(Shared(), ("twice",)).init)(key, x)
    variables = init(Shared(), x)
    _, outputs = Tap(Shared(), ("once",)).apply(variables, x)
    assert outputs["once"].shape == (2, 5)
    assert layer_names(Shared(), (5,)) == ("once",)


def test_layers_under_a_lifted_transformation_are_passed_over(images, key):
    module = Rematerialised()
    assert layer_names(module, (6, 6, 3)) == ("first", "Dense_0")
    variables = init(module, images)
    tap = Tap(module, ("first",))
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(tap.apply(v, images)[1]["first"] ** 2)))(variables)
    assert np.abs(gradient["params"]["first"]["kernel"]).max() > 0
    for layer in ("block", "block/inner"):
        with pytest.raises(ValueError, match=f"{layer!r} is not called"):
            jax.eval_shape(Tap(module, (layer,)).apply, variables, images)


def test_layer_names_in_the_order_of_calls():
    expected = ("Conv_0", "BatchNorm_0", "block", "block/inner", "Dropout_0", "Dense_0")
    assert layer_names(Plain(), (6, 6, 3)) == expected
    assert layer_names(Plain(), (6, 6, 3), train=True) == expected
    assert layer_names(Tap(Plain(), ("block",)), (6, 6, 3)) == expected
    names = layer_names(create_model("resnet18", num_classes=10, stem="cifar"), (32, 32, 3))
    assert {"stage1", "stage2/block1", "stage2/block1/conv_shortcut", "head"} <= set(names)
