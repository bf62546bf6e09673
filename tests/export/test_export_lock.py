"""Tests of two exports into one path: the second is refused as long as the first is alive, and no longer."""

import functools
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
import tensorstore as ts

from sdecor.core import leases
from sdecor.core.leases import Lease
from sdecor.export.lock import hold

ROOT = pathlib.Path(__file__).parents[2]
HOLD = """
import sys, time
from sdecor.export.lock import hold
with hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""
FAST = {"heartbeat": 0.05, "expiry": 0.4}


def test_the_second_is_refused_and_the_lock_is_removed(tmp_path):
    with hold(tmp_path / "out") as held:
        held.raise_if_lost()
        with pytest.raises(ValueError, match=rf'out is being exported to by .*"process": {os.getpid()}'):
            with hold(tmp_path / "out"):
                pass
        with hold(tmp_path / "other"):
            pass
        assert [path.name for path in tmp_path.rglob("lock")] == ["lock"]
    assert not list(tmp_path.rglob("lock"))
    with hold(tmp_path / "out"):
        pass


def test_a_killed_job_holds_nothing(tmp_path):
    job = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert job.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f'"process": {job.pid}'):
        with hold(tmp_path):
            pass
    job.send_signal(signal.SIGKILL)
    job.wait()
    with hold(tmp_path):
        pass


def test_forked_children_of_a_dead_job_hold_nothing(tmp_path):
    both_tell = "    import os\n    os.write(1, b'%d\\n' % os.fork())\n"  # one write: both write at once
    forks = HOLD.replace("    time", both_tell + "    time")
    job = subprocess.Popen([sys.executable, "-c", forks, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert job.stdout.readline() == "held\n"
    child = max(int(job.stdout.readline()) for _ in range(2))
    job.send_signal(signal.SIGKILL)
    job.wait()
    try:
        with hold(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_many_at_once_never_hold_it_together(tmp_path):
    inside, most, taken = [], [], []

    def contend():
        for _ in range(50):
            try:
                with hold(tmp_path):
                    inside.append(1)
                    most.append(len(inside))
                    taken.append(1)
                    inside.pop()
            except ValueError:
                time.sleep(0.0005)

    threads = [threading.Thread(target=contend) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and len(taken) > 5


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path) -> ts.KvStore:
    path = {"path": f"{tmp_path}/"} if request.param == "file" else {}
    return ts.KvStore.open({"driver": request.param, **path}).result()


def lease(store, **options) -> Lease:
    return Lease(store, "lease.json", {"host": "a"}, **(FAST | options))


def test_a_living_lease_is_refused_for_as_long_as_it_lives(store):
    with lease(store) as held:
        time.sleep(0.6)  # longer than its expiry: heartbeats renew it
        with pytest.raises(ValueError, match='"host": "a"'):
            with lease(store):
                pass
        held.raise_if_lost()
    assert store.read("lease.json").result().state == "missing"
    with lease(store):
        pass


def test_a_dead_lease_is_taken_after_its_expiry(store):
    dead = lease(store, heartbeat=1000)
    dead.__enter__()
    begin = time.monotonic()
    with lease(store) as held:
        assert 0.3 < time.monotonic() - begin < 5
        held.raise_if_lost()
        dead._heartbeat = 0
        dead._renew_until_ended()  # the holder that seemed dead returns
        with pytest.raises(OSError, match="was lost .another job took it.: run the same command"):
            dead.raise_if_lost()
        dead.__exit__(None, None, None)
        held.raise_if_lost()
        assert store.read("lease.json").result().state == "value"


def test_of_two_that_find_a_dead_lease_one_takes_it(store):
    dead = lease(store, heartbeat=1000)
    dead.__enter__()
    taken, refused, barrier = [], [], threading.Barrier(4)

    def take():
        barrier.wait()
        try:
            with lease(store):
                taken.append(1)
                time.sleep(1)
        except ValueError:
            refused.append(1)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1 and len(refused) == 3


def test_a_renewal_whose_answer_was_lost_is_adopted(store):
    with lease(store) as held:
        held._write(held._generation)
        held._generation = b"\x00older"
        time.sleep(0.3)
        held.raise_if_lost()


def test_a_lease_that_cannot_be_renewed_is_lost(store, monkeypatch):
    with lease(store) as held:

        def fail(expected):
            raise ValueError("UNAVAILABLE")

        held._write = fail
        time.sleep(0.2)
        held.raise_if_lost()  # not yet lost: the failure may be short
        time.sleep(0.6)
        with pytest.raises(OSError, match="could not be renewed for 0.4 s: UNAVAILABLE"):
            held.raise_if_lost()


def test_a_url_takes_a_lease(tmp_path):
    with hold(f"file://{tmp_path}/out") as held:
        assert isinstance(held, Lease) and (tmp_path / "out/.sdecor/lease.json").exists()
    assert not (tmp_path / "out/.sdecor/lease.json").exists()


def test_a_url_is_waited_for_while_its_holder_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("sdecor.core.leases.Lease", functools.partial(Lease, **FAST))
    options = {"lock": "lock", "lease": "lease.json", "busy": "is being trained"}
    url = f"file://{tmp_path}/run"
    with leases.hold(url, **options):
        with pytest.raises(ValueError, match="is being trained by"):
            with leases.hold(url, **options):
                pass
    first = leases.hold(url, **options)
    first.__enter__()
    ends = threading.Timer(0.3, first.__exit__, (None, None, None))
    ends.start()
    with leases.hold(url, **options, wait=20.0) as held:
        held.raise_if_lost()
    ends.join()
