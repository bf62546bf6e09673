"""Tests of an export on disk: committed ranges are whole after any failure, and a restart gives the same bytes."""

import errno
import json
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorstore as ts

from sdecor.export import files as files_module, manifest, store as writers, verify
from sdecor.export.layout import ArraySpec, Layout
from sdecor.export.resume import recorded
from sdecor.export.store import StorageError, Store

N, ROWS = 11, 4
ARRAYS = (
    ArraySpec("map", (3, 5), "float32", ("y", "x"), attributes={"method": "gradient", "settings": {"steps": 20}}),
    ArraySpec("half", (2, 2, 3), "float16", ("y", "x", "channel")),
    ArraySpec("byte", (3, 5), "uint8", ("y", "x"), fill=128),
    ArraySpec("label", (), "int32", fill=-1),
    ArraySpec("example_id", (), "int64"),
)
ATTRIBUTES = {"target": "predicted", "data": {"name": "digits", "mean": (0.5, 0.25)}, "versions": {"jax": "1"}}
LAYOUTS = {"plain": Layout(ARRAYS, ROWS, None, ATTRIBUTES), "sharded": Layout(ARRAYS, 2, ROWS, ATTRIBUTES)}
LAYOUT = LAYOUTS["plain"]


def values(spec: ArraySpec, n: int = N) -> np.ndarray:
    drawn = np.random.default_rng(len(spec.name)).standard_normal((n, *spec.tail)) * 40
    rows = (drawn + 128 * (spec.dtype == "uint8")).clip(0 if spec.dtype == "uint8" else None).astype(spec.dtype)
    rows[ROWS : 2 * ROWS] = 0  # a range of fill values is stored too
    return rows


def record_of(start: int, stop: int) -> dict:
    return {
        "names": [f"bild-{i}-ä" for i in range(start, stop)],
        "skipped": [{"index": 5, "name": "bild-5-ä", "error": "cut off"}] if start <= 5 < stop else [],
        "counts": {"gradient": {"clipped": start, "underflowed": 1, "nonfinite": 0}},
    }


def export(path, layout=LAYOUT, n=N, known=True, index=0, count=1, finish=True, **options) -> list[int]:
    """Export the missing ranges; return the starts of those written."""
    written = []
    options |= {"num_examples": n if known else None, "process_index": index, "process_count": count}
    with Store(path, layout, **options) as store:
        if store.complete:
            return ["complete"]
        pending = []
        for start in range(index * ROWS, n, count * ROWS):
            stop = min(start + ROWS, n)
            if not store.done(start):
                arrays = {spec.name: values(spec, n)[start:stop] for spec in layout.arrays}
                pending.append(store.write(start, stop, arrays, record_of(start, stop)))
                written.append(start)
        assert all(each.result() > 0 for each in pending)
        if finish:
            assert store.wait_and_finish(n) == (index == 0)
    return written


def tree(path) -> dict[str, bytes]:
    """Return the bytes of every file under `path`."""
    path = pathlib.Path(path)
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module", params=LAYOUTS)
def whole(request, tmp_path_factory):
    """Return a finished export and its layout."""
    path = tmp_path_factory.mktemp("whole") / "out.zarr"
    export(path, LAYOUTS[request.param])
    return path, LAYOUTS[request.param]


def test_files_are_one_for_each_array_and_range(whole):
    path, layout = whole
    assert {*tree(path)} == {
        "zarr.json",
        "ids.jsonl",
        "skipped.jsonl",
        ".sdecor/group.json",
        *(f".sdecor/ranges/{start:012d}.json" for start in (0, 4, 8)),
        *(f"{spec.name}/zarr.json" for spec in ARRAYS),
        *(f"{spec.name}/c.{i}{'.0' * len(spec.tail)}" for spec in ARRAYS for i in range(3)),
    }
    found = recorded(path)
    assert found["complete"] and found["num_examples"] == N and found["target"] == "predicted"
    counts = {"clipped": 12, "underflowed": 3, "nonfinite": 0}
    assert found["totals"] == {"skipped": 1, "counts": {"gradient": counts}}
    names = [json.loads(line) for line in (path / "ids.jsonl").read_text().splitlines()]
    assert names == [{"example_id": i, "name": f"bild-{i}-ä"} for i in range(N)]
    skipped = [json.loads(line) for line in (path / "skipped.jsonl").read_text().splitlines()]
    assert skipped == [{"index": 5, "name": "bild-5-ä", "error": "cut off"}]
    assert not verify.problems(path) and not verify.problems(path, "sizes")
    assert [record["stop"] for record in manifest.read_all(path).values()] == [4, 8, 11]


