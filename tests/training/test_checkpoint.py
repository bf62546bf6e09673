"""Tests of checkpoints: verification, rotation, full disks, and damaged ones, which are skipped or named."""

import errno
import gc
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdecor.core import files, parallel
from sdecor.core.commands import TemporaryFailure
from sdecor.training import record
from sdecor.training.checkpoint import TRIES, Checkpoints, checksums
from sdecor.training.state import TrainState


def state_at(step: int, ema: bool = True) -> TrainState:
    params = {"kernel": jax.random.normal(jax.random.key(step), (64, 64)), "bias": jnp.full(3, step, jnp.float32)}
    average = jax.tree.map(jnp.copy, params) if ema else None
    state = TrainState.create(
        apply_fn=None, params=params, tx=TX, batch_stats={"mean": jnp.ones(4)}, ema_params=average
    )
    return parallel.replicate(state.replace(step=jnp.int32(step)))


TX = optax.inject_hyperparams(optax.adam)(learning_rate=0.1)


def save(checkpoints, step, accuracy=None):
    metrics = None if accuracy is None else {"accuracy": accuracy, "cross_entropy": 1.0}
    checkpoints.save(state_at(step), position={"step": step, "seed": 0}, metrics=metrics)
    checkpoints.wait()


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b)))


def test_restores_what_was_saved_bit_for_bit(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(state_at(0)) is None
        save(checkpoints, 7)
    with Checkpoints(tmp_path) as checkpoints:
        state, position = checkpoints.restore(state_at(0))
    assert equal(state, state_at(7)) and int(state.step) == 7
    assert position == {"step": 7, "seed": 0}


def test_state_without_average_or_statistics(tmp_path):
    state = state_at(3, ema=False).replace(batch_stats={})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, position={"step": 3, "seed": 0})
        checkpoints.wait()
        restored, _ = checkpoints.restore(state)
    assert equal(restored, state) and restored.ema_params is None


def test_best_and_latest_are_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step, accuracy in ((1, 0.5), (2, 0.9), (3, None), (4, 0.6), (5, None), (6, 0.7)):
            save(checkpoints, step, accuracy)
        assert checkpoints.best_step() == 2
        assert checkpoints.steps() == [2, 5, 6]


def test_validation_result_replaces_a_checkpoint_without_one(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 4)
        assert not checkpoints.has_metrics(4)
        save(checkpoints, 4, 0.5)
        assert checkpoints.has_metrics(4) and checkpoints.best_step() == 4
        save(checkpoints, 4)  # keeps the stored result
        assert checkpoints.has_metrics(4)


def damage(tmp_path, step, how):
    files = [p for p in (tmp_path / "checkpoints" / str(step) / "state").rglob("*") if p.is_file()]
    path = max((p for p in files if "/d/" in str(p)), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    if how == "flipped":
        middle = len(content) // 2
        content[middle : middle + 16] = bytes(b ^ 0xFF for b in content[middle : middle + 16])
        path.write_bytes(content)
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()


DAMAGES = ("flipped", "truncated", "emptied", "deleted")


def damage_file(path, how):
    content = bytearray(path.read_bytes())
    if how == "deleted":
        path.unlink()
    elif how == "flipped":
        content[len(content) // 2] ^= 0x01
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2] if how == "truncated" else b"")


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """Return a folder with the checkpoints of two steps, both with a validation result."""
    folder = tmp_path_factory.mktemp("two_steps")
    with Checkpoints(folder) as checkpoints:
        save(checkpoints, 1, 0.5)
        save(checkpoints, 2, 0.75)
    return folder


def names_of_files(folder):
    """Return the files of the checkpoint of step 2, by path below its folder."""
    top = folder / "checkpoints" / "2"
    return sorted(str(path.relative_to(top)) for path in top.rglob("*") if path.is_file())


