"""Tiny networks of many kinds, `image [8, 8, 3] -> logits [4]`, for the table of docs/networks.md.

The first ones are one and the same network in several libraries and under several transformations of JAX. An
attribution of each must equal that of its twin, which is written plainly. The others have what real networks have:
normalisations, gates, attention.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

SHAPE, CLASSES, WIDTH, TOKENS, HEADS = (8, 8, 3), 4, 8, 16, 2
Fn = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of network.

    Attributes:
      title: name in the table.
      build: function that returns the network.
      twin: function that returns the same network written plainly, whose attributions must be equal; None = none.
      tolerance: largest difference to the twin's attribution, as a share of its largest value. It is large for
        bfloat16, where a ReLU whose input is nearly 0 may switch.
    """

    title: str
    build: Callable[[], Fn]
    twin: Callable[[], Fn] | None = None
    tolerance: float = 1e-3


# One CNN: three convolutions with a ReLU each, the mean over positions, and a linear layer.


def cnn_weights() -> dict[str, np.ndarray]:
    """Return the weights of the CNN: kernels `[3, 3, I, O]`, biases, and a head."""
    rng = np.random.default_rng(0)
    shapes = {"stem": (3, 3, 3, WIDTH), "block0": (3, 3, WIDTH, WIDTH), "block1": (3, 3, WIDTH, WIDTH)}
    drawn = {name: rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:3])) for name, shape in shapes.items()}
    drawn |= {f"{name}_bias": 0.1 * rng.normal(size=WIDTH) for name in shapes}
    drawn |= {"head": rng.normal(size=(WIDTH, CLASSES)), "head_bias": 0.1 * rng.normal(size=CLASSES)}
    return {name: value.astype(np.float32) for name, value in drawn.items()}


def convolve(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, groups: int = 1) -> jax.Array:
    """Convolve `x [H, W, I]` with a kernel, with borders of zeros."""
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": groups}
    x = lax.conv_general_dilated(x[None], jnp.asarray(kernel, x.dtype), (1, 1), "SAME", **options)[0]
    return x if bias is None else x + jnp.asarray(bias, x.dtype)[None, None]


def classify(x: jax.Array) -> jax.Array:
    """Return the logits of a map `[H, W, D]`: the mean over positions, and a linear layer."""
    weights = cnn_weights()
    return x.mean((0, 1)) @ jnp.asarray(weights["head"], x.dtype) + jnp.asarray(weights["head_bias"], x.dtype)


def plain(relu: Callable = jax.nn.relu, dtype: Any = jnp.float32, blocks: tuple[str, ...] = ("block0", "block1")) -> Fn:
    """Return the CNN in plain JAX."""
    weights = cnn_weights()

    def fn(image: jax.Array) -> jax.Array:
        x = image.astype(dtype)
        for name in ("stem", *blocks):
            x = relu(convolve(x, weights[name], weights[f"{name}_bias"]))
        return classify(x)

    return fn


def tied() -> Fn:
    """Return a CNN that applies one block twice, in a loop over a function."""
    weights = cnn_weights()

    def fn(image: jax.Array) -> jax.Array:
        block = jax.jit(lambda x: jax.nn.relu(convolve(x, weights["block0"], weights["block0_bias"])))
        return classify(block(block(jax.nn.relu(convolve(image, weights["stem"], weights["stem_bias"])))))

    return fn


def scanned() -> Fn:
    """Return the CNN with its two blocks in a `lax.scan` over `jax.checkpoint`."""
    weights = cnn_weights()
    stacked = [np.stack([weights[f"block{i}{end}"] for i in range(2)]) for end in ("", "_bias")]

    @jax.checkpoint
    def block(x: jax.Array, own: Any) -> tuple[jax.Array, None]:
        return jax.nn.relu(convolve(x, *own)), None

    def fn(image: jax.Array) -> jax.Array:
        x = jax.nn.relu(convolve(image, weights["stem"], weights["stem_bias"]))
        return classify(lax.scan(block, x, tuple(map(jnp.asarray, stacked)))[0])

    return fn


def own_relu(how: Callable) -> Callable:
    """Return a ReLU with a derivative of its own, by `jax.custom_jvp` or `jax.custom_vjp`."""
    relu = how(lambda x: jnp.maximum(x, 0))
    if how is jax.custom_jvp:
        relu.defjvp(lambda primals, tangents: (relu(*primals), jnp.where(primals[0] > 0, tangents[0], 0)))
    else:
        relu.defvjp(lambda x: (jnp.maximum(x, 0), x > 0), lambda above, g: (jnp.where(above, g, 0),))
    return relu


