"""Tests of the penalty on input gradients: closed forms, coupling by BatchNorm, and its part in the step's gradient."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import oracles
import pytest

from sdecor import losses, models
from sdecor.training import objective as method

N, SHAPE, CLASSES = 5, (2, 3, 2), 4
GRADPEN = networks.objective(consistency=False, decorrelation=False, gradient_penalty=True)
of_each = pytest.mark.parametrize("of", losses.PENALTY_OF)


def linear_problem():
    """Return a linear problem in float64: kernel `[P, K]`, bias `[K]`, images `[N, H, W, C]`, labels `[N]`."""
    rng = np.random.default_rng(0)
    pixels = int(np.prod(SHAPE))
    kernel, bias = rng.normal(size=(pixels, CLASSES)) / 2, rng.normal(size=CLASSES)
    return kernel, bias, rng.normal(size=(N, *SHAPE)), rng.integers(0, CLASSES, N).astype(np.int32)


def linear(kernel, bias):
    """Return the classifier with the interface of `gradient_penalty`: it returns the logits twice."""

    def forward(images):
        logits = images.reshape(N, -1) @ kernel + bias[None]
        return logits, logits

    return forward


def closed_form(kernel, bias, images, labels, of, smoothing):
    """Return penalties `‖W a‖²`, a = ∂/∂z, and their mean's gradients to kernel and bias, in float64."""
    x = images.reshape(len(images), -1)
    p, target = oracles.softmax(x @ kernel + bias), np.eye(CLASSES)[labels]
    a, slope = {  # slope: a changes by slope · ∂p/∂z
        "cross_entropy": (p - (1 - smoothing) * target - smoothing / CLASSES, 1.0),
        "log_probabilities": (1 - CLASSES * p, -CLASSES),
        "logit": (target, 0.0),
    }[of]
    gram = kernel.T @ kernel
    to_p = slope * 2 * a @ gram
    to_z = p * (to_p - np.sum(p * to_p, axis=1, keepdims=True))
    to_kernel = 2 * kernel @ (a.T @ a) + x.T @ to_z
    return np.einsum("ij,jk,ik->i", a, gram, a), to_kernel / len(x), to_z.sum(axis=0) / len(x)


@of_each
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_linear_softmax_has_the_closed_form(of, smoothing):
    kernel, bias, images, labels = linear_problem()
    expected, *expected_gradients = closed_form(kernel, bias, images, labels, of, smoothing)

    def penalty(parameters):
        found = losses.gradient_penalty(linear(*parameters), images, labels, of=of, label_smoothing=smoothing)
        return jnp.mean(found[0]), found

    with jax.enable_x64(True):
        differentiate = jax.jit(jax.grad(penalty, has_aux=True))
        found, (values, logits) = differentiate((jnp.asarray(kernel), jnp.asarray(bias)))
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    np.testing.assert_allclose(logits, images.reshape(N, -1) @ kernel + bias, rtol=1e-12)
    for gradient, right in zip(found, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, right, rtol=1e-10, atol=1e-12)


def test_unknown_quantity_lists_the_known_ones():
    kernel, bias, images, labels = linear_problem()
    with pytest.raises(ValueError, match="of = 'logits'.*did you mean 'logit'"):
        losses.gradient_penalty(linear(kernel, bias), images, labels, of="logits")


def test_bfloat16_penalty_is_float32():
    kernel, bias, images, labels = linear_problem()
    parameters = tuple(np.asarray(x).astype(jnp.bfloat16) for x in (kernel, bias))
    find = jax.jit(lambda parameters, images: losses.gradient_penalty(linear(*parameters), images, labels)[0])
    values = find(parameters, images.astype(jnp.bfloat16))
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, closed_form(kernel, bias, images, labels, "cross_entropy", 0.0)[0], rtol=0.1)


WEIGHT = 0.7


@pytest.fixture(scope="module")
def steps():
    """Return a step with BatchNorm and dropout, by the library and written out: gradients, statistics, terms."""
    state, batch = networks.loud_state(networks.tiny_model(dropout=0.5)), networks.tiny_batch()
    images, labels = networks.prepare(None, jnp.asarray(batch["image"])), jnp.asarray(batch["label"])
    keys = jax.random.split(jax.random.key(5))
    step = functools.partial(
        method.loss_and_gradients,
        functools.partial(method.apply_model, state.apply_fn, batch_stats=state.batch_stats),
        state.params,
        images,
        labels,
        keys=method.Keys(
            ties=jax.random.split(keys[0], len(labels)), fills=jax.random.split(keys[1], len(labels)), dropout=keys
        ),
        values=method.Values({"gradient_penalty": WEIGHT}),
        axis_name=None,
    )

    def logits(params, images):
        variables = {"params": params, "batch_stats": state.batch_stats}
        options = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": keys[0]}}
        return state.apply_fn(variables, images, **options)[0][0]

    def quantity(z, of):
        log_p = jax.nn.log_softmax(z)
        true = jnp.arange(len(z)), labels
        return {"cross_entropy": -log_p[true], "log_probabilities": log_p, "logit": z[true]}[of].sum()

    def written_out(of):
        """Return the parameters' gradient of ‖g‖², forward over reverse: twice that of the slope along g."""

        def of_images(params):
            return lambda images: quantity(logits(params, images), of)

        along = 2 * WEIGHT * jax.grad(of_images(state.params))(images) / len(labels)
        return jax.grad(lambda params: jax.jvp(of_images(params), (images,), (along,))[1])(state.params)

    @jax.jit
    def find():
        ce = step(objective=networks.objective(consistency=False, decorrelation=False))
        found = {}
        for of in losses.PENALTY_OF:
            by_method = step(objective=dataclasses.replace(GRADPEN, penalty_of=of))
            found[of] = by_method, jax.tree.map(jnp.add, ce[0], written_out(of))
        every = jax.jacrev(lambda x: logits(state.params, x))(images)  # [N, K, N, H, W, C]
        return ce, found, logits(state.params, images), every

    return batch, jax.device_get(find())


