"""Tests of the training step: equal on any number of devices, never compiled again, equal to stored values."""

import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest

from sdecor import losses, masking
from sdecor.core import parallel
from sdecor.models import Tap
from sdecor.training.checkpoint import Checkpoints
from sdecor.training.objective import FORWARDS, Objective
from sdecor.training.state import OPTIMIZERS, create_optimizer, learning_rate_schedule, with_hyperparams


def leaves_close(a, b, rtol, atol):
    for (path, x), (_, y) in zip(*map(jax.tree_util.tree_leaves_with_path, (a, b)), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))


def leaves_near(a, b, share):
    """Assert that trees agree, each array relative to its largest value."""
    for (path, x), (_, y) in zip(*map(jax.tree_util.tree_leaves_with_path, (a, b)), strict=True):
        atol = share * float(np.abs(y).max())
        np.testing.assert_allclose(x, y, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


@pytest.fixture
def fixed_masks(monkeypatch):
    """Make the mask depend on the key alone, because masking is discontinuous under rounding."""
    least_salient = masking.least_salient
    constant = lambda key, saliency, **options: least_salient(key, jnp.zeros_like(saliency), **options)  # noqa: E731
    monkeypatch.setattr(masking, "least_salient", constant)


@functools.cache
def one_step(devices: int, **options):
    """Return gradients, statistics and terms of an SGD step in which each term of the loss matters."""
    model = networks.tiny_model(axis_name=parallel.AXIS)
    model = Tap(model, model.activations) if options.get("rectify") else model
    step = networks.make_step(networks.objective(**options), axis_name=parallel.AXIS)
    state = networks.loud_state(model, tx=create_optimizer("sgd", momentum=0.0))
    before = jax.tree.map(np.array, state.params)  # a copy: the step donates its state
    weights = {"decorrelation": 4.0, "variance": 4.0, "consistency": 10.0, "gradient_penalty": 0.5}
    values = networks.hyper(learning_rate=1.0, weight_decay=0.0, **weights)
    new, terms = networks.pmapped(step, devices)(state, networks.tiny_batch(), values, jax.random.key(0))
    return jax.tree.map(np.subtract, before, new.params), new.batch_stats, terms


def on_devices(main, *others):
    """Return the main case on 2, 4 and 8 devices, and the others for the full suite.

    Quick tests of each form's loss and each forward's saliency across devices are in test_decorrelation.py and below.
    """
    return [
        pytest.param(*case, devices, marks=[] if case == main else pytest.mark.full)
        for case in (main, *others)
        for devices in (2, 4, 8)
    ]


@pytest.mark.parametrize(
    ("form", "forward", "devices"),
    on_devices(("covariance", "shared"), ("correlation", "frozen"), ("decov", "eval"), ("whitening", "shared")),
)
def test_step_is_the_same_on_any_number_of_devices(fixed_masks, form, forward, devices):
    counting = ("consistency", "decorrelation", "variance")
    steps_agree(devices, counting, form=form, forward=forward, variance=True)


@pytest.mark.full
@pytest.mark.parametrize("devices", [2, 8])
def test_step_with_a_remade_masked_forward_is_the_same_on_any_number_of_devices(fixed_masks, devices):
    steps_agree(devices, ("consistency", "decorrelation"), remat=True)
    for found, plain in zip(one_step(devices, remat=True), one_step(devices), strict=True):
        leaves_near(found, plain, 2e-5)


@pytest.mark.parametrize(("form", "forward", "devices"), on_devices(("density", "shared"), ("cosine", "frozen")))
def test_step_on_what_relus_let_through_is_the_same_on_any_number_of_devices(fixed_masks, form, forward, devices):
    counting = ("consistency", "decorrelation")
    steps_agree(devices, counting, form=form, forward=forward, spatial="positions", rectify=True)


def steps_agree(devices: int, counting: tuple[str, ...], **options) -> None:
    (grads, batch_stats, terms), many = one_step(1, **options), one_step(devices, **options)
    for name in counting:
        assert terms[name] > 0.01, f"{name} hardly counts"
    leaves_near(many[0], grads, 2e-5)
    leaves_close(many[1], batch_stats, rtol=1e-5, atol=1e-6)
    leaves_close(many[2], terms, rtol=1e-4, atol=1e-6)


def on_eight(*names, quick):
    """Return each name on 2, 4 and 8 devices; those in `quick` on 8 are quick, the rest is for the full suite."""
    return [
        pytest.param(name, devices, marks=[] if devices == 8 and name in quick else pytest.mark.full)
        for name in names
        for devices in (2, 4, 8)
    ]


@pytest.mark.parametrize(("of", "devices"), on_eight(*losses.PENALTY_OF, quick=["cross_entropy"]))
def test_penalised_step_is_the_same_on_any_number_of_devices(of, devices):
    """The input gradient crosses the devices through BatchNorm, and is differentiated again."""
    options = {"consistency": False, "decorrelation": False, "gradient_penalty": True, "penalty_of": of}
    steps_agree(devices, ("gradient_penalty",), **options)


@functools.cache
def saliency_on(forward: str, devices: int) -> np.ndarray:
    batch = networks.tiny_batch()
    images, labels = np.asarray(networks.prepare(None, jnp.asarray(batch["image"]))), batch["label"]
    find = functools.partial(networks.saliency_of_step, forward=forward)
    if devices == 1:
        return np.asarray(jax.jit(find)(networks.tiny_state(networks.tiny_model()), images, labels))
    state = networks.tiny_state(networks.tiny_model(axis_name="batch"))
    mapped = jax.pmap(find, axis_name="batch", in_axes=(None, 0, 0), devices=jax.local_devices()[:devices])
    return parallel.unshard(mapped(state, *parallel.shard((images, labels), devices)))


@pytest.mark.parametrize(("forward", "devices"), on_eight(*FORWARDS, quick=FORWARDS))
def test_saliency_is_the_same_on_any_number_of_devices(forward, devices):
    one = saliency_on(forward, 1)
    np.testing.assert_allclose(saliency_on(forward, devices), one, rtol=1e-3, atol=1e-5 * float(np.abs(one).max()))


def test_one_trace_a_run_whatever_changes(key, tmp_path):
    """A second step, a state from a checkpoint, and other weights do not compile again."""
    traces = []

    def counting(keys, images):
        traces.append(1)
        return networks.prepare(keys, images)

    model, tx = networks.tiny_model(axis_name=parallel.AXIS), create_optimizer("adamw")
    compiled = parallel.pmap_step(
        networks.make_step(networks.objective(fill="zero"), axis_name=parallel.AXIS, prepare=counting, ema_decay=0.99)
    )
    initial = networks.tiny_state(model, tx=tx, ema=True)
    state = parallel.replicate(initial)
    batch, key = parallel.shard(networks.tiny_batch()), parallel.replicate(key)
    for _ in range(2):
        state, _ = compiled(state, batch, parallel.replicate(networks.hyper()), key)

    fresh = parallel.replicate(initial)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, position={"epoch": 0})
        checkpoints.wait()
        restored, _ = checkpoints.restore(fresh)
    for part in ("step", "params", "opt_state", "ema_params", "batch_stats"):
        leaves_close(getattr(restored, part), getattr(state, part), rtol=0, atol=0)
    changed = networks.hyper(decorrelation=2.0, mask_fraction=0.2, learning_rate=0.5, weight_decay=0.1)
    last, terms = compiled(restored, batch, parallel.replicate(changed), key)
    assert len(traces) == 1 and int(last.step) == 3
    assert float(terms["decorrelation_weight"]) == 2.0 and float(terms["mask_fraction"]) == np.float32(0.2)