def check_each_damage(folder, tmp_path, names, damages):
    """Damage one file at a time: what is restored is whole, and a checkpoint that is passed over is named and kept."""
    seen = set()
    for name in names:
        for how in damages:
            run = tmp_path / f"{name}-{how}".replace("/", "-")
            shutil.copytree(folder, run)
            damage_file(run / "checkpoints" / "2" / name, how)
            with Checkpoints(run) as checkpoints:
                state, position = checkpoints.restore(state_at(0))
                step = int(state.step)
                seen.add(step)
                assert equal(state, state_at(step)) and position == {"step": step, "seed": 0}, (name, how)
                assert checkpoints.steps() == list(range(1, step + 1)), (name, how)
                assert (run / "checkpoints" / "damaged-2").exists() == (step == 1), (name, how)
                assert checkpoints.best_step() == step, (name, how)
                save(checkpoints, 3, 1.0)
                assert checkpoints.best_step() == 3 and equal(checkpoints.restore(state_at(0))[0], state_at(3))
            shutil.rmtree(run)
    return seen


def test_damaged_side_files_are_passed_over_or_harmless(two_steps, tmp_path):
    names = ["meta/metadata", "state/_METADATA"]
    assert check_each_damage(two_steps, tmp_path, names, ("flipped", "emptied")) == {1}


@pytest.mark.full
@pytest.mark.parametrize("how", DAMAGES)
def test_every_file_damaged_in_turn(two_steps, tmp_path, how):
    names = names_of_files(two_steps)
    assert len(names) >= 8 and check_each_damage(two_steps, tmp_path, names, [how]) >= {1}


def test_a_damaged_byte_of_a_record_is_seen(two_steps, tmp_path):
    path = tmp_path / "2" / "meta" / "metadata"
    path.parent.mkdir(parents=True)
    whole = (two_steps / "checkpoints" / "2" / "meta" / "metadata").read_bytes()
    path.write_bytes(whole)
    content = record.read(tmp_path, 2)
    assert content["metrics"] == {"accuracy": 0.75, "cross_entropy": 1.0}
    for place in range(0, len(whole), 11):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x01]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="metadata is damaged"):
            record.read(tmp_path, 2)
        path.write_bytes(whole[:place])
        with pytest.raises(ValueError, match="metadata is damaged"):
            record.read(tmp_path, 2)


FORMER = pathlib.Path(__file__).parents[1] / "former" / "run" / "checkpoints"


@pytest.mark.parametrize("content", [b"", b'{"accuracy": 0.', b"\xff" * 30, b"[1]", b'{"accuracy": "x"}'])
def test_a_damaged_validation_result_of_an_earlier_version_is_left_out(tmp_path, content, caplog):
    shutil.copytree(FORMER, tmp_path / "checkpoints")
    with Checkpoints(tmp_path, create=False) as checkpoints:
        assert checkpoints.has_metrics(6) and checkpoints.best_step() == 6
    (tmp_path / "checkpoints/6/metrics/metrics").write_bytes(content)
    with Checkpoints(tmp_path) as checkpoints, caplog.at_level(logging.WARNING):
        assert not checkpoints.has_metrics(6) and checkpoints.best_step() is None
        assert caplog.text.count("metrics/metrics is damaged") == 1
        save(checkpoints, 6, 0.5)  # validated anew
        assert checkpoints.has_metrics(6) and checkpoints.best_step() == 6


def fail_to_write(monkeypatch, error):
    """Let the background part of each save raise an error."""

    def fails(content):
        raise error

    monkeypatch.setattr(record, "sealed", fails)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_ends_the_run_only_if_it_stays(tmp_path, monkeypatch, caplog, code):
    caplog.set_level(logging.WARNING)
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        with monkeypatch.context() as patch:
            fail_to_write(patch, OSError(code, os.strerror(code)))
            for step in range(2, 1 + TRIES):
                save(checkpoints, step)
            assert checkpoints.steps() == [1]
        save(checkpoints, 5)
        assert checkpoints.steps() == [1, 5]
        checkpoints.finish()
        fail_to_write(monkeypatch, OSError(code, os.strerror(code)))
        for step in range(6, 6 + TRIES):
            save(checkpoints, step)
        with pytest.raises(TemporaryFailure, match="the last checkpoint could not be saved .*that of step 5 is kept"):
            checkpoints.finish()
        with pytest.raises(TemporaryFailure, match=f"{TRIES} checkpoints in a row .*{os.strerror(code)}"):
            save(checkpoints, 9)
    told = [entry.getMessage() for entry in caplog.records if entry.name == "absl"]
    assert all("could not be saved" in text and "\n" not in text for text in told) and len(told) == 2 * TRIES
    with Checkpoints(tmp_path) as checkpoints:
        assert equal(checkpoints.restore(state_at(0))[0], state_at(5))