class LinenBlock(nn.Module):
    """A convolution and a ReLU, in the form that `nn.scan` takes."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        return nn.relu(nn.Conv(WIDTH, (3, 3))(x)), None


class LinenCNN(nn.Module):
    """The CNN in Flax Linen; `lift` is "plain", "remat" or "scan"."""

    lift: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(WIDTH, (3, 3), name="stem")(x))
        if self.lift == "scan":
            over = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": 2}
            x, _ = nn.scan(LinenBlock, **over)(name="blocks")(x, None)
        else:
            for i in range(2):
                x, _ = (nn.remat(LinenBlock) if self.lift == "remat" else LinenBlock)(name=f"block{i}")(x)
        return nn.Dense(CLASSES, name="head")(x.mean((1, 2)))


def linen(lift: str = "plain") -> Fn:
    """Return the CNN in Flax Linen."""
    weights = cnn_weights()

    def layer(name: str) -> dict[str, np.ndarray]:
        return {"kernel": weights[name], "bias": weights[f"{name}_bias"]}

    blocks = {f"block{i}": {"Conv_0": layer(f"block{i}")} for i in range(2)}
    if lift == "scan":
        blocks = {"blocks": jax.tree.map(lambda *each: np.stack(each), *blocks.values())}
    params = {"stem": layer("stem"), "head": layer("head"), **blocks}
    return lambda image: LinenCNN(lift).apply({"params": params}, image[None])[0]


class NnxCNN(nnx.Module):
    """The CNN in Flax NNX."""

    def __init__(self, lift: Callable = lambda block: block):
        rngs, weights, empty = nnx.Rngs(0), cnn_weights(), {"kernel_init": nnx.initializers.zeros_init()}
        sizes = {"stem": 3, "block0": WIDTH, "block1": WIDTH}
        layers = [nnx.Conv(size, WIDTH, (3, 3), rngs=rngs, **empty) for size in sizes.values()]
        self.convolutions, self.head = nnx.List(layers), nnx.Linear(WIDTH, CLASSES, rngs=rngs, **empty)
        self.lift = lift
        for layer, name in zip((*layers, self.head), (*sizes, "head"), strict=True):
            layer.kernel[...], layer.bias[...] = weights[name], weights[f"{name}_bias"]

    def __call__(self, x: jax.Array) -> jax.Array:
        block = self.lift(lambda convolution, x: nnx.relu(convolution(x)))
        for convolution in self.convolutions:
            x = block(convolution, x)
        return self.head(x.mean((1, 2)))


def nnx_cnn(lift: Callable = lambda block: block) -> Fn:
    """Return the CNN in Flax NNX; the function closes over the module."""
    model = NnxCNN(lift)
    return lambda image: model(image[None])[0]


def nnx_split(lift: Callable = lambda block: block) -> Fn:
    """Return the NNX CNN as a jitted function of its state."""
    graph, state = nnx.split(NnxCNN(lift))
    apply = jax.jit(lambda state, x: nnx.merge(graph, state, copy=True)(x))
    return lambda image: apply(state, image[None])[0]


class EquinoxCNN(eqx.Module):
    """The CNN in Equinox: channels first."""

    convolutions: list
    head: eqx.nn.Linear

    def __init__(self):
        key = jax.random.key(0)
        self.convolutions = [eqx.nn.Conv2d(size, WIDTH, 3, padding=1, key=key) for size in (3, WIDTH, WIDTH)]
        self.head = eqx.nn.Linear(WIDTH, CLASSES, key=key)

    def __call__(self, x: jax.Array) -> jax.Array:
        for convolution in self.convolutions:
            x = jax.nn.relu(convolution(x))
        return self.head(x.mean((1, 2)))


def equinox(lift: Callable = lambda model: model) -> Fn:
    """Return the CNN in Equinox."""
    weights = cnn_weights()
    found = [each for name in ("stem", "block0", "block1") for each in (weights[name], weights[f"{name}_bias"])]
    found = [each.transpose(3, 2, 0, 1) if each.ndim == 4 else each[:, None, None] for each in found]
    leaves = [jnp.asarray(each) for each in (*found, weights["head"].T, weights["head_bias"])]
    structure = jax.tree.structure(eqx.filter_eval_shape(EquinoxCNN))
    model = lift(jax.tree.unflatten(structure, leaves))
    return lambda image: model(image.transpose(2, 0, 1))


# Parts of real networks, with random weights.


def drawn(shapes: Any) -> Any:
    """Return weights for a tree of shapes: random everywhere, scales and variances around 1."""
    rng = np.random.default_rng(1)

    def draw(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):  # a plain number among the fields of a module
            return leaf
        name, noise = jax.tree_util.keystr(path), rng.normal(size=leaf.shape)
        if "scale" in name or "var" in name:
            noise = 1 + 0.3 * np.tanh(noise)
        elif leaf.ndim < 2:
            noise = 0.2 * noise
        elif "embedding" not in name:
            noise = noise / np.sqrt(noise.size / leaf.shape[-1])
        return jnp.asarray(noise, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


class Net(nn.Module):
    """A Linen network, `body(images [1, H, W, 3]) -> logits [1, K]`."""

    body: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.body(x)


def of(body: Callable[[jax.Array], jax.Array]) -> Callable[[], Fn]:
    """Return a function that returns a Linen network with random weights."""

    def build() -> Fn:
        model = Net(body)
        variables = drawn(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *SHAPE))))
        return lambda image: model.apply(variables, image[None])[0]

    return build


def conv(x: jax.Array, width: int = WIDTH, size: int = 3, **options: Any) -> jax.Array:
    return nn.Conv(width, (size, size), **options)(x)


def pooled(x: jax.Array) -> jax.Array:
    return nn.Dense(CLASSES)(x.mean((1, 2)))


def normalised(norm: Callable[[], nn.Module]) -> Callable[[jax.Array], jax.Array]:
    """Return a CNN with a normalisation between each convolution and its ReLU."""
    return lambda x: pooled(nn.relu(norm()(conv(nn.relu(norm()(conv(x)))))))


BATCH_NORM = partial(nn.BatchNorm, use_running_average=True)


def resnet(x: jax.Array) -> jax.Array:
    x = nn.relu(BATCH_NORM()(conv(x)))
    for stride in (1, 2):
        y = nn.relu(BATCH_NORM()(conv(x, strides=stride)))
        short = x if stride == 1 else conv(x, size=1, strides=stride)
        x = nn.relu(short + BATCH_NORM()(conv(y)))
    return pooled(x)


def max_pooling(x: jax.Array) -> jax.Array:
    return pooled(nn.relu(conv(nn.max_pool(nn.relu(conv(x)), (2, 2), (2, 2)))))


def squeeze_and_excitation(x: jax.Array) -> jax.Array:
    x = nn.relu(conv(x))
    gate = nn.sigmoid(nn.Dense(WIDTH)(nn.relu(nn.Dense(4)(x.mean((1, 2))))))
    return pooled(nn.relu(conv(x * gate[:, None, None])))


def convnext(x: jax.Array) -> jax.Array:
    x = conv(x, size=2, strides=2)
    y = nn.LayerNorm()(conv(x, feature_group_count=WIDTH))
    return pooled(nn.LayerNorm()(x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(2 * WIDTH)(y)))))


def hard_swish(x: jax.Array) -> jax.Array:
    return pooled(nn.hard_swish(conv(nn.hard_swish(conv(x)))))


def perceptron(x: jax.Array) -> jax.Array:
    return nn.Dense(CLASSES)(nn.relu(nn.Dense(16)(x.reshape(1, -1))))


def tokens_of(x: jax.Array) -> jax.Array:
    """Return patch embeddings `[1, 16, D]`."""
    return conv(x, size=2, strides=2, padding="VALID", name="patches").reshape(1, TOKENS, WIDTH)


def mixer(x: jax.Array) -> jax.Array:
    x = tokens_of(x)
    y = nn.LayerNorm()(x).swapaxes(1, 2)
    x = x + nn.Dense(TOKENS)(nn.gelu(nn.Dense(2 * TOKENS)(y))).swapaxes(1, 2)
    x = x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(2 * WIDTH)(nn.LayerNorm()(x))))
    return nn.Dense(CLASSES)(nn.LayerNorm()(x).mean(1))


def block(x: jax.Array, norm: Callable[[], nn.Module] = nn.LayerNorm) -> jax.Array:
    x = x + nn.MultiHeadDotProductAttention(HEADS)(norm()(x))
    return x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(2 * WIDTH)(norm()(x))))


def vit(extra: int, norm: Callable[[], nn.Module] = nn.LayerNorm) -> Callable[[jax.Array], jax.Array]:
    """Return a vision transformer that classifies by its first extra token, or without any by the mean of all."""

    def body(x: jax.Array) -> jax.Array:
        more = nn.Embed(max(extra, 1), WIDTH, name="extra")(jnp.arange(extra))[None]
        x = jnp.concatenate([more, tokens_of(x) + nn.Embed(TOKENS, WIDTH, name="places")(jnp.arange(TOKENS))[None]], 1)
        x = norm()(block(block(x, norm), norm))
        return nn.Dense(CLASSES)(x[:, 0] if extra else x.mean(1))

    return body


def swin(x: jax.Array) -> jax.Array:
    windows = tokens_of(x).reshape(2, 2, 2, 2, WIDTH).swapaxes(1, 2).reshape(4, 4, WIDTH)
    x = block(windows)
    x = nn.Dense(WIDTH)(x.reshape(1, 4, 4 * WIDTH))  # each window becomes one token
    return nn.Dense(CLASSES)(nn.LayerNorm()(block(x)).mean(1))


def recurrent(x: jax.Array) -> jax.Array:
    x = nn.RNN(nn.SimpleCell(WIDTH))(tokens_of(x))
    return nn.Dense(CLASSES)(x[:, -1])


def cosine_head(x: jax.Array) -> jax.Array:
    x = nn.relu(conv(nn.relu(conv(x)))).mean((1, 2))
    weights = nn.Embed(CLASSES, WIDTH)(jnp.arange(CLASSES))
    unit = [each / jnp.linalg.norm(each, axis=-1, keepdims=True) for each in (x, weights)]
    return 10 * unit[0] @ unit[1].T


def probabilities(x: jax.Array) -> jax.Array:
    return nn.softmax(pooled(nn.relu(conv(x))))


def two_logits(x: jax.Array) -> jax.Array:
    return nn.Dense(2)(nn.relu(conv(x)).mean((1, 2)))


def single_logit(x: jax.Array) -> jax.Array:
    return nn.Dense(1)(nn.relu(conv(x)).mean((1, 2)))


class NnxTransformer(nnx.Module):
    """A transformer block with NNX's attention."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.patches = nnx.Conv(3, WIDTH, (2, 2), strides=2, padding="VALID", rngs=rngs)
        self.attend = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.norm, self.last = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.patches(x).reshape(1, TOKENS, WIDTH)
        return self.head(self.last(x + self.attend(self.norm(x))).mean(1))


