"""Tests of the path of a series from its config to a report: every training method, and what images alone have."""

import json

import jax
import numpy as np
import pytest
import tiny_runs

import train
from configs import series as config_of_series
from sdecor.core import parallel
from sdecor.data.augment import augment, center_crop, normalise
from sdecor.evaluation import Setup, choose_methods, choose_metrics, make_plan
from sdecor.evaluation.programs import objects_of
from sdecor.models import create_model
from sdecor.models.layers import halve_by_maximum
from sdecor.report.heatmaps import series_maps, series_pictures
from sdecor.training import build
from sdecor.training.batches import batch_shapes

rng = np.random.default_rng(0)
FACTS = build.DataFacts(2, (50, 50), (0.0,) * 50, (1.0,) * 50, 64, "float32")
SMALL = {"model.widths": (4, 4), "train.batch_size": 8, "optim.warmup_epochs": 0.0}


def small(arg, **changes):
    config = config_of_series.get_config(arg)
    with config.ignore_type():
        config.update_from_flattened_dict(SMALL | changes)
    return config


def test_the_network_by_numpy():
    """A convolution over time, ReLU, mean and a linear layer."""
    model = create_model("cnn1d", num_classes=3, widths=(5,), norm="none", stem_stride=1)
    x = rng.normal(size=(2, 7, 4)).astype(np.float32)
    (logits, features), variables = jax.jit(model.init_with_output)(jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (0, 0)))
    windows = np.stack([padded[:, k : k + 7] for k in range(3)])
    maps = np.einsum("kntc,kcd->ntd", windows, params["conv0"]["kernel"]) + params["conv0"]["bias"]
    expected = np.maximum(maps, 0).mean(1)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits, expected @ params["head"]["kernel"] + params["head"]["bias"], rtol=1e-4)
    halves = np.stack([x[:, [0, 1]], x[:, [2, 3]], x[:, [4, 5]]], 1).max(2)
    np.testing.assert_array_equal(halve_by_maximum(x), halves)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        ("cnn", (1, 50, 4), r"must be \[N, H, W, C\]; the model for series \[N, T, C\] is cnn1d"),
        ("cnn1d", (1, 8, 8, 1), r"must be \[N, T, C\]; the model for images is cnn"),
        ("cnn1d", (1, 3, 4), "length must be at least 8"),
    ],
)
def test_networks_say_what_they_take(model, shape, message):
    module = create_model(model, num_classes=2)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, np.float32))


@pytest.mark.parametrize("arg", ["method=sdecor", "method=sdecor,form=zca"])
def test_a_step_of_training_is_traced(arg):
    config = small(arg)
    build.check_config(config, 1)
    program = build.create_program(config, FACTS)
    assert program.image_shape == (50, 50) and program.schedule.steps_per_epoch == 8
    shapes = batch_shapes(FACTS.image_shape, replicas=None, batch_size=8, dtype=FACTS.dtype, devices=1)
    assert shapes["image"].shape == (1, 8, 50, 50) and shapes["image"].dtype == np.float32
    key = jax.random.key(0)
    state = build.state_shapes(config, program.model, program.image_shape, key)
    hyper = build.create_hyper(config, 8)

    def mapped(state, batch, key):
        return jax.vmap(lambda own: program.step(state, own, hyper, key), axis_name=parallel.AXIS)(batch)

    new, _ = jax.eval_shape(mapped, state, shapes, key)
    assert jax.tree.structure(new.params) == jax.tree.structure(state.params)


def test_crops_and_flips_are_of_images():
    x = rng.normal(size=(2, 6, 3)).astype(np.float32)
    np.testing.assert_array_equal(augment(jax.random.key(0), x), x)
    np.testing.assert_allclose(normalise(center_crop(x, None), (1.0, 2.0, 3.0), (2.0, 2.0, 2.0)), (x - [1, 2, 3]) / 2)
    with pytest.raises(ValueError, match="Crops and flips are of images: leave them off"):
        augment(jax.random.key(0), x, flip=True)
    with pytest.raises(ValueError, match=r"config.augment.size = 32 is for images: inputs of shape \(50, 50\)"):
        build.create_program(small("method=ce", **{"augment.size": 32}), FACTS)
    with pytest.raises(ValueError, match="config.augment: .*Crops and flips are of images"):
        build.create_program(small("method=ce", **{"augment.flip": True}), FACTS)
    with pytest.raises(ValueError, match="--classes is for images: config.data.name = 'series/"):
        build.assume_facts(small("method=ce"), 2, 64)