@of_each
def test_penalty_has_the_effect_on_the_other_examples(steps, of):
    """The oracle sums all derivatives through the batch's statistics, with the clean forward's dropout, in float64."""
    batch, (_, found, z, jacobian) = steps
    p, target = oracles.softmax(np.float64(z)), np.eye(networks.CLASSES)[batch["label"]]
    a = {"cross_entropy": p - target, "log_probabilities": 1 - networks.CLASSES * p, "logit": target}[of]
    whole = np.sum(np.einsum("nk,nkihwc->ihwc", a, np.float64(jacobian)) ** 2) / len(z)
    alone = np.sum(np.einsum("nk,nknhwc->nhwc", a, np.float64(jacobian)) ** 2) / len(z)
    assert abs(whole - alone) > 0.02 * whole, "the examples are hardly coupled"
    np.testing.assert_allclose(found[of][0][2]["gradient_penalty"], whole, rtol=1e-4)


@of_each
def test_gradient_is_that_of_the_loss_with_the_penalty(steps, of):
    _, (ce, by_quantity, *_) = steps
    (grads, batch_stats, terms), expected = by_quantity[of]
    for (path, found), right, plain in zip(
        jax.tree_util.tree_leaves_with_path(grads), *map(jax.tree.leaves, (expected, ce[0])), strict=True
    ):
        name, largest = jax.tree_util.keystr(path), np.abs(right).max()
        np.testing.assert_allclose(found, right, rtol=0, atol=1e-4 * largest, err_msg=name)
        assert not name.endswith("['kernel']") or np.abs(right - plain).max() > 0.01 * largest, (
            f"the penalty hardly counts in {name}"
        )
    np.testing.assert_allclose(terms["loss"], terms["classification"] + WEIGHT * terms["gradient_penalty"], rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), batch_stats, ce[1])
    np.testing.assert_allclose(terms["classification"], ce[2]["classification"], rtol=1e-6)
    assert "gradient_penalty" not in ce[2]


def test_penalty_is_independent_of_the_batch_size():
    """Without coupling of examples, a batch and the same batch twice have equal losses and gradients."""
    state, batch = networks.tiny_state(networks.tiny_model("layer")), networks.tiny_batch(8)
    double = {name: np.concatenate([values, values]) for name, values in batch.items()}

    @jax.jit
    def find(state, batch, double):
        run = functools.partial(networks.gradients, state, objective=GRADPEN, gradient_penalty=1.0)
        return run(batch), run(double)

    once, twice = find(state, batch, double)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), once[0], twice[0])
    np.testing.assert_allclose(once[2]["gradient_penalty"], twice[2]["gradient_penalty"], rtol=1e-5)


def test_mask_is_the_same_beside_a_penalty():
    """One linearisation serves the saliency, the loss and the penalty."""
    state, batch = networks.loud_state(networks.tiny_model()), networks.tiny_batch()

    @jax.jit
    def find(state, batch):
        run = functools.partial(networks.recorded(networks.gradients), state, batch, gradient_penalty=1.0)
        return [run(objective=networks.objective(gradient_penalty=penalty))[1]["gradient"] for penalty in (False, True)]

    plain, beside = find(state, batch)
    np.testing.assert_allclose(beside, plain, rtol=0, atol=1e-6 * float(np.abs(plain).max()))


FAMILIES = [name for name in models.MODELS if not name.startswith(("resnet34", "vit_s"))]
LARGE = [pytest.mark.full]


@pytest.mark.parametrize(  # deeper models with the same layers are in the full suite
    "name", [pytest.param(name, marks=LARGE if name in ("resnet50", "wide_resnet28_10") else []) for name in FAMILIES]
)
def test_every_family_of_models_is_differentiated_twice(name):
    shape = {"mnist_net": (28, 28, 3), "cnn1d": (32, 3)}.get(name, (32, 32, 3))
    model = models.create_model(name, num_classes=CLASSES)
    state = jax.eval_shape(functools.partial(networks.tiny_state, model, shape=shape))
    batch = networks.tiny_batch(2, shape=shape)
    grads, *_ = jax.eval_shape(functools.partial(networks.gradients, objective=GRADPEN), state, batch)
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, state.params)
