"""Tests of the loss and its gradient: masked positions, the flow of gradients, and averages over layers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import oracles
import pytest

from sdecor import masking, models
from sdecor.training.objective import FORWARDS, Values, loss_fn

SMALL = (4, 5, 3)


class Perceptron(nn.Module):
    """Two linear layers with a tanh between, small enough to differentiate by hand."""

    @nn.compact
    def __call__(self, images, train=False):
        wide = nn.initializers.normal(1.0)
        x = images.reshape(images.shape[0], -1) / 8.0
        features = jnp.tanh(nn.Dense(7, use_bias=False, kernel_init=wide, name="hidden")(x))
        return nn.Dense(networks.CLASSES, use_bias=False, kernel_init=wide, name="head")(features), features


def leaves_close(found, expected, rtol):
    """Assert that trees agree, each array relative to its largest value."""
    for (path, x), (_, y) in zip(*map(jax.tree_util.tree_leaves_with_path, (found, expected)), strict=True):
        atol = rtol * float(np.abs(y).max())
        np.testing.assert_allclose(x, y, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


def normalised(batch):
    return networks.prepare(None, jnp.asarray(batch["image"]))


def perceptron_gradient(params, images, labels, saliency_of):
    """Return the true class's input gradient `[N, H, W, C]` in float64."""
    hidden, head = (np.asarray(params[name]["kernel"], np.float64) for name in ("hidden", "head"))
    features = np.tanh(images.reshape(len(images), -1) / 8.0 @ hidden)
    cotangent = np.eye(networks.CLASSES)[labels]
    if saliency_of == "log_probability":
        cotangent = cotangent - oracles.softmax(features @ head)
    return (((cotangent @ head.T) * (1 - features**2)) @ hidden.T / 8.0).reshape(images.shape)


MASKS = [
    (saliency_of, rank_by, order)
    for saliency_of in ("logit", "log_probability")
    for rank_by in ("abs", "signed")
    for order in ("lowest", "highest")
] + [("logit", "abs", "alternate")]


@pytest.fixture(scope="module")
def masked_images():
    """Return the images of the masked forward for every choice, at steps 0 and 1."""
    state, batch = networks.tiny_state(Perceptron(), shape=SMALL), networks.tiny_batch(shape=SMALL)

    @jax.jit
    def find(state, batch):
        found = {}
        for saliency_of, rank_by, order in MASKS:
            objective = networks.objective(saliency_of=saliency_of, rank_by=rank_by, order=order, fill="zero")
            run = networks.recorded(functools.partial(networks.gradients, objective=objective, mask_fraction=0.3))
            found[saliency_of, rank_by, order] = run(state, batch)[1]["masked"]
        return list(found.values())

    by_step = {step: dict(zip(MASKS, find(state.replace(step=jnp.int32(step)), batch), strict=True)) for step in (0, 1)}
    return state, batch, by_step


@pytest.mark.parametrize(("saliency_of", "rank_by", "order"), MASKS)
def test_masked_positions_are_those_of_the_true_class(masked_images, saliency_of, rank_by, order):
    state, batch, by_step = masked_images
    images = np.asarray(normalised(batch), np.float64)
    gradient = perceptron_gradient(state.params, images, batch["label"], saliency_of)
    saliency = (np.abs(gradient) if rank_by == "abs" else gradient).mean(axis=-1).reshape(len(images), -1)
    count = int(0.3 * 20 + 1e-3)
    for step in (0, 1):
        highest = order == "highest" or (order == "alternate" and step == 1)
        chosen = np.argsort(-saliency if highest else saliency, axis=1)[:, :count]
        mask = np.zeros(saliency.shape, bool)
        np.put_along_axis(mask, chosen, True, axis=1)
        expected = np.where(mask.reshape(images.shape[:3])[..., None], 0.0, images)
        np.testing.assert_allclose(by_step[step][saliency_of, rank_by, order], expected, rtol=0, atol=1e-5)


FLOWS = [(direction, stop) for direction in ("clean_masked", "masked_clean") for stop in (False, True)]


