"""Tests of lock files: there is one holder, named in errors; forked children hold the lock only if they inherit it."""

import os

import pytest

from sdecor.core import locks


def test_the_second_is_refused_with_the_first_ones_name(tmp_path):
    path = tmp_path / "lock"
    held = locks.acquire(path)
    with pytest.raises(locks.Taken, match=f'"process": {os.getpid()}') as taken:
        locks.acquire(path)
    assert locks.holder(path) == taken.value.holder and {*taken.value.holder} == {"process", "host", "since"}
    held.release()
    assert path.exists() and locks.holder(path) is None
    locks.acquire(path).release(remove=True)
    assert not path.exists() and locks.holder(path) is None


@pytest.mark.parametrize("inherited", [True, False])
def test_a_forked_child_holds_it_where_that_is_wanted(tmp_path, inherited):
    path = tmp_path / "lock"
    held = locks.acquire(path, inherited=inherited)
    (go, end), (ready, told) = os.pipe(), os.pipe()
    if (child := os.fork()) == 0:
        os.write(told, b"x")
        os.read(go, 1)
        os._exit(0)
    os.read(ready, 1)
    os.close(held.descriptor)  # as if this process died
    locks._not_inherited.discard(held.descriptor)
    assert (locks.holder(path) is not None) == inherited
    os.write(end, b"x")
    os.waitpid(child, 0)
    assert locks.holder(path) is None
    for descriptor in (go, end, ready, told):
        os.close(descriptor)


def test_a_file_system_without_locks_warns(tmp_path, monkeypatch, caplog):
    def unknown(descriptor, how):
        raise OSError("no locks available")

    monkeypatch.setattr(locks.fcntl, "flock", unknown)
    locks.acquire(tmp_path / "lock").release()
    assert f"{tmp_path} cannot be locked" in caplog.text and locks.holder(tmp_path / "lock") is None


@pytest.mark.parametrize("content", ["", "[]", "{", '{"process": 1}', "null"])
def test_a_holder_whose_description_is_damaged_is_nobody_known(tmp_path, content):
    lock = locks.acquire(tmp_path / "lock")
    (tmp_path / "lock").write_text(content)
    assert locks.holder(tmp_path / "lock") == locks.NOBODY
    lock.release()
