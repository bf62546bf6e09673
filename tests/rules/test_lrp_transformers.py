"""Tests of LRP on transformers, gates and normalisations: float64, LXT, other ways to write them, conservation."""

from functools import partial

import equinox
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_network as reference
import tiny_transformer as tiny
from flax import nnx, traverse_util

from sdecor.attribution import lrp
from sdecor.models import ViT

close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
rng = np.random.default_rng(3)
PARAMS, IMAGE = tiny.weights(), jnp.asarray(tiny.image(), jnp.float32)
EPSILON = 0.01


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def relevance(fn, image=IMAGE, target=0, **options):
    return jax.jit(lambda x: lrp(fn, x, target, **options))(image)


def stable(z):
    return z + np.where(z < 0, -EPSILON, EPSILON)


def of_dense(x, w, z, given):
    """Return the relevance of x in `z = x @ w + …` by the rule "epsilon"."""
    return x * ((given / stable(z)) @ w.T)


def of_norm(x, scale, bias, given):
    """Return the relevance of x before a LayerNorm whose 1/σ is a constant."""
    mean = x.mean(-1, keepdims=True)
    centred = x - mean
    y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale + bias
    of_centred = (y - bias) * given / stable(y) / stable(centred)
    of_mean = -(mean * of_centred).sum(-1, keepdims=True)
    return x * of_centred + x / x.shape[-1] * of_mean / stable(mean)


class Block(tiny.Block):
    """A block with the relevance of its input, step by step from the formulas of AttnLRP."""

    def backward(self, given, softmax):
        shared = given / stable(self.result)
        of_active = of_dense(self.active, self.w["mlp2"], self.mlp, self.mlp * shared)
        of_y2 = of_dense(self.y2, self.w["mlp1"], self.hidden, of_active)  # GELU passes relevance unchanged
        of_middle = self.middle * shared
        of_middle = of_middle + of_norm(self.middle, self.w["norm2/scale"], self.w["norm2/bias"], of_y2)
        shared = of_middle / stable(self.middle)
        of_mixed = self.heads(of_dense(self.mixed.reshape(-1, 8), self.w["out"], self.out, self.out * shared))
        ratio, half = of_mixed / stable(self.mixed), 0.5 if softmax == "taylor" else 1.0
        given = {"value": half * self.v * np.einsum("hqk,qhd->khd", self.p, ratio)}
        if softmax == "taylor":
            of_p = 0.5 * self.p * np.einsum("qhd,khd->hqk", ratio, self.v)
            of_scores = self.scores * (of_p - self.p * of_p.sum(-1, keepdims=True))
            ratio = of_scores / stable(self.scores)
            given["query"] = 0.5 * self.q * np.einsum("hqk,khd->qhd", ratio, self.k)
            given["key"] = 0.5 * self.k * np.einsum("hqk,qhd->khd", ratio, self.q)
        of_y1 = 0
        for name, relevance in given.items():
            z = self.dense(self.y1, name)
            of_y1 = of_y1 + of_dense(self.y1, self.w[name], z, relevance.reshape(-1, 8))
        return self.x * shared + of_norm(self.x, self.w["norm1/scale"], self.w["norm1/bias"], of_y1)


def in_float64(target, softmax):
    """Return the relevance of the tiny transformer's image, written from the formulas."""
    image = tiny.image()
    embedded = tiny.patches_of(image) @ PARAMS["patches"]
    tokens = np.concatenate([PARAMS["token"], embedded])
    x, blocks = tokens + PARAMS["positions"], []
    for i in range(tiny.BLOCKS):
        blocks.append(Block(PARAMS, i, x))
        x = blocks[-1].result
    y = tiny.normalised(x, PARAMS["norm/scale"], PARAMS["norm/bias"])[0]
    z = y @ PARAMS["head"][:, target] + PARAMS["head_bias"][0, target]
    given = np.zeros_like(x)
    given[0] = y * PARAMS["head"][:, target] * z / stable(z)
    given = of_norm(x, PARAMS["norm/scale"], PARAMS["norm/bias"], given)
    for block in blocks[::-1]:
        given = block.backward(given, softmax)
    given = (tokens * given / stable(tokens + PARAMS["positions"]))[1:]
    of_patches = of_dense(tiny.patches_of(image), PARAMS["patches"], embedded, given)
    return of_patches.reshape(2, 2, 4, 4, 3).transpose(0, 2, 1, 3, 4).reshape(tiny.SHAPE), z