def test_an_error_that_is_not_of_the_storage_is_raised(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        fail_to_write(monkeypatch, TypeError("a mistake of the program"))
        with pytest.raises(TypeError, match="a mistake"):
            save(checkpoints, 2)


def test_saving_waits_neither_for_the_checksums_nor_for_the_write(tmp_path, monkeypatch):
    proceed, threads, crc32 = threading.Event(), [], record.crc32

    def slow(arrays):
        threads.append(threading.current_thread())
        assert proceed.wait(60)
        return crc32(arrays)

    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        monkeypatch.setattr(record, "crc32", slow)
        checkpoints.save(state_at(2), position={"step": 2, "seed": 0})
        assert checkpoints.steps() == [1]
        proceed.set()
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2] and threading.main_thread() not in threads


@pytest.mark.full
def test_a_really_full_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system can only be mounted by root")
    large = {"kernel": jax.random.normal(jax.random.key(0), (512, 512))}
    state = parallel.replicate(TrainState.create(apply_fn=None, params=large, tx=TX, batch_stats={}))

    def save(checkpoints, step):
        checkpoints.save(state.replace(step=jnp.int32(step)), position={"step": step, "seed": 0})
        checkpoints.wait()

    try:
        with Checkpoints(folder) as checkpoints:
            save(checkpoints, 1)
            space = os.statvfs(folder)
            (folder / "ballast").write_bytes(bytes(space.f_bavail * space.f_bsize - 100_000))
            save(checkpoints, 2)
            assert checkpoints.steps() == [1]
            (folder / "ballast").unlink()
            save(checkpoints, 3)
            assert checkpoints.steps() == [1, 3] and int(checkpoints.restore(state)[0].step) == 3
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("how", ["flipped", "truncated", "deleted"])
def test_damaged_checkpoint_is_passed_over(tmp_path, how):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        save(checkpoints, 2)
    damage(tmp_path, 2, how)
    with Checkpoints(tmp_path) as checkpoints:
        state, _ = checkpoints.restore(state_at(0))
        assert int(state.step) == 1 and equal(state, state_at(1))
        with pytest.raises(ValueError, match="step 2"):
            checkpoints.restore(state_at(0), step=2)
    damage(tmp_path, 1, how)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match="no whole checkpoint"):
        checkpoints.restore(state_at(0))


def test_a_damaged_checkpoint_is_one_line_in_the_log(tmp_path, monkeypatch, caplog):
    """Orbax reads all arrays at once; only the first error is logged, the others are not printed."""
    params = {f"kernel{i}": jnp.ones((8, 8)) for i in range(40)}
    state = parallel.replicate(TrainState.create(apply_fn=None, params=params, tx=TX, batch_stats={}))
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(state.replace(step=jnp.int32(step)), position={"step": step, "seed": 0})
    for file in (tmp_path / "checkpoints" / "2" / "state").rglob("d/*"):
        file.write_bytes(b"")
    problems = []
    caplog.clear()
    monkeypatch.setattr(sys, "unraisablehook", problems.append)
    with caplog.at_level(logging.WARNING), Checkpoints(tmp_path) as checkpoints:
        for _ in range(3):
            restored, _ = checkpoints.restore(state)
            gc.collect()
    assert int(restored.step) == 1 and not problems
    told = [entry.getMessage() for entry in caplog.records]
    assert len(told) == 2 and "checkpoint of step 2 is damaged" in told[0] and "kept as" in told[1], told
    assert all("\n" not in text and "tensorstore_spec" not in text for text in told)