READ = """
import sys, numpy as np, zarr, xarray
path, expected = sys.argv[1], np.load(sys.argv[2])
group = zarr.open_group(path, mode="r")
assert {*group.array_keys()} == {*expected}, [*group.array_keys()]
assert group.metadata.consolidated_metadata is not None
assert group["map"].attrs["settings"] == {"steps": 20} and group.attrs["data"]["name"] == "digits"
data = xarray.open_zarr(path)
assert data.sizes["example"] == 11 and data["half"].dims == ("example", "y_half", "x_half", "channel"), data
for name, values in expected.items():
    for found in (group[name][:], data[name].values):
        assert found.dtype == values.dtype and found.tobytes() == values.tobytes(), name
alone = zarr.open_array(path + "/map", mode="r")
assert alone.metadata.dimension_names == ("example", "y", "x")
print("read")
"""


def test_other_readers_read_the_same_without_warnings(tmp_path):
    pytest.importorskip("zarr")
    pytest.importorskip("xarray")
    names = {"half": ("y_half", "x_half", "channel")}  # xarray requires one length per dimension
    arrays = tuple(spec._replace(dims=names.get(spec.name, spec.dims)) for spec in ARRAYS)
    np.savez(tmp_path / "expected.npz", **{spec.name: values(spec) for spec in arrays})
    for name, layout in LAYOUTS.items():
        export(tmp_path / name, layout._replace(arrays=arrays))
        command = [sys.executable, "-W", "error", "-c", READ, str(tmp_path / name), str(tmp_path / "expected.npz")]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.stdout == "read\n", run.stderr


def test_nothing_is_written_twice(whole, tmp_path):
    path, layout = whole
    assert export(path, layout) == ["complete"]
    export(tmp_path / "part", layout, n=8, known=False, finish=False)
    assert export(tmp_path / "part", layout, known=False) == [8]
    assert tree(tmp_path / "part") == tree(path)


def test_the_number_of_processes_changes_no_byte(whole, tmp_path):
    path, layout = whole
    export(tmp_path / "out", layout, count=3, finish=False)  # the main process begins
    others = [threading.Thread(target=export, args=(tmp_path / "out", layout, N, True, i, 3)) for i in (1, 2)]
    with Store(tmp_path / "out", layout, num_examples=N, process_count=3) as main:
        for thread in others:
            thread.start()
        assert main.done(0) and not main.done(4) and main.wait_and_finish(N) and main.finished == N
    for thread in others:
        thread.join()
    assert tree(tmp_path / "out") == tree(path)


def test_a_url_gives_the_same_tree(whole, tmp_path):
    path, layout = whole
    export(f"file://{tmp_path}/out.zarr", layout)
    assert tree(tmp_path / "out.zarr") == tree(path)
    assert not verify.problems(f"file://{tmp_path}/out.zarr")
    assert export(f"file://{tmp_path}/out.zarr", layout) == ["complete"]


@pytest.mark.parametrize("n", [1, 4, 5])
def test_few_examples(tmp_path, n):
    export(tmp_path / "known", n=n)
    export(tmp_path / "unknown", n=n, known=False)
    assert tree(tmp_path / "known") == tree(tmp_path / "unknown")
    assert not verify.problems(tmp_path / "known")
    assert (tmp_path / "known/skipped.jsonl").exists() == (n > 5)


class Killed(BaseException):
    """Death of the process: nothing runs after this point, not even an `except Exception` clause."""