@pytest.mark.parametrize("softmax", ["taylor", "constant"])
def test_attention_in_float64(softmax):
    options = {"rule": "epsilon", "epsilon": EPSILON, "softmax": softmax, "with_error": True}
    for target in (0, 2):
        expected, score = in_float64(target, softmax)
        found, error = relevance(partial(tiny.apply, PARAMS), target=target, **options)
        assert np.abs(expected).max() > 0.01
        close(found, expected, atol=1e-4 * np.abs(expected).max())
        close(error, expected.sum() - score, atol=1e-4)


@pytest.mark.parametrize("way", tiny.WAYS)
def test_attention_is_recognised_in_every_form(way):
    """Queries are scaled by 1/2 before; a scale does not change relevance if ε is 0."""
    assert tiny.WIDTH // tiny.HEADS == 4
    options = {"rule": "epsilon", "epsilon": 0.0}
    expected = relevance(partial(tiny.apply, PARAMS, blocks=1), **options)
    close(relevance(partial(tiny.apply, PARAMS, blocks=1, **tiny.WAYS[way]), **options), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["attn_lrp", "vit"])
def test_equals_lxt(name):
    """LXT's recipe for vision transformers has no γ in the layers of the attention itself."""
    given = reference.stored("lxt_transformers")
    weights = {key: value for key, value in given.items() if "/" in key or key in ("class_token", "positions")}
    params = traverse_util.unflatten_dict(weights, sep="/")
    model = ViT(num_classes=3, width=8, depth=2, heads=2, patch_size=4, mlp_ratio=2)

    def fn(image):
        return model.apply({"params": params}, image[None])[0][0]

    def recipe(layer):
        return "epsilon" if "attention" in layer.scope else "gamma"

    options = (
        {"rule": recipe, "gamma": {"dense": 0.05}, "softmax": "constant"} if name == "vit" else {"rule": "epsilon"}
    )
    images = jnp.asarray(given["images"])
    close(jax.vmap(fn)(images), given["logits"], rtol=1e-4)
    found = jax.jit(jax.vmap(lambda x, y: lrp(fn, x, y, epsilon=0.0, **options)))(images, jnp.arange(3))
    assert np.abs(given[name]).max() > 0.05
    close(found, given[name], atol=1e-4)


def test_relevance_is_conserved_if_attention_weights_are_constants():
    """Biases, positions and the class token, which absorb relevance, are 0."""
    absorbing = ("bias", "positions", "token")
    params = {name: 0 * value if name.endswith(absorbing) else value for name, value in PARAMS.items()}
    found, error = relevance(
        partial(tiny.apply, params, blocks=1), epsilon=0.0, softmax="constant", rule="gamma", with_error=True
    )
    assert abs(error) < 1e-4 * float(jnp.abs(found).sum()) and abs(found.sum()) > 1e-2


