"""Tests of `saliency_decor`, the whole method in one function: equal to the training step, on any devices."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import oracles
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec as P

import sdecor
from sdecor.core import rng
from sdecor.models import frozen_statistics
from sdecor.training.objective import FORWARDS, Keys, Values, apply_model, loss_and_gradients

COLOURS = np.random.default_rng(1).normal(size=(16, 1, 1, 3)).astype(np.float32)  # so that features vary
IMAGES = networks.prepare(None, jnp.asarray(networks.tiny_batch()["image"])) + COLOURS
LABELS = jnp.asarray(networks.tiny_batch()["label"])
KEY = jax.random.key(5)


def close(found, expected, rtol=1e-5):
    """Assert that trees agree, each array relative to the largest value of the tree."""
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=rtol * scale)


def forward_of(state, *, train=True, frozen=False):
    """Return `(params, images) -> ((logits, features), batch_stats)` of a state."""
    options = {"batch_stats": state.batch_stats, "dropout_key": KEY, "train": train}
    forward = partial(apply_model, state.apply_fn, **options)
    if not frozen:
        return forward

    def with_constants(params, images):
        with frozen_statistics():
            return forward(params, images)

    return with_constants


def by_specification(state, forward, options):
    """Return terms, new statistics and gradients of `saliency_decor`, with the weights of `by_training`."""
    saliency = {"shared": {}, "frozen": {"frozen": True}, "eval": {"train": False}}[forward]

    def loss(params):
        return sdecor.saliency_decor(
            forward_of(state),
            params,
            IMAGES,
            LABELS,
            key=KEY,
            consistency=0.7,
            decorrelation=0.3,
            fraction=0.4,
            saliency_apply=forward_of(state, **saliency),
            has_aux=True,
            **options,
        )

    (value, (terms, statistics)), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
    return terms | {"loss": value}, statistics, gradients


def by_training(state, forward, options):
    keys = jax.vmap(jax.random.split)(rng.per_example(KEY, len(IMAGES)))
    gradients, statistics, terms = loss_and_gradients(
        partial(apply_model, state.apply_fn, batch_stats=state.batch_stats),
        state.params,
        IMAGES,
        LABELS,
        keys=Keys(ties=keys[:, 0], fills=keys[:, 1], dropout=jnp.stack([KEY, KEY])),
        values=Values({"consistency": 0.7, "decorrelation": 0.3}, mask_fraction=0.4),
        objective=networks.objective(forward=forward, **options),
        axis_name=None,
    )
    return terms, statistics, gradients


SIGNED = {"rank_by": "signed", "saliency_of": "log_probability", "form": "correlation", "fill": "mean"}
CASES = [("layer", "shared", {}), ("layer", "shared", SIGNED), *(("batch", forward, {}) for forward in FORWARDS)]
CASES += [
    ("layer", "shared", {"block": 4}),
    ("layer", "frozen", {"every": 4}),
    *(("batch", forward, {"every": 2}) for forward in FORWARDS),
]


@pytest.fixture(scope="module")
def found():
    """Return the results of both functions for every case, from one program."""
    states = {norm: networks.loud_state(networks.tiny_model(norm)) for norm in ("layer", "batch")}
    head = jax.tree.map(lambda x: 0.2 * x, states["layer"].params["head"])  # less sure, so that masking changes them
    states["layer"] = states["layer"].replace(params={**states["layer"].params, "head": head})

    @jax.jit
    def find(states):
        return [(by_specification(states[norm], *case), by_training(states[norm], *case)) for norm, *case in CASES]

    return jax.device_get(find(states))


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{norm}-{how}-{'-'.join(also)}" for norm, how, also in CASES])
def test_the_step_of_training_is_the_specification(found, case):
    (terms, statistics, gradients), (expected, expected_statistics, expected_gradients) = found[case]
    for name in ("loss", "classification", "consistency", "decorrelation"):
        np.testing.assert_allclose(terms[name], expected[name], rtol=2e-5, err_msg=name)
        assert expected[name] > 1e-3
    close(gradients, expected_gradients)
    assert bool(statistics) == (CASES[case][0] == "batch")
    if statistics:
        close(statistics, expected_statistics)


def test_the_cases_differ(found):
    """If cases agreed, equality could not tell one saliency forward from another."""
    consistency = [float(terms["consistency"]) for _, (terms, _, _) in found]
    for i, a in enumerate(consistency):
        assert all(abs(a - b) > 1e-3 * a for b in consistency[:i]), consistency


def linear(params, images):
    features = jnp.tanh(images.reshape(len(images), -1) @ params["hidden"])
    return features @ params["head"], features


def tiny_params(width=12 * 12 * 3):
    keys = jax.random.split(jax.random.key(2))
    hidden = 0.05 * jax.random.normal(keys[0], (width, 6))
    return {"hidden": hidden, "head": jax.random.normal(keys[1], (6, networks.CLASSES))}


def test_terms_are_those_written_out_in_float64():
    params = tiny_params()

    @jax.jit
    def find(params):
        seen = []

        def watch(params, images):
            seen.append(images)
            return linear(params, images)

        weights = {"consistency": 2.0, "decorrelation": 3.0, "fraction": 0.25}
        found = sdecor.saliency_decor(linear, params, IMAGES, LABELS, key=KEY, masked_apply=watch, **weights)
        return found, seen

    (loss, terms), seen = jax.device_get(find(params))
    hidden, head = (np.asarray(params[name], np.float64) for name in ("hidden", "head"))
    images, (masked,) = np.asarray(IMAGES, np.float64), np.asarray(seen, np.float64)
    features = np.tanh(images.reshape(len(images), -1) @ hidden)
    p, q = (oracles.softmax(np.tanh(x.reshape(len(x), -1) @ hidden) @ head) for x in (images, masked))
    ce = -np.log(p[np.arange(len(p)), LABELS]).mean()
    kl = (p * np.log(p / q)).sum(1).mean()
    decor = oracles.decorrelation(features, "covariance")
    np.testing.assert_allclose([terms[k] for k in ("classification", "consistency", "decorrelation")], [ce, kl, decor],
                               rtol=1e-4)  # fmt: skip
    np.testing.assert_allclose(loss, ce + 2 * kl + 3 * decor, rtol=1e-4)

    gradient = ((head.T[LABELS] * (1 - features**2)) @ hidden.T).reshape(images.shape)
    order = np.argsort(np.abs(gradient).mean(-1).reshape(len(images), -1), axis=1)
    changed = (masked != images).any(-1).reshape(len(images), -1)
    for row, ranked in zip(changed, order, strict=True):
        assert row[ranked[:36]].all() and not row[ranked[36:]].any()  # 36 is a quarter of 144


def value_and_gradients(params, images, labels, axis_name=None, block=1):
    loss = partial(sdecor.saliency_decor, linear, images=images, labels=labels, key=KEY, decorrelation=1.0,
                   axis_name=axis_name, block=block)  # fmt: skip
    (value, terms), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    found = (terms | {"loss": value}, gradients)
    return found if axis_name is None else jax.lax.pmean(found, axis_name)


@pytest.fixture(scope="module")
def alone():
    return jax.device_get(jax.jit(value_and_gradients)(tiny_params(), IMAGES, LABELS))


@pytest.mark.parametrize("devices", [8, *(pytest.param(devices, marks=pytest.mark.full) for devices in (1, 2, 4))])
def test_the_global_batch_on_any_devices(alone, devices):
    """One key is enough, because an example's draws depend on its position in the whole batch."""
    step = jax.pmap(
        partial(value_and_gradients, axis_name="batch"),
        axis_name="batch",
        in_axes=(None, 0, 0),
        out_axes=None,
        devices=jax.devices()[:devices],
    )
    images, labels = (x.reshape(devices, -1, *x.shape[1:]) for x in (IMAGES, LABELS))
    found = step(tiny_params(), images, labels)
    close(found[0], alone[0])
    close(found[1], alone[1])


