"""Tests that a run does not depend on the processes that train it: at once, restarted elastically, or at fault."""

import pathlib
import shutil
import signal

import pytest
import tiny_runs
import training_jobs
from jobs import Job

from sdecor.core.commands import FAILED, INTERRUPTED
from sdecor.training import logbook
from sdecor.training.logbook import read_rows

pytestmark = pytest.mark.full

STEPS = 24
ROW_RTOL = 1e-5
RTOL, ATOL = 1e-5, 1e-6  # measured: 6e-8 of a parameter, 1.2e-7 of a row


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny_runs.draw_images(tmp_path_factory.mktemp("images") / "data")


def fields(**changes: object) -> dict[str, object]:
    return {"train.epochs": STEPS / 3, "train.batch_size": 8, **changes}


def command(images: pathlib.Path, folder: pathlib.Path, *flags: str, **changes: object) -> list[str]:
    own = [f"--config.{name}={value}" for name, value in fields(**changes).items()]
    return tiny_runs.command(images, folder, *own, *flags)


def assert_rows_close(found: list[dict], expected: list[dict]) -> None:
    assert [(row["step"], row["split"]) for row in found] == [(row["step"], row["split"]) for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {"split"}:
            assert row[name] == pytest.approx(other[name], rel=ROW_RTOL, abs=ATOL), (row["step"], name)


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    """Return a function that trains with one process and eight devices, once for each accumulation."""
    made = {}

    def run(accumulate: int = 1) -> pathlib.Path:
        if accumulate not in made:
            folder = tmp_path_factory.mktemp("one") / "run"
            line = command(images, folder, **changes_of(accumulate))
            training_jobs.finish(line, folder.parent / "logs", 1, 8)
            made[accumulate] = folder
        return made[accumulate]

    return run


def changes_of(accumulate: int) -> dict[str, object]:
    """Return the fields of a run of `STEPS` steps, each of so many micro-batches of eight examples."""
    more = {"train.batch_size": 8 * accumulate, "train.accumulate": accumulate}
    return fields(**more | {"train.epochs": STEPS / (3 // accumulate)})  # an epoch has three micro-batches


@pytest.mark.parametrize("processes, devices", [(2, 1), (4, 2)])
def test_several_processes_train_as_one(images, undisturbed, tmp_path, processes, devices):
    one, folder = undisturbed(), tmp_path / "run"
    training_jobs.finish(command(images, folder), tmp_path / "logs", processes, devices)
    assert_rows_close(training_jobs.rows(folder), training_jobs.rows(one))
    found, expected = (training_jobs.state(images, each, **changes_of(1)) for each in (folder, one))
    training_jobs.assert_close(found, expected, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_continues_with_another_number_of_processes(images, undisturbed, tmp_path, accumulate):
    folder, expected_folder = tmp_path / "run", undisturbed(accumulate)
    line = command(images, folder, **changes_of(accumulate))
    stops = []
    for number, (processes, devices) in enumerate([(1, 8), (2, 4), (4, 1)]):
        moment, logs = "fetching the terms of a step:4", tmp_path / f"logs{number}"
        training_jobs.stop_at(moment, line, logs, processes, {INTERRUPTED}, devices=devices)
        stops.append(last_step(folder))
    training_jobs.finish(line, tmp_path / "last", 1, 2)
    assert stops == sorted({*stops}) and last_step(folder) == STEPS > stops[-1], stops
    assert_rows_close(training_jobs.rows(folder), training_jobs.rows(expected_folder))
    found, expected = (
        training_jobs.state(images, each, **changes_of(accumulate)) for each in (folder, expected_folder)
    )
    training_jobs.assert_close(found, expected, rtol=RTOL, atol=ATOL)


def last_step(folder: pathlib.Path) -> int:
    return max((row["step"] for row in read_rows(folder)), default=0)


# Faults of one process


def test_another_learning_rate_in_one_process_is_refused_by_all(images, tmp_path):
    line = command(images, tmp_path / "run")
    job = Job([line, [*line, "--config.optim.lr=0.5"]], tmp_path / "logs", **training_jobs.environment())
    assert job.wait() == [FAILED, FAILED]
    for process in range(2):
        output = job.output(process)
        assert "config.optim.lr is 0.5 here and 0.002 in process 0" in output and "Traceback" not in output, output
    assert not read_rows(tmp_path / "run")


def test_a_corrupt_image_in_one_process_ends_both(tmp_path):
    """The images are streamed, so that each process reads its share alone."""
    images = tiny_runs.draw_images(tmp_path / "images")
    bad = images / "train" / "class1" / "5.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    folder = tmp_path / "run"
    line = command(images, folder, **{"data.loader": "grain", "data.workers": 0})
    job = training_jobs.start(line, tmp_path / "logs", 2)
    assert job.wait() == [FAILED, FAILED], (job.output(0), job.output(1))
    outputs = [job.output(process) for process in range(2)]
    assert all(str(bad) in output for output in outputs), outputs
    bad.write_bytes(whole)
    training_jobs.finish(line, tmp_path / "again", 2)
    assert last_step(folder) == STEPS


def test_a_second_job_in_the_folder_is_refused_and_the_first_goes_on(images, undisturbed, tmp_path):
    folder = tmp_path / "run"
    line = command(images, folder, **{"train.epochs": 400.0})
    first = training_jobs.start(line, tmp_path / "first", 2)
    first.wait_until(lambda: last_step(folder) > 2, "the first steps")
    second = training_jobs.start(line, tmp_path / "second")
    assert second.wait() == [FAILED]
    assert f"{folder} is being trained by" in second.output(0) and "Traceback" not in second.output(0)
    first.processes[0].send_signal(signal.SIGINT)
    assert first.wait() == [INTERRUPTED, INTERRUPTED], first.output(0)
    numbers = [(row["step"], row["split"]) for row in logbook.read_rows(folder) if row["split"] in ("train", "val")]
    assert len(numbers) == len({*numbers})
    steps = [step for step, split in numbers if split == "train"]
    assert steps == list(range(1, len(steps) + 1))
    again = training_jobs.start(line, tmp_path / "again")  # the lock is free
    again.wait_until(lambda: last_step(folder) > steps[-1], "the next step")
    again.processes[0].terminate()
    assert again.wait() == [INTERRUPTED]
    shutil.rmtree(folder)