VECTOR, HEAD = rng.normal(size=8), rng.normal(size=(8, 2))
GATE = 1 / (1 + np.exp(-VECTOR[::-1]))
PROBABILITIES = np.exp(VECTOR) / np.exp(VECTOR).sum()
SECOND = np.arange(8) == 1
# Operations on a vector, with the relevance of the vector for the head's class 1, or for the operation's output 1.
OPERATIONS = {
    "rms_norm": (lambda x: x * jax.lax.rsqrt((x**2).mean()), VECTOR / np.sqrt((VECTOR**2).mean()) * HEAD[:, 1]),
    "by_a_power": (lambda x: x * (x**2).mean() ** -0.5, VECTOR / np.sqrt((VECTOR**2).mean()) * HEAD[:, 1]),
    "by_a_reciprocal": (lambda x: x * (1 / jnp.sqrt((x**2).sum())), VECTOR / np.linalg.norm(VECTOR) * HEAD[:, 1]),
    "cosine": (lambda x: x / jnp.linalg.norm(x), VECTOR / np.linalg.norm(VECTOR) * HEAD[:, 1]),
    "product": (
        lambda x: x * x[::-1],
        (VECTOR * VECTOR[::-1] * HEAD[:, 1] + (VECTOR * VECTOR[::-1] * HEAD[:, 1])[::-1]) / 2,
    ),
    "gate": (
        lambda x: x * jax.nn.sigmoid(x[::-1]),
        (VECTOR * GATE * HEAD[:, 1] + (VECTOR * GATE * HEAD[:, 1])[::-1]) / 2,
    ),
    "glu": (
        lambda x: jax.nn.glu(jnp.concatenate([x, x[::-1]])),
        (VECTOR * GATE * HEAD[:, 1] + (VECTOR * GATE * HEAD[:, 1])[::-1]) / 2,
    ),
    "silu": (jax.nn.silu, VECTOR / (1 + np.exp(-VECTOR)) * HEAD[:, 1]),
    "cosine_function": (jnp.cos, np.cos(VECTOR) * HEAD[:, 1]),
    "softmax": (jax.nn.softmax, VECTOR * PROBABILITIES[1] * (SECOND - PROBABILITIES)),
    "log_softmax": (jax.nn.log_softmax, VECTOR * (SECOND - PROBABILITIES)),
    "logsumexp": (lambda x: jax.nn.logsumexp(x, keepdims=True) * jnp.ones(2), VECTOR * PROBABILITIES),
    "entropy_weights": (lambda x: jnp.stack([x[0], (jax.nn.softmax(x) * x).sum()]), None),
}
HEADS = ("softmax", "log_softmax", "logsumexp", "entropy_weights")  # outputs that are explained themselves
_PRODUCT = PROBABILITIES * VECTOR
OPERATIONS["entropy_weights"] = (
    OPERATIONS["entropy_weights"][0],
    _PRODUCT / 2 + VECTOR * (_PRODUCT / 2 - PROBABILITIES * _PRODUCT.sum() / 2),
)


def test_operations_in_closed_form():
    head = jnp.asarray(HEAD, jnp.float32)

    def explained(name):
        operation = OPERATIONS[name][0]
        network = (lambda x: operation(x.ravel())) if name in HEADS else (lambda x: operation(x.ravel()) @ head)
        return lambda x: lrp(network, x, 1, rule="epsilon", epsilon=0.0).ravel()

    image = jnp.asarray(VECTOR.reshape(2, 2, 2), jnp.float32)
    found = jax.jit(lambda x: {name: explained(name)(x) for name in OPERATIONS})(image)
    for name, (_, expected) in OPERATIONS.items():
        close(found[name], expected, err_msg=name)


def test_constant_weights_pass_all_relevance_to_what_they_weight():
    network = lambda x: (jax.nn.softmax(x.ravel()) * x.ravel()).sum(keepdims=True)  # noqa: E731
    found = lrp(network, jnp.asarray(VECTOR.reshape(2, 2, 2), jnp.float32), 0, epsilon=0.0, softmax="constant")
    close(found.ravel(), PROBABILITIES * VECTOR)


def test_a_sum_of_cancelling_values_is_stabilised():
    """An exact 0 passes no relevance, and nothing is infinite or NaN."""
    gated = lambda x: (x.ravel() * jax.nn.sigmoid(0 * x.ravel()[::-1])).sum(keepdims=True)  # noqa: E731
    for epsilon in (0.0, 1e-6):
        found = lrp(gated, jnp.asarray(VECTOR.reshape(2, 2, 2), jnp.float32), 0, epsilon=epsilon)
        close(found.ravel(), VECTOR / 4, rtol=1e-3)


