"""A tiny vision transformer in plain JAX, with LayerNorm, attention, GELU and a class token, and its weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

SHAPE, CLASSES, PATCH, WIDTH, HEADS, BLOCKS = (8, 8, 3), 3, 4, 8, 2, 2


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Return float64 weights by name; block `i` has the prefix `i/`."""
    rng = np.random.default_rng(seed)
    shapes = {"patches": (PATCH * PATCH * 3, WIDTH), "token": (1, WIDTH), "positions": (5, WIDTH)}
    shapes |= {"norm/scale": (1, WIDTH), "norm/bias": (1, WIDTH), "head": (WIDTH, CLASSES), "head_bias": (1, CLASSES)}
    for i in range(BLOCKS):
        shapes |= {f"{i}/{name}": (WIDTH, WIDTH) for name in ("query", "key", "value", "out")}
        shapes |= {f"{i}/{name}_bias": (1, WIDTH) for name in ("query", "key", "value", "out", "mlp2")}
        shapes |= {f"{i}/norm{j}/{name}": (1, WIDTH) for j in (1, 2) for name in ("scale", "bias")}
        shapes |= {f"{i}/mlp1": (WIDTH, 2 * WIDTH), f"{i}/mlp1_bias": (1, 2 * WIDTH), f"{i}/mlp2": (2 * WIDTH, WIDTH)}
    drawn = {name: rng.normal(size=shape) / np.sqrt(shape[0]) for name, shape in shapes.items()}
    return {name: 1 + x if name.endswith("scale") else x for name, x in drawn.items()}


def image(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE)


def patches_of(x):
    """Return square patches `[4, 48]` of an image, for NumPy and JAX."""
    return x.reshape(2, PATCH, 2, PATCH, 3).transpose(0, 2, 1, 3, 4).reshape(4, -1)


def by_hand(q, k, v):
    """Attention `[T, H, D]` of scaled queries, keys and values, from its formula."""
    scores = jnp.einsum("qhd,khd->hqk", q, k)
    exponentials = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    return jnp.einsum("hqk,khd->qhd", exponentials / exponentials.sum(-1, keepdims=True), v)


def layer_norm(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale + bias


def apply(params, x, attention=by_hand, norm=layer_norm, blocks=BLOCKS):
    """Return the logits `[3]` of one image `[8, 8, 3]`."""
    params = {name: jnp.asarray(value, x.dtype) for name, value in params.items()}
    x = jnp.concatenate([params["token"], patches_of(x) @ params["patches"]]) + params["positions"]

    def heads(y, i, name):
        return (y @ params[f"{i}/{name}"] + params[f"{i}/{name}_bias"]).reshape(-1, HEADS, WIDTH // HEADS)

    for i in range(blocks):
        y = norm(x, params[f"{i}/norm1/scale"], params[f"{i}/norm1/bias"])
        q, k, v = heads(y, i, "query") / np.sqrt(WIDTH // HEADS), heads(y, i, "key"), heads(y, i, "value")
        y = attention(q, k, v).reshape(-1, WIDTH)
        x = x + (y @ params[f"{i}/out"] + params[f"{i}/out_bias"])
        y = norm(x, params[f"{i}/norm2/scale"], params[f"{i}/norm2/bias"])
        y = jax.nn.gelu(y @ params[f"{i}/mlp1"] + params[f"{i}/mlp1_bias"])
        x = x + (y @ params[f"{i}/mlp2"] + params[f"{i}/mlp2_bias"])
    return norm(x, params["norm/scale"], params["norm/bias"])[0] @ params["head"] + params["head_bias"][0]


def masked(q, k, v):
    """Attention with a mask that hides nothing, weights set to 0 after the exponential, and another order of axes."""
    scores = jnp.where(jnp.ones((1, 5, 5), bool), jnp.einsum("khd,qhd->hqk", k, q), -jnp.inf)
    exponentials = jnp.exp(scores - scores.max(-1, keepdims=True)) * jnp.ones((1, 5, 5))
    weights = exponentials / (exponentials.sum(-1, keepdims=True) + 0.0)
    return jnp.einsum("khd,hqk->qhd", v, weights)


def batched(q, k, v):
    """`jax.nn.dot_product_attention`, which scales the queries itself."""
    root = np.sqrt(q.shape[-1])
    return jax.nn.dot_product_attention(root * q[None], k[None], v[None])[0]


def by_softmax(q, k, v):
    return jnp.einsum("hqk,khd->qhd", jax.nn.softmax(jnp.einsum("qhd,khd->hqk", q, k)), v)


def linen_norm(x, scale, bias):
    return nn.LayerNorm(epsilon=1e-6).apply({"params": {"scale": scale[0], "bias": bias[0]}}, x)


WAYS = {
    "softmax": {"attention": by_softmax},
    "masked": {"attention": masked},
    "dot_product_attention": {"attention": batched},
    "linen": {
        "attention": lambda q, k, v: nn.dot_product_attention(2 * q[None], k[None], v[None])[0],
        "norm": linen_norm,
    },
    "nnx": {
        "attention": lambda q, k, v: nnx.dot_product_attention(2 * q[None], k[None], v[None])[0],
        "norm": lambda x, scale, bias: jax.nn.standardize(x, epsilon=1e-6) * scale + bias,
    },
}


def normalised(x, scale, bias):
    """Return LayerNorm in float64."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale + bias


class Block:
    """The values of one block in float64; `change [H, T, T]` is added to the attention weights."""

    def __init__(self, params, i, x, change=0.0):
        self.w = {name.removeprefix(f"{i}/"): value for name, value in params.items() if name.startswith(f"{i}/")}
        self.x = x
        self.y1 = self.norm(x, "norm1")
        self.q, self.k, self.v = (self.heads(self.dense(self.y1, name)) for name in ("query", "key", "value"))
        self.q = self.q / np.sqrt(WIDTH // HEADS)
        self.scores = np.einsum("qhd,khd->hqk", self.q, self.k)
        exponentials = np.exp(self.scores - self.scores.max(-1, keepdims=True))
        self.p = exponentials / exponentials.sum(-1, keepdims=True) + change
        self.mixed = np.einsum("hqk,khd->qhd", self.p, self.v)
        self.out = self.dense(self.mixed.reshape(-1, WIDTH), "out")
        self.middle = x + self.out
        self.y2 = self.norm(self.middle, "norm2")
        self.hidden = self.dense(self.y2, "mlp1")
        cube = np.sqrt(2 / np.pi) * (self.hidden + 0.044715 * self.hidden**3)
        self.active = self.hidden * (1 + np.tanh(cube)) / 2
        self.mlp = self.dense(self.active, "mlp2")
        self.result = self.middle + self.mlp

    def dense(self, x, name):
        return x @ self.w[name] + self.w[f"{name}_bias"]

    def norm(self, x, name):
        return normalised(x, self.w[f"{name}/scale"], self.w[f"{name}/bias"])

    @staticmethod
    def heads(x):
        return x.reshape(-1, HEADS, WIDTH // HEADS)
