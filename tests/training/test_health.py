"""Tests of a run's health: losses that are not finite under each policy, spikes, and which checkpoint is good."""

import dataclasses
import json
import math
import os
import re
import shutil
import time

import jax
import networks
import numpy as np
import poisoned
import pytest
import tiny_runs

import train
from sdecor.core import commands, parallel
from sdecor.data.batches import order_seed
from sdecor.training import health, logbook, members, record, replicas
from sdecor.training.batches import create_loaders
from sdecor.training.checkpoint import Checkpoints
from sdecor.training.health import Health
from sdecor.training.state import create_optimizer, create_train_state


def observed(losses, **options) -> Health:
    found = Health()
    for step, loss in enumerate(losses, 1):
        found.observe(step, loss, finite=math.isfinite(loss), **options)
    return found


def test_a_checkpoint_is_good_if_the_loss_after_it_is():
    nan = math.nan
    steps = (2, 4, 6, 8)
    assert observed([2, 2, 1, 1, 1, 1, nan]).good(steps, failed=8) == 4  # the loss of step 7 is that of checkpoint 6
    assert observed([2, 2, 1, 1, 1, 1, 1, nan]).good(steps, failed=9) == 6
    assert observed([2, 2, 1, 1, 2e26, 3e26, 1e30, nan]).good(steps, failed=9) == 2
    assert observed([2, 2e26, nan]).good(steps, failed=4) is None
    assert observed([2, 2, 1, 150, 250, nan]).good(steps, failed=7) == 2  # 250 is beyond 100 times the first loss
    assert observed([2, 2, 1, 150, 250, 1, nan]).good(steps, failed=8) == 4  # and the run came back from it
    assert observed([2, 2, 1, 1, 5, 5, nan], limit=4).good(steps, failed=8) == 2
    assert observed([1, 1, 1, 1]).good(steps, failed=5) == 2  # a parameter that is not finite after step 4
    assert observed([]).limit(None) == math.inf


def test_a_stored_health_goes_on_as_if_never_stopped():
    losses = [2.0, *np.random.default_rng(0).normal(1, 0.1, 150), 1e9, 1e9]
    whole = observed(losses)
    first = observed(losses[:-1])
    again = Health.restore({"step": 1, "health": dataclasses.asdict(first) | {"of a later version": 1}})
    again.observe(len(losses), losses[-1], finite=True)
    assert again == whole and len(whole.losses) == health.WINDOW
    assert Health.restore({"step": 1, "seed": 0}) == Health()


def test_a_spike_is_told_once_and_a_new_level_is_none():
    level = list(np.random.default_rng(0).normal(2, 0.1, 60))
    found, begun = Health(), []
    for step, loss in enumerate([*level, 9, 9, *level[:5], 9, *[0.01] * 120, 0.4, 0.6], 1):
        if found.observe(step, loss, finite=True) is not None:
            begun.append(step)
    assert begun == [61, 68, 190]
    assert health.spike_median(9.0, [2.0] * (health.LEAST - 1)) is None
    assert health.spike_median(2.4, level) is None
    assert health.spike_median(3.5, level) == pytest.approx(np.median(level))


def test_the_text_counts_what_happened():
    rows = [{"split": split} for split in ("train", "skip", "skip", "rollback", "val", "spike")]
    assert health.describe(rows) == "2 steps skipped, 1 rollback, 1 loss spike"
    assert health.describe(rows[:1]) == ""


def test_a_skipped_step_keeps_all_but_the_step():
    """One replica's batch has a label that is no class, whose loss is NaN; the other replica takes its step."""
    model = networks.tiny_model(axis_name=parallel.AXIS)
    objective = networks.objective(consistency=False, decorrelation=False)
    keys = members.run_key([0, 1], 0, 2)
    tx = create_optimizer("adamw")
    state = create_train_state(model, tx, key=keys, image_shape=networks.SHAPE, ema=True)
    step = networks.make_step(objective, skip_nonfinite=True, axis_name=parallel.AXIS, ema_decay=0.9)
    run = networks.pmapped(members.lift(step, 2), 2, axis=1)
    values = members.join([networks.hyper()] * 2, 2)
    good, other, bad = (networks.tiny_batch(seed=seed) for seed in (1, 2, 2))
    bad["label"][3] = -1
    taken, terms = run(state, members.join([good, other], 2), values, keys)
    skipped, bad_terms = run(state, members.join([good, bad], 2), values, keys)
    assert np.isfinite(terms["loss"]).all() and np.isfinite(bad_terms["loss"]).tolist() == [True, False]
    assert taken.step == skipped.step == 1
    of = lambda tree, i: jax.tree.map(lambda x: x[i], jax.device_get(tree.replace(step=None)))  # noqa: E731
    jax.tree.map(np.testing.assert_array_equal, of(skipped, 1), of(state, 1))
    jax.tree.map(np.testing.assert_array_equal, of(skipped, 0), of(taken, 0))
    for name in ("params", "batch_stats", "ema_params", "ema_batch_stats"):
        changed = jax.tree.map(lambda x, y: (x != y).any(), *(getattr(of(each, 1), name) for each in (taken, state)))
        assert any(jax.tree.leaves(changed)), name