class SqueezeExcitation(nn.Module):
    """A convolution, GroupNorm and InstanceNorm, and a gate of each channel by all channels' means."""

    @nn.compact
    def __call__(self, x):
        x = nn.GroupNorm(num_groups=2)(nn.Conv(4, (3, 3))(x))
        x = nn.silu(nn.InstanceNorm()(nn.silu(x)))
        gate = nn.sigmoid(nn.Dense(4)(nn.tanh(nn.Dense(2)(x.mean((1, 2))))))
        return nn.Dense(3)((x * gate[:, None, None]).mean((1, 2)))


class Attentive(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.norm = nnx.RMSNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(num_heads=2, in_features=8, decode=False, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, tokens):
        return self.head((tokens + self.attention(self.norm(tokens))).mean(0))


class Modular(equinox.Module):
    norm: equinox.nn.LayerNorm
    attention: equinox.nn.MultiheadAttention
    head: equinox.nn.Linear

    def __init__(self):
        first, second = jax.random.split(jax.random.key(0))
        self.norm = equinox.nn.LayerNorm(8)
        self.attention = equinox.nn.MultiheadAttention(2, 8, key=first)
        self.head = equinox.nn.Linear(8, 3, key=second)

    def __call__(self, tokens):
        y = jax.vmap(self.norm)(tokens)
        return self.head((tokens + self.attention(y, y, y)).mean(0))


def written_out(module):
    """Return an NNX or Equinox module above as plain operations with its weights."""
    if isinstance(module, Attentive):
        names = ("query", "key", "value")
        kernels = [jnp.asarray(getattr(module.attention, name).kernel[...]).reshape(8, 8) for name in names]
        out, head = module.attention.out.kernel[...].reshape(8, 8), module.head.kernel[...]
        norm = lambda x: x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)  # noqa: E731
    else:
        projections = (module.attention.query_proj, module.attention.key_proj, module.attention.value_proj)
        kernels = [projection.weight.T for projection in projections]
        out, head = module.attention.output_proj.weight.T, module.head.weight.T
        norm = lambda x: tiny.layer_norm(x, jnp.ones((1, 8)), jnp.zeros((1, 8)))  # noqa: E731

    def network(tokens):
        q, k, v = ((norm(tokens) @ kernel).reshape(-1, 2, 4) for kernel in kernels)
        mixed = tiny.by_hand(q / 2, k, v).reshape(-1, 8)
        bias = 0.0 if isinstance(module, Attentive) else module.head.bias
        return (tokens + mixed @ out).mean(0) @ head + bias

    return network


@pytest.mark.full
@pytest.mark.parametrize("kind", [Attentive, Modular])
def test_modules_of_nnx_and_equinox(kind):
    """Their relevance is that of their formula; the norms differ in ε only."""
    module, tokens = kind(), jnp.asarray(rng.normal(size=(2, 3, 8)), jnp.float32)
    explained = [
        lambda x, fn=fn: lrp(lambda image: fn(image.reshape(-1, 8)), x, 1, rule="epsilon", epsilon=0.0)
        for fn in (module, written_out(module))
    ]
    found, expected = jax.jit(lambda x: [one(x) for one in explained])(tokens)
    assert np.abs(expected).max() > 0.01
    close(found, expected, atol=1e-4)


@pytest.mark.full
def test_norms_and_gates_of_convolutional_networks():
    module, image = SqueezeExcitation(), jnp.asarray(rng.normal(size=(6, 6, 3)), jnp.float32)
    variables = module.init(jax.random.key(0), image[None])  # biases are 0
    found, error = relevance(lambda x: module.apply(variables, x[None])[0], image, epsilon=0.0, with_error=True)
    assert abs(found.sum()) > 1e-3
    assert abs(error) < 1e-4 * float(jnp.abs(found).sum())
