"""Tests of layer-wise relevance propagation: captum, rules in float64, conservation, BatchNorm, refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_network as reference

from sdecor.attribution import explain
from sdecor.attribution.propagation import lrp
from sdecor.models import ResNet

close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
rng = np.random.default_rng(8)
W1, W2 = rng.normal(size=(18, 6)) / 4, rng.normal(size=(6, 3))
BIASES = rng.normal(size=6) / 2, rng.normal(size=3) / 2
IMAGE = rng.normal(size=(3, 3, 2))
RULES = ["epsilon", "gamma", "z_plus", "composite"]


def dense(biases=BIASES):
    """Return a network of two dense layers."""
    w1, w2, b1, b2 = (jnp.asarray(x, jnp.float32) for x in (W1, W2, *biases))

    def network(image):
        with jax.named_scope("hidden"):
            x = image.ravel() @ w1 + b1
        x = jax.nn.relu(x)
        with jax.named_scope("last"):
            return x @ w2 + b2

    return network


def relevance(fn, image, target, **options):
    """Return LRP's result, compiled."""
    return jax.jit(partial(lrp, fn, **options))(image, target)


def without_biases():
    return dense([np.zeros(6), np.zeros(3)])


def changed(change):
    """Return the reference network with each bias replaced by `change(bias)`."""
    params = {name: change(x) if name.endswith("bias") else x for name, x in reference.parameters().items()}
    return partial(reference.apply, params)


def shared(x, w, b, given, rule, *, epsilon=0.0, gamma=0.25):
    """Return the relevance of a dense layer's inputs in float64."""
    parts = x[:, None] * w
    z = parts.sum(0) + b
    positive = parts.clip(min=0)
    if rule == "z_plus":
        parts, z = positive, positive.sum(0) + b.clip(min=0)
    elif rule == "gamma":
        favored = np.where(z > 0, positive, parts.clip(max=0))
        of_bias = np.where(z > 0, b.clip(min=0), b.clip(max=0))
        parts, z = parts + gamma * favored, z + gamma * (favored.sum(0) + of_bias)
    return (parts * (given / (z + np.where(z < 0, -epsilon, epsilon)))).sum(1)


@pytest.mark.parametrize("target", range(3))
@pytest.mark.parametrize("rule", ["epsilon", "gamma", "z_plus"])
def test_rules_in_float64(rule, target):
    """The network has biases, and inputs of both signs."""
    first = IMAGE.ravel() @ W1 + BIASES[0]
    hidden = first.clip(min=0)
    logit = (hidden @ W2 + BIASES[1])[[target]]
    of_hidden = shared(hidden, W2[:, [target]], BIASES[1][[target]], logit, rule, epsilon=0.01)
    expected = shared(IMAGE.ravel(), W1, BIASES[0], of_hidden, rule, epsilon=0.01)
    found, error = relevance(dense(), jnp.asarray(IMAGE, jnp.float32), target, rule=rule, epsilon=0.01, with_error=True)
    close(found, expected.reshape(IMAGE.shape), atol=1e-5)
    close(error, expected.sum() - logit[0], atol=1e-5)


@pytest.mark.parametrize("rule", ["epsilon", "gamma", "z_plus"])
def test_equals_captum(rule):
    """Gamma is compared without biases, z⁺ with non-negative biases, both for non-negative images.

    captum leaves γ out of the bias, keeps a negative bias in z⁺, and splits weights by sign instead of contributions.
    With negative inputs or results its rules are therefore different.
    """
    change = {"epsilon": lambda x: x, "gamma": jnp.zeros_like, "z_plus": jnp.abs}[rule]
    options = {"epsilon": 0.1} if rule == "epsilon" else {"epsilon": 0.0, "gamma": 0.5}
    images = reference.images() if rule == "epsilon" else jnp.abs(reference.images())
    targets = reference.labels() if rule == "epsilon" else "predicted"
    run = jax.jit(lambda x: explain(changed(change), x, targets, method="lrp", rule=rule, **options))
    close(run(images), reference.stored("captum_rules")[f"lrp/{rule}"])


@pytest.mark.parametrize("rule", RULES)
def test_relevance_is_conserved_without_biases(rule):
    for target in range(3):
        fn, image = without_biases(), jnp.asarray(IMAGE, jnp.float32)
        found, error = relevance(fn, image, target, rule=rule, epsilon=0, with_error=True)
        assert abs(error) < 1e-5
        np.testing.assert_allclose(found.sum(), fn(image)[target], rtol=1e-4)