@pytest.fixture(scope="module")
def consistency_gradients():
    """Return gradients for every flow, by the library and by plain differentiation with given masked images."""
    state, batch = networks.tiny_state(Perceptron(), shape=SMALL), networks.tiny_batch(shape=SMALL)

    def loss(params, batch, masked, direction, stop_gradient):
        images, labels = normalised(batch), batch["label"]
        clean, other = (jax.nn.log_softmax(Perceptron().apply({"params": params}, x)[0]) for x in (images, masked))
        ce = -jnp.mean(clean[jnp.arange(len(labels)), labels])
        clean = jax.lax.stop_gradient(clean) if stop_gradient else clean
        p, q = (clean, other) if direction == "clean_masked" else (other, clean)
        return ce + 3.0 * jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1))

    @jax.jit
    def find(state, batch):
        found = []
        for direction, stop_gradient in FLOWS:
            objective = networks.objective(direction=direction, stop_gradient=stop_gradient, decorrelation=False)
            run = networks.recorded(functools.partial(networks.gradients, objective=objective, consistency=3.0))
            (grads, _, terms), seen = run(state, batch)
            expected = jax.value_and_grad(loss)(state.params, batch, seen["masked"], direction, stop_gradient)
            found.append(((terms["loss"], grads), expected))
        return found

    return dict(zip(FLOWS, jax.device_get(find(state, batch)), strict=True))


@pytest.mark.parametrize("flow", FLOWS)
def test_consistency_flows_where_it_should(consistency_gradients, flow):
    found, expected = consistency_gradients[flow]
    leaves_close(found, expected, rtol=1e-5)


def test_flows_differ(consistency_gradients):
    """If flows agreed, the test above could not tell them apart."""
    flows = [np.asarray(grads["head"]["kernel"]) for (_, grads), _ in consistency_gradients.values()]
    for i, a in enumerate(flows):
        assert all(np.abs(a - b).max() > 0.02 * np.abs(a).max() for b in flows[:i])


def written_out(features, spatial):
    """Return the decorrelation and the variance hinge of one layer."""
    axes = tuple(range(1, features.ndim - 1))
    samples = features.mean(axes) if spatial == "pool" else features.reshape(-1, features.shape[-1])
    c = jnp.cov(samples, rowvar=False)
    decor = jnp.sum((c * (1 - jnp.eye(len(c)))) ** 2) / len(c)
    return decor, jnp.mean(jnp.maximum(1 - jnp.sqrt(jnp.diag(c) + 1e-4), 0.0))


LAYERS = ("first", "second")