@pytest.fixture(scope="module")
def spread():
    """Return a mesh with an Explicit axis, as JAX makes it, and parameters, images and labels on it."""
    mesh = jax.make_mesh((4,), ("batch",), devices=jax.devices()[:4])
    places = (P(), P("batch"), P("batch"))
    arrays = (tiny_params(), IMAGES, LABELS)
    return mesh, [jax.device_put(x, NamedSharding(mesh, place)) for x, place in zip(arrays, places, strict=True)]


def test_in_shard_map(alone, spread):
    """The checks of varying values are on, and the mean of the loss is differentiated."""
    mesh, arrays = spread

    def gradients(params, images, labels):
        def loss(params):
            value, _ = sdecor.saliency_decor(
                linear, params, images, labels, key=KEY, decorrelation=1.0, axis_name="batch"
            )
            return jax.lax.pmean(value, "batch")

        return jax.grad(loss)(params)

    mapped = jax.shard_map(gradients, mesh=mesh, in_specs=(P(), P("batch"), P("batch")), out_specs=P())
    close(jax.jit(mapped)(*arrays), alone[1])


def test_on_a_mesh_without_shard_map(alone, spread):
    mesh, arrays = spread
    with jax.set_mesh(mesh):
        close(jax.jit(value_and_gradients)(*arrays)[1], alone[1])
        jax.eval_shape(partial(value_and_gradients, block=4), *arrays)