def test_saving_without_a_validation_result_warns_of_nothing(tmp_path, caplog):
    with caplog.at_level(logging.WARNING), Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
    assert "tracked_metric" not in caplog.text


@pytest.mark.parametrize("name", ["lr[0.1]", "a*b", "what?", "back\\slash", "lr[0.1]/below"])
def test_a_path_that_orbax_cannot_store_below_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"workdir = .*because of the .* in it.*without \* \? \["):
        Checkpoints(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_run_that_was_moved_below_such_a_path_is_still_read(tmp_path):
    with Checkpoints(tmp_path / "run") as checkpoints:
        save(checkpoints, 3)
    shutil.move(tmp_path / "run", tmp_path / "lr[0.1]")
    with Checkpoints(tmp_path / "lr[0.1]", create=False) as checkpoints:
        assert equal(checkpoints.restore(state_at(0))[0], state_at(3))


def test_the_first_checkpoint_is_read_back(tmp_path, monkeypatch):
    """Below a path with brackets Orbax loses what it saves, so the run must stop."""
    monkeypatch.setattr(files, "check_checkpoints", lambda field, path: None)
    with Checkpoints(tmp_path / "lr[0.1]") as checkpoints:
        with pytest.raises(ValueError, match="first checkpoint, of step 1, cannot be read back .*another --workdir"):
            checkpoints.save(state_at(1), position={"step": 1, "seed": 0})


def test_only_the_first_checkpoint_of_a_folder_is_read_back(tmp_path, monkeypatch):
    read = []
    original = Checkpoints._restore

    def restore(self, step, like):
        read.append(step)
        return original(self, step, like)

    monkeypatch.setattr(Checkpoints, "_restore", restore)
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        save(checkpoints, 2)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore(state_at(0))
        save(checkpoints, 3)
    assert read == [1, 2]  # step 2 was read by `restore`


def test_a_remote_folder_stays_remote(monkeypatch):
    monkeypatch.chdir("/")
    assert os.fspath(files.absolute("gs://bucket/runs/a")) == "gs://bucket/runs/a"
    assert os.fspath(files.absolute("runs/a")) == "/runs/a"
    files.check_checkpoints("--workdir", "gs://bucket/runs/a")
    with pytest.raises(ValueError, match=r"--workdir = 'gs://bucket/lr\[1\]'.*because of the \["):
        files.check_checkpoints("--workdir", "gs://bucket/lr[1]")


def test_missing_step_lists_those_there_are(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 5)
        with pytest.raises(ValueError, match=r"step 4.*\[5\]"):
            checkpoints.restore(state_at(0), step=4)


@pytest.mark.parametrize("checksums", [checksums, record.crc32])
def test_checksums_see_values_types_and_shapes(checksums):
    one = checksums({"a": np.zeros(4, np.float32)})
    assert one == checksums({"a": np.asarray(jnp.zeros(4))})
    assert one != checksums({"a": np.zeros((2, 2), np.float32)})
    assert one != checksums({"a": np.zeros(4, np.int32)})
    assert one != checksums({"a": np.array([0, 0, 0, 1e-45], np.float32)})


def test_saving_is_not_disturbed_by_donation(tmp_path):
    """Steps overwrite the state while its checkpoint is still being written."""
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    expected = checksums(state_at(9).params)
    with Checkpoints(tmp_path) as checkpoints:
        state = state_at(9)
        checkpoints.save(state, position={"step": 9, "seed": 0})
        for _ in range(20):
            state = overwrite(state)
        checkpoints.wait()
        restored, _ = checkpoints.restore(state_at(0))
    assert checksums(restored.params) == expected


def test_replicating_leaves_the_callers_arrays_alone():
    """A step donates its state, which must not share the caller's memory."""
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    mine = {"kernel": jnp.ones((64, 64)), "bias": np.ones(64, np.float32)}
    for devices in (1, 2, 8):
        overwrite(parallel.replicate(mine, jax.local_devices()[:devices]))
        assert float(mine["kernel"].sum()) == 64 * 64 and mine["bias"].sum() == 64
