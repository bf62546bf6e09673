"""Tests of fine-tuning: frozen modules, the learning rate of the backbone, and runs that start from weights."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_runs
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from networks import SHAPE, tiny_model

import train
from sdecor.core import parallel
from sdecor.models import ResNet, Tap, freeze, is_frozen
from sdecor.models.freezing import backbone_parameters, frozen_parameters
from sdecor.models.frozen import frozen_statistics, record_statistics
from sdecor.training import build, members, run, run_folder
from sdecor.training.checkpoint import Checkpoints
from sdecor.training.state import OPTIMIZERS, create_optimizer, with_hyperparams

PARAMS = {
    "conv0": {"kernel": np.full((3, 4), 0.5, np.float32), "bias": np.ones(4, np.float32)},
    "head": {"kernel": np.full((4, 2), -0.5, np.float32), "bias": np.ones(2, np.float32)},
}


def updates_of(name, steps=3, learning_rate=0.1, params=PARAMS, **options):
    """Return the parameters after some steps of an optimizer, with its state."""
    tx = create_optimizer(name, **options)
    state = tx.init(params)
    for step in range(steps):
        grads = jax.tree.map(lambda p: jnp.sin(jnp.arange(p.size, dtype=p.dtype) + step).reshape(p.shape), params)  # noqa: B023
        state = with_hyperparams(state, learning_rate=learning_rate, weight_decay=0.01)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_learning_rate_of_the_backbone_is_a_multiple(name):
    found, _ = updates_of(name, steps=1, backbone=backbone_parameters, backbone_lr=0.1)
    slow, _ = updates_of(name, steps=1, learning_rate=0.01)
    fast, _ = updates_of(name, steps=1)
    np.testing.assert_allclose(found["conv0"]["kernel"], slow["conv0"]["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(found["head"]["kernel"], fast["head"]["kernel"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_stay_and_take_no_part_in_the_others_updates(name):
    frozen = lambda params: frozen_parameters(params, ("conv*",))  # noqa: E731
    found, state = updates_of(name, frozen=frozen, clip_norm=0.3, backbone=backbone_parameters, backbone_lr=0.1)
    alone, expected = updates_of(name, params={"head": PARAMS["head"]}, clip_norm=0.3)
    jax.tree.map(np.testing.assert_array_equal, found, PARAMS | alone)
    shapes = lambda state: [leaf.shape for leaf in jax.tree.leaves(state)]  # noqa: E731
    assert shapes(state) == shapes(expected)  # no moments of frozen parameters


def test_patterns_name_modules_and_all_inside_them():
    assert is_frozen("stage1/block1/conv1/kernel", ("stage1",)) and is_frozen("positions", ("pos*",))
    assert is_frozen("stage1/block1/norm1", ("stage*/norm1",)) and not is_frozen("stage10/block1", ("stage1",))
    assert is_frozen("class_token", ("backbone",)) and not is_frozen("head/kernel", ("backbone",))
    assert not is_frozen("conv0/kernel", ())
    with pytest.raises(ValueError, match="train.freeze = 'stage9' matches no module: use backbone .* conv0, head"):
        frozen_parameters(PARAMS, ("conv0", "stage9"))
    with pytest.raises(ValueError, match="leaves no parameter to train"):
        frozen_parameters(PARAMS, ("*",))


def trained_variables(model, shape):
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape))))
    return jax.tree.map(lambda leaf: (0.2 + rng.uniform(size=leaf.shape)).astype(np.float32), shapes)


def in_training(apply, variables, images):
    (logits, _), updates = apply(variables, images, train=True, mutable=["batch_stats"])
    return logits, updates["batch_stats"]


def test_frozen_batch_norm_runs_with_its_running_statistics():
    model = tiny_model(widths=(4, 6))
    variables, images = trained_variables(model, SHAPE), np.random.default_rng(0).normal(size=(8, *SHAPE))
    before, everything = variables["batch_stats"], freeze(model.apply, ("norm*",))
    logits, after = in_training(everything, variables, images)
    np.testing.assert_allclose(logits, model.apply(variables, images)[0], rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, after, before)
    # With the first norm frozen, the second sees what it sees in eval mode, and takes the statistics of that.
    logits, after = in_training(freeze(model.apply, ("norm0",)), variables, images)
    jax.tree.map(np.testing.assert_array_equal, after["norm0"], before["norm0"])
    seen = Tap(model, ("conv1",)).apply(variables, images)[1]["conv1"]
    expected = 0.9 * before["norm1"]["mean"] + 0.1 * seen.mean((0, 1, 2))
    np.testing.assert_allclose(after["norm1"]["mean"], expected, rtol=1e-4)
    # Also where statistics are recorded, and used again.
    with record_statistics() as record:
        again, _ = in_training(freeze(model.apply, ("norm0",)), variables, images)
    assert list(record) == ["norm1"]
    with frozen_statistics(record):
        replayed, _ = in_training(freeze(model.apply, ("norm0",)), variables, images)
    np.testing.assert_allclose(again, logits, rtol=1e-5)
    np.testing.assert_allclose(replayed, logits, rtol=1e-5)


def test_frozen_parameters_get_no_gradient_and_images_do():
    model = tiny_model(widths=(4, 6))
    variables, images = trained_variables(model, SHAPE), np.random.default_rng(0).normal(size=(8, *SHAPE))

    def loss(params, images, apply):
        return in_training(apply, {**variables, "params": params}, images)[0].var()

    frozen = freeze(model.apply, ("backbone",))
    grads, of_images = jax.grad(loss, (0, 1))(variables["params"], images, frozen)
    sizes = {path[0]: float(jnp.abs(leaf).max()) for path, leaf in flatten_dict(grads).items() if path[-1] == "kernel"}
    assert sizes["conv0"] == sizes["conv1"] == 0.0 < sizes["head"]
    expected = jax.grad(lambda images: model.apply(variables, images)[0].var())(images)
    np.testing.assert_allclose(of_images, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.full
def test_frozen_blocks_may_be_rematerialised():
    model = ResNet(num_classes=3, blocks=(1,), stem="cifar", remat="blocks")
    variables, images = trained_variables(model, (8, 8, 3)), np.random.default_rng(0).normal(size=(4, 8, 8, 3))
    logits, after = in_training(freeze(model.apply, ("backbone",)), variables, images)
    np.testing.assert_allclose(logits, model.apply(variables, images)[0], rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, after, variables["batch_stats"])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny_runs.draw_images(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture(scope="module")
def source(images, tmp_path_factory):
    """Return the folder of a trained run."""
    folder = tmp_path_factory.mktemp("source")
    assert train.train(tiny_runs.tiny_config(images, "ce", **{"train.epochs": 2.0}), str(folder))
    return folder


def best(folder):
    """Return the variables of the best checkpoint of a run."""
    config = ConfigDict(run_folder.read(folder)["config"])
    model = build.create_model(config, 2, (8, 8, 3))
    state = build.state_shapes(config, model, (8, 8, 3), jax.random.key(0))
    with Checkpoints(folder, create=False) as checkpoints:
        return parallel.to_host(checkpoints.restore(state, checkpoints.best_step())[0].variables)


def test_a_frozen_run_keeps_the_weights_it_started_from_and_continues_without_them(source, images, tmp_path):
    first, folder = tmp_path / "source", tmp_path / "run"
    shutil.copytree(source, first)
    changes = {"model.init_from": str(first), "train.freeze": ("backbone",), "train.epochs": 2.0, "seed": 3}
    config = tiny_runs.tiny_config(images, "ce", **changes)
    assert train.train(config, str(folder))
    expected, found = (flatten_dict(best(each)) for each in (first, folder))
    for path, leaf in expected.items():
        same = np.array_equal(leaf, found[path])
        assert same != (path[1] == "head"), path
    # The last checkpoint is taken away, so that a step is left; the weights are gone.
    last = Checkpoints(folder, create=False).steps()[-1]
    shutil.rmtree(folder / "checkpoints" / str(last))
    shutil.rmtree(first)
    assert train.train(config, str(folder))
    jax.tree.map(np.testing.assert_array_equal, flatten_dict(best(folder)), found)


def test_a_run_starts_from_a_run_before_anything_is_compiled(source, images, tmp_path):
    changes = {"model.init_from": str(source), "optim.ema_decay": 0.9, "seed": 3}
    config = tiny_runs.tiny_config(images, "ce", **changes)
    _, state = run.build_run(config, str(tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, parallel.to_host(state.variables), best(source))
    jax.tree.map(np.testing.assert_array_equal, state.params, state.ema_params)
    step = Checkpoints(source, create=False).steps()[0]
    config.model.init_from = str(source / "checkpoints" / str(step))
    run.build_run(config, str(tmp_path / "step"))
    for wrong, message in (
        (str(tmp_path / "no.safetensors"), "there is no such file"),
        (str(source / "checkpoints" / "999"), "no checkpoint of step 999"),
    ):
        config.model.init_from = wrong
        with pytest.raises(ValueError, match=f"config.model.init_from: .*{message}"):
            run.build_run(config, str(tmp_path / "wrong"))
    config.update_from_flattened_dict({"model.init_from": str(source), "train.freeze": ("norm7",)})
    with pytest.raises(ValueError, match="train.freeze = 'norm7' matches no module"):
        run.build_run(config, str(tmp_path / "wrong"))


def test_replicas_share_the_weights_and_keep_heads_of_their_own(source, images):
    config = tiny_runs.tiny_config(images, "ce", **{"model.init_from": str(source)})
    model = build.create_model(config, 3, (8, 8, 3))  # another class, so another head
    state = build.create_state(config, model, (8, 8, 3), members.run_key([0, 1], 0, 2))
    state, notes = build.initialise_from(config, model, (8, 8, 3), state, 2)
    assert notes[1:] == ["the head starts anew: it is 6×3 here and has 6×2 there"]
    one, two = (parallel.to_host(own.params) for own in members.split(state, 2))
    jax.tree.map(np.testing.assert_array_equal, one["conv0"], best(source)["params"]["conv0"])
    jax.tree.map(np.testing.assert_array_equal, one["conv0"], two["conv0"])
    assert not np.array_equal(one["head"]["kernel"], two["head"]["kernel"])
