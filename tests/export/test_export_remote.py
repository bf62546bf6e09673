"""Tests of an export on an object store: same files, commits and lease as on a local disk."""

import functools

import pytest
from object_server import Server
from test_export_store import LAYOUTS, N, export, tree

from sdecor.core.leases import Lease
from sdecor.export import verify
from sdecor.export.lock import hold
from sdecor.export.resume import recorded
from sdecor.export.store import StorageError

URL = "gs://bucket/out.zarr"


@pytest.fixture(scope="module")
def one_server():
    with pytest.MonkeyPatch.context() as patch:
        server = Server()
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", server.url)
        yield server
        server.shutdown()
        server.server_close()


@pytest.fixture
def server(one_server) -> Server:
    """Return the server, emptied."""
    one_server.objects.clear()
    one_server.fails = None
    return one_server


def remote_tree(server) -> dict[str, bytes]:
    return {name.removeprefix("out.zarr/"): content for name, (content, _) in server.objects.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_files_are_those_of_a_local_export(server, tmp_path, layout):
    assert recorded(URL) is None
    export(tmp_path / "out", LAYOUTS[layout])
    export(URL, LAYOUTS[layout], n=8, known=False, finish=False)
    assert export(URL, LAYOUTS[layout], known=False) == [8]
    assert remote_tree(server) == tree(tmp_path / "out")
    assert export(URL, LAYOUTS[layout]) == ["complete"] and recorded(URL)["num_examples"] == N
    assert not verify.problems(URL)
    with pytest.raises(ValueError, match="gs://bucket/out.zarr/.* another export"):
        export(URL, LAYOUTS[layout]._replace(attributes={}))


def test_whatever_is_refused_a_restart_gives_the_same_bytes(server):
    server.changes = 0
    export(URL)
    whole, count = remote_tree(server), server.changes
    assert count > 25
    for fails in range(1, count + 1):
        server.objects.clear()
        server.changes, server.fails = 0, fails
        with pytest.raises(StorageError, match="gs://bucket/out.zarr"):
            export(URL)
        again = export(URL)
        assert again == ["complete"] or len(again) <= 3
        assert remote_tree(server) == whole, fails


def test_damage_is_found_and_repaired(server):
    export(URL)
    whole = remote_tree(server)
    name = "out.zarr/map/c.1.0.0"
    for damaged in (whole["map/c.1.0.0"][:-1], whole["map/c.1.0.0"][::-1]):
        server.objects[name] = (damaged, 7)
        assert len(verify.problems(URL)) == 1
        assert export(URL) == [4] and remote_tree(server) == whole


def test_the_second_export_is_refused_and_a_dead_one_is_not(server, monkeypatch):
    monkeypatch.setattr("sdecor.core.leases.Lease", functools.partial(Lease, heartbeat=0.1, expiry=0.5))
    with hold(URL) as held:
        with pytest.raises(ValueError, match='is being exported to by .*"process"'):
            with hold(URL):
                pass
        held.raise_if_lost()
    assert not server.objects
    dead = hold(URL)
    dead.__enter__()._ended.set()  # ends the heartbeats
    with hold(URL) as held:
        held.raise_if_lost()
