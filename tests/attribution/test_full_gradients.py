"""Tests of FullGrad: completeness, the authors' maps, implicit biases in closed form, and which biases have maps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_network as reference

from sdecor.attribution import explain, full_gradient, fullgrad

rng = np.random.default_rng(5)
close = partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)
KERNEL = jnp.asarray(rng.normal(size=(2, 2, 3, 8)) / 4, jnp.float32)
BIASES = jnp.asarray(rng.normal(size=(6, 8)), jnp.float32)
MIXING = jnp.asarray(rng.normal(size=(3, 8, 8)) / 3, jnp.float32)
HEAD = jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)
IMAGE = jnp.asarray(rng.normal(size=(4, 6, 3)), jnp.float32)


def total(full):
    """Return the sum of all shares of one example."""
    return sum(jax.tree.leaves(jax.tree.map(jnp.sum, (full.of_input, full.of_biases))))


def with_batch_norm(params, stored, image, folded=False):
    """The reference network without biases of convolutions, and a BatchNorm behind each; or folded into them."""
    x = image[None]
    for layer, pool in (("conv1", jax.lax.max), ("conv2", jax.lax.add)):
        scale, bias, mean, var = (
            jnp.asarray(stored[f"{layer}/{name}"])[None, None, None] for name in ("scale", "bias", "mean", "var")
        )
        factor = scale * jax.lax.rsqrt(var + 1e-3)
        kernel = params[f"{layer}/kernel"] * (factor if folded else 1)
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        x = x + (bias - mean * factor) if folded else (x - mean) * factor + bias
        x = jax.nn.relu(x)
        start = -jnp.inf if pool is jax.lax.max else 0.0
        x = jax.lax.reduce_window(x, start, pool, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = x if pool is jax.lax.max else x / 4
    x = x[0].transpose(2, 0, 1).ravel()
    x = jax.nn.relu(x @ params["dense1/kernel"] + params["dense1/bias"])
    return x @ params["dense2/kernel"] + params["dense2/bias"]


def test_maps_and_completeness_equal_the_authors_code():
    stored, params = reference.stored("fullgrad"), reference.parameters()
    networks = {
        "reference": reference.network,
        "batch_norm": partial(with_batch_norm, params, stored),
        "folded": partial(with_batch_norm, params, stored, folded=True),
    }

    def run(images, labels):
        return {
            name: tuple(explain(fn, images, labels, method=each) for each in ("fullgrad", full_gradient))
            for name, fn in networks.items()
        }

    found = jax.jit(run)(reference.images(), reference.labels())
    for name, (maps, full) in found.items():
        own = "reference" if name == "reference" else "batch_norm"
        close(maps, stored[f"{own}/maps"], err_msg=name)
        close(jax.vmap(total)(full), stored[f"{own}/total"], err_msg=name)
        close(jax.vmap(total)(full), full.score, atol=1e-5, err_msg=name)
        assert [key[4:8] for key in full.of_biases] == 4 * ["bias"]
    names = list(found["reference"][1].of_biases)
    assert names[:2] == ["000 bias conv1", "001 bias conv2"]
    shares = found["reference"][1].of_biases
    assert [value.shape[1:] for value in shares.values()] == [(1, 16, 16, 8), (1, 8, 8, 12), (24,), (5,)]


def transformer(image, heads=2):
    """A block with LayerNorm, attention, GELU and a class token, on patches of 2×2."""
    numbers = ("NHWC", "HWIO", "NHWC")
    x = (
        jax.lax.conv_general_dilated(image[None], KERNEL, (2, 2), "VALID", dimension_numbers=numbers)
        + BIASES[0][None, None, None]
    )
    x = jnp.concatenate([BIASES[1:2], x.reshape(6, 8)]) + 0.1 * jnp.arange(7)[:, None]
    y = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-3) * BIASES[2:3] + BIASES[3:4]
    q, k, v = ((y @ w + BIASES[4:5]).reshape(7, heads, -1) for w in MIXING)
    weights = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", q, k), -1)
    x = x + jnp.einsum("hqk,khd->qhd", weights, v).reshape(7, 8)
    x = x + jax.nn.gelu(x @ MIXING[0] + BIASES[5:6]) @ MIXING[1]
    return {"class": x[0] @ HEAD, "tokens": x}


def test_transformers_are_complete_and_have_maps_of_their_patches():
    target = lambda output: output["class"][1]  # noqa: E731
    run = jax.jit(lambda x: (full_gradient(transformer, x, target), fullgrad(transformer, x, target)))
    full, found = run(IMAGE)
    close(total(full), transformer(IMAGE)["class"][1], atol=1e-5)
    close(full.score, transformer(IMAGE)["class"][1])
    kinds = [name.split()[1] for name in full.of_biases]
    assert {kind: kinds.count(kind) for kind in ("activation", "normalization", "product")} == {
        "activation": 1,
        "normalization": 1,
        "product": 2,
    }
    assert found.shape == (4, 6, 1)

    # By hand: the map of the input, and of each bias over patches or tokens; then aligned corners.
    def scaled(values):
        values = np.abs(np.asarray(values, np.float64))
        return ((values - values.min()) / (values.max() - values.min() + 1e-6)).sum(-1)

    expected, coarse = scaled(full.of_input), np.zeros((2, 3))
    for kind, values in zip(kinds, full.of_biases.values(), strict=True):
        if kind in ("bias", "activation", "normalization") and values.size in (6 * 8, 7 * 8):
            coarse += scaled(values.reshape(-1, 8)[-6:].reshape(2, 3, 8))
    for y, x in np.ndindex(4, 6):
        row, column = y / 3, x * 2 / 5
        i, j = min(int(row), 0), min(int(column), 1)
        a, b = row - i, column - j
        corners = coarse[i : i + 2, j : j + 2]
        expected[y, x] += np.array([1 - a, a]) @ corners @ np.array([1 - b, b])
    close(found[..., 0], expected, rtol=1e-3)


def test_implicit_biases_in_closed_form():
    x = jnp.asarray([[-1.5, 0.5], [2.0, 3.0]], jnp.float32)
    cases = {
        "activation": (lambda x: jnp.tanh(x), np.tanh(x) - (1 - np.tanh(x) ** 2) * x),
        "product": (lambda x: jnp.sin(x) @ jnp.cos(x.T), -np.sin(x) @ np.cos(x.T)),
        "normalization": (lambda x: x / jnp.sqrt((x**2).sum()), x / np.sqrt((x**2).sum())),
        "bias": (
            lambda x: jnp.where(jnp.array([[True, False], [True, False]]), x, 7.0),
            np.array([[0.0, 7.0], [0.0, 7.0]]),
        ),
    }
    run = jax.jit(
        lambda x: {name: full_gradient(lambda x, f=f: f(x).sum(), x, lambda y: y) for name, (f, _) in cases.items()}
    )
    for kind, full in run(x).items():
        (found,) = [values for name, values in full.of_biases.items() if name.split()[1] == kind and values.ndim]
        if kind != "product":
            close(found, cases[kind][1])
        else:
            close(found, np.asarray(cases[kind][1]))
        close(total(full), full.score)


@pytest.mark.parametrize(
    "function",
    [
        jax.nn.relu,
        jax.nn.leaky_relu,
        lambda x: x * (x > 0),
        lambda x: jnp.where(x > 0, x, 0.1 * x),
        jnp.abs,
        lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2, 2), (2, 2), "VALID"),
        lambda x: jnp.maximum(x, x.T),
    ],
)
def test_homogeneous_operations_have_no_bias(function):
    shapes = jax.eval_shape(lambda x: full_gradient(lambda x: function(x).sum(), x, lambda y: y), jnp.ones((4, 4)))
    assert not shapes.of_biases


def test_any_input_and_refusals():
    tree = {"a": jnp.asarray([1.0, -2.0]), "b": jnp.asarray([[3.0]])}
    fn = lambda x: jnp.stack([(x["a"] * x["b"][0]).sum() + 4.0, x["a"].sum()])  # noqa: E731
    full = full_gradient(fn, tree, 0)
    close(full.of_input["a"], [3.0, -6.0])
    close(full.of_input["b"], [[-3.0]])
    close(sorted(float(v.sum()) for v in full.of_biases.values()), [3.0, 4.0])
    with pytest.raises(ValueError, match="fullgrad needs an input with positions"):
        fullgrad(fn, tree, 0)
    with pytest.raises(ValueError, match="fullgrad needs an input with positions"):
        fullgrad(lambda x: x @ jnp.ones((5, 2)), jnp.ones(5), 0)
    series = jax.eval_shape(lambda x: fullgrad(lambda x: jax.nn.gelu(x).mean(0), x, 0), jnp.ones((7, 3)))
    assert series.shape == (7, 1)