class Maps(nn.Module):
    """Two layers, `[N, 4, 5, 6]` and `[N, 4, 5, 7]`, that act on each position alone."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.tanh(nn.Dense(6, name="first")(images))
        features = nn.tanh(nn.Dense(7, name="second")(x)).mean(axis=(1, 2))
        return nn.Dense(networks.CLASSES, name="head")(features), features


@pytest.fixture(scope="module")
def tapped():
    """Return gradients and terms for both values of `spatial`, by the library and by plain differentiation."""
    model = models.Tap(Maps(), layers=LAYERS)
    state, batch = networks.tiny_state(model, shape=SMALL), networks.tiny_batch(shape=SMALL)

    def loss(params, batch, spatial):
        logits, outputs = model.apply({"params": params}, normalised(batch))
        ce = -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(logits)), batch["label"]])
        (decor0, hinge0), (decor1, hinge1) = (written_out(outputs[layer], spatial) for layer in LAYERS)
        return ce + 200.0 * (decor0 + decor1) / 2 + 5.0 * (hinge0 + hinge1) / 2, outputs

    @jax.jit
    def find(state, batch):
        found = []
        for spatial in ("pool", "positions"):
            objective = networks.objective(consistency=False, variance=True, spatial=spatial)
            grads, _, terms = networks.gradients(state, batch, objective=objective, decorrelation=200.0, variance=5.0)
            differentiate = jax.value_and_grad(loss, has_aux=True)
            (value, outputs), expected = differentiate(state.params, batch, spatial)
            found.append((terms, grads, value, expected, outputs))
        return found

    return dict(zip(("pool", "positions"), jax.device_get(find(state, batch)), strict=True))


@pytest.mark.parametrize("spatial", ["pool", "positions"])
def test_tapped_layers_are_averaged(tapped, spatial):
    terms, grads, value, expected, outputs = tapped[spatial]
    maps = [np.asarray(outputs[layer], np.float64) for layer in LAYERS]
    samples = [x.mean(axis=(1, 2)) if spatial == "pool" else x.reshape(-1, x.shape[-1]) for x in maps]
    decors, hinges = ([oracle(x) for x in samples] for oracle in (covariance_term, oracles.variance_hinge))
    assert min(decors) > 1e-4 and max(hinges) > 0.01 and not np.isclose(*decors) and not np.isclose(*hinges)
    np.testing.assert_allclose(terms["decorrelation"], np.mean(decors), rtol=1e-4)
    np.testing.assert_allclose(terms["variance"], np.mean(hinges), rtol=1e-4)
    np.testing.assert_allclose(terms["feature_scale"], np.mean([x.std(0, ddof=1).mean() for x in samples]), rtol=1e-4)
    floors = [(x.shape[1] - 1) / (len(x) - 1) for x in samples]
    np.testing.assert_allclose(terms["decorrelation_floor"], np.mean(floors), rtol=1e-5)
    np.testing.assert_allclose(terms["loss"], value, rtol=1e-5)
    leaves_close(grads, expected, rtol=1e-4)


def test_rectified_layers_are_those_behind_a_relu():
    """Terms get the ReLU of the layer's output, and its negative values get no gradient."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(8, 3)).astype(np.float32), np.arange(8) % 3
    maps = {name: rng.normal(size=(8, 2, 3, width)).astype(np.float32) for name, width in (("a", 4), ("b", 5))}
    values = Values({"decorrelation": 1.0, "variance": 1.0})

    def loss(features, **options):
        objective = networks.objective(consistency=False, variance=True, form="density", spatial="positions", **options)
        settings = {"labels": labels, "values": values, "objective": objective, "axis_name": None}
        return loss_fn((logits, features), None, None, **settings)

    @jax.jit
    def find(maps, rectified):
        (_, terms), gradients = jax.value_and_grad(lambda f: loss(f, rectify=True), has_aux=True)(maps)
        return terms, gradients, loss(rectified)[1]

    rectified = {name: np.maximum(x, 0) for name, x in maps.items()}
    terms, gradients, of_rectified = find(maps, rectified)
    samples = [x.reshape(-1, x.shape[-1]).astype(np.float64) for x in rectified.values()]
    expected = [np.mean(x.mean(0) ** 2 / (x**2).mean(0)) for x in samples]
    np.testing.assert_allclose(terms["decorrelation"], np.mean(expected), rtol=1e-5)
    assert "decorrelation_floor" not in terms
    for name, value in of_rectified.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-6, err_msg=name)
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient[maps[name] < 0], 0.0)
        assert np.abs(gradient).max() > 0


def covariance_term(samples):
    return oracles.decorrelation(samples, "covariance")


def trained(state, images):
    """Return `((logits, features), new batch_stats)` in train mode."""
    outputs, updates = state.apply_fn(state.variables, images, train=True, mutable=["batch_stats"])
    return outputs, updates["batch_stats"]


@pytest.fixture(scope="module")
def forwards():
    """Return a step's results for each saliency forward; BatchNorm's running statistics are not the initial ones."""
    model, batch = networks.tiny_model(), networks.tiny_batch()
    state = networks.loud_state(model)
    stale = jax.tree.map(lambda x: 0.6 * x + 0.2, state.batch_stats)
    state = state.replace(batch_stats=stale)

    def total(images, state, labels, batch_stats=None):
        if batch_stats is None:
            (logits, _), _ = trained(state, images)
        else:
            logits, _ = model.apply({"params": state.params, "batch_stats": batch_stats}, images)
        return logits[jnp.arange(len(logits)), labels].sum()

    @jax.jit
    def find(state, batch):
        found = {}
        for forward in FORWARDS:
            (_, batch_stats, terms), seen = networks.recorded(networks.gradients)(
                state, batch, objective=networks.objective(forward=forward, decorrelation=False)
            )
            (masked_logits, _), masked_stats = trained(state, seen["masked"])
            found[forward] = (seen, batch_stats, terms, masked_logits, masked_stats)
        images = normalised(batch)
        (logits, _), clean_stats = trained(state, images)
        batch_only = jax.tree.map(lambda new, old: 10 * new - 9 * old, clean_stats, state.batch_stats)
        by_forward = {"shared": None, "frozen": batch_only, "eval": state.batch_stats}
        grad = functools.partial(jax.grad(total), images, state, batch["label"])
        expected = {forward: grad(statistics) for forward, statistics in by_forward.items()}
        return found, expected, logits, clean_stats

    return jax.device_get(find(state, batch))


