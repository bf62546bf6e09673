"""Tests of frozen batch statistics: values of train mode, derivatives of eval mode with the batch's statistics."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdecor.models import Tap, create_model, frozen_statistics, record_statistics

MODES = ("whole", "recorded")


class Net(nn.Module):
    """A residual network with two BatchNorms: one without scale, one with the slow variance."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        fields = {"use_running_average": not train, "axis_name": self.axis_name, "momentum": 0.7}
        x = nn.Conv(5, (3, 3))(x)
        y = nn.relu(nn.BatchNorm(**fields, use_scale=False)(x))
        y = nn.BatchNorm(**fields, use_fast_variance=False, epsilon=1e-3)(nn.Conv(5, (3, 3))(y))
        return nn.Dense(3)(jnp.tanh(x + y).mean((1, 2)))


def normal(shape):
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def init(module, *arguments):
    """Return variables drawn with NumPy, because initialisers take seconds to compile."""
    rng = np.random.default_rng(2)

    def draw(leaf):
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(max(1, leaf.size // leaf.shape[-1])), leaf.dtype)

    drawn = jax.tree.map(draw, jax.eval_shape(module.init, jax.random.key(0), *arguments))
    return {**drawn, "batch_stats": jax.tree.map(lambda x: 0.1 + jnp.abs(x), drawn.get("batch_stats", {}))}


@pytest.fixture(scope="module")
def images():
    return 2 + normal((16, 6, 6, 3))


@pytest.fixture(scope="module")
def variables(images):
    return init(Net(), images)


def forward(module, variables, params, images):
    variables = {**variables, "params": params}
    return module.apply(variables, images, train=True, mutable=["batch_stats"])


def frozen_vjp(module, variables, params, images, mode):
    """Return logits, gradients of a fixed function of them, and updates, with frozen statistics."""
    record = None
    if mode == "recorded":

        def recorded(params, images):
            with record_statistics() as record:
                logits, updates = forward(module, variables, params, images)
            return logits, (updates, record)

        _, _, (_, record) = jax.vjp(recorded, params, images, has_aux=True)
    with frozen_statistics(record):
        logits, pull_back, updates = jax.vjp(
            lambda params, images: forward(module, variables, params, images), params, images, has_aux=True
        )
    return logits, pull_back(jnp.sin(jnp.arange(logits.size, dtype=jnp.float32)).reshape(logits.shape)), updates


def batch_statistics(variables, images):
    """Return each BatchNorm's batch statistics, solved from the update of the running ones (momentum 0.7)."""
    _, updates = jax.jit(lambda x: forward(Net(), variables, variables["params"], x))(images)
    return jax.tree.map(lambda new, old: (new - 0.7 * old) / 0.3, updates["batch_stats"], variables["batch_stats"])


def assert_close(actual, expected, tolerance=2e-4):
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected))

    def check(a, b):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)

    jax.tree.map(check, actual, expected)


@pytest.mark.parametrize("mode", MODES)
def test_derivatives_are_those_of_eval_mode_with_the_batch_s_statistics(mode, images, variables):
    stats = batch_statistics(variables, images)

    @jax.jit
    def oracle(params, images):
        apply = lambda p, x: Net().apply({"params": p, "batch_stats": stats}, x)  # noqa: E731
        logits, pull_back = jax.vjp(apply, params, images)
        return logits, pull_back(jnp.sin(jnp.arange(logits.size, dtype=jnp.float32)).reshape(logits.shape))

    expected = oracle(variables["params"], images)
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(expected))
    logits, gradients, _ = jax.jit(lambda p, x: frozen_vjp(Net(), variables, p, x, mode))(variables["params"], images)
    assert_close((logits, gradients), expected)
    ordinary = jax.jit(jax.grad(lambda x: jnp.sum(forward(Net(), variables, variables["params"], x)[0][0])))(images)
    alone = jax.jit(jax.grad(lambda x: jnp.sum(Net().apply({**variables, "batch_stats": stats}, x)[0])))(images)
    assert np.abs(ordinary[1:]).max() > 0 and np.abs(alone[1:]).max() == 0  # frozen statistics uncouple examples


@pytest.mark.parametrize("mode", MODES)
def test_value_and_running_statistics_are_unchanged(mode, images, variables):
    @jax.jit
    def both(params, images):
        frozen = frozen_vjp(Net(), variables, params, images, mode)
        with record_statistics():
            recording = forward(Net(), variables, params, images)
        return forward(Net(), variables, params, images), (frozen[0], frozen[2]), recording

    ordinary, frozen, recording = both(variables["params"], images)
    assert_close(frozen, ordinary, 1e-6)
    assert_close(recording, ordinary, 1e-6)


def test_recording_leaves_derivatives_as_they_are(images, variables):
    def gradient(recording):
        def loss(params):
            if not recording:
                return jnp.sum(forward(Net(), variables, params, images)[0] ** 2)
            with record_statistics():
                return jnp.sum(forward(Net(), variables, params, images)[0] ** 2)

        return jax.jit(jax.grad(loss))(variables["params"])

    assert_close(gradient(True), gradient(False), 1e-5)