def plan(metrics, methods=("gradient",)):
    model = create_model("cnn1d", num_classes=2, widths=(4,))
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 50, 6), np.float32))
    apply = lambda variables, x: model.apply(variables, x, train=False)  # noqa: E731
    arrays = {"image": ((1, 50, 6), np.float32), "object": ((1, 50, 6), np.uint8), "weight": ((1,), np.float32)}
    arrays |= {name: ((1,), np.int32) for name in ("label", "index")}
    batch = {name: jax.ShapeDtypeStruct(*value) for name, value in arrays.items()}
    needs = ("maps", "object", "network", "attributions", "explanation", "parameters", "set", "mosaic")
    setup = Setup(apply, (0.0,) * 6, (1.0,) * 6)
    chosen = choose_methods(methods), choose_metrics(metrics)
    return make_plan(setup, *chosen, variables=variables, batch=batch, images=dict.fromkeys(needs, 4), options={})


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("road", "ROAD is defined for images"),
        ("grid_pointing_game", r"mosaics are of images, and these inputs have the shape \(50, 6\)"),
        ("mst_compactness", "structural compactness is defined for images"),
    ],
)
def test_metrics_of_images_are_refused_by_name_and_left_out_of_presets(metric, message):
    with pytest.raises(ValueError, match=message):
        plan([metric])


def test_metrics_of_maps_are_computed_of_series():
    found, notes = plan(["quick", "roc_auc", "best_iou", "relevance_rank_accuracy", "continuity"])
    assert notes == [] and not found.refused
    assert {"energy_inside", "pointing_game", "gini", "replacement", "continuity"} <= {g.name for g in found.groups}


@pytest.mark.full
def test_all_methods_and_metrics_of_a_series():
    found, notes = plan(["full"])
    left_out = {note.partition(" is left out")[0] for note in notes}
    names = ("grid_pointing_game", "road", "arcc", "mst_compactness", "random_logit")
    assert left_out == {f"metric {name}" for name in names}
    found, notes = plan(["gini"], ["full"])
    assert {note.split()[1] for note in notes} == {"attention_rollout", "attention_relevance", "legrad"}, notes


def test_masks_with_channels_are_those_of_times():
    codes = np.zeros((1, 4, 3), np.uint8)
    codes[0, 1, 2], codes[0, 1, 0], codes[0, 3, 1] = 1, 2, 2
    batch = {"image": np.zeros((1, 4, 3), np.float32), "object": codes}
    objects, ignored = objects_of(Setup(None, (), ()), batch)
    np.testing.assert_array_equal(objects, [[False, True, False, False]])
    np.testing.assert_array_equal(ignored, [[False, False, False, True]])


def test_series_are_drawn_with_time_from_left_to_right():
    x = np.array([[[0.0, 10.0], [3.0, 10.0], [99.0, 7.0]]])  # three times, two channels
    drawn = series_pictures(x, (0.0, 10.0), (1.0, 1.0))
    np.testing.assert_array_equal(drawn[0, :, :, 0], [[128, 255, 255], [128, 128, 0]])
    np.testing.assert_array_equal(series_maps(x, 2)[0], x[0].T)
    np.testing.assert_array_equal(series_maps(x[..., 0], 2)[0], [x[0, :, 0]] * 2)


@pytest.mark.full
@pytest.mark.parametrize("arg", ["ce", "sgt", "decor", "sdecor", "sdecor,form=density", "sdecor,form=zca", "gradpen"])
def test_every_training_method_learns_from_series(arg, tmp_path):
    config = small(f"method={arg}", **tiny_runs.TINY | SMALL | {"data.name": config_of_series.NAME, "data.limit": 32})
    with config.ignore_type():
        config.update_from_flattened_dict({"data.canvas": None, "augment.flip": False, "augment.crop_padding": 0})
        config.train.epochs = 1.0
    assert train.train(config, str(tmp_path / "run"))
    if arg != "sdecor":
        return
    command = [tiny_runs.sys.executable, "evaluate.py", f"--workdir={tmp_path / 'run'}", "--images=2", "--noprogress"]
    finished = tiny_runs.subprocess.run(command, cwd=tiny_runs.ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    numbers = json.loads((tmp_path / "run" / "evaluation.json").read_text())["metrics"]
    assert numbers["area_share"]["mean"] == pytest.approx(6 / 50)
    assert 0 <= numbers["gradient/energy_inside"]["mean"] <= 1
    assert (tmp_path / "run" / "report.html").exists() and (tmp_path / "run" / "saliency.png").exists()
