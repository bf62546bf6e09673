"""Tests of whole-file writes: a reader sees the old or the new file, even after an error."""

import csv
import functools
import io
import json
import math

import numpy as np
import pytest

from sdecor.core import files


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", ["größer\n", b"\x00\xff"])
def test_a_file_is_replaced_as_a_whole(tmp_path, content):
    for given in (tmp_path / "a.txt", f"{tmp_path}/a.txt"):
        files.write_file(given, content)
        assert (tmp_path / "a.txt").read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert names(tmp_path) == ["a.txt"]


def test_after_an_error_the_old_file_stays_alone(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"ä": [1, 2]})
    with pytest.raises(RuntimeError), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"ä": [1, 2]} and names(tmp_path) == ["a.json"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a"
    with files.replacing(path) as first, files.replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first" and names(tmp_path) == ["a"]  # the last writer wins


def test_settings_hold_objects_by_name():
    assert files.plain_settings({"a": (1, max), "b": np.float32}) == {"a": [1, "max"], "b": "float32"}
    bound = functools.partial(math.pow, 2.0, mod=None)  # its text would hold an address, another in each process
    assert files.plain_settings({"a": bound}) == {"a": {"function": "pow", "arguments": [2.0], "mod": None}}
    assert files.plain({"a": (np.float64(0.5), np.arange(2))}) == {"a": [0.5, [0, 1]]}


@pytest.mark.parametrize(
    "content, fault",
    [(b"", "is empty"), (b'{"a": 1', "no whole JSON"), (b"\xff\x00", "no whole JSON"), (b"[1]", "no whole JSON"),
     (b"[" * 100_000, "no whole JSON")],
)  # fmt: skip
def test_a_json_file_that_is_damaged_is_named(tmp_path, content, fault):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json .*{fault}.*; write it again"):
        files.read_json(path, remedy="write it again")
    files.write_json(path, {"ä": 1})
    assert files.read_json(path) == {"ä": 1}
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "b.json")


def test_no_cell_is_a_formula_unless_it_is_a_number():
    marks = ["=1+1", "+a", "-a", "@a", "\tx", "\rx", "\nx", "=", "-", "=1\r=2"]
    numbers = ["-1.5", "+2e3", "-inf", -1.5, -3, 0.1, np.float32(-0.5)]
    text = files.csv_text(["=head", "b"], [*([mark, None] for mark in marks), *([each, "a=b"] for each in numbers)])
    header, *found = csv.reader(io.StringIO(text, newline=""))
    assert header == ["'=head", "b"]
    assert found[: len(marks)] == [["'" + mark.replace("\r", " "), ""] for mark in marks]
    assert found[len(marks) :] == [[str(each), "a=b"] for each in numbers]


def test_a_folder_that_takes_no_file_is_refused_and_another_left_as_it_was(tmp_path):
    files.check_writable("--output", tmp_path / "a" / "b")
    assert names(tmp_path) == []
    files.check_writable("--output", f"{tmp_path}")
    assert names(tmp_path) == []
    for folder in ("/proc", "/proc/a/b"):  # takes no file, even from root
        with pytest.raises(ValueError, match=f"--output = '{folder}': no file can be written in /proc .*may write to"):
            files.check_writable("--output", folder)