class Module(nnx.Module):
    def __init__(self, params):
        self.hidden, self.head = nnx.Param(params["hidden"]), nnx.Param(params["head"])

    def __call__(self, images):
        return linear({"hidden": self.hidden[...], "head": self.head[...]}, images)


def test_with_an_nnx_module(alone):
    def loss(model):
        return sdecor.saliency_decor(
            lambda model, images: model(images), model, IMAGES, LABELS, key=KEY, decorrelation=1.0
        )

    gradients, _ = nnx.jit(nnx.grad(loss, has_aux=True))(Module(tiny_params()))
    close({name: gradients[name][...] for name in ("hidden", "head")}, alone[1])


def test_a_tree_of_features_is_averaged_and_dropout_may_differ():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, images):
            x = nn.relu(nn.Dense(5, name="first")(images))
            h = nn.Dropout(0.5, deterministic=False)(x.mean((1, 2)))
            return nn.Dense(networks.CLASSES, name="head")(h), {"maps": x, "last": h}

    net = Net()
    variables = net.init({"params": KEY, "dropout": KEY}, IMAGES)

    def apply(seed, variables, images):
        return net.apply(variables, images, rngs={"dropout": jax.random.key(seed)})

    def terms(fraction, masked_seed):
        return sdecor.saliency_decor(
            partial(apply, 1), variables, IMAGES, LABELS, key=KEY, fraction=fraction, form="density",
            masked_apply=partial(apply, masked_seed),
        )[1]  # fmt: skip

    same, other = jax.jit(lambda: (terms(0.0, 1), terms(0.0, 2)))()
    assert float(same["consistency"]) == pytest.approx(0.0, abs=1e-7) and float(other["consistency"]) > 1e-3
    _, features = apply(1, variables, IMAGES)
    expected = [oracles.decorrelation(np.asarray(h, np.float64).reshape(16, -1, 5).mean(1), "density")
                for h in features.values()]  # fmt: skip
    np.testing.assert_allclose(same["decorrelation"], np.mean(expected), rtol=1e-5)


def test_a_label_that_is_no_class_is_refused():
    """Every integer type is read alike."""
    call = partial(sdecor.saliency_decor, linear, tiny_params(), IMAGES, key=KEY)
    for label in (-1, networks.CLASSES):
        with pytest.raises(ValueError, match=f"labels contains {label}"):
            call(LABELS.at[3].set(label))
        assert jnp.isnan(jax.jit(lambda labels: call(labels)[0])(LABELS.at[3].set(label)))
    np.testing.assert_allclose(call(LABELS.astype(jnp.uint8))[0], call(LABELS)[0], rtol=1e-6)


@pytest.mark.parametrize("field", ["fill", "form", "rank_by", "saliency_of", "spatial"])
def test_unknown_choices_are_named(field):
    with pytest.raises(ValueError, match=f"{'how' if field == 'fill' else field} = 'no' is not known"):
        sdecor.saliency_decor(linear, tiny_params(), IMAGES, LABELS, key=KEY, **{field: "no"})
