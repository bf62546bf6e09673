"""Tests of calls of several steps and of splits on the devices: no result changes, and a call ends where one is due."""

import contextlib
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import poisoned
import pytest
import tiny_runs
import training_jobs

import train
from configs import default
from sdecor.data.loader import create_loader
from sdecor.data.memory import MemorySource
from sdecor.training import batches, build, calls, device_split, logbook, preview, record, replicas, run
from sdecor.training.checkpoint import Checkpoints
from sdecor.training.clock import Clock

# Which step is where a call ends


def schedule(total, eval_every, checkpoint_every, per_call):
    return build.Schedule(3, total, 0, eval_every, checkpoint_every, per_call)


@pytest.mark.parametrize("total", [1, 7, 40])
@pytest.mark.parametrize("eval_every", [3, 8, 100])
@pytest.mark.parametrize("checkpoint_every", [None, 5])
@pytest.mark.parametrize("per_call", [1, 3, 4])
def test_a_call_ends_where_something_is_due_and_is_else_as_long_as_chosen(
    total, eval_every, checkpoint_every, per_call
):
    plan = schedule(total, eval_every, checkpoint_every, per_call)
    due = {step for step in range(1, total + 1) if plan.is_due(step, eval_every) or plan.is_due(step, checkpoint_every)}
    for start in range(total + 1):
        counts = list(calls.sizes(plan, start))
        ends = start + np.cumsum([0, *counts])
        assert ends[-1] == total and set(counts) <= {1, per_call}
        assert {step for step in due if step > start} <= set(ends.tolist())
        for begin, count in zip(ends, counts, strict=False):
            assert count == per_call or any(step in due for step in range(begin + 1, begin + per_call))


def test_calls_are_described():
    assert calls.describe(schedule(13, 10, None, 4), 0) == "2 of 4 steps, 5 of one step"
    assert calls.describe(schedule(8, 4, None, 4), 0) == "2 of 4 steps"
    assert calls.numbers(range(7, 8)) == "step 7" and calls.numbers(range(5, 9)) == "steps 5 to 8"


# The program of several steps


def add(state, batch, hyper, key):
    draw = jax.random.uniform(jax.random.fold_in(key, state["step"]))
    total = state["total"] * hyper + batch + draw
    return {"step": state["step"] + 1, "total": total}, {"loss": total, "seen": batch}


@pytest.mark.parametrize("form", [calls._looped, lambda step: calls._unrolled(step, 4)], ids=["loop", "unrolled"])
def test_a_program_of_several_steps_takes_one_after_the_other(form, key):
    state = {"step": jnp.int32(3), "total": jnp.float32(0.5)}
    given = jnp.array([1.0, -2.0, 3.0, 0.25])
    expected, each = state, []
    for batch in given:
        expected, terms = jax.jit(add)(expected, batch, 0.9, key)
        each.append(terms)
    found, terms = jax.jit(form(add))(state, given, 0.9, key)
    assert int(found["step"]) == 7
    np.testing.assert_allclose(found["total"], expected["total"], rtol=1e-6)
    for name in ("loss", "seen"):
        np.testing.assert_allclose(terms[name], [own[name] for own in each], rtol=1e-6)


def test_steps_are_a_loop_where_convolutions_are_fast_in_one():
    class Device:
        platform = "tpu"

    loop = jax.make_jaxpr(calls.repeat(add, 4, Device()))
    assert "scan" in str(loop({"step": 0, "total": 0.0}, jnp.zeros(4), 0.9, jax.random.key(0)))
    assert calls.repeat(add, 1, Device()) is add and calls.is_unrolled(jax.devices("cpu")[0])


# A split on the devices


def source(n=23):
    rng = np.random.default_rng(0)
    return MemorySource(rng.integers(0, 256, (n, 2, 3, 3)).astype(np.uint8), rng.integers(0, 9, n).astype(np.int32))