# Whole runs in which some steps meet a label that is no class


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny_runs.draw_images(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture
def poison(monkeypatch):
    """Return a function that chooses the bad steps (from 1), by the number of the order."""
    steps = {}

    def choose(*orders, seed=0):
        steps.update({order_seed(seed, order): bad for order, bad in enumerate(orders)})

    monkeypatch.setattr("sdecor.training.run.create_loaders", poisoned.poisoning(create_loaders, steps))
    return choose


def config(images, policy, **changes):
    fields = {"train.on_nonfinite": policy, "log.tensorboard": False, "model.norm": "none"} | changes
    return tiny_runs.tiny_config(images, "ce", **fields)


def events(folder, split):
    rows = [row for row in logbook.read_rows(folder) if row["split"] == split]
    return [{name: value for name, value in row.items() if name != "split"} for row in rows]


def result(folder):
    """Return everything of a finished run that the clock does not change."""
    with Checkpoints(folder, create=False) as checkpoints:
        metas = [record.read(checkpoints.directory, step) for step in checkpoints.steps()]
    assert metas[-1]["step"] == 12
    return metas, tiny_runs.rows_without_times(folder)


def test_steps_are_skipped_and_recorded(images, poison, tmp_path, capsys):
    poison({5, 6, 9})
    assert train.train(config(images, "skip", **{"train.max_skips": 2}), str(tmp_path))
    assert [(row["step"], row["in_a_row"]) for row in events(tmp_path, "skip")] == [(5, 1), (6, 2), (9, 1)]
    rows = {row["step"]: row["loss"] for row in logbook.read_rows(tmp_path) if row["split"] == "train"}
    assert [step for step, loss in rows.items() if loss is None] == [5, 6, 9] and len(rows) == 12
    output = capsys.readouterr().out
    assert "3 steps skipped. " in output and "% goodput, median step " in output and "Step 9 is skipped" in output
    for meta in result(tmp_path)[0]:
        assert meta["position"]["health"]["skipped"] == 0


@pytest.mark.full
def test_too_many_skipped_steps_in_a_row_stop_the_run_also_when_it_was_resumed(images, poison, tmp_path, monkeypatch):
    poison({5, 6, 7})
    chosen = config(images, "skip", **{"train.max_skips": 2})
    with monkeypatch.context() as patch:
        tiny_runs.interrupt_at(patch, 6)
        assert not train.train(chosen, str(tmp_path))
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="at step 7 .*2 skipped in a row; the last good .* step 3 in"):
            train.train(chosen, str(tmp_path))


@pytest.mark.full
def test_replicas_skip_each_for_itself(images, poison, tmp_path):
    poison({5}, seed=1)
    assert train.train(config(images, "skip"), str(tmp_path), replicas.parse(["a:seed=0", "b:seed=1"]))
    assert events(tmp_path / "a", "skip") == [] and events(tmp_path / "b", "skip") == [{"step": 5, "in_a_row": 1}]
    assert all(row["loss"] is not None for row in logbook.read_rows(tmp_path / "a") if row["split"] == "train")


def test_replicas_cannot_roll_back(images, tmp_path):
    with pytest.raises(ValueError, match="'rollback' is for a single run"):
        train.train(config(images, "rollback"), str(tmp_path), replicas.parse(["seed=0", "seed=1"]))
    assert not list(tmp_path.iterdir())


