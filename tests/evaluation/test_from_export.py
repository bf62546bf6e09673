"""Tests of metrics of an export's maps: equal to those of new maps, and refused where maps do not suffice."""

import contextlib
import json
import os
import re
import shutil

import evaluated
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stored_export
import tiny_runs
from evaluated import COUNT

import train
from sdecor.evaluation import (
    GROUPS,
    RANDOM,
    Store,
    choose_methods,
    choose_metrics,
    extend,
    make_explanation,
    make_measurement,
    make_plan,
    measure,
    predict,
    stored,
)
from sdecor.export import check_same, reader, stored_methods
from sdecor.export.feed import reader_of

IMAGES_OF = evaluated.IMAGES_OF | {"attributions": 5}
SIGNED = ("completeness", "faithfulness_correlation", "faithfulness_estimate", "sensitivity_n")


@contextlib.contextmanager
def quiet(what, total):
    yield lambda done: None


@pytest.fixture(scope="module")
def one():
    return evaluated.subject()


@pytest.fixture(scope="module")
def predicted(one):
    return predict(one)


def one_batch(predicted) -> dict:
    split = evaluated.Source()
    batch = {name: np.stack([split[i][name] for i in range(COUNT)]) for name in ("image", "label", "object")}
    batch |= {"index": np.arange(COUNT, dtype=np.int32), "weight": np.ones(COUNT, np.float32)}
    return batch | {"target": predicted.examples["target"]}


def maps_of(setup, predicted, words, reduction):
    """Return the maps that an export of these methods would hold."""
    held = {}
    for key, (method, _) in choose_methods(words).items():
        program = jax.jit(make_explanation(setup, method))
        arrays = program(evaluated.variables(), one_batch(predicted), jax.random.key(0))
        held[key] = np.asarray(arrays["attributions" if reduction is None else "maps"])
    return stored.Maps(lambda key, places: held[key][places], reduction, predicted.examples["target"])


def plan_of(setup, words, names, reduction, *, restricted=True):
    batch = {"image": jnp.zeros((1, *evaluated.IMAGES.shape[1:]), jnp.uint8), "label": jnp.zeros(1, jnp.int32)}
    batch |= {"index": jnp.zeros(1, jnp.int32), "weight": jnp.ones(1, jnp.float32)}
    batch |= {"object": jnp.zeros((1, *evaluated.IMAGES.shape[1:3]), jnp.uint8)}
    wanted = choose_metrics(names)
    plan, _ = make_plan(
        setup,
        choose_methods(words),
        wanted,
        variables=evaluated.variables(),
        batch=batch,
        images=IMAGES_OF,
        options={"replacement": {"steps": 3}},
    )
    if not restricted:
        return plan
    return stored.restrict(plan, wanted, reduction)


def completed(subject, plan, maps, tmp_path, depends=None, **options):
    store = Store(tmp_path, depends or {"export": "one"}, **options)
    store.complete(plan, subject, quiet, maps)
    return store.results


def directly(subject, plan, predicted):
    results = predicted
    for method in plan.methods.values():
        groups = [each for each, _ in plan.parts(method).values()]
        images = {each.name: plan.images[each.needs] for each in groups}
        found, _ = measure(subject, method, groups, images=images, predicted=predicted)
        results = extend(results, found, method.key)
    return results