def attention_nnx() -> Fn:
    """Return a transformer with NNX's attention."""
    graph, shapes = nnx.split(nnx.eval_shape(NnxTransformer))
    model = nnx.merge(graph, drawn(shapes))
    return lambda image: model(image[None])[0]


class EquinoxTransformer(eqx.Module):
    """A transformer block with Equinox's attention, channels first."""

    patches: eqx.nn.Conv2d
    attend: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self):
        key = jax.random.key(0)
        self.patches = eqx.nn.Conv2d(3, WIDTH, 2, stride=2, key=key)
        self.attend = eqx.nn.MultiheadAttention(HEADS, WIDTH, key=key)
        self.norm, self.head = eqx.nn.LayerNorm(WIDTH), eqx.nn.Linear(WIDTH, CLASSES, key=key)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.patches(x).reshape(WIDTH, TOKENS).T
        y = jax.vmap(self.norm)(x)
        return self.head(jax.vmap(self.norm)(x + self.attend(y, y, y)).mean(0))


def attention_equinox() -> Fn:
    """Return a transformer with Equinox's attention."""
    model = drawn(eqx.filter_eval_shape(EquinoxTransformer))
    return lambda image: model(image.transpose(2, 0, 1))


def loop() -> Fn:
    """Return the CNN with its second block in a `lax.while_loop`, which JAX cannot differentiate backward."""
    weights = cnn_weights()

    def fn(image: jax.Array) -> jax.Array:
        x = jax.nn.relu(convolve(image, weights["stem"], weights["stem_bias"]))

        def again(state: Any) -> Any:
            return state[0] + 1, jax.nn.relu(convolve(state[1], weights["block0"], weights["block0_bias"]))

        return classify(lax.while_loop(lambda state: state[0] < 2, again, (0, x))[1])

    return fn


