"""Train a network with SaliencyDecor or one of its ablations.

    python train.py --config=configs/cifar10.py:method=sdecor --workdir=runs/cifar10 [--config.optim.lr=0.1 …]
    python train.py --config=… --workdir=DIR --replica=seed=0 --replica=seed=1 --replica=strong:decorrelation.weight=1
    python train.py --config=… --compile_only [--topology=v5e:4x8] [--classes=1000]

The same command continues a stopped run exactly at its last checkpoint. The order of the loop is fixed: input, a call
of the compiled program (`train.steps_per_call` steps), the previous call's metrics, then, when due, validation and a
checkpoint. Replicas are runs that differ only in numbers and are trained together by one program (docs/sweeps.md). Each
has its own run folder: DIR/seed=0, DIR/strong.

    --distributed        join a job of several processes (docs/cluster.md; --helpfull has its other flags)
    --watchdog=SECONDS   end with status 75 after so long without progress (default 1800; 0: never)
    --profile=10         trace ten steps, or --profile=100:110, for TensorBoard or Perfetto
    --wandb[=PROJECT]    send the log to Weights & Biases, if it is installed
"""

from sdecor.core.interrupt import Interrupt, Stopped, end_while_importing

if __name__ == "__main__":
    end_while_importing()  # the imports take seconds

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from sdecor.core import allocator, commands, files, launch, parallel, processes, watchdog
from sdecor.training import (
    build,
    calls,
    health,
    logbook,
    members,
    preview,
    profiling,
    replicas,
    run_folder,
    wandb_rows,
)
from sdecor.training.checkpoint import Checkpoints
from sdecor.training.clock import Clock
from sdecor.training.logbook import Logbook
from sdecor.training.members import Writer
from sdecor.training.pace import Pace
from sdecor.training.run import Run, build_run, compile_step, opening, title
from sdecor.training.state import TrainState
from sdecor.training.terms import TERMS

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config of the run: FILE or FILE:CHOICES.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, local or remote.")
_REPLICA = flags.DEFINE_multi_string(
    "replica", [], "A replica: [NAME:]FIELD=NUMBER,…. Repeat the flag to train several at once."
)
_PROFILE = flags.DEFINE_string("profile", None, "Steps to trace: how many, or FIRST:LAST.")
_WANDB = launch.define_optional("wandb", "sdecor", "Send the log to Weights & Biases, to this project.")