def test_a_rollback_continues_in_another_order_and_ends(images, poison, tmp_path, capsys):
    poison({8}, {11})
    assert train.train(config(images, "rollback"), str(tmp_path))
    assert events(tmp_path, "rollback") == [
        {"step": 6, "failed_step": 8, "order": 1},
        {"step": 9, "failed_step": 11, "order": 2},
    ]
    steps = [(row["step"], row["split"]) for row in tiny_runs.rows_without_times(tmp_path)]
    assert len(steps) == len(set(steps)) and [s for s, split in steps if split == "train"] == list(range(1, 13))
    output = capsys.readouterr().out
    assert "Rollback 1 of at most 3, to step 6" in output and " 2 rollbacks. " in output
    metas, _ = result(tmp_path)
    assert metas[-1]["position"]["health"]["order"] == 2


@pytest.mark.full
def test_a_spike_in_a_run_is_told_and_recorded_once_also_when_resumed(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(health, "LEAST", 3)
    monkeypatch.setattr(health, "SMALLEST", 1e-3)
    observe = Health.observe

    def louder(self, step, loss, **options):
        return observe(self, step, loss + (30.0 if step in (7, 8) else 0.0), **options)

    monkeypatch.setattr(Health, "observe", louder)
    with monkeypatch.context() as patch:
        tiny_runs.interrupt_at(patch, 7)
        assert not train.train(config(images, "stop"), str(tmp_path))
    assert train.train(config(images, "stop"), str(tmp_path))
    (spike,) = events(tmp_path, "spike")
    assert spike["step"] == 7 and 0 < spike["median"] < 5
    output = capsys.readouterr().out
    assert output.count("Loss spike at step 7: ") == 1 and "1 loss spike. " in output


@pytest.mark.full
@pytest.mark.parametrize("stop", [None, 7, 9, 10])  # before the failure, after the first rollback, in the third order
def test_a_run_with_rollbacks_repeats_exactly_also_when_stopped(images, poison, tmp_path, monkeypatch, stop):
    poison({8}, {11})
    assert train.train(config(images, "rollback"), str(tmp_path / "whole"))
    if stop is not None:
        with monkeypatch.context() as patch:
            tiny_runs.interrupt_at(patch, stop)
            assert not train.train(config(images, "rollback"), str(tmp_path / "again"))
    assert train.train(config(images, "rollback"), str(tmp_path / "again"))
    assert result(tmp_path / "again") == result(tmp_path / "whole")


@pytest.mark.full
def test_a_run_killed_in_a_rollback_repeats_exactly(images, poison, tmp_path, monkeypatch):
    """It is killed when the log is rewound: the checkpoints after the good one are deleted, the order is not stored."""
    poison({8})
    assert train.train(config(images, "rollback"), str(tmp_path / "whole"))

    class Killed(BaseException):
        pass

    for place in ("rewind", "record"):
        with monkeypatch.context() as patch:
            original = getattr(logbook.Logbook, place)

            def killed(self, step, *rest, original=original):
                if rest[:1] in ((), ("rollback",)):
                    original(self, step, *rest)
                    raise Killed
                original(self, step, *rest)

            patch.setattr(logbook.Logbook, place, killed)
            with pytest.raises(Killed):
                train.train(config(images, "rollback"), str(tmp_path / place))
        assert train.train(config(images, "rollback"), str(tmp_path / place))
        assert result(tmp_path / place) == result(tmp_path / "whole")


@pytest.mark.full
def test_rollbacks_are_bounded_and_a_stopped_run_may_choose_one(images, poison, tmp_path):
    poison({8}, {8}, {8})
    with pytest.raises(FloatingPointError, match="of step 6 in .* Lower config.optim.lr, in a new folder, or continue"):
        train.train(config(images, "stop"), str(tmp_path))
    with pytest.raises(FloatingPointError, match=r"at step 8 .*; 2 rollbacks\. Lower"):
        train.train(config(images, "rollback", **{"train.max_rollbacks": 2}), str(tmp_path))
    assert [row["order"] for row in events(tmp_path, "rollback")] == [1, 2]
    assert train.train(config(images, "rollback"), str(tmp_path))
    assert [row["order"] for row in events(tmp_path, "rollback")] == [1, 2, 3]


@pytest.mark.parametrize("policy", ["stop", pytest.param("rollback", marks=pytest.mark.full)])
def test_after_a_learning_rate_of_a_million_no_checkpoint_is_called_good(images, tmp_path, policy):
    chosen = config(images, policy, **{"optim.name": "sgd", "optim.lr": 1e6, "model.widths": (6, 6)})
    for _ in range(2):  # the same command fails in the same way
        with pytest.raises(FloatingPointError, match="not finite (at|after) step .*there is no good checkpoint in"):
            train.train(chosen, str(tmp_path))


@pytest.mark.full
def test_files_that_never_answer_end_the_run_with_the_stacks_and_the_same_command_continues(images, tmp_path):
    """The data become pipes that nobody writes to, while the run goes on."""
    copy, run = tmp_path / "images", tmp_path / "run"
    shutil.copytree(images, copy)
    extra = ("--config.data.loader=grain", "--config.train.epochs=40", "--watchdog=20")
    command = tiny_runs.command(copy, run, *extra, method="ce")
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    process = tiny_runs.start(command, env)
    while process.poll() is None and not (run / "checkpoints" / "4").exists():
        time.sleep(0.02)
    for path in copy.rglob("train/*/*.png"):
        os.mkfifo(f"{path}.pipe")
        os.replace(f"{path}.pipe", path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == commands.RETRY, output
    *_, last = output.splitlines()
    assert re.match(
        r"train.py: no progress for \d+ s \(--watchdog=20\), during (the|a) (input|validation|batch) ", last
    )
    assert "Thread 0x" in output and "in advance" in output
    for path in images.rglob("train/*/*.png"):
        os.replace(shutil.copy(path, tmp_path / "one"), copy / path.relative_to(images))
    process = tiny_runs.start([*command, "--config.train.epochs=40"], env)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "continuing at step " in output and "Finished." in output, output
    rows = [row for row in logbook.read_rows(run) if row["split"] == "time"]
    started, last = rows[0]["started"], rows[-1]
    assert [row["step"] for row in rows if "started" in row] == [0] and time.time() - started > 20
    # The time of the hang is no time in steps.
    assert 0 < last["productive_seconds"] == pytest.approx(last["goodput"] * (time.time() - started), rel=0.2)


@pytest.mark.full
@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_two_processes_decide_as_one(images, tmp_path, policy):
    """Two processes with four devices each skip or roll back as one process with eight."""
    fields = (f"--config.train.on_nonfinite={policy}", "--config.model.norm=none", "--config.log.tensorboard=False")
    bad = json.dumps([[8], [11]])
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tiny_runs.ROOT)}

    def start(name, devices, *extra):
        python, _, *arguments = tiny_runs.command(images, tmp_path / name, *fields, *extra, method="ce")
        return tiny_runs.start([python, poisoned.__file__, bad, *arguments], env | {"JAX_NUM_CPU_DEVICES": devices})

    job = f"--coordinator=127.0.0.1:{20000 + os.getpid() % 20000}"
    jobs = [start("two", "4", job, "--processes=2", f"--process={i}") for i in range(2)] + [start("one", "8")]
    outputs = [process.communicate(timeout=400)[0] for process in jobs]
    assert [process.returncode for process in jobs] == [0, 0, 0], outputs
    one, two = (tiny_runs.rows_without_times(tmp_path / name) for name in ("one", "two"))
    assert [(row["step"], row["split"]) for row in one] == [(row["step"], row["split"]) for row in two]
    for ours, theirs in zip(one, two, strict=True):
        if ours.get("loss") is not None:
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    assert [row["step"] for row in events(tmp_path / "two", policy)] == {"skip": [8], "rollback": [6, 9]}[policy]


def test_a_policy_and_its_bounds_are_validated(images):
    for field, value in {"on_nonfinite": "ignore", "max_skips": 0, "max_rollbacks": 1.5, "loss_limit": 0.0}.items():
        with pytest.raises(ValueError, match=f"config.train.{field} = {value!r}"):
            train.build.check_config(config(images, "stop", **{f"train.{field}": value}))


def test_orders_differ_and_the_first_is_the_seeds_own():
    found = [order_seed(seed, order) for seed in range(3) for order in range(4)]
    assert len(set(found)) == 12 and found[::4] == [0, 1, 2] and max(found) < 2**64


def test_nothing_is_saved_in_a_folder_whose_lock_is_lost(tmp_path):
    class Lost:
        def raise_if_lost(self):
            raise OSError("the lease was lost")

    writer = members.Writer(members.Member("", str(tmp_path), 0), Checkpoints(tmp_path), None, lock=Lost())
    with pytest.raises(commands.TemporaryFailure, match="the lease was lost"):
        writer.save(None, 1, None)
    assert not list(tmp_path.iterdir())