class Operations:
    """A counter of file operations that makes one of them fail."""

    def __init__(self, monkeypatch, fails: int, how: str):
        self.count, self._fails, self._how, self._lock = 0, fails, how, threading.Lock()
        for name in ("write", "delete"):
            self._wrap(monkeypatch, name, getattr(files_module.LocalFiles, name))

    def _wrap(self, monkeypatch, name, real):
        def operation(files, key, *content):
            with self._lock:
                self.count += 1
                mine = self.count == self._fails
                dead = self._how == "kill" and self.count > self._fails
            if mine and self._how == "full":
                raise OSError(errno.ENOSPC, "No space left on device", files.name(key))
            if mine and name == "write" and self._how == "kill":  # a partial file, longer than the whole one
                os.makedirs(os.path.dirname(files.name(key)), exist_ok=True)
                pathlib.Path(f"{files.name(key)}.0{files_module.PARTIAL}").write_bytes(b"x" * 9999)
            if (mine and self._how == "kill") or dead:
                raise Killed
            real(files, key, *content)
            if mine and self._how == "late":  # done, but the answer was lost
                raise OSError(errno.EIO, "Input/output error", files.name(key))

        monkeypatch.setattr(files_module.LocalFiles, name, operation)


def operations_of_an_export(monkeypatch, path, layout) -> int:
    with monkeypatch.context() as patch:
        counted = Operations(patch, 0, "full")
        export(path, layout)
    return counted.count


@pytest.mark.parametrize("how", ["full", pytest.param("late", marks=pytest.mark.full), "kill"])
def test_whatever_operation_fails_a_restart_gives_the_same_bytes(whole, tmp_path, monkeypatch, how):
    path, layout = whole
    count = operations_of_an_export(monkeypatch, tmp_path / "count", layout)
    assert count > 25 and tree(tmp_path / "count") == tree(path)
    for fails in range(1, count + 1):
        out = tmp_path / str(fails)
        with monkeypatch.context() as patch, pytest.raises((StorageError, Killed)):
            Operations(patch, fails, how)
            export(out, layout)
        kept = len(list(out.glob(".sdecor/ranges/*.json")))
        again = export(out, layout)
        assert again == ["complete"] or len(again) == 3 - kept, fails  # finished ranges are not written again
        assert tree(out) == tree(path), fails


def test_a_full_disk_is_told_with_what_is_safe(tmp_path, monkeypatch):
    export(tmp_path / "out", n=4, known=False, finish=False)
    with monkeypatch.context() as patch:
        Operations(patch, 5, "full")
        with pytest.raises(StorageError, match=r"out.*No space left.* 4 of 11 examples are finished .*free space"):
            export(tmp_path / "out")


LIMITED = """
import resource, signal, sys
sys.path[:0] = ["tests/export", "tests/helpers", "."]
import test_export_store as test
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))
try:
    test.export(sys.argv[1])
except test.StorageError as error:
    sys.exit(f"told: {error}")
"""


@pytest.mark.full
def test_a_real_limit_of_the_disk(whole, tmp_path):
    run = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "out")], capture_output=True, text=True)
    assert "told: could not" in run.stderr and "File too large" in run.stderr and "free space" in run.stderr
    assert not list(tmp_path.rglob("*.partial"))
    export(tmp_path / "out", whole[1])
    assert tree(tmp_path / "out") == tree(whole[0])


def damaged_copies(path, tmp_path):
    """Yield a damage and its file, each in a new copy of the export."""
    for key, content in tree(path).items():
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 4
        for what, new in {
            "cut": content[:-1],
            "flipped": bytes(flipped),
            "missing": None,
            "longer": content + b"0",
        }.items():
            copy = tmp_path / f"{key.replace('/', '-')}-{what}"
            for name, old in tree(path).items():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                (copy / name).write_bytes(old)
            if new is None:
                (copy / key).unlink()
            else:
                (copy / key).write_bytes(new)
            yield key, what, copy