_COMPILE_ONLY = flags.DEFINE_bool("compile_only", False, "Compile the step, print what it takes, and stop.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "TPU slice to compile for, as v5e:4x8; default: the devices here.")
_METHODS = flags.DEFINE_list("compile_methods", [], "Training methods to compare, such as ce,sgt,decor,sdecor.")
_JSON = flags.DEFINE_string("json", None, "File of the numbers of --compile_only.")
_CLASSES = flags.DEFINE_integer("classes", None, "Number of classes, to compile without the data set.")
_EXAMPLES = flags.DEFINE_integer("examples", None, "Number of training examples, with --classes.")
_IMAGE_SHAPE = flags.DEFINE_list("image_shape", None, "Height and width of the stored images, with --classes.")

_OF_COMPILE_ONLY = (_TOPOLOGY, _METHODS, _JSON, _CLASSES, _EXAMPLES, _IMAGE_SHAPE)

SHOWN = ("loss", *TERMS, "accuracy")  # in the progress bar


def main() -> None:
    """Train the run that the flags specify."""
    if _CONFIG.value is None:
        raise ValueError("--config is missing: name a file, for example --config=configs/default.py:method=sdecor")
    try:
        _ = _CONFIG.value.method
    except OSError as error:  # raised when the config is first read
        name = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
        if not os.path.exists(name):
            raise ValueError(f"--config={name}: there is no such file") from error
        raise ValueError(f"--config: {error}") from error
    if _COMPILE_ONLY.value:
        return preview.compile_only(
            _CONFIG.value,
            replicas.parse(_REPLICA.value),
            topology=_TOPOLOGY.value,
            methods=_METHODS.value,
            classes=_CLASSES.value,
            examples=_EXAMPLES.value,
            image_shape=preview.parse_shape(_IMAGE_SHAPE.value),
            folder=_WORKDIR.value,
            numbers=_JSON.value,
        )
    if alone := [flag.name for flag in _OF_COMPILE_ONLY if flag.present]:
        raise ValueError(f"--{alone[0]} goes with --compile_only: add that to compile, or leave it out to train")
    if _WORKDIR.value is None:
        raise ValueError("--workdir is missing: name the folder of the run")
    try:
        chosen, profile = replicas.parse(_REPLICA.value), profiling.parse(_PROFILE.value)
        if _WANDB.value is not None:
            wandb_rows.check()
        finished = train(_CONFIG.value, _WORKDIR.value, chosen, profile=profile, wandb=_WANDB.value)
    except replicas.PartlyFinished as error:
        print(f"train.py: {error}", file=sys.stderr)
        raise SystemExit(commands.PARTLY) from None
    if not finished:
        raise SystemExit(commands.INTERRUPTED)


def train(
    config: ConfigDict,
    folder: str,
    chosen: Sequence[replicas.Replica] = (),
    *,
    profile: profiling.Steps | None = None,
    wandb: str | None = None,
) -> bool:
    """Train the run of `config` in `folder` from its last checkpoint; return False if it was interrupted.

    Args:
      config: config of the run, or the config that the replicas share.
      folder: folder of the run, or the parent of the replicas' folders.
      chosen: the replicas; empty for a single run.
      profile: steps to trace; None for no trace.
      wandb: project of Weights & Biases that gets the log; None for none.

    Raises:
      ValueError: for an invalid config, or a folder that holds another run.
      FloatingPointError: if the loss or its gradient is not finite, for the single run or for all replicas.
      replicas.PartlyFinished: if some replicas failed in that way; raised after the others have finished.
    """
    allocator.keep_freed_memory()  # for the steps on a CPU
    build.check_config(config)
    configs = build.create_replicas(config, chosen)
    everyone = members.create(folder, chosen, [own.seed for own in configs])
    failures = members.former_failures(everyone, configs)
    if all(failures.values()):
        raise FloatingPointError(replicas.list_failures(failures))
    with contextlib.ExitStack() as stack:
        main = parallel.is_main_process()
        locks = {each.name: stack.enter_context(run_folder.lock(each.folder, hold=main)) for each in everyone}
        run, state = build_run(config, folder, [each for each in chosen if not failures[each.name]])
        checkpoints = [stack.enter_context(Checkpoints(member.folder)) for member in run.members]
        state, healths = members.restore(run.members, checkpoints, state, run.replicas)
        processes.compare("the restored state", partial(members.fingerprint, state))
        parallel.say(opening(run, state, folder))
        compile_step(run, state)
        options = {"tensorboard": config.log.tensorboard, "enabled": parallel.is_main_process()}
        open_logbook = partial(Logbook, step=int(state.step), **options)
        names = [member.name for member in run.members]
        sends = stack.enter_context(wandb_rows.senders(wandb, folder, files.plain(config), names))
        logbooks = [
            stack.enter_context(open_logbook(member.folder, send=send))
            for member, send in zip(run.members, sends, strict=True)
        ]
        writers = list(map(Writer, run.members, checkpoints, logbooks, healths, [locks[name] for name in names]))
        profiler = profiling.Profiler(profile, folder, start=int(state.step), total=run.schedule.total)
        stack.callback(profiler.close)
        interrupt = stack.enter_context(Interrupt())  # from here to the end of the last save, signals wait
        finished = loop(run, state, writers, interrupt, profiler)
        members.finish(writers, finished)
    failures |= {writer.member.name: writer.failure for writer in writers}
    if finished and any(failures.values()):
        raise replicas.PartlyFinished(replicas.list_failures(failures))
    return finished


def loop(
    run: Run, state: TrainState, writers: Sequence[Writer], interrupt: Interrupt, profiler: profiling.Profiler
) -> bool:
    """Train from `state` to the last step; return False if interrupted, after saving everything."""
    shapes, clock = parallel.shapes(state), Clock()
    while True:
        try:
            return advance(run, state, writers, interrupt, profiler, clock)
        except health.NotFinite as failure:
            state = members.roll_back(writers, shapes, failure, run.policy)


def advance(
    run: Run,
    state: TrainState,
    writers: Sequence[Writer],
    interrupt: Interrupt,
    profiler: profiling.Profiler,
    clock: Clock,
) -> bool:
    """Train as `loop` does, up to a loss that is not finite.

    Raises:
      health.NotFinite: for a single run, unless the policy is to skip such steps.
    """
    config, schedule, start = run.config, run.schedule, int(state.step)
    if start < schedule.total:  # a finished run stays as it is
        members.begin_times(writers, clock)
    validated = all(writer.checkpoints.has_metrics(start) for writer in writers)
    if schedule.is_due(start, schedule.eval_every) and not validated:
        # The run was stopped before or during this validation.
        if not conclude(run, state, start, writers, interrupt, validate=True):
            return False
    images = config.train.batch_size * len(writers)  # of a step
    bar = commands.progress_bar(
        total=schedule.total * images,
        initial=start * images,
        description=title(run),
        enabled=config.log.progress and parallel.is_main_process(),
    )
    note = partial(_note, run, writers, bar, (time.perf_counter(), start))
    pace = Pace(config.train.checkpoint_every_minutes, start)
    with bar, contextlib.closing(run.batches(start, writers[0].health.order)) as batches:
        previous, step = None, start
        for count in calls.sizes(schedule, start):
            steps = range(step + 1, step + count + 1)
            watchdog.beat(f"the input of {calls.numbers(steps)}")
            try:
                with clock.input():
                    batch = next(batches)
            except Stopped:  # a signal, while the input does not answer
                if step > start:
                    note(*previous) if previous else None
                    conclude(run, state, step, writers, interrupt, validate=False)
                return False
            watchdog.beat(calls.numbers(steps), timed=step > start)  # the first call may compile
            state, terms = profiler.take(steps, run.train_step, state, batch, count)
            if previous is not None:
                note(*previous)  # while the device works on this call
            previous, step = (steps, terms), steps[-1]
            validate = schedule.is_due(step, schedule.eval_every)
            stopping = processes.agree_to_stop(bool(interrupt))
            if pace.due(step, otherwise=validate or stopping or schedule.is_due(step, schedule.checkpoint_every)):
                note(*previous)
                previous = None
                clock.stepped(count)
                members.write_times(writers, step, clock.row(images))
                concluded = conclude(run, state, step, writers, interrupt, validate=validate and not stopping)
                if stopping or not concluded:
                    return False
                clock.rest()
            else:
                clock.stepped(count)
    return True


def conclude(
    run: Run, state: TrainState, step: int, writers: Sequence[Writer], interrupt: Interrupt, *, validate: bool
) -> bool:
    """Validate if `validate` is set, and save checkpoints; return False if interrupted during validation."""
    watchdog.beat(f"the validation of step {step}")
    metrics = run.validate(state, interrupt) if validate else None
    watchdog.beat(f"the checkpoint of step {step}")
    members.save(writers, members.split(state, run.replicas), step, metrics)
    return metrics is not None or not validate


def _note(
    run: Run, writers: Sequence[Writer], bar: Any, began: tuple[float, int], steps: range, terms: dict[str, jax.Array]
) -> None:
    """Fetch the terms of a call; for each step, observe the members' health and log those that have not failed."""
    images = run.config.train.batch_size * len(writers)
    time_at_start, start = began
    for step, rows in zip(steps, members.step_rows(terms, run.replicas, len(steps)), strict=True):
        going = members.observe(writers, step, rows, run.policy)
        if run.schedule.is_due(step, run.config.log.every_steps):
            rate = (step - start) * images / (time.perf_counter() - time_at_start)
            for writer, own in going:
                writer.logbook.write(step, "train", own | {"images_per_second": rate})
    bar.update(images * len(steps))
    _, first = going[0]
    means = {name: np.mean([own[name] for _, own in going]) for name in SHOWN if name in first}
    bar.set_postfix_str(logbook.describe(means, SHOWN), refresh=False)


if __name__ == "__main__":
    launch.run(main, kept="Saved checkpoints are kept: run the same command to continue.")
