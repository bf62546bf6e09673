"""Tests that an export's bytes do not depend on devices and processes, even if these change between starts."""

import os
import pathlib
import socket
import sys

import export_job
import jax
import pytest
import tiny_runs

from sdecor import export


def start(path: pathlib.Path, *job: object, devices: int = 1):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(tiny_runs.ROOT)}
    env |= {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}
    return tiny_runs.start(
        [sys.executable, str(tiny_runs.ROOT / "tests/helpers/export_job.py"), str(path), *map(str, job)], env
    )


def finish(*processes) -> str:
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(outputs)
    return "\n".join(outputs)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def files(path: pathlib.Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Return the export on the suite's eight devices."""
    path = tmp_path_factory.mktemp("devices") / "out.zarr"
    done = export.export(export_job.network(), export_job.Source(), path, **export_job.OPTIONS)
    assert done.complete and done.computed == export_job.COUNT
    return path


@pytest.mark.full  # test_export_kill.py has a quick test of one and eight
@pytest.mark.parametrize("devices", [1, 2, 3, 4])
def test_bytes_do_not_depend_on_devices(here, tmp_path, devices):
    finish(start(tmp_path / "out.zarr", devices=devices))
    assert files(tmp_path / "out.zarr") == files(here)


@pytest.mark.full
@pytest.mark.parametrize(("processes", "devices"), [(2, 1), (2, 2), (4, 1)])
def test_bytes_do_not_depend_on_processes(here, tmp_path, processes, devices):
    address = f"127.0.0.1:{free_port()}"
    jobs = [start(tmp_path / "out.zarr", address, processes, each, devices=devices) for each in range(processes)]
    assert f"{export_job.COUNT} examples" in finish(*jobs)
    assert files(tmp_path / "out.zarr") == files(here)


@pytest.mark.full
def test_goes_on_with_other_devices_and_processes(here, tmp_path):
    path = tmp_path / "out.zarr"

    class Broken(export_job.Source):
        def __getitem__(self, index: int) -> dict:
            if index == 17:
                raise OSError("gone")
            return super().__getitem__(index)

    with pytest.raises(ValueError, match="16 of 45 examples are finished"):
        export.export(export_job.network(), Broken(), path, **export_job.OPTIONS)
    address = f"127.0.0.1:{free_port()}"
    finish(*(start(path, address, 2, each) for each in range(2)))
    assert files(path) == files(here)
