"""Tests of replicas: each equals its single run, on any devices and when resumed; impossible ones are refused."""

import functools
import os
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import tiny_runs

import train
from sdecor import masking
from sdecor.core import parallel
from sdecor.training import build, logbook, members, record, replicas, run_folder
from sdecor.training.checkpoint import Checkpoints, checksums
from sdecor.training.state import create_optimizer, create_train_state
from sdecor.training.terms import METHODS

TEXTS = ("a:seed=0", "b:seed=1,optim.lr=0.01,decorrelation.weight=0.5", "c:seed=0,masking.fraction=0.25")
SEEDS = (0, 1, 1)
HYPERS = (
    {},
    {"learning_rate": 0.03, "weight_decay": 0.1, "ramps": {"consistency": 2.0}},
    {"decorrelation": 4.0, "mask_fraction": 0.2, "mask_ramp": 3.0, "variance": 1.0},
)


@pytest.fixture
def fixed_masks(monkeypatch):
    """Make the mask depend on the key alone, because masking is discontinuous."""
    least_salient = masking.least_salient
    constant = lambda key, saliency, **options: least_salient(key, jnp.zeros_like(saliency), **options)  # noqa: E731
    monkeypatch.setattr(masking, "least_salient", constant)


def first_steps(devices: int, chosen: list[int] | int, number_of_steps: int = 3):
    """Return state and terms of the first steps, of the `chosen` replicas together, or of a single run if a number."""
    model = networks.tiny_model(axis_name=parallel.AXIS)
    step = networks.make_step(networks.objective(variance=True), axis_name=parallel.AXIS)
    together = isinstance(chosen, list)
    tx = create_optimizer("sgd")
    indices, count = (chosen, len(chosen)) if together else ([chosen], None)
    first, key = (members.run_key([SEEDS[i] for i in indices], use, count) for use in (0, 1))
    state = create_train_state(model, tx, key=first, image_shape=networks.SHAPE)
    values = [networks.hyper(**{"variance": 0.1} | HYPERS[i]) for i in indices]
    run = networks.pmapped(members.lift(step, count), devices, axis=1 if together else 0)
    terms = []
    for number in range(number_of_steps):
        batches = [networks.tiny_batch(seed=10 * number + i) for i in indices]
        state, found = run(state, members.join(batches, count), members.join(values, count), key)
        terms.append(found)
    return state, terms


def near(a, b, share=2e-5):
    """Assert that trees agree, each array relative to its largest value."""
    for (path, x), (_, y) in zip(*map(jax.tree_util.tree_leaves_with_path, (a, b)), strict=True):
        atol = share * max(float(np.abs(y).max()), 1e-3)
        np.testing.assert_allclose(x, y, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


@functools.cache
def alone(index: int):
    return first_steps(1, index)


@pytest.mark.parametrize("devices", [8, *(pytest.param(devices, marks=pytest.mark.full) for devices in (1, 2, 4))])
def test_first_steps_are_those_of_each_alone(fixed_masks, devices):
    state, terms = first_steps(devices, [0, 1, 2])
    for index, own in enumerate(members.split(state, 3)):
        single, single_terms = alone(index)
        assert own.step == single.step == 3
        near((own.params, own.opt_state), (single.params, single.opt_state))
        near(own.batch_stats, single.batch_stats)
        for together, one in zip(terms, single_terms, strict=True):
            near({name: value[index] for name, value in together.items()}, one, 1e-4)


def test_fields_are_all_numbers_that_enter_the_step(tmp_path):
    changes = {"decorrelation.variance_weight": 0.1}
    configs = [tiny_runs.tiny_config(tmp_path, method, **changes if "decorrelation" in groups else {})
               for method, groups in METHODS.items()]  # fmt: skip
    by_group = {group: config for config in configs for group in METHODS[config.method]}
    by_group["masking"] = by_group["consistency"]
    changed = set()
    for field in set(replicas.own_fields()) - {"seed"}:
        config = by_group.get(field.partition(".")[0], configs[-1])
        before = build.create_hyper(config, 10)
        (own,) = build.create_replicas(config, replicas.parse([f"{field}=0.375"]))
        after = build.create_hyper(own, 10)
        assert jax.tree.structure(after) == jax.tree.structure(before)
        leaves = zip(*map(jax.tree.leaves_with_path, (before, after)), strict=True)
        found = {jax.tree_util.keystr(path) for (path, old), (_, new) in leaves if new != old}
        assert found, field
        changed |= found
    entering = [build.create_hyper(config, 10) for config in configs]
    assert changed == {jax.tree_util.keystr(path) for hyper in entering for path, _ in jax.tree.leaves_with_path(hyper)}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["seed"], "FIELD=NUMBER"),
        (["optim.momentum=0.5"], "what a replica can have of its own.*'optim.lr'"),
        (["sed=1"], "did you mean 'seed'"),
        (["seed=1.5"], "seed=1.5.*whole number"),
        (["optim.lr=fast"], "should be a number"),
        (["optim.lr=True"], "is out of range"),
        (["seed=1", "seed=1"], "same name"),
        (["a:seed=1", "b:seed=1"], "a and b have the same fields"),
        (["../a:seed=1"], "folder below"),
        (["/a:seed=1"], "folder below"),
        (["seed=0,seed=1"], "has seed twice"),
        (["a:seed=1", "a/b:seed=2"], "a/b would lie within the folder of the run a"),
        (["optim.lr=1e999"], "a number, and finite"),
    ],
)
def test_what_cannot_be_a_replica_is_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        replicas.parse(texts)