@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.full), 8])
@pytest.mark.parametrize("mode", MODES)
def test_devices_agree_with_one(mode, devices, images, variables):
    def image_gradients(module, images):
        def pull(images):
            record = None
            if mode == "recorded":
                with record_statistics() as record:
                    forward(module, variables, variables["params"], images)
            with frozen_statistics(record):
                return jax.grad(lambda x: jnp.sum(forward(module, variables, variables["params"], x)[0] ** 2))(images)

        return pull(images)

    expected = jax.jit(lambda x: image_gradients(Net(), x))(images)
    split = images.reshape(devices, -1, *images.shape[1:])
    mapped = jax.pmap(lambda x: image_gradients(Net(axis_name="batch"), x), axis_name="batch")(split)
    assert_close(mapped.reshape(images.shape), expected)


@pytest.mark.parametrize("axis_name", [None, pytest.param("batch", marks=pytest.mark.full)])
def test_with_recorded_statistics_no_forward_is_repeated(axis_name):
    model = create_model("cnn", num_classes=10, widths=(8, 16), axis_name=axis_name)
    images = jnp.ones((16, 16, 16, 3))
    variables = init(model, images)

    def clean(params, images):
        with record_statistics() as record:
            (logits, _), _ = forward(model, variables, params, images)
        return logits, record

    def pull(params, images):
        logits, pull_back, record = jax.vjp(lambda p: clean(p, images), params, has_aux=True)
        return pull_back(logits)[0], record

    def freeze(params, images, record):
        with frozen_statistics(record):
            logits, pull_back = jax.vjp(lambda x: clean(params, x)[0], images)
        return pull_back(logits)[0]

    def flops(function):
        if axis_name is None:
            compiled = jax.jit(function).lower(variables["params"], images).compile()
        else:
            mapped = jax.pmap(function, axis_name=axis_name, in_axes=(None, 0))
            compiled = mapped.lower(variables["params"], images.reshape(2, 8, 16, 16, 3)).compile()
        return compiled.cost_analysis()["flops"]

    one = flops(lambda p, x: forward(model, variables, p, x)[0][0])
    ordinary = flops(lambda params, images: pull(params, images)[0])

    def together(params, images):
        gradients, record = pull(params, images)
        return gradients, freeze(params, images, record)

    # The pull-back to the images costs about a forward; with a repeated forward it would be two.
    assert 0.8 < (flops(together) - ordinary) / one < 1.2


def test_nothing_changes_without_batch_norm_or_in_eval_mode(images, variables, key):
    plain = create_model("cnn", num_classes=3, widths=(4,), norm="layer")
    plain_variables = init(plain, images)
    with record_statistics() as record:
        plain.apply(plain_variables, images, train=True)
        Net().apply(variables, images)
    assert record == {}

    def gradient(images):
        return jax.grad(lambda x: jnp.sum(Net().apply(variables, x) ** 2))(images)

    expected = jax.jit(gradient)(images)
    with frozen_statistics():
        np.testing.assert_array_equal(jax.jit(lambda x: gradient(x))(images), expected)
        initial = jax.make_jaxpr(Net().init)(jax.random.key(0), images)
    assert str(initial) == str(jax.make_jaxpr(Net().init)(jax.random.key(0), images))


def test_works_through_a_tap_and_in_bfloat16():
    model = create_model("cnn", num_classes=3, widths=(4, 8), dtype="bfloat16")
    images = normal((4, 8, 8, 3))
    variables = init(model, images)
    tap = Tap(model, ("conv1",))

    @jax.jit
    def gradient(images):
        with frozen_statistics():
            loss = lambda x: jnp.sum(forward(tap, variables, variables["params"], x)[0][0] ** 2)  # noqa: E731
            return jax.grad(loss)(images), forward(tap, variables, variables["params"], images)[0][1]["conv1"]

    gradients, tapped = gradient(images)
    assert gradients.dtype == jnp.float32 and np.isfinite(gradients).all() and np.abs(gradients).max() > 0
    assert tapped.shape == (4, 2, 2, 8) and tapped.dtype == jnp.bfloat16


def test_a_tap_sees_batch_norms_that_are_recorded_and_replayed():
    model = create_model("cnn", num_classes=3, widths=(4, 8))
    images = normal((4, 8, 8, 3))
    variables = init(model, images)
    tap = Tap(model, model.activations)
    outputs = lambda x: forward(tap, variables, variables["params"], x)[0]  # noqa: E731
    expected = outputs(images)
    with record_statistics() as record:
        recorded = outputs(images)
    with frozen_statistics(record):
        replayed = outputs(images)
    with frozen_statistics():
        frozen = outputs(images)
    for found in (recorded, replayed, frozen):
        assert list(found[1]) == ["norm0", "norm1"]
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, expected)


def test_a_layer_called_twice_replays_each_call():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x, train=True):
            norm = nn.BatchNorm(use_running_average=not train, name="norm")
            return norm(jnp.tanh(nn.Dense(4)(norm(x))))

    x = normal((8, 4))
    variables = init(Twice(), x)
    results = [
        jax.jit(lambda p, x, mode=mode: frozen_vjp(Twice(), variables, p, x, mode))(variables["params"], x)
        for mode in MODES
    ]
    assert_close(results[1], results[0], 1e-5)


def test_statistics_of_another_module_or_batch_are_refused(images, variables):
    with record_statistics() as record:
        forward(Net(), variables, variables["params"], images[:4])
    for wrong in ({}, record):
        with pytest.raises(ValueError, match="record has no call 1 of BatchNorm 'BatchNorm_0'"):
            with frozen_statistics(wrong):
                forward(Net(), variables, variables["params"], images)