@pytest.mark.parametrize(
    ("reduction", "words", "names"),
    [
        ("abs_sum", ("gradient", "smoothgrad:samples=2"), ("energy_inside", "gini", "deletion", "sufficiency")),
        ("abs_max", ("gradient",), ("roc_auc", "consistency")),
        pytest.param("abs_max", ("gradient",), ("road",), marks=pytest.mark.full),
        ("sum", ("input_x_gradient",), ("deletion", "faithfulness_correlation", "completeness")),
        (None, ("smoothgrad:samples=2",), ("gini", "max_sensitivity", "infidelity", "efficient_mprt")),
        pytest.param(None, ("smoothgrad:samples=2",), ("insertion",), marks=pytest.mark.full),
    ],
)
def test_stored_maps_have_the_metrics_of_explained_ones(one, predicted, tmp_path, reduction, words, names):
    """Keys of examples are the same, so this holds for metrics that explain again or draw."""
    subject = one._replace(setup=one.setup._replace(reduction=reduction or "abs_sum"))
    maps = maps_of(subject.setup, predicted, words, reduction)
    plan, notes = plan_of(subject.setup, words, names, reduction)
    assert not notes and (RANDOM.key in plan.methods) == bool({"deletion", "insertion", "road"} & {*names})
    found, expected = completed(subject, plan, maps, tmp_path), directly(subject, plan, predicted)
    assert found.examples.keys() == expected.examples.keys()
    assert any(name.startswith(f"{words[0]}/") for name in found.examples)
    for name, values in expected.examples.items():
        np.testing.assert_allclose(found.examples[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


def test_metrics_are_reused_until_the_maps_change(one, predicted, tmp_path):
    maps = maps_of(one.setup, predicted, ("gradient",), "abs_sum")
    read = []
    counted = maps._replace(read=lambda key, places: read.append(key) or maps.read(key, places))
    plan, _ = plan_of(one.setup, ("gradient",), ("gini",), "abs_sum")
    first = completed(one, plan, counted, tmp_path)
    count = len(read)
    assert count and completed(one, plan, counted, tmp_path).examples.keys() == first.examples.keys()
    assert len(read) == count
    more, _ = plan_of(one.setup, ("gradient",), ("gini", "entropy"), "abs_sum")
    assert "gradient/entropy" in completed(one, more, counted, tmp_path).examples and len(read) > count
    count = len(read)
    completed(one, plan, counted, tmp_path, depends={"export": "another"})
    assert len(read) > count
    count = len(read)
    completed(one, plan, counted, tmp_path, depends={"export": "another"}, fresh=True)
    assert len(read) > count


def test_the_classes_explained_are_the_stored_ones(one, predicted, tmp_path):
    maps = maps_of(one.setup, predicted, ("gradient",), "abs_sum")
    others = maps._replace(targets=(np.asarray(maps.targets) + 1) % evaluated.CLASSES)
    plan, _ = plan_of(one.setup, ("gradient",), ("deletion",), "abs_sum")
    found = completed(one, plan, others, tmp_path).examples
    np.testing.assert_array_equal(found["target"], others.targets)
    changed = predicted._replace(examples=predicted.examples | {"target": np.asarray(others.targets)})
    method = plan.methods["gradient"]
    read = stored.explaining(one, method, others)
    expected, _ = measure(one, method, plan.groups, images={"replacement": 12}, predicted=changed, explain=read)
    few = expected.examples["index"]
    np.testing.assert_array_equal(found["gradient/deletion"][few], expected.examples["deletion"])


def test_absolute_maps_tell_nothing_of_signs(one):
    full = plan_of(one.setup, ("gradient",), ("full",), "abs_sum", restricted=False)
    needs = {each.name: each.needs for each in full.groups}
    whole = {name for name, need in needs.items() if need in ("attributions", "explanation", "parameters")}
    missing = {None: {"grid_pointing_game"}, "sum": {"grid_pointing_game", *whole}}
    missing["abs_sum"] = {*SIGNED, *missing["sum"]}
    assert {"infidelity", "sensitivities", "parameter_randomization"} <= whole
    for reduction, left in missing.items():
        plan, notes = stored.restrict(full, choose_metrics(("full",)), reduction)
        assert {each.name for each in full.groups} - {each.name for each in plan.groups} == left
        assert len(notes) == len(left)
        assert all(any(f"metric {GROUPS[name].title} is left out" in note for note in notes) for name in left)


def test_groups_that_read_signed_maps_say_so(one):
    """Each group's equations show whether it reads the signed maps; its row must agree."""
    shape = jax.ShapeDtypeStruct((1, evaluated.SIDE, evaluated.SIDE), jnp.float32)
    example = {"image": jnp.zeros((1, *evaluated.IMAGES.shape[1:]), jnp.uint8), "label": jnp.zeros(1, jnp.int32)}
    example |= {"index": jnp.zeros(1, jnp.int32), "target": jnp.zeros(1, jnp.int32), "maps": shape, "signed": shape}
    example |= {"object": jnp.zeros((1, *evaluated.IMAGES.shape[1:3]), jnp.uint8)}
    arguments = (evaluated.variables(), example, jax.random.key(0))
    leaves = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(arguments)]
    asked = [each for each in GROUPS.values() if each.needs in ("maps", "object", "network")]
    assert len(asked) > 20
    for each in asked:
        # A patch of the default size would cover the whole of these small images.
        each = each._replace(options=tuple((name, 2 if name == "patch" else value) for name, value in each.options))
        jaxpr = jax.make_jaxpr(make_measurement(one.setup, (each,)))(*arguments).jaxpr
        signed = jaxpr.invars[leaves.index("[1]['signed']")]
        read = any(signed is given for equation in jaxpr.eqns for given in equation.invars) or signed in jaxpr.outvars
        assert read == each.signed == (each.name in SIGNED), each.name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("completeness", "needs the signs of the attributions, and maps reduced by 'abs_sum' are stored"),
        ("max_sensitivity", "looks at whole attributions"),
        ("infidelity", "looks at whole attributions"),
        ("grid_pointing_game", "explains mosaics"),
    ],
)
def test_a_metric_that_was_named_is_refused(one, name, reason):
    plan = plan_of(one.setup, ("gradient",), (name, "gini"), "abs_sum", restricted=False)
    with pytest.raises(ValueError, match=f"--metrics has .*stored maps do not tell: it {reason}"):
        stored.restrict(plan, choose_metrics((name, "gini")), "abs_sum")