def test_impossible_values_name_the_replica(tmp_path):
    config = tiny_runs.tiny_config(tmp_path)
    with pytest.raises(ValueError, match=r"replica a: config.masking.fraction = 1.5"):
        build.create_replicas(config, replicas.parse(["a:masking.fraction=1.5"]))
    with pytest.raises(ValueError, match="variance_weight is 0 in some replicas"):
        build.create_replicas(config, replicas.parse(["seed=0", "decorrelation.variance_weight=0.1"]))
    with pytest.raises(ValueError, match="replica a: config.decorrelation.weight = 0.0 contradicts"):
        build.create_replicas(config, replicas.parse(["a:decorrelation.weight=0"]))


def test_names_and_texts():
    found = replicas.parse(["seed=1,optim.lr=1e-3", "cell/seed0:seed=0"])
    assert [each.name for each in found] == ["seed=1_optim.lr=1e-3", "cell/seed0"]
    assert replicas.parse(map(replicas.text, found)) == found


def test_steps_in_common():
    assert replicas.common_steps({"a": [], "b": []}, "") == []
    assert replicas.common_steps({"a": [3], "b": []}, "b") == []  # killed while writing the first checkpoints
    assert replicas.common_steps({"a": [2, 4, 6], "b": [2, 4]}, "ab") == [4, 2]
    with pytest.raises(ValueError, match="a: 3; b: 0"):  # b is new
        replicas.common_steps({"a": [3], "b": []}, "a")
    with pytest.raises(ValueError, match="a: 6; b: 2"):
        replicas.common_steps({"a": [2, 4, 6], "b": [2]}, "ab")
    with pytest.raises(ValueError, match="a: 4; b: 0"):
        replicas.common_steps({"a": [2, 4], "b": []}, "ab")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny_runs.draw_images(tmp_path_factory.mktemp("images") / "data")


def tiny(images, **changes):
    return tiny_runs.tiny_config(images, **{"train.batch_size": 8, "log.tensorboard": False} | changes)


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert train.train(tiny(images), str(folder), replicas.parse(TEXTS))
    return folder


def final(folder):
    """Return each replica's last step, position, checksums and rows of the log."""
    found = {}
    for name in "abc":
        directory = folder / name / "checkpoints"
        about = record.read(directory, record.steps(directory)[-1])
        rows = tiny_runs.rows_without_times(folder / name)
        found[name] = (about["step"], about["position"], about["crc32"], rows)
    return found


def test_each_folder_is_that_of_a_single_run(images, undisturbed, tmp_path):
    (single,) = build.create_replicas(tiny(images), replicas.parse(TEXTS[1:2]))
    assert train.train(single, str(tmp_path))
    assert run_folder.read(tmp_path)["config"] == run_folder.read(undisturbed / "b")["config"]
    one, other = (
        {(row["step"], row["split"]): row for row in logbook.read_rows(place)}
        for place in (tmp_path, undisturbed / "b")
    )
    assert one.keys() == other.keys()
    for key, row in one.items():
        assert row.keys() == other[key].keys()
        if key[0] <= 3 and key[1] == "train":
            assert other[key]["loss"] == pytest.approx(row["loss"], rel=2e-3)
        if key[1] == "val":
            assert other[key]["cross_entropy"] == pytest.approx(row["cross_entropy"], rel=0.02)
    assert train.train(single, str(undisturbed / "b"))  # a single run continues a replica's folder