@pytest.mark.parametrize("forward", FORWARDS)
def test_saliency_is_the_gradient_of_the_summed_true_logits(forwards, forward):
    """The gradient is through the batch's statistics, with these as constants, or with the running ones."""
    found, expected, _, _ = forwards
    leaves_close(found[forward][0]["gradient"], expected[forward], rtol=1e-4)
    for other in set(FORWARDS) - {forward}:
        assert np.abs(expected[other] - expected[forward]).max() > 0.02 * np.abs(expected[forward]).max()


@pytest.mark.parametrize("forward", FORWARDS)
def test_only_the_clean_forward_updates_running_statistics(forwards, forward):
    found, _, logits, clean_stats = forwards
    _, batch_stats, terms, masked_logits, masked_stats = found[forward]
    leaves_close(batch_stats, clean_stats, rtol=1e-6)
    assert np.abs(masked_stats["norm0"]["var"] - clean_stats["norm0"]["var"]).max() > 1e-4
    p, q = oracles.softmax(np.float64(logits)), oracles.softmax(np.float64(masked_logits))
    np.testing.assert_allclose(terms["consistency"], (p * np.log(p / q)).sum(axis=1).mean(), rtol=1e-4)


def test_saliency_forwards_agree_without_batch_norm():
    state, batch = networks.tiny_state(networks.tiny_model("layer")), networks.tiny_batch()

    @jax.jit
    def find(state, images, labels):
        run = functools.partial(networks.saliency_of_step, state, images, labels, saliency_of="log_probability")
        return [run(forward=forward) for forward in FORWARDS]

    *found, evaluated = find(state, normalised(batch), batch["label"])
    leaves_close(found, [evaluated] * 2, rtol=1e-5)


def test_gradients_are_those_of_the_loss():
    """The two pull-backs equal plain differentiation of the written-out loss, also if the masked one is remade."""
    state, batch = networks.loud_state(networks.tiny_model()), networks.tiny_batch()

    def loss(params, state, batch, masked):
        state = state.replace(params=params)
        ((logits, features), _), ((masked_logits, _), _) = trained(state, normalised(batch)), trained(state, masked)
        log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(masked_logits)
        ce = -jnp.mean(log_p[jnp.arange(len(logits)), batch["label"]])
        kl = jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))
        return ce + 5.0 * kl + written_out(features, "pool")[0], (kl, features)

    @jax.jit
    def find(state, batch):
        by_remat = {}
        for remat in (False, True):
            (grads, _, terms), seen = networks.recorded(networks.gradients)(
                state, batch, objective=networks.objective(remat=remat), consistency=5.0, decorrelation=1.0
            )
            by_remat[remat] = grads, terms["loss"]
        return by_remat, jax.value_and_grad(loss, has_aux=True)(state.params, state, batch, seen["masked"])

    by_remat, ((value, (kl, features)), expected) = jax.device_get(find(state, batch))
    assert kl > 0.01 and covariance_term(features) > 0.1
    for grads, found in by_remat.values():
        np.testing.assert_allclose(found, value, rtol=1e-5)
        leaves_close(grads, expected, rtol=1e-4)


def test_a_remade_masked_forward_stores_its_images_and_sums_alone():
    state, batch = networks.tiny_state(networks.tiny_model()), networks.tiny_batch()
    gradients = functools.partial(networks.gradients, objective=networks.objective(remat=True))
    closed = jax.make_jaxpr(gradients)(state, batch)
    (remade,) = (each for each in closed.eqns if each.params.get("differentiated"))
    shapes = [each.aval.shape for each in remade.invars]
    images = batch["image"].shape
    assert [shape for shape in shapes if len(shape) == 4 and shape[0] == len(batch["label"])] == [images]


def test_alternating_order_changes_with_the_step():
    assert bool(masking.masks_highest("alternate", jnp.int32(1))) and not bool(masking.masks_highest("alternate", 0))
