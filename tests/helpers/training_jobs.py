"""Tiny training jobs of any number of processes and devices, and what they leave in a run's folder."""

import pathlib
import sys
import time
from collections.abc import Sequence

import jax
import numpy as np
import tiny_runs
from jobs import Job

from sdecor.training import build, logbook
from sdecor.training.checkpoint import Checkpoints
from sdecor.training.members import run_key

SECONDS = 60  # from a signal to the end, on a machine that does other work


def environment() -> dict[str, str]:
    """Return the variables that let all starts of a program share their compiled programs."""
    cache = f"{jax.config.jax_compilation_cache_dir}-jobs"
    return {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(tiny_runs.ROOT),
    }


def start(
    command: Sequence[str], logs: pathlib.Path, processes: int = 1, devices: int = 1, *, told: Sequence[str] = ()
) -> Job:
    """Start a job.

    Args:
      command: command line of each process.
      logs: folder for the outputs of the processes.
      processes: number of processes.
      devices: number of devices of each process.
      told: what stands before the program's name in the last process.
    """
    others = [list(command)] * (processes - 1)
    last = [command[0], *told, *command[1:]]
    return Job([*others, last], logs, devices=devices, alone=processes == 1, **environment())


def finish(command: Sequence[str], logs: pathlib.Path, processes: int = 1, devices: int = 1) -> Job:
    """Run a job to its end, with status 0 of all processes."""
    job = start(command, logs, processes, devices)
    statuses = job.wait()
    assert not any(statuses), (statuses, *map(job.output, range(processes)))
    return job


def stop_at(
    moment: str,
    command: Sequence[str],
    logs: pathlib.Path,
    processes: int,
    right: set[int],
    *,
    devices: int = 1,
    times: int = 1,
) -> None:
    """Start a job, send SIGTERM to its last process at a moment, and check that all end with a right status.

    Args:
      moment: a moment of `at_moment`.
      command: command line of each process.
      logs: folder for the outputs of the processes.
      processes: number of processes.
      right: the right exit statuses.
      devices: number of devices of each process.
      times: number of signals.
    """
    mark = logs.with_suffix(".mark")
    told = [str(tiny_runs.ROOT / "tests/helpers/at_moment.py"), moment, str(mark)]
    job = start(command, logs, processes, devices, told=told)
    job.wait_until(mark.exists, moment)
    for _ in range(times):
        job.processes[-1].terminate()
        time.sleep(0.05)
    begun = time.monotonic()
    statuses = job.wait()
    outputs = "\n".join(map(job.output, range(processes)))
    assert len({*statuses}) == 1 and statuses[0] in right, (moment, statuses, outputs)
    assert time.monotonic() - begun < SECONDS and "Traceback" not in outputs, (moment, outputs)


def rows(folder: pathlib.Path) -> list[dict]:
    """Return the rows of training and validation, without what depends on the clock."""
    found = [row for row in logbook.read_rows(folder) if row["split"] in ("train", "val")]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in found]


def state(images: pathlib.Path, folder: pathlib.Path, method: str = "sdecor", **changes: object) -> dict:
    """Return all arrays of the last checkpoint by name, and its input position."""
    config = tiny_runs.tiny_config(images, method, **changes)
    data = build.create_data(config)
    shape = build.image_size(config, tuple(data.image_shape))
    model = build.create_model(config, data.num_classes, shape)
    like = build.create_state(config, model, shape, run_key([config.seed], 0, None))
    with Checkpoints(folder, create=False) as checkpoints:
        last = checkpoints.steps()[-1]
        found, position = checkpoints.restore(like, last)
    leaves = jax.tree_util.tree_leaves_with_path(found)
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return arrays | {f"position.{name}": np.asarray(position[name]) for name in ("step", "seed")}


def assert_same(found: dict, expected: dict) -> None:
    """Check that two states have the same bytes."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def assert_close(found: dict, expected: dict, *, rtol: float, atol: float) -> None:
    """Check that two states are equal up to rounding."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=rtol, atol=atol, err_msg=name)


def program(name: str, *flags: str) -> list[str]:
    return [sys.executable, str(tiny_runs.ROOT / name), *flags]
