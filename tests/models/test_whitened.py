"""Tests of whitening in the forward pass: values against float64, its gradients, devices, and folding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdecor.models import Whitened, fold_whitening

EPSILON, WIDTH = 1e-3, 6


class Net(nn.Module):
    """A convolution with BatchNorm, and a head that reads the pooled features."""

    axis_name: str | None = None
    groups: int = 1

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(WIDTH, (3, 3), name="conv", feature_group_count=self.groups)(x)
        x = nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name, name="norm")(x)
        features = jnp.tanh(x).mean((1, 2))
        return nn.Dense(4, name="head")(features), features


class Head(nn.Module):
    """A head alone: the images are the features."""

    bias: bool = True

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(4, name="head", use_bias=self.bias)(x)


def normal(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def correlated(n=32):
    return normal(n, WIDTH) @ normal(WIDTH, WIDTH, seed=2) + 3


def root(covariance):
    """Return the ZCA matrix by an eigendecomposition in float64."""
    norm = np.linalg.norm(covariance)
    values, axes = np.linalg.eigh(covariance / norm)
    return axes @ np.diag((values + EPSILON) ** -0.5) @ axes.T / norm**0.5


def init(module, *arguments):
    drawn = jax.eval_shape(module.init, jax.random.key(0), *arguments)
    params = jax.tree.map(lambda leaf: normal(*leaf.shape, seed=leaf.size), drawn["params"])
    statistics = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), drawn["batch_stats"])
    return {"params": params, "batch_stats": statistics}


def apply(module, variables, x):
    return module.apply(variables, x, train=True, mutable=["batch_stats"])


@pytest.mark.parametrize("group", [None, 3])
def test_the_head_reads_features_that_are_whitened_in_groups(group):
    module = Whitened(Head(), group=group)
    features = correlated()
    variables = init(module, features)
    logits, updates = apply(module, variables, features)
    h = np.asarray(features, np.float64)
    centred, size = h - h.mean(0), group or WIDTH
    covariances = [np.cov(h[:, i : i + size].T) for i in range(0, WIDTH, size)]
    parts = [centred[:, i * size : (i + 1) * size] @ root(each) for i, each in enumerate(covariances)]
    head = jax.tree.map(np.asarray, variables["params"]["head"])
    np.testing.assert_allclose(logits, np.concatenate(parts, 1) @ head["kernel"] + head["bias"], rtol=2e-4, atol=2e-4)
    found = updates["batch_stats"]["whitening"]["head"]
    np.testing.assert_allclose(found["mean"], 0.9 + 0.1 * h.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["covariance"], 0.9 + 0.1 * np.stack(covariances), rtol=1e-4)


def test_folded_weights_give_the_same_outputs_without_whitening():
    images = normal(16, 5, 5, 3)
    module = Whitened(Net(), layers=("conv", "head"))
    variables = module.init(jax.random.key(0), images)
    for _ in range(3):  # so that the running statistics are far from the initial ones
        variables = {**variables, **apply(module, variables, images)[1]}
    folded = fold_whitening(module, variables)
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)  # noqa: E731
    assert shapes(folded) == shapes(jax.eval_shape(Net().init, jax.random.key(0), images))
    for found, expected in zip(Net().apply(folded, images), module.apply(variables, images), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    plain = Net().apply({**folded, "params": variables["params"]}, images)[0]
    assert np.abs(plain - module.apply(variables, images)[0]).max() > 0.01


def test_gradients_flow_through_the_matrix_unless_it_is_constant():
    features = correlated()
    weights = normal(len(features), 4, seed=7)
    variables = init(Whitened(Head()), features)

    def loss(features, through_root):
        return jnp.sum(weights * apply(Whitened(Head(), through_root=through_root), variables, features)[0])

    # With W as a constant, the loss is linear in the centred features.
    h = np.asarray(features, np.float64)
    slopes = np.asarray(weights, np.float64) @ np.asarray(variables["params"]["head"]["kernel"]).T @ root(np.cov(h.T))
    found = jax.grad(loss)(features, False)
    np.testing.assert_allclose(found, slopes - slopes.mean(0), rtol=1e-3, atol=1e-3)
    direction = normal(*features.shape, seed=8) / 8
    slope = jnp.vdot(jax.grad(loss)(features, True), direction)
    difference = (loss(features + 0.01 * direction, True) - loss(features - 0.01 * direction, True)) / 0.02
    np.testing.assert_allclose(slope, difference, rtol=2e-2)
    assert abs(slope - jnp.vdot(found, direction)) > 10 * abs(slope - difference)


def test_dead_features_have_finite_gradients():
    features = jnp.zeros((8, WIDTH))
    module = Whitened(Head())
    variables = init(module, features)
    gradient = jax.grad(lambda x: apply(module, variables, x)[0][0, 0])(features)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("counts", [(1, 2), pytest.param((1, 4, 8), marks=pytest.mark.full)])
def test_any_number_of_devices_gives_the_same(counts):
    images = normal(16, 5, 5, 3)
    module = Whitened(Net("batch"), layers=("conv", "head"), axis_name="batch")
    variables = init(Whitened(Net(), layers=("conv", "head")), images)

    def value(params, images):
        (logits, _), updates = apply(module, {**variables, "params": params}, images)
        return jnp.mean(logits**2), updates

    def step(images):
        found = jax.value_and_grad(value, has_aux=True)(variables["params"], images)
        return jax.lax.pmean(found, "batch")

    results = []
    for count in counts:
        shares = images.reshape(count, -1, *images.shape[1:])
        results.append(jax.tree.map(lambda leaf: leaf[0], jax.pmap(step, axis_name="batch")(shares)))
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), results[0], other)


def test_what_cannot_be_folded_is_refused():
    for options, hint in (
        ({"module": Net(), "layers": ("norm",)}, "layer 'norm' is BatchNorm"),
        ({"module": Net(groups=3), "layers": ("conv",)}, "without feature groups"),
        ({"module": Net(), "layers": ("hed",)}, "layer 'hed' is not called .* 'head'"),
        ({"module": Net(), "group": 4}, "group = 4 does not divide the 6 features of layer 'head'"),
        ({"module": Net(), "epsilon": 0.0}, "epsilon"),
        ({"module": Net(), "layers": "head"}, "sequence of names"),
    ):
        with pytest.raises(ValueError, match=hint):
            jax.eval_shape(Whitened(**options).init, jax.random.key(0), jnp.zeros((4, 5, 5, 3)))
    with pytest.raises(ValueError, match="nn.Dense with a bias"):
        jax.eval_shape(Whitened(Head(bias=False)).init, jax.random.key(0), jnp.zeros((4, WIDTH)))
