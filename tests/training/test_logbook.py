"""Tests of a run's log: damaged lines, and a disk that is full for a while."""

import errno
import json
import logging
import os
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from sdecor.training import logbook


def write_rows(folder, steps):
    with logbook.Logbook(folder, tensorboard=False) as book:
        for step in steps:
            book.write(step, "train", {"loss": step})


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"[1]", b"{}", b'{"step": 3, "spl{"step": 4}'])
def test_a_damaged_line_is_told_and_left_out(tmp_path, damage, caplog):
    write_rows(tmp_path, range(1, 7))
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[2] = damage
    path.write_bytes(b"\n".join(lines))
    with caplog.at_level(logging.WARNING):
        assert [row["step"] for row in logbook.read_rows(tmp_path)] == [1, 2, 4, 5, 6]
    told = [entry.getMessage() for entry in caplog.records]
    assert told == ([f"{path}: 1 damaged line is left out: 3"] if damage else [])
    with logbook.Logbook(tmp_path, step=5, tensorboard=False) as book:
        book.write(6, "train", {"loss": 6})
    assert [row["step"] for row in logbook.read_rows(tmp_path)] == [1, 2, 4, 5, 6]


def test_a_last_line_that_a_kill_cut_off_is_left_out_silently(tmp_path, caplog):
    write_rows(tmp_path, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    with caplog.at_level(logging.WARNING):
        assert [row["step"] for row in logbook.read_rows(tmp_path)] == [1, 2]
    assert not caplog.records


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_rows_that_a_full_disk_refuses_are_written_later(tmp_path, monkeypatch, caplog):
    with logbook.Logbook(tmp_path, tensorboard=False) as book, caplog.at_level(logging.WARNING):
        book.write(1, "train", {"loss": 1})
        with monkeypatch.context() as patch:
            patch.setattr(logbook.Logbook, "_append", full)
            patch.setattr(logbook, "write_file", full)
            book.write(2, "train", {"loss": 2})
            book.write(3, "train", {"loss": 3})
            book.flush()
            assert book.behind == "No space left on device"
            with (tmp_path / "metrics.jsonl").open("a") as file:
                file.write('{"step": 2, "sp')  # what fitted
        book.write(4, "train", {"loss": 4})
        assert not book.behind
        book.write(5, "train", {"loss": 5})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert len(caplog.records) == 1 and "kept and written later" in caplog.text


def test_tensorboard_drops_what_it_cannot_write(tmp_path):
    with logbook.Logbook(tmp_path) as book:
        writer = book._events._file._py_recordio_writer
        writer.write, writer.flush = full, full
        for step in range(1, 40):
            book.write(step, "train", {"loss": step})
        book.flush()
        del writer.write, writer.flush
    assert len(logbook.read_rows(tmp_path)) == 39


def test_tensorboard_gets_each_row_as_one_event(tmp_path):
    with logbook.Logbook(tmp_path) as book:
        book.write(3, "train", {"loss": 0.5, "accuracy": float("nan")})
        book.write(4, "val", {"accuracy": 0.25})
    (path,) = (tmp_path / "tensorboard").glob("events.*")
    content, found = path.read_bytes(), []
    while content:  # records of a length, its checksum, the event, and its checksum
        (length,) = struct.unpack("<Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    rows = [(each.step, {v.tag: v.simple_value for v in each.summary.value}) for each in found if each.summary.value]
    assert str(rows) == "[(3, {'train/loss': 0.5, 'train/accuracy': nan}), (4, {'val/accuracy': 0.25})]"