def test_accumulated_gradients_are_the_mean_over_micro_batches(fixed_masks, key):
    state = networks.tiny_state(networks.tiny_model("layer"))
    batch = networks.tiny_batch()
    step = networks.make_step(networks.objective(decorrelation=False))
    whole, _ = jax.jit(step)(state, batch, networks.hyper(), key)
    micro = jax.tree.map(lambda x: x.reshape(4, 4, *x.shape[1:]), batch)
    parts, terms = jax.jit(functools.partial(step, accumulate=4))(state, micro, networks.hyper(), key)
    leaves_close(whole.params, parts.params, rtol=1e-5, atol=1e-6)
    assert set(terms) >= {"loss", "classification", "consistency", "accuracy", "gradient_norm"}


def test_micro_batches_hold_the_same_examples_on_any_number_of_devices():
    batches = [networks.tiny_batch(8, seed=seed) for seed in range(3)]
    for devices in (1, 2, 4):
        sharded = parallel.shard_micro_batches(batches, devices)
        assert sharded["image"].shape[:3] == (devices, 3, 8 // devices)
        for m, batch in enumerate(batches):
            np.testing.assert_array_equal(np.concatenate(sharded["image"][:, m]), batch["image"])


def test_ramps_and_schedule():
    ramps = {"decorrelation": 10, "gradient_penalty": 20}
    hyper = networks.hyper(gradient_penalty=0.4, mask_ramp=4, ramps=ramps)
    values = [hyper.at(jnp.int32(step), networks.objective()) for step in (0, 5, 20)]
    assert [float(value.mask_fraction) for value in values] == [0.0, 0.5, 0.5]
    expected = {"decorrelation": [0.0, 0.25, 0.5], "consistency": [1.0] * 3, "gradient_penalty": [0.0, 0.1, 0.4]}
    for name, weights in expected.items():
        assert [float(value.weights[name]) for value in values] == pytest.approx(weights), name


def test_learning_rate_is_the_schedule_of_its_peak():
    state = networks.tiny_state(networks.tiny_model("none"))
    step = functools.partial(
        networks.make_step(Objective()),
        schedule=lambda step: 0.25 * (1 + step),
    )
    compiled = jax.jit(step)
    for at, expected in ((0, 0.5), (3, 2.0)):
        values = networks.hyper(learning_rate=2.0)
        new, terms = compiled(state.replace(step=jnp.int32(at)), networks.tiny_batch(), values, jax.random.key(0))
        assert float(terms["learning_rate"]) == float(new.opt_state.hyperparams["learning_rate"]) == expected


def test_warm_up_cosine_and_constant():
    cosine = learning_rate_schedule("cosine", total_steps=110, warmup_steps=10)
    rates = [float(cosine(step)) for step in (0, 4, 9, 10, 60, 110)]
    np.testing.assert_allclose(rates, [0.1, 0.5, 1.0, 1.0, 0.5, 0.0], atol=1e-6)
    constant = learning_rate_schedule("constant", total_steps=10, warmup_steps=0)
    assert [float(constant(step)) for step in (0, 5, 9)] == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="warmup_epochs"):
        learning_rate_schedule("cosine", total_steps=10, warmup_steps=10)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_those_of_optax(name):
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    grads = {"kernel": jnp.full((2, 2), 0.3), "bias": jnp.full(2, -0.2)}
    expected_tx = {
        "sgd": optax.chain(
            optax.add_decayed_weights(0.01, mask={"kernel": True, "bias": False}),
            optax.sgd(0.1, momentum=0.9, nesterov=True),
        ),
        "adamw": optax.adamw(0.1, weight_decay=0.01, mask={"kernel": True, "bias": False}),
        "adadelta": optax.chain(
            optax.add_decayed_weights(0.01, mask={"kernel": True, "bias": False}), optax.adadelta(0.1)
        ),
    }[name]
    tx = create_optimizer(name, momentum=0.9)
    state, expected_state = tx.init(params), expected_tx.init(params)
    for _ in range(3):
        state = with_hyperparams(state, learning_rate=0.1, weight_decay=0.01)
        updates, state = tx.update(grads, state, params)
        expected, expected_state = expected_tx.update(grads, expected_state, params)
        leaves_close(updates, expected, rtol=1e-6, atol=1e-8)