AVERAGED = {"train.accumulate": 2, "train.batch_size": 16, "optim.ema_decay": 0.5, "model.dropout": 0.5}


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        pytest.param("sdecor", AVERAGED, marks=pytest.mark.full),
        pytest.param("gradpen", {}, marks=pytest.mark.full),
        pytest.param("sdecor", {"data.loader": "grain"}, marks=pytest.mark.full),
    ],
    ids=["averaged", "gradpen", "grain"],
)
def test_each_is_its_single_run_in_whatever_way_it_trains(images, tmp_path, method, changes):
    weight = "gradient_penalty.weight" if method == "gradpen" else "consistency.weight"
    config = tiny(images, method=method, **{"train.epochs": 2.0} | changes)
    texts = ["a:seed=0", f"b:seed=1,{weight}=0.5"]
    assert train.train(config, str(tmp_path), replicas.parse(texts))
    (single,) = build.create_replicas(config, replicas.parse(texts[1:]))
    assert train.train(single, str(tmp_path / "single"))
    ours, theirs = (tiny_runs.rows_without_times(tmp_path / name) for name in ("b", "single"))
    assert [(row["step"], row["split"]) for row in ours] == [(row["step"], row["split"]) for row in theirs]
    assert ours[0].keys() == theirs[0].keys()
    for row, other in zip(ours, theirs, strict=True):
        if row["split"] == "val":  # metrics of the averaged parameters, if any
            assert row["cross_entropy"] == pytest.approx(other["cross_entropy"], rel=0.02)
        elif row["step"] <= 2:
            assert row["loss"] == pytest.approx(other["loss"], rel=2e-3)


def test_restored_as_evaluation_restores(undisturbed):
    from sdecor.evaluation import runs as trained

    found = {name: trained.restore(str(undisturbed / name), split="val") for name in "abc"}
    rows = {name: logbook.read_rows(undisturbed / name) for name in "abc"}
    for name, run in found.items():
        scores = {row["step"]: row["accuracy"] for row in rows[name] if row["split"] == "val"}
        assert scores[run.settings["step"]] == max(scores.values())
        example = run.dataset.source("val")[0]["image"]
        logits, _ = run.apply(run.variables, np.zeros((1, *example.shape), np.float32))
        assert np.isfinite(logits).all()
    assert checksums(found["a"].variables) != checksums(found["b"].variables)


@pytest.mark.parametrize("step", [5, pytest.param(6, marks=pytest.mark.full)])
def test_interrupted_replicas_continue_exactly(images, undisturbed, tmp_path, monkeypatch, step, capsys):
    with monkeypatch.context() as patch:
        tiny_runs.interrupt_at(patch, step)
        assert not train.train(tiny(images), str(tmp_path), replicas.parse(TEXTS))
    assert train.train(tiny(images), str(tmp_path), replicas.parse(TEXTS))
    assert f"continuing at step {step} of 12" in capsys.readouterr().out
    assert final(tmp_path) == final(undisturbed)