def test_without_a_reference_no_random_order_is_evaluated(one):
    plan, _ = plan_of(one.setup, ("gradient",), ("deletion",), "abs_sum")
    assert RANDOM.key in plan.methods
    plan, _ = plan_of(one.setup, ("gradient",), ("gini",), "abs_sum")
    assert RANDOM.key not in plan.methods


ABOUT = {"checkpoint": {"step": 8, "parameters": {"w": "ab", "b": "cd"}}, "dataset": {"split": "test"}}


def exported(path, **changes):
    stored_export.write(path, stored_export.draw(n=COUNT), data=reader_of(evaluated.Source()).fingerprint, **changes)
    return reader.open(path)


def test_an_export_is_of_its_run_and_data_alone(tmp_path):
    held, source = exported(tmp_path / "a.zarr", provenance=ABOUT), evaluated.Source()
    check_same(held, {"provenance": ABOUT, "target": "predicted"}, source)
    other = ABOUT | {"checkpoint": {"step": 9, "parameters": {"w": "xy", "b": "uv"}}}
    with pytest.raises(ValueError, match="step: 8 there, 9 here\n(.*\n)?.*parameters.b and 1 parameters more: 'cd'"):
        check_same(held, {"provenance": other}, source)
    with pytest.raises(ValueError, match="target: 'predicted' there, 'label' here"):
        check_same(held, {"provenance": ABOUT, "target": "label"}, source)
    flipped = type("Flipped", (evaluated.Source,), {"__getitem__": lambda s, i: {"image": evaluated.IMAGES[i][::-1]}})
    with pytest.raises(ValueError, match="data.images"):
        check_same(held, {"provenance": ABOUT}, flipped())
    stored_export.write(tmp_path / "b.zarr", stored_export.draw(), ranges=(0,), data=held.attributes["data"])
    with pytest.raises(ValueError, match="not finished"):
        check_same(reader.open(tmp_path / "b.zarr"), {}, source)


def test_methods_are_those_stored_with_the_same_settings(tmp_path):
    held = exported(tmp_path / "a.zarr", settings={"integrated_gradients:steps=4": {"steps": 5}})
    assert list(stored_methods(held, ["gradient"], "logit")) == ["gradient"]
    assert list(stored_methods(held, ["full"], "logit")) == ["gradient"]  # the part of the preset that is stored
    with pytest.raises(ValueError, match="--methods has lrp, which .* it holds: gradient, integrated_gradients"):
        stored_methods(held, ["gradient", "lrp"], "logit")
    with pytest.raises(ValueError, match="gradient in .* has other settings than here:\n  saliency_of: 'logit' there"):
        stored_methods(held, ["gradient"], "probability")
    with pytest.raises(ValueError, match="steps=4 in .*\n  steps: 5 there, 4 here"):
        stored_methods(held, None, "logit")