def branch() -> Fn:
    """Return the CNN with a `lax.cond` that depends on the image."""
    cnn = plain()
    return lambda image: lax.cond(image.mean() > 0, cnn, lambda image: 2 * cnn(image), image)


plain = plain
KINDS: dict[str, Kind] = {
    "plain": Kind("plain JAX", plain),
    "jit": Kind("`jax.jit`", lambda: jax.jit(plain()), plain),
    "vmap": Kind("`jax.vmap` inside", lambda: lambda image: jax.vmap(plain())(image[None])[0], plain),
    "scan": Kind("`lax.scan` over `jax.checkpoint`", scanned, plain),
    "custom_jvp": Kind("`custom_jvp` ReLU", lambda: plain(own_relu(jax.custom_jvp)), plain),
    "custom_vjp": Kind("`custom_vjp` ReLU", lambda: plain(own_relu(jax.custom_vjp)), plain),
    "bfloat16": Kind("bfloat16", lambda: plain(dtype=jnp.bfloat16), plain, 0.35),
    "tied": Kind("tied weights", tied, lambda: plain(blocks=("block0", "block0"))),
    "linen": Kind("Linen", linen, plain),
    "linen_remat": Kind("Linen, `nn.remat`", lambda: linen("remat"), plain),
    "linen_scan": Kind("Linen, `nn.scan`", lambda: linen("scan"), plain),
    "nnx": Kind("NNX", nnx_cnn, plain),
    "nnx_split": Kind("NNX, `jax.jit` with the state as an argument", nnx_split, plain),
    "nnx_split_jit": Kind("NNX, `nnx.jit` inside, the state as an argument", lambda: nnx_split(nnx.jit), plain),
    "nnx_split_remat": Kind("NNX, `nnx.remat` inside, the state as an argument", lambda: nnx_split(nnx.remat), plain),
    "nnx_jit": Kind("NNX, `nnx.jit` in a module closed over", lambda: nnx_cnn(nnx.jit), plain),
    "nnx_remat": Kind("NNX, `nnx.remat` in a module closed over", lambda: nnx_cnn(nnx.remat), plain),
    "equinox": Kind("Equinox", equinox, plain),
    "equinox_jit": Kind("Equinox, `filter_jit`", lambda: equinox(eqx.filter_jit), plain),
    "batch_norm": Kind("BatchNorm", of(normalised(BATCH_NORM))),
    "layer_norm": Kind("LayerNorm in a CNN", of(normalised(nn.LayerNorm))),
    "group_norm": Kind("GroupNorm", of(normalised(partial(nn.GroupNorm, 2)))),
    "instance_norm": Kind("InstanceNorm", of(normalised(nn.InstanceNorm))),
    "resnet": Kind("ResNet", of(resnet)),
    "max_pooling": Kind("max pooling", of(max_pooling)),
    "squeeze_and_excitation": Kind("squeeze-and-excitation gates", of(squeeze_and_excitation)),
    "convnext": Kind("ConvNeXt block", of(convnext)),
    "hard_swish": Kind("hard swish", of(hard_swish)),
    "perceptron": Kind("perceptron, no convolution", of(perceptron)),
    "mixer": Kind("MLP-Mixer", of(mixer)),
    "vit": Kind("ViT, class token", of(vit(1))),
    "vit_mean": Kind("ViT, mean of tokens", of(vit(0))),
    "vit_registers": Kind("ViT, class token and 4 registers", of(vit(5))),
    "vit_rms_norm": Kind("ViT, RMSNorm", of(vit(1, nn.RMSNorm))),
    "swin": Kind("windows and patch merging (Swin)", of(swin)),
    "attention_nnx": Kind("NNX attention", attention_nnx),
    "attention_equinox": Kind("Equinox attention", attention_equinox),
    "recurrent": Kind("recurrent over patches", of(recurrent)),
    "cosine_head": Kind("cosine head", of(cosine_head)),
    "probabilities": Kind("softmax as the output", of(probabilities)),
    "two_logits": Kind("two logits", of(two_logits)),
    "single_logit": Kind("one logit", of(single_logit)),
    "branch": Kind("`lax.cond` on the image", branch),
    "loop": Kind("`lax.while_loop`", loop),
}