def test_average_of_parameters_follows():
    state = networks.tiny_state(networks.tiny_model("none"), ema=True)
    step = jax.jit(networks.make_step(Objective(), ema_decay=0.9))
    before = state
    state, _ = step(state, networks.tiny_batch(), networks.hyper(), jax.random.key(0))
    decay = min(0.9, 2 / 11)
    expected = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, before.params, state.params)
    leaves_close(state.ema_params, expected, rtol=1e-6, atol=1e-7)
    assert state.variables["params"] is state.ema_params


@pytest.mark.parametrize("norm", ["batch", pytest.param("none", marks=pytest.mark.full)])
def test_bfloat16_step_is_finite_and_near_float32(norm, fixed_masks, key):
    terms = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        model = networks.tiny_model(norm, dtype=dtype)
        state = networks.tiny_state(model)
        new, terms[dtype] = jax.jit(networks.make_step(networks.objective()))(
            state, networks.tiny_batch(), networks.hyper(), key
        )
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((new.params, new.batch_stats)))
    for name, value in terms[jnp.float32].items():
        np.testing.assert_allclose(terms[jnp.bfloat16][name], value, rtol=0.15, atol=0.05, err_msg=name)


GOLDEN = {
    "accuracy": 0.375,
    "classification": 4.896673,
    "consistency_weight": 1.0,
    "consistency": 0.022519,
    "conv0 sum": 1.397958,
    "conv1 sum": 10.773843,
    "decorrelation_weight": 0.5,
    "decorrelation": 0.536929,
    "decorrelation_floor": 0.466667,
    "decorrelation_samples": 16.0,
    "feature_scale": 0.909965,
    "gradient_norm": 7.11043,
    "learning_rate": 0.5,
    "loss": 5.19962,
    "mask_fraction": 0.5,
    "masked_accuracy": 0.375,
    "variance": 0.11964,
    "variance_weight": 0.1,
}
CHANGED = (
    "The step's result changed. If that was meant (another default, another order of random draws), put the new "
    "values into GOLDEN and say why in the commit; if not, find the change that did it: runs would not be comparable "
    "with earlier ones."
)


def test_golden_step():
    state = networks.loud_state(networks.tiny_model(widths=(6, 8)))
    step = jax.jit(networks.make_step(networks.objective(variance=True)))
    values = networks.hyper(variance=0.1, learning_rate=0.5)
    new, terms = step(state, networks.tiny_batch(), values, jax.random.key(0))
    found = {name: float(value) for name, value in terms.items()}
    for layer in ("conv0", "conv1"):
        found[f"{layer} sum"] = float(jnp.sum(new.params[layer]["kernel"]))
    assert found.keys() == GOLDEN.keys(), CHANGED
    for name, value in GOLDEN.items():
        assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-5), f"{name}: {CHANGED}"
