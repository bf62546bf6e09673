"""Tests that a job which is killed or stopped again and again, at random moments of its life, ends as undisturbed."""

import collections
import itertools
import pathlib
import signal
import time

import numpy as np
import pytest
import tiny_runs
import training_jobs
from jobs import Job

from sdecor.core.commands import INTERRUPTED, RETRY

STEPS = 60
STOPS = {1: 20, 2: 12}  # number of processes → number of random kills and signals
HEARTBEAT = 5
START = 60  # seconds to wait for a process that was stopped before it had met the others
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CHANGES = {"train.epochs": STEPS / 3, "model.widths": (4,), "train.checkpoint_every_steps": 2}


def command(images: pathlib.Path, folder: pathlib.Path) -> list[str]:
    flags = [f"--config.{name}={value}" for name, value in CHANGES.items()]
    return tiny_runs.command(images, folder, *flags, f"--heartbeat={HEARTBEAT}", f"--start_timeout={START}")


def outcome(images: pathlib.Path, folder: pathlib.Path) -> tuple[dict, list[dict]]:
    return training_jobs.state(images, folder, **CHANGES), training_jobs.rows(folder)


def disturb(job: Job, delay: float, process: int, number: signal.Signals) -> bool:
    """Send a signal to a process after a delay, unless the job ends before; return whether it was sent."""
    end = time.monotonic() + delay
    while time.monotonic() < end:
        if all(each.poll() is not None for each in job.processes):
            return False
        time.sleep(0.01)
    if job.processes[process].poll() is not None:
        return False
    job.processes[process].send_signal(number)
    return True


def check_statuses(job: Job, statuses: list[int], process: int, number: signal.Signals) -> None:
    """Check that all processes say that the same command continues, or that they have finished."""
    outputs = "\n".join(map(job.output, range(len(statuses))))
    if number == signal.SIGKILL:
        others = [status for i, status in enumerate(statuses) if i != process]
        assert {*others} <= {RETRY, 0}, (statuses, outputs)
        return
    allowed = {INTERRUPTED, 0}
    if "started within" in outputs:  # the signal came before the processes had met
        allowed |= {RETRY}
    if statuses[process] == -number:  # the signal came before the first line of the program
        assert not job.output(process), outputs
        allowed |= {-number, RETRY}
    assert {*statuses} <= allowed, (statuses, outputs)


@pytest.mark.full
@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_stopped_at_random_moments_ends_as_undisturbed(tmp_path, processes):
    images = tiny_runs.draw_images(tmp_path / "images")
    training_jobs.finish(command(images, tmp_path / "warm"), tmp_path / "warm.logs", processes)  # compiles
    begun = time.monotonic()
    training_jobs.finish(command(images, tmp_path / "whole"), tmp_path / "whole.logs", processes)
    life, expected = time.monotonic() - begun, outcome(images, tmp_path / "whole")
    rng, sent, reached = np.random.default_rng(processes), collections.Counter(), []
    for number in itertools.count():
        folder, finished = tmp_path / f"run{number}", False
        for start in itertools.count():
            job = training_jobs.start(command(images, folder), tmp_path / f"logs{number}.{start}", processes)
            kind, process = SIGNALS[rng.integers(len(SIGNALS))], int(rng.integers(processes))
            was_sent = disturb(job, rng.uniform(0, life * 1.1**start), process, kind)  # a busy machine gets slower
            statuses = job.wait()
            if was_sent:
                sent[kind] += 1
                reached.append(max((row["step"] for row in training_jobs.rows(folder)), default=0))
                check_statuses(job, statuses, process, kind)
            else:
                assert not any(statuses), (statuses, *map(job.output, range(processes)))
            finished = not any(statuses)
            if finished:
                break
        state, rows = outcome(images, folder)
        training_jobs.assert_same(state, expected[0])
        assert rows == expected[1]
        if sent.total() >= STOPS[processes]:
            break
    assert {*sent} == {*SIGNALS} and len({*reached}) > 3 and min(reached) < STEPS, (sent, reached)
    print(f"{processes} processes, {number + 1} runs, signals {dict(sent)}, at steps {reached}")