# From the command line, with trained runs.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder of a trained run, its exports, and its evaluation without exports."""
    root = tmp_path_factory.mktemp("from_export")
    images = tiny_runs.draw_images(root / "data")
    assert train.train(tiny_runs.tiny_config(images, "ce", **{"train.epochs": 2.0}), str(root / "ce"))
    for name, flags in (("maps", ()), ("half", ("--dtype=float16",))):
        status, output = run(root, f"--export={root / name}.zarr", "--methods=gradient,smoothgrad:samples=2", *flags)
        assert status == 0, output
    return root


def run(root, *arguments, workdir="ce", devices=2):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "MPLBACKEND": "Agg"}
    env |= {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}
    command = [tiny_runs.sys.executable, "evaluate.py", f"--workdir={root / workdir}", "--images=3", "--noprogress"]
    process = tiny_runs.start([*command, *map(str, arguments)], env)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def numbers(path):
    with np.load(path / "evaluation.npz") as arrays:
        return {name: arrays[name] for name in arrays if name != "settings"}


@pytest.mark.full
def test_the_command_gives_the_results_of_one_without_export(folder):
    metrics = "--metrics=quick,entropy,sufficiency"
    status, output = run(folder, f"--from-export={folder / 'maps.zarr'}", metrics)
    assert status == 0 and "SmoothGrad (samples=2)" in output and "Insertion" in output, output
    before = sorted(path.name for path in (folder / "ce").iterdir())
    assert "from_export" in before and "evaluation.json" not in before
    status, output = run(folder, "--methods=gradient,smoothgrad:samples=2", metrics)
    assert status == 0, output
    found, expected = numbers(folder / "ce" / "from_export" / "maps"), numbers(folder / "ce")
    assert found.keys() == expected.keys() and "gradient/sufficiency" in found
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
    written = json.loads((folder / "ce" / "from_export" / "maps" / "evaluation.json").read_text())
    assert written["settings"]["from_export"]["dtype"] == "float32"
    assert (folder / "ce" / "from_export" / "maps" / "report.html").stat().st_size > 0
    status, output = run(folder, f"--from-export={folder / 'half.zarr'}", "--metrics=gini", "--methods=gradient")
    assert status == 0, output
    half = numbers(folder / "ce" / "from_export" / "half")
    np.testing.assert_allclose(half["gradient/gini"], expected["gradient/gini"], rtol=1e-3)


@pytest.mark.full
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target=label"], "target: 'predicted' there, 'label' here"),
        (["--split=val"], "provenance.dataset.split: 'test' there, 'val' here"),
        (["--checkpoint=4"], "provenance.checkpoint.step: 6 there, 4 here"),
        (["--methods=lrp"], "--methods has lrp, which .* does not hold; it holds: gradient, smoothgrad:samples=2"),
        (["--metrics=completeness"], "--metrics has completeness, which stored maps do not tell: it needs the signs"),
    ],
)
def test_an_export_of_something_else_is_refused_and_says_of_what(folder, flags, message):
    status, output = run(folder, f"--from-export={folder / 'maps.zarr'}", *flags)
    assert status == 1 and "Traceback" not in output, output
    assert re.search(message, output), output


@pytest.mark.full
def test_an_export_that_is_not_finished_or_none_is_refused(folder, tmp_path):
    shutil.copytree(folder / "maps.zarr", tmp_path / "maps.zarr")
    path = tmp_path / "maps.zarr" / "zarr.json"
    content = json.loads(path.read_text())
    del content["attributes"]["complete"]
    path.write_text(json.dumps(content))
    status, output = run(folder, f"--from-export={tmp_path / 'maps.zarr'}")
    assert status == 1 and "is not finished" in output, output
    status, output = run(folder, f"--from-export={tmp_path / 'nothing.zarr'}")
    assert status == 1 and "holds no export" in output, output