@pytest.mark.parametrize("before", [pytest.param(0, marks=pytest.mark.full), 4])
def test_killed_between_two_checkpoints_of_a_step(images, undisturbed, tmp_path, monkeypatch, before):
    """The first replica has a checkpoint that the others lack: all continue from an earlier one, or start anew."""
    save = Checkpoints.save

    class Killed(Exception):
        pass

    def dies(self, state, **options):
        if int(state.step) > before and self.directory.parent.name != "a":
            raise Killed
        save(self, state, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", dies)
        with pytest.raises(Killed):
            train.train(tiny(images), str(tmp_path), replicas.parse(TEXTS))
    assert train.train(tiny(images), str(tmp_path), replicas.parse(TEXTS))
    assert final(tmp_path) == final(undisturbed)


def test_failed_replica_ends_and_the_others_continue(images, tmp_path, capsys):
    config = tiny(images, method="ce", **{"optim.name": "sgd", "model.norm": "none"})
    texts = ["good:seed=0", "bad:optim.lr=1e30", "also:seed=1"]
    for _ in range(2):  # a failed replica stays failed when started again
        with pytest.raises(FloatingPointError, match=r"(?s)1 of 3 replicas failed.*bad: .* at step \d") as error:
            train.train(config, str(tmp_path), replicas.parse(texts))
        assert str(tmp_path / "bad") in str(error.value)
    text = capsys.readouterr().out
    assert "bad failed, the others continue: the loss or its gradient is not finite at step" in text
    assert "classification" in text
    for name in ("good", "also"):
        rows = logbook.read_rows(tmp_path / name)
        assert rows[-1]["step"] == 12 and all(np.isfinite(row["loss"]) for row in rows if row["split"] == "train")
    (single,) = build.create_replicas(config, replicas.parse(["seed=1"]))
    assert train.train(single, str(tmp_path / "single"))
    for row, other in zip(*(logbook.read_rows(tmp_path / name) for name in ("also", "single")), strict=True):
        if row["split"] == "val":
            assert row["cross_entropy"] == pytest.approx(other["cross_entropy"], rel=1e-3)
    with pytest.raises(FloatingPointError, match="not finite"):  # a single run tries it again
        train.train(build.create_replicas(config, replicas.parse(texts[1:2]))[0], str(tmp_path / "bad"))


def test_folder_of_another_config_is_refused(images, undisturbed):
    texts = [TEXTS[0].replace("seed=0", "seed=7"), *TEXTS[1:]]
    with pytest.raises(ValueError, match=r"(?s)another config.*seed: 0 there, 7 here"):
        train.train(tiny(images), str(undisturbed), replicas.parse(texts))


def test_a_new_replica_beside_others_is_refused_and_costs_them_nothing(images, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "runs")
    places = [tmp_path / "runs" / name / "checkpoints" for name in "abc"]
    for place in places:
        for step in place.iterdir():
            if step.name.isdigit() and step.name != "12":
                shutil.rmtree(step)
    rows = [logbook.read_rows(place.parent) for place in places]
    with pytest.raises(ValueError, match="different steps .*a: 12; .*new: 0"):
        train.train(tiny(images), str(tmp_path / "runs"), replicas.parse([*TEXTS, "new:seed=5"]))
    assert all((place / "12").is_dir() for place in places)
    assert [logbook.read_rows(place.parent) for place in places] == rows


@pytest.mark.full
@pytest.mark.parametrize("lines", [3, 7, 11])
def test_killed_process_continues_exactly(images, tmp_path, lines):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    flags = [f"--replica={text}" for text in TEXTS]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = tiny_runs.start(tiny_runs.command(images, whole, *flags), env)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    process = tiny_runs.start(tiny_runs.command(images, broken, *flags), env)
    while process.poll() is None:
        if len(logbook.read_rows(broken / "b")) >= lines:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.02)
    process.wait()
    process = tiny_runs.start(tiny_runs.command(images, broken, *flags), env)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert final(broken) == final(whole)


@pytest.mark.full
def test_two_processes_train_and_resume_as_one(images, tmp_path):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1", "JAX_NUM_CPU_DEVICES": "4"}
    flags = [f"--replica={text}" for text in TEXTS]
    for attempt in range(2):
        port = f"--coordinator=127.0.0.1:{20000 + (os.getpid() + 7 * attempt) % 20000}"
        pair = [
            tiny_runs.start(
                tiny_runs.command(images, tmp_path / "two", *flags, port, "--processes=2", f"--process={i}"), env
            )
            for i in range(2)
        ]
        outputs = [process.communicate(timeout=400)[0] for process in pair]
        assert [process.returncode for process in pair] == [0, 0], outputs
        if attempt == 0:  # as if killed between writing the replicas' last checkpoints
            shutil.rmtree(tmp_path / "two" / "b" / "checkpoints" / "12")
        else:
            assert "continuing at step 10 of 12" in outputs[0]
    one = tiny_runs.start(tiny_runs.command(images, tmp_path / "one", *flags), env | {"JAX_NUM_CPU_DEVICES": "8"})
    output, _ = one.communicate(timeout=300)
    assert one.returncode == 0, output
    for name in "abc":
        rows = [
            [row for row in logbook.read_rows(tmp_path / n / name) if row["split"] == "val"] for n in ("one", "two")
        ]
        for row, same in zip(*rows, strict=True):
            assert same["step"] == row["step"]
            assert same["cross_entropy"] == pytest.approx(row["cross_entropy"], rel=1e-3)