@pytest.mark.parametrize("missing", [{}, {4: "damaged", 5: "damaged", 22: "damaged"}], ids=["whole", "skipping"])
@pytest.mark.parametrize("shape", [(), (2,), (2, 3)], ids=["step", "calls", "replicas"])
def test_indices_name_the_examples_of_the_memory_loader(missing, shape):
    split = source()
    split.missing = missing
    fields = {"batch_size": 6, "seed": 1, "process_index": 1, "process_count": 2}
    loaders = [create_loader(split, kind=kind, **fields) for kind in ("memory", "device")]
    assert [loader.kind for loader in loaders] == ["memory", "device"] and "device: 23 images" in loaders[1].describe()
    steps = range(int(np.prod(shape)) + 4)
    given = [[loader.batch(step) for step in steps] for loader in loaders]
    given += [[batch for _, batch in zip(steps, loader.reordered(5).iterate(2), strict=False)] for loader in loaders]
    on_devices = device_split.create(split)
    count = int(np.prod(shape))
    for memory, indices in (given[:2], given[2:]):
        expected, batch = (
            {name: np.stack([each[name] for each in found[:count]]).reshape(*shape, 3, *found[0][name].shape[1:])
             for name in found[0]}
            for found in (memory, indices)
        )  # fmt: skip
        found = jax.jit(partial(device_split.look_up, image_shape=(2, 3, 3)))(on_devices, batch)
        assert found.keys() == expected.keys() and batch.keys() == {"index", "position"}
        assert batch["index"].dtype == np.int32
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_split_is_on_every_device_in_the_announced_shapes(dtype):
    images = source().images.astype(dtype)
    found = device_split.create(MemorySource(images, source().labels))
    announced = device_split.shapes(23, (2, 3, 3), dtype)
    assert {name: (x.shape, x.dtype) for name, x in found.items()} == {
        name: (x.shape, x.dtype) for name, x in announced.items()
    }
    assert all(x.is_fully_replicated and len(x.devices()) == jax.device_count() for x in found.values())
    assert device_split.split_bytes(23, (2, 3, 3), dtype) == sum(x.nbytes for x in found.values())
    batch = {"index": jnp.array([4, 22]), "position": jnp.arange(2)}
    again = device_split.look_up(found, batch, (2, 3, 3))["image"]
    np.testing.assert_array_equal(again, images[[4, 22]])
    assert again.dtype == dtype


class Accelerator:
    platform, device_kind = "tpu", "TPU v5 lite"


def test_a_split_that_is_larger_than_a_device_is_refused_before_it_is_read(images, tmp_path, monkeypatch):
    device_split.check_fits(1000, (224, 224, 3), Accelerator())
    with pytest.raises(ValueError, match=r"config.data.loader = 'device': the training split takes 179.6 GiB \(1,281,"):
        device_split.check_fits(1_281_167, (224, 224, 3), Accelerator())
    monkeypatch.setattr(device_split, "memory_of", lambda device: 1000.0)
    monkeypatch.setattr(run, "create_loaders", lambda *_, **__: pytest.fail("the split is read"))
    with pytest.raises(ValueError, match=r"takes 4.6 KiB \(24 images of 8×8×3\), and a device \(cpu\) has 1000 B"):
        run.build_run(config(images, **{"data.loader": "device"}), str(tmp_path / "run"))


def test_the_memory_of_a_cpu_is_shared_by_its_devices():
    assert 2**27 < device_split.memory_of(jax.devices()[0]) * jax.local_device_count() < 2**50
    assert device_split.memory_of(Accelerator()) == 15.75 * 2**30


# Batches, shapes, values that are refused