def test_z_plus_loses_what_has_no_positive_part():
    """One of two hidden units has only negative parts; GELU gives it relevance, ReLU does not."""
    w = jnp.array([[1.0, -1.0], [2.0, -0.5]])

    def network(activation):
        return lambda image: activation(image.ravel() @ w).sum(keepdims=True)

    image, positive, negative = jnp.ones((1, 2, 1)), 3.0, -1.5
    for activation in (jax.nn.relu, jax.nn.gelu, jnp.tanh):
        found, error = relevance(network(activation), image, 0, rule="z_plus", epsilon=0, with_error=True)
        close(found.ravel(), activation(positive) * jnp.array([1.0, 2.0]) / 3)
        close(error, -activation(negative), atol=1e-5)


def test_box_is_conserved():
    image, bounds = jnp.tanh(jnp.asarray(IMAGE, jnp.float32)), {"low": -1.0, "high": 1.0}
    found, error = relevance(without_biases(), image, 1, epsilon=0, with_error=True, **bounds)
    assert abs(error) < 1e-4 and float(jnp.abs(found).sum()) > 1e-3
    hidden = np.asarray(image, np.float64).ravel() @ W1
    of_hidden = hidden.clip(min=0) * W2[:, 1]
    parts = np.asarray(image, np.float64).ravel()[:, None] * W1 + W1.clip(min=0) - W1.clip(max=0)
    close(found.ravel(), (parts * (of_hidden / parts.sum(0))).sum(1), atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_batch_norm_is_merged(rule):
    """Maps equal those with the factor in kernel and bias; scales may be negative and parameters traced."""
    shapes = {"kernel": (3, 3, 2, 5), "mean": 5, "variance": 5, "scale": 5, "bias": 5, "last": (45, 3)}
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    params["variance"] = 0.5 + jnp.abs(params["variance"])
    options = {"low": -4.0, "high": 4.0} if rule == "composite" else {}

    def convolved(image, kernel):
        return jax.lax.conv(image.transpose(2, 0, 1)[None], kernel.transpose(3, 2, 0, 1), (1, 1), "SAME")[0]

    def normalised(params, image):
        mean, scale, bias = (params[name][:, None, None] for name in ("mean", "scale", "bias"))
        x = (convolved(image, params["kernel"]) - mean) * jax.lax.rsqrt(params["variance"])[:, None, None]
        return jax.nn.relu(x * scale + bias).ravel() @ params["last"]

    def merged(params, image):
        factor = params["scale"] / jnp.sqrt(params["variance"])
        bias = params["bias"] - params["mean"] * factor
        return (
            jax.nn.relu(convolved(image, params["kernel"] * factor[None, None, None]) + bias[:, None, None]).ravel()
            @ params["last"]
        )

    @jax.jit
    def run(params, image):
        return [lrp(partial(fn, params), image, 1, rule=rule, **options) for fn in (normalised, merged)]

    assert (params["scale"] < 0).any()
    found, expected = run(params, jnp.asarray(IMAGE, jnp.float32))
    close(found, expected, rtol=1e-3, atol=1e-5 * float(jnp.abs(expected).max()))


def test_residual_network_conserves_relevance():
    """Strided convolutions, max pooling, sums and means lose no relevance; BatchNorms only scale here."""
    module, image = ResNet(num_classes=3, blocks=(1, 1)), jnp.asarray(rng.normal(size=(24, 24, 3)), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image[None])

    def draw(path, leaf):
        name = path[-1].key
        if name in ("bias", "mean"):
            return jnp.zeros(leaf.shape)
        spread = np.sqrt(2 * leaf.shape[-1] / leaf.size) if name == "kernel" else 1.0
        values = rng.normal(size=leaf.shape) * spread
        return jnp.asarray(0.5 + np.abs(values) if name == "var" else values, jnp.float32)

    variables = jax.tree_util.tree_map_with_path(draw, shapes)

    @jax.jit
    def run(image):
        def fn(image):
            return module.apply(variables, image[None])[0][0]

        return fn(image)[1], *lrp(fn, image, 1, epsilon=0, with_error=True)

    score, found, error = run(image)
    assert abs(score) > 1e-2
    assert abs(error) < 1e-5 * float(jnp.abs(found).sum() + abs(score))


def test_rule_is_chosen_by_a_function():
    seen = []

    def choose(layer):
        seen.append(layer)
        return "z_plus" if layer.scope == "hidden" else "epsilon"

    image = jnp.asarray(IMAGE, jnp.float32)
    found = relevance(dense(), image, 0, rule=choose)
    assert {(x.scope, x.kind, x.first) for x in seen} == {("hidden", "dense", True), ("last", "dense", False)}
    close(relevance(dense(), image, 0, rule=lambda layer: "epsilon"), relevance(dense(), image, 0, rule="epsilon"))
    assert not np.allclose(found, relevance(dense(), image, 0, rule="epsilon"))
    close(relevance(dense(), image, 0, rule="vit"), relevance(dense(), image, 0, rule="gamma", gamma={"dense": 0.05}))
    with pytest.raises(ValueError, match="rule of Layer"):
        relevance(dense(), image, 0, rule=lambda layer: "omega")


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (jnp.sort, "`sort` in 'net/rank' .* no rule for relevance. Use a gradient method"),
        (lambda x: jnp.where(x[::-1] > 0, x, 2 * x), "no rule for relevance. Use a gradient method"),
        (lambda x: jnp.arctan2(x, x[::-1]), "`atan2` .* no rule for relevance. Use method='deeplift'"),
    ],
)
def test_refused_operations(operation, message):
    """The message names the operation and its place."""

    def network(image):
        with jax.named_scope("net/rank"):
            return operation(image.ravel())

    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda x: lrp(network, x, 0), jnp.ones((2, 2, 1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "alpha"}, "rule"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"gamma": -1.0}, "gamma"),
        ({"gamma": {"convolutions": 1.0}}, "kind of layer in gamma.* did you mean 'convolution'"),
        ({"gamma": {"dense": -1.0}}, r"gamma\['dense'\]"),
        ({"softmax": "none"}, "softmax"),
        ({"low": 0.0}, "low and high go together"),
        ({"rule": "epsilon", "low": 0.0, "high": 1.0}, "belong to the rule 'box'"),
        ({"saliency_of": "probability"}, "saliency_of = 'probability'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        relevance(dense(), jnp.asarray(IMAGE, jnp.float32), 0, **options)


def test_examples_do_not_depend_on_the_chunk():
    images, labels = jnp.asarray(rng.normal(size=(5, *IMAGE.shape)), jnp.float32), jnp.arange(5) % 3
    run = jax.jit(partial(explain, dense(), method="lrp", with_error=True), static_argnames="chunk_size")
    maps, errors = run(images, labels)
    assert maps.shape == images.shape and errors.shape == (5,)
    close(run(images, labels, chunk_size=2)[0], maps)
    close(relevance(dense(), images[3], labels[3]), maps[3])


@pytest.mark.parametrize("rule", ["gamma", "z_plus"])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_is_the_dense_layer_of_its_matrix(rule, groups):
    """Inputs are signed, and non-negative behind a ReLU; dense layers are compared with float64 above."""
    kernels = [rng.normal(size=(3, 3, 4 // groups, 4)).astype(np.float32) for _ in range(2)]
    biases = rng.normal(size=(2, 4)).astype(np.float32)
    image = rng.normal(size=(4, 5, 4)).astype(np.float32)

    def convolution(i, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x[None], kernels[i], (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )[0]

    matrices = [np.asarray(jax.jacobian(partial(convolution, i))(image)).reshape(80, 80).T for i in range(2)]

    def convolutional(x):
        for i in range(2):
            x = jax.nn.relu(convolution(i, x) + biases[i][None, None])
        return x.sum((0, 1))

    def of_matrices(x):
        x = x.ravel()
        for i in range(2):
            x = jax.nn.relu(x @ matrices[i] + np.tile(biases[i], 20))
        return x.reshape(20, 4).sum(0)

    found, expected = (relevance(fn, image, 1, rule=rule) for fn in (convolutional, of_matrices))
    assert np.abs(expected).max() > 0.1
    close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_product_that_sums_over_nothing():
    w = rng.normal(size=4).astype(np.float32)

    def outer(x):
        x = jnp.einsum("i,j->ij", x.ravel(), w).ravel()
        return jax.nn.relu(x) @ jnp.ones((32, 2))

    image = jnp.asarray(rng.normal(size=(2, 2, 2)), jnp.float32)
    found, error = relevance(outer, image, 0, rule="gamma", with_error=True)
    assert np.isfinite(found).all() and abs(error) < 1e-4