def test_every_damage_is_found_and_repaired(whole, tmp_path, caplog):
    path, layout = whole
    for key, what, copy in damaged_copies(path, tmp_path):
        assert len(verify.problems(copy)) == 1, (key, what)
        caplog.clear()
        again = export(copy, layout)
        assert os.path.basename(key).split(".json")[0] in caplog.text or key.startswith(".sdecor"), (key, what)
        in_range = key.startswith(".sdecor/ranges") or "/c." in key
        assert len(again) == in_range and tree(copy) == tree(path), (key, what)


def test_sizes_alone_find_what_is_cut(whole, tmp_path):
    path, layout = whole
    export(tmp_path / "out", layout, finish=False)
    chunk = tmp_path / "out/map/c.1.0.0"
    flipped = bytearray(chunk.read_bytes())
    flipped[9] ^= 1
    chunk.write_bytes(flipped)
    with Store(tmp_path / "out", layout, num_examples=N, check="sizes") as store:
        assert store.done(4)
    chunk.write_bytes(flipped[:-1])
    with Store(tmp_path / "out", layout, num_examples=N, check="sizes") as store:
        assert not store.done(4) and store.done(0) and store.finished == 7


def test_readers_notice_every_flipped_bit(whole, tmp_path):
    path, layout = whole
    content = (path / "map/c.0.0.0").read_bytes()
    kvstore = {"driver": "memory"}
    array = ts.open(
        {
            "driver": "zarr3",
            "kvstore": kvstore,
            "recheck_cached_data": True,
            "metadata": json.loads((path / "map/zarr.json").read_text()),
            "create": True,
        }
    ).result()
    array.kvstore["c.0.0.0"] = content
    expected = array[:ROWS].read().result().tobytes()
    unnoticed = []
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 16
        array.kvstore["c.0.0.0"] = bytes(flipped)
        try:
            unnoticed += [place] if array[:ROWS].read().result().tobytes() != expected else []
        except ValueError:
            continue
    assert not unnoticed


CHANGES = {
    "target": {"attributes": ATTRIBUTES | {"target": "label"}},
    "data.mean": {"attributes": ATTRIBUTES | {"data": {"name": "digits", "mean": (0.5, 0.5)}}},
    "chunk_rows": {"chunk_rows": 8},
    "shard_rows": {"shard_rows": 8},
    "arrays.map.attributes.settings.steps": {
        "arrays": (ARRAYS[0]._replace(attributes={"method": "gradient", "settings": {"steps": 9}}), *ARRAYS[1:])
    },
    "arrays.half.data_type": {"arrays": (ARRAYS[0], ARRAYS[1]._replace(dtype="float32"), *ARRAYS[2:])},
    "arrays.label": {"arrays": tuple(spec for spec in ARRAYS if spec.name != "label")},
}


@pytest.mark.parametrize("field", CHANGES)
@pytest.mark.parametrize("finish", [True, False])
def test_another_export_is_refused_by_field(tmp_path, field, finish):
    export(tmp_path / "out", finish=finish)
    before = tree(tmp_path / "out")
    with pytest.raises(ValueError, match=f"(?s)another export.*  {field}: .* there, .* here"):
        export(tmp_path / "out", LAYOUT._replace(**CHANGES[field]))
    assert tree(tmp_path / "out") == before


def test_another_number_of_examples_is_refused(tmp_path):
    export(tmp_path / "out", n=8, known=False, finish=False)
    with pytest.raises(ValueError, match="num_examples = 7"):
        export(tmp_path / "out", n=7, known=False)
    with pytest.raises(ValueError, match="num_examples = 4"):
        export(tmp_path / "out", n=4)
    export(tmp_path / "full")
    with pytest.raises(ValueError, match="num_examples: 11 there, 10 here"):
        export(tmp_path / "full", n=10)


def test_other_versions_only_warn(tmp_path, caplog):
    export(tmp_path / "out", n=8, known=False, finish=False)
    export(tmp_path / "out", LAYOUT._replace(attributes=ATTRIBUTES | {"versions": {"jax": "2"}}))
    assert "versions.jax: '1' there, '2' here" in caplog.text
    assert recorded(tmp_path / "out")["versions"] == {"jax": "1"}  # as at the first start


