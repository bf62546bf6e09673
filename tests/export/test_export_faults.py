"""Tests of faults during an export: a full disk, damaged files, a second export into the path, broken images."""

import contextlib
import os
import pathlib
import re
import resource
import signal
import subprocess
import time
from collections.abc import Iterator

import export_program
import jax
import numpy as np
import pytest

from sdecor import export
from sdecor.data import load_in_memory
from sdecor.export.manifest import read_all

OPTIONS = export_program.OPTIONS | {"chunk_rows": 4}
COUNT = export_program.COUNT


class Source(export_program.Source):
    """A split whose names become longer and longer, and therefore the manifests of ranges too."""

    def __init__(self):
        super().__init__(pause=0)

    def name(self, index: int) -> str:
        return f"{index} " + "long " * (4 * index)


def run(path: pathlib.Path, **changes) -> export.Summary:
    return export.export(export_program.network, Source(), path, **OPTIONS | changes)


def tree(path: pathlib.Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("whole") / "out.zarr"
    assert run(path).complete
    return tree(path)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limit the size of every file to `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def check_told(error: BaseException, path: pathlib.Path, reason: str) -> int:
    """Check the error of a failed write; return the number of finished examples that it names."""
    told = re.search(rf"could not read or write {path}.*{reason}\. (\d+) of {COUNT} examples are finished", str(error))
    assert told and "free space and run the same command" in str(error), error
    assert not list(path.rglob("*.partial")) and not (path / ".sdecor/lock").exists()
    return int(told[1])


def recorded_examples(path: pathlib.Path) -> int:
    return sum(record["stop"] - start for start, record in read_all(path).items())


def test_a_file_that_cannot_grow_keeps_what_is_finished(whole, tmp_path):
    path, limit = tmp_path / "out.zarr", len(whole[".sdecor/ranges/000000000132.json"]) - 1
    with largest_file(limit), pytest.raises(export.StorageError) as error:
        run(path)
    told, finished = check_told(error.value, path, "File too large"), recorded_examples(path)
    assert 0 < told <= finished < COUNT  # pending ranges may be committed after the failure
    again = run(path)
    assert again.complete and again.computed == COUNT - finished
    assert tree(path) == whole


def test_a_full_disk_keeps_what_is_finished(whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        with pytest.raises(export.StorageError) as error:
            run(disk / "out.zarr")
        told = check_told(error.value, disk / "out.zarr", "No space left on device")
        finished = recorded_examples(disk / "out.zarr")
        assert 0 < told <= finished < COUNT
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        again = run(disk / "out.zarr")
        assert again.complete and again.computed == COUNT - finished
        assert tree(disk / "out.zarr") == whole
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("finished", [True, False])
def test_damage_is_found_and_only_that_is_computed_anew(whole, tmp_path, caplog, finished):
    path, damaged, rest = tmp_path / "out.zarr", {"gradient/c.3.0.0": "cut", "logits/c.20.0": "flipped"}, 0
    for name, content in whole.items():
        later = name.startswith(".sdecor/ranges/") and int(name.split("/")[-1].removesuffix(".json")) >= 120
        rest += later and not finished
        if finished or not (later or name.endswith("ids.jsonl")):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    if not finished:
        group = path / "zarr.json"
        text = re.sub(r'"totals": \{.*?\n  \},\n|,\n  "totals": .*?\n  \}', "", group.read_text(), flags=re.DOTALL)
        group.write_text(text.replace('"complete": true', '"complete": false'))
    for name, how in damaged.items():
        content = bytearray((path / name).read_bytes())
        content[len(content) // 2] ^= 8
        (path / name).write_bytes(content[:-1] if how == "cut" else content)
    problems = export.open(path).check()
    assert len(problems) == 2 and all(name in "\n".join(problems) for name in damaged)
    assert "bytes instead of" in problems[0] and "another checksum" in problems[1]
    done = run(path)
    assert done.complete and done.computed == 8 + (30 if not finished else 0)
    assert all(name in caplog.text for name in damaged) and "examples from 12 to 15 are computed anew" in caplog.text
    assert tree(path) == whole and not export.open(path).check()


def test_the_second_export_into_a_path_is_refused_and_the_first_unharmed(whole, tmp_path):
    path, told = tmp_path / "out.zarr", []

    def second(done: int) -> None:
        if not told or len(told) == 5:
            with pytest.raises(ValueError, match=f"{path} is being exported to by .*wait for it, or give another"):
                run(path)
        told.append(done)

    assert run(path, progress=second).complete and len(told) > 5
    assert tree(path) == whole


def test_what_is_not_ours_stays(tmp_path):
    (tmp_path / "out.zarr").mkdir()
    (tmp_path / "out.zarr/thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds something else than an export .thesis.tex.: give another path"):
        run(tmp_path / "out.zarr")
    assert tree(tmp_path / "out.zarr") == {"thesis.tex": b"years of work"}


def test_images_that_become_readable_or_unreadable_are_the_same_data(whole, tmp_path):
    """An export that a broken image stopped continues after the repair."""

    class Broken(Source):
        def __init__(self, *broken: int):
            super().__init__()
            self.broken = {*broken}

        def __getitem__(self, index: int) -> dict:
            if index in self.broken:
                raise OSError("cut short")
            return super().__getitem__(index)

    path, most = tmp_path / "out.zarr", range(100, COUNT)
    with pytest.raises(ValueError, match="example 100. cannot be read"):
        export.export(export_program.network, Broken(*most), path, **OPTIONS)
    assert export.export(export_program.network, Broken(*range(60)), path, **OPTIONS, on_error="skip").complete
    assert run(path).complete and tree(path) == whole
    changed = Source()
    changed.images = np.where(np.arange(COUNT)[:, None, None, None] > 60, changed.images + 1, changed.images)
    with pytest.raises(ValueError, match=r"data\.images\.\d+ and \d+ images more: "):
        export.export(export_program.network, changed, path, **OPTIONS)


def test_a_signal_while_the_input_does_not_answer_gives_a_summary(whole, tmp_path):
    class Blocked(Source):
        def __getitem__(self, index: int) -> dict:
            if index == 40:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)
            return super().__getitem__(index)

    path = tmp_path / "out.zarr"
    done = export.export(export_program.network, Blocked(), path, **OPTIONS)
    assert not done.complete and done.finished == recorded_examples(path) >= 4
    many = [{"image": np.zeros((2, 2, 3), np.uint8), "label": 0}] * 3
    assert len(load_in_memory(Slow(many))) == 3  # the earlier signal ends no later wait
    assert run(path).complete and tree(path) == whole


class Slow(list):
    labels = (0, 0, 0)

    def __getitem__(self, index: int) -> dict:
        time.sleep(0.3)
        return super().__getitem__(index)


def test_an_export_tells_the_watchdog_of_each_batch_and_range(tmp_path, monkeypatch):
    beats = []
    monkeypatch.setattr("sdecor.core.watchdog.beat", lambda what, *, timed=True: beats.append((what, timed)))
    run(tmp_path / "out.zarr")
    batches = [timed for what, timed in beats if what == "a batch of the export"]
    assert len(batches) >= COUNT // OPTIONS["device_batch"] // jax.local_device_count() and batches[:2] == [False, True]
    beats.clear()
    run(tmp_path / "out.zarr")
    assert beats.count(("the verification of the export", True)) >= COUNT // 4