@pytest.mark.parametrize("indices", [False, True])
@pytest.mark.parametrize(("members", "accumulate"), [(None, 1), (3, 2)])
def test_batches_of_a_call_are_those_of_its_steps(members, accumulate, indices):
    kind, sizes = ("device" if indices else "memory"), {"batch_size": 16, "accumulate": accumulate}
    loaders = [create_loader(source(40), batch_size=16 // accumulate, seed=s, kind=kind) for s in range(members or 1)]
    sizes["replicas"] = members
    with contextlib.ExitStack() as stack:
        single = stack.enter_context(contextlib.closing(batches.member_batches(loaders, 2, **sizes)))
        together = stack.enter_context(contextlib.closing(batches.member_batches(loaders, 2, calls=[3, 1], **sizes)))
        steps, (call, last) = [next(single) for _ in range(4)], list(together)
    shapes = batches.batch_shapes((2, 3, 3), steps=3, indices=indices, **sizes)
    for name, array in call.items():
        assert (array.shape, array.dtype) == (shapes[name].shape, shapes[name].dtype)
        np.testing.assert_array_equal(array, np.stack([step[name] for step in steps[:3]], axis=1))
        np.testing.assert_array_equal(last[name], steps[3][name])


@pytest.mark.parametrize(("value", "error"), [(0, "out of range"), (-1, "out of range"), (2.5, "whole number")])
def test_an_impossible_number_of_steps_is_refused(value, error):
    chosen = default.get_config()
    with chosen.ignore_type():
        chosen.train.steps_per_call = value
    with pytest.raises(ValueError, match=rf"config.train.steps_per_call = {value}.*"):
        build.check_config(chosen)


def test_more_steps_than_lie_between_two_validations_are_refused():
    chosen = default.get_config()
    chosen.train.steps_per_call = 11
    with pytest.raises(ValueError, match="config.train.steps_per_call = 11.* 10 steps apart. Use at most so many"):
        build.create_schedule(chosen, 10)
    chosen.train.checkpoint_every_steps = 7
    chosen.train.steps_per_call = 7
    assert build.create_schedule(chosen, 10).steps_per_call == 7
    chosen.train.steps_per_call = 8
    with pytest.raises(ValueError, match="these are 7 steps apart"):
        build.create_schedule(chosen, 10)


def test_the_clock_counts_each_step_of_a_call():
    now = [0.0]
    watch = Clock(seconds=lambda: now[0], now=lambda: now[0])
    watch.begin([])
    for count, waiting, computing in ((4, 1.0, 9.0), (4, 1.0, 7.0), (1, 0.5, 0.5)):
        with watch.input():
            now[0] += waiting
        now[0] += computing
        watch.stepped(count)
    row = watch.row(images=8)
    assert row["step_seconds_median"] == 2.0 and row["productive_seconds"] == 9.0  # 2, 2, 2, 2 and 1
    assert row["input_share"] == pytest.approx(1.5 / 9) and row["images_per_step_second"] == pytest.approx(8 * 5 / 9)


# Whole runs


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny_runs.draw_images(tmp_path_factory.mktemp("images") / "data")


ODD = {"train.eval_every_epochs": 5 / 3, "train.checkpoint_every_steps": None, "log.tensorboard": False}


def config(images, method="ce", **changes):
    """Return the config of twelve steps with validations after 5, 10 and 12 of them."""
    return tiny_runs.tiny_config(images, method, **ODD | changes)


def result(folder):
    """Return all that a run leaves, except what the clock changes: arrays, health and rows of the log."""
    with Checkpoints(folder, create=False) as checkpoints:
        found = [record.read(checkpoints.directory, step) for step in checkpoints.steps()]
    parts = [{name: meta[name] for name in ("step", "crc32", "position", "metrics")} for meta in found]
    return parts, tiny_runs.rows_without_times(folder)


@pytest.fixture(scope="module")
def single(images, tmp_path_factory):
    """Return the result of the run with one step a call."""
    folder = tmp_path_factory.mktemp("single")
    assert train.train(config(images), str(folder))
    return result(folder)


def test_a_run_is_the_same_bit_for_bit_at_any_number_of_steps_a_call_and_on_the_devices(
    images, single, tmp_path, monkeypatch, capsys
):
    """It is also interrupted within a call, and continued with others."""
    taken, profiler = [], train.profiling.Profiler
    take = profiler.take
    monkeypatch.setattr(profiler, "take", lambda self, now, *rest: taken.append(len(now)) or take(self, now, *rest))
    several = config(images, **{"train.steps_per_call": 3})
    with monkeypatch.context() as patch:
        tiny_runs.interrupt_at(patch, 7)
        assert not train.train(several, str(tmp_path))
    assert [meta["step"] for meta in result(tmp_path)[0]][-1] == 8 and taken == [3, 1, 1, 3]
    assert "calls: 2 of 3 steps, 6 of one step" in capsys.readouterr().out
    assert train.train(config(images, **{"train.steps_per_call": 3, "data.loader": "device"}), str(tmp_path))
    assert Counter(taken) == {3: 2, 1: 6} and "continuing at step 8 of 12" in capsys.readouterr().out
    assert result(tmp_path) == single
    assert [row["step"] for row in single[1] if row["split"] == "val"] == [5, 10, 12]


@pytest.mark.full
@pytest.mark.parametrize("loader", ["memory", "device", "grain"])
@pytest.mark.parametrize("per_call", [1, 4])
@pytest.mark.parametrize("method", ["ce", "sdecor"])
def test_a_run_of_any_loader_is_the_same(images, tmp_path, loader, per_call, method):
    changes = {"masking.every": 1, "optim.ema_decay": 0.5} if method == "sdecor" else {}
    assert train.train(config(images, method, **changes), str(tmp_path / "single"))
    changed = changes | {"data.loader": loader, "train.steps_per_call": per_call}
    assert train.train(config(images, method, **changed), str(tmp_path / "several"))
    assert result(tmp_path / "several") == result(tmp_path / "single")


@pytest.mark.full
def test_micro_batches_dropout_and_masks_of_a_part_are_the_same(tmp_path):
    images = tiny_runs.draw_images(tmp_path / "images", train=20)  # enough for two micro-batches
    changes = {"train.accumulate": 2, "train.batch_size": 32, "masking.every": 2, "model.dropout": 0.5}
    changes |= {"train.epochs": 12.0, "train.eval_every_epochs": 5.0, "data.val_fraction": 0.03}
    found = []
    for per_call, loader in ((1, "memory"), (4, "device")):
        folder = tmp_path / loader
        chosen = changes | {"train.steps_per_call": per_call, "data.loader": loader}
        assert train.train(config(images, "sdecor", **chosen), str(folder))
        found.append(result(folder))
    assert found[0] == found[1] and found[0][0][-1]["step"] >= 8


@pytest.mark.full
@pytest.mark.parametrize("loader", ["memory", "device"])
def test_replicas_are_the_same(images, tmp_path, loader, monkeypatch):
    texts = replicas.parse(["a:seed=0", "b:seed=1,optim.lr=0.01"])
    assert train.train(config(images, "sdecor"), str(tmp_path / "single"), texts)
    several = config(images, "sdecor", **{"train.steps_per_call": 4, "data.loader": loader})
    with monkeypatch.context() as patch:
        tiny_runs.interrupt_at(patch, 2)
        assert not train.train(several, str(tmp_path / "several"), texts)
    assert train.train(several, str(tmp_path / "several"), texts)
    for name in "ab":
        assert result(tmp_path / "several" / name) == result(tmp_path / "single" / name)


def poison(monkeypatch, *orders, seed=0):
    steps = {batches.order_seed(seed, order): bad for order, bad in enumerate(orders)}
    monkeypatch.setattr("sdecor.training.run.create_loaders", poisoned.poisoning(batches.create_loaders, steps))


@pytest.mark.full
@pytest.mark.parametrize(
    ("policy", "bad"),
    [("skip", [{2, 7, 8}]), ("rollback", [{8}, {12}])],
    ids=["skip", "rollback"],
)
def test_losses_that_are_not_finite_within_a_call_are_skipped_or_rolled_back_in_the_same_way(
    images, tmp_path, monkeypatch, policy, bad
):
    poison(monkeypatch, *bad)
    changes = {"model.norm": "none", "train.on_nonfinite": policy}
    found = []
    for per_call in (1, 3):
        folder = tmp_path / str(per_call)
        assert train.train(config(images, **changes, **{"train.steps_per_call": per_call}), str(folder))
        found.append(result(folder))
    assert found[0] == found[1]
    assert [row["step"] for row in found[0][1] if row["split"] == policy] == {"skip": [2, 7, 8], "rollback": [5, 10]}[
        policy
    ]


@pytest.mark.full
def test_a_loss_that_is_not_finite_stops_the_run_at_its_step_and_saves_no_later_one(images, tmp_path, monkeypatch):
    poison(monkeypatch, {7})
    found = []
    for per_call in (1, 3):
        folder = tmp_path / str(per_call)
        chosen = config(images, **{"model.norm": "none", "train.steps_per_call": per_call})
        with pytest.raises(FloatingPointError, match="not finite at step 7 .* good checkpoint is of step 5"):
            train.train(chosen, str(folder))
        found.append(result(folder))
    assert found[0] == found[1] and [row["step"] for row in found[0][1]][-1] == 7


@pytest.mark.full
def test_a_replica_that_fails_within_a_call_leaves_the_others_as_they_are(images, tmp_path, monkeypatch):
    poison(monkeypatch, {7}, seed=1)
    texts, found = replicas.parse(["a:seed=0", "b:seed=1"]), []
    for per_call in (1, 3):
        folder = tmp_path / str(per_call)
        with pytest.raises(replicas.PartlyFinished, match="1 of 2 replicas failed"):
            train.train(config(images, **{"train.steps_per_call": per_call}), str(folder), texts)
        found.append([result(folder / name) for name in "ab"])
    assert found[0] == found[1]


@pytest.mark.full
def test_a_checkpoint_by_minutes_is_at_the_end_of_a_call(images, single, tmp_path, monkeypatch):
    monkeypatch.setattr(train.Pace, "due", lambda self, step, otherwise=False: otherwise or step == 8)
    saved = []
    save = train.members.save
    monkeypatch.setattr(
        train.members, "save", lambda w, states, step, metrics: saved.append(step) or save(w, states, step, metrics)
    )
    assert train.train(config(images, **{"train.steps_per_call": 3}), str(tmp_path))
    assert saved == [5, 8, 10, 12] and result(tmp_path)[0][-1] == single[0][-1]


@pytest.mark.full
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_a_run_on_any_number_of_devices_is_the_same(images, tmp_path, devices):
    found = {}
    for name, changes in {
        "single": {},
        "several": {"train.steps_per_call": 4, "data.loader": "device"},
    }.items():
        fields = ODD | changes
        flags = [f"--config.{field}={value}" for field, value in fields.items() if value is not None]
        flags.append("--config.train.checkpoint_every_steps=5")
        training_jobs.finish(tiny_runs.command(images, tmp_path / name, *flags), tmp_path / f"{name}.logs", 1, devices)
        found[name] = result(tmp_path / name)
    assert found["single"] == found["several"]


@pytest.mark.full
def test_two_processes_are_the_same_and_stop_together(images, tmp_path):
    flags = [f"--config.train.eval_every_epochs={5 / 3}", "--config.train.checkpoint_every_steps=5"]
    several = [*flags, "--config.train.steps_per_call=3", "--config.data.loader=device", "--distributed"]
    single = tiny_runs.command(images, tmp_path / "single", *flags, "--distributed", method="ce")
    training_jobs.finish(single, tmp_path / "single.logs", 2, 2)
    command = tiny_runs.command(images, tmp_path / "several", *several, method="ce")
    training_jobs.stop_at("fetching the terms of a step:2", command, tmp_path / "stopped", 2, {130}, devices=2)
    begun = {row["step"] for row in logbook.read_rows(tmp_path / "several")}
    assert 0 < max(begun) < 12
    training_jobs.finish(command, tmp_path / "several.logs", 2, 2)
    assert result(tmp_path / "several") == result(tmp_path / "single")


def test_the_planned_program_of_a_split_on_the_devices_is_that_of_the_run(images, tmp_path):
    chosen = config(images, **{"data.loader": "device"})
    built, state = run.build_run(chosen, str(tmp_path))
    facts = build.read_facts(build.create_data(chosen))
    assert preview.lower_shapes([chosen], facts, None, None).as_text() == built.lower(state).as_text()