def test_what_is_no_export_is_refused(tmp_path):
    assert recorded(tmp_path / "nothing") is None
    (tmp_path / "out/.sdecor").mkdir(parents=True)
    (tmp_path / "out/.sdecor/lock").touch()
    (tmp_path / "out/zarr.json.0.partial").touch()
    assert recorded(tmp_path / "out") is None
    (tmp_path / "out/thesis.tex").touch()
    (tmp_path / "file").touch()
    (tmp_path / "group").mkdir()
    (tmp_path / "group/zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    for name in ("out", "file", "group"):
        with pytest.raises(ValueError, match=f"{name}.*give another path"):
            recorded(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}.*give another path"):
            export(tmp_path / name)
    with pytest.raises(ValueError, match="holds no export"):
        verify.problems(tmp_path / "nothing")
    with pytest.raises(ValueError, match="main process comes first"):
        export(tmp_path / "nothing", index=1, count=2)


@pytest.mark.parametrize(
    "layout, message",
    [
        (LAYOUT._replace(chunk_rows=0), "chunk_rows = 0"),
        (LAYOUT._replace(shard_rows=6), "shard_rows = 6 is no multiple of chunk_rows = 4: use 8"),
        (LAYOUT._replace(arrays=ARRAYS + ARRAYS[:1]), "name = 'map'"),
        (LAYOUT._replace(arrays=(ArraySpec("a/b"),)), "name = 'a/b'"),
        (LAYOUT._replace(arrays=(ArraySpec("a", (3,)),)), r"dims = \(\) of array 'a'"),
        (LAYOUT._replace(arrays=(ArraySpec("a", (2**29,), dims=("x",)),)), "chunk_rows = 4 .* use at most"),
    ],
)
def test_a_layout_that_cannot_be_stored_is_refused(tmp_path, layout, message):
    with pytest.raises(ValueError, match=message):
        Store(tmp_path / "out", layout)
    assert not (tmp_path / "out").exists()


def test_what_is_no_range_is_refused(tmp_path):
    arrays = {spec.name: values(spec)[:4] for spec in ARRAYS}
    with Store(tmp_path / "out", LAYOUT, process_count=2) as store:
        for start, stop in [(1, 5), (0, 5), (4, 8), (0, 0)]:
            with pytest.raises(ValueError, match=f"start, stop = {start}, {stop} is no range of process 0 of 2"):
                store.write(start, stop, arrays, {})
        with pytest.raises(ValueError, match=r"arrays = \['map'\]"):
            store.write(0, 4, {name: rows for name, rows in arrays.items() if name != "map"}, {})
        with pytest.raises(ValueError, match="'label' = int64"):
            store.write(0, 4, arrays | {"label": np.zeros(4, np.int64)}, {}).result()


def test_a_stop_reaches_every_process_and_the_next_start_clears_it(tmp_path):
    with Store(tmp_path / "out", LAYOUT, num_examples=N, process_count=2) as main:
        with Store(tmp_path / "out", LAYOUT, num_examples=N, process_index=1, process_count=2) as other:
            assert not main.asked_to_stop() and not other.asked_to_stop()
            other.ask_to_stop()
            assert main.asked_to_stop() and not main.wait_and_finish(N)
    assert not recorded(tmp_path / "out")["complete"]
    export(tmp_path / "out")
    assert ".sdecor/stop" not in tree(tmp_path / "out")


def test_a_range_that_nobody_wrote_is_named(tmp_path):
    with Store(tmp_path / "out", LAYOUT, num_examples=N) as store:
        with pytest.raises(ValueError, match="range from 0 was not written"):
            store.wait_and_finish(N)


def test_no_more_than_two_ranges_are_pending(tmp_path, monkeypatch):
    go, real = threading.Event(), writers.encode_range
    monkeypatch.setattr(writers, "encode_range", lambda *args: go.wait() and real(*args))
    done = threading.Thread(target=export, args=(tmp_path / "out",))
    done.start()
    done.join(0.3)
    assert done.is_alive() and not list((tmp_path / "out").rglob("c.*"))
    go.set()
    done.join()
    assert recorded(tmp_path / "out")["complete"]
