"""Train a network with SaliencyDecor or one of its ablations.

    python train.py --config=configs/cifar10.py:method=sdecor --workdir=runs/cifar10 [--config.optim.lr=0.1 …]
    python train.py --config=… --workdir=DIR --replica=seed=0 --replica=seed=1 --replica=strong:decorrelation.weight=1
    python train.py --config=… --compile_only [--topology=v5e:4x8] [--classes=1000]

The same command continues a stopped run exactly at its last checkpoint. The order of the loop is fixed: input, step,
the previous step's metrics, then, when due, validation and a checkpoint. Replicas are runs that differ only in numbers
and are trained together by one program (docs/sweeps.md). Each has its own run folder: DIR/seed=0, DIR/strong.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from sdecor.core import commands, files, launch, parallel
from sdecor.core.interrupt import Interrupt
from sdecor.training import build, compiled, logbook, members, replicas, run_folder
from sdecor.training.batches import (
    Validate,
    batch_shapes,
    create_loaders,
    create_validation,
    member_batches,
    validation_source,
)
from sdecor.training.checkpoint import Checkpoints
from sdecor.training.logbook import Logbook
from sdecor.training.members import Member, Writer
from sdecor.training.state import TrainState
from sdecor.training.terms import TERMS

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config of the run: FILE or FILE:CHOICES.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, local or remote.")
_REPLICA = flags.DEFINE_multi_string(
    "replica", [], "A replica: [NAME:]FIELD=NUMBER,…. Repeat the flag to train several at once."
)

_CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder of compiled programs for later starts; '' for none. Default: compilation_cache in a local workdir.",
)
_COMPILE_ONLY = flags.DEFINE_bool("compile_only", False, "Compile the step, print what it takes, and stop.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "TPU slice to compile for, as v5e:4x8; default: the devices here.")
_METHODS = flags.DEFINE_list("compile_methods", [], "Training methods to compare, such as ce,sgt,decor,sdecor.")
_JSON = flags.DEFINE_string("json", None, "File of the numbers of --compile_only.")
_CLASSES = flags.DEFINE_integer("classes", None, "Number of classes, to compile without the data set.")
_EXAMPLES = flags.DEFINE_integer("examples", None, "Number of training examples, with --classes.")
_IMAGE_SHAPE = flags.DEFINE_list("image_shape", None, "Height and width of the stored images, with --classes.")

SHOWN = ("loss", *TERMS, "accuracy")  # in the progress bar


@dataclasses.dataclass(frozen=True)
class Run:
    """All that the loop needs beside the state, built from the config.

    One state, one batch and one dict of terms hold the arrays of all members (see `sdecor.training.members`).
    """

    config: ConfigDict  # the config without the replicas' own fields
    members: Sequence[Member]
    replicas: int | None  # number of replicas; None for a single run
    schedule: build.Schedule
    lower: Callable[[TrainState], jax.stages.Lowered]  # traces the step; once compiled, `train_step` runs it
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    batches: Callable[[int], Iterator[Any]]  # yields the device batches, from the given step on
    validate: Validate


def main() -> None:
    """Train the run that the flags specify."""
    if _CONFIG.value is None:
        raise ValueError("--config is missing: name a file, for example --config=configs/default.py:method=sdecor")
    try:
        _ = _CONFIG.value.method
    except OSError as error:  # raised when the config is first read
        raise ValueError(f"--config: {error}") from error
    if _COMPILE_ONLY.value:
        return compile_only(_CONFIG.value, replicas.parse(_REPLICA.value))
    if _WORKDIR.value is None:
        raise ValueError("--workdir is missing: name the folder of the run")
    compiled.use_cache(_CACHE.value, _WORKDIR.value)
    try:
        finished = train(_CONFIG.value, _WORKDIR.value, replicas.parse(_REPLICA.value))
    except KeyboardInterrupt:
        raise SystemExit("train.py: stopped. Saved checkpoints are kept: run the same command to continue.") from None
    except replicas.PartlyFinished as error:
        print(f"train.py: {error}", file=sys.stderr)
        raise SystemExit(commands.PARTLY) from None
    if not finished:
        raise SystemExit(commands.INTERRUPTED)


def train(config: ConfigDict, folder: str, chosen: Sequence[replicas.Replica] = ()) -> bool:
    """Train the run of `config` in `folder` from its last checkpoint; return False if it was interrupted.

    Args:
      config: config of the run, or the config that the replicas share.
      folder: folder of the run, or the parent of the replicas' folders.
      chosen: the replicas; empty for a single run.

    Raises:
      ValueError: for an invalid config, or a folder that holds another run.
      FloatingPointError: if the loss or its gradient is not finite, for the single run or for all replicas.
      replicas.PartlyFinished: if some replicas failed in that way; raised after the others have finished.
    """
    build.check_config(config)
    configs = build.create_replicas(config, chosen)
    everyone = members.create(folder, chosen, [own.seed for own in configs])
    failures = members.former_failures(everyone, configs)
    if all(failures.values()):
        raise FloatingPointError(replicas.list_failures(failures))
    run, state = build_run(config, folder, [each for each in chosen if not failures[each.name]])
    with Interrupt(processes=jax.process_count()) as interrupt, contextlib.ExitStack() as stack:
        checkpoints = [stack.enter_context(Checkpoints(member.folder)) for member in run.members]
        state = members.restore(run.members, checkpoints, state, run.replicas)
        parallel.say(_opening(run, state, folder))
        compile_step(run, state)
        options = {"tensorboard": config.log.tensorboard, "enabled": parallel.is_main_process()}
        open_logbook = partial(Logbook, step=int(state.step), **options)
        logbooks = [stack.enter_context(open_logbook(member.folder)) for member in run.members]
        writers = list(map(Writer, run.members, checkpoints, logbooks))
        finished = loop(run, state, writers, interrupt)
        members.finish(writers, finished)
    failures |= {writer.member.name: writer.failure for writer in writers}
    if finished and any(failures.values()):
        raise replicas.PartlyFinished(replicas.list_failures(failures))
    return finished


def build_run(config: ConfigDict, folder: str, chosen: Sequence[replicas.Replica] = ()) -> tuple[Run, TrainState]:
    """Build the run and its state before the first step: open the data, validate the config, claim the folders."""
    configs = build.create_replicas(config, chosen)
    seeds = [own.seed for own in configs]
    group, count = members.create(folder, chosen, seeds), len(chosen) or None
    for member in group:
        files.check_checkpoints("--workdir", member.folder)
    dataset = build.create_data(config)
    facts = build.read_facts(dataset)
    program = build.create_program(configs[0], facts)
    schedule = program.schedule
    state = build.create_state(config, program.model, program.image_shape, members.run_key(seeds, 0, count))
    build.warn_small_batch(config, program.model, program.image_shape)
    # Every process validates, so that all raise the same error; one process writes.
    for member, own in zip(group, configs, strict=True):
        run_folder.claim(member.folder, own, dataset.info(), write=parallel.is_main_process())
    parallel.wait_for_all("config")
    hypers = [build.create_hyper(own, schedule.steps_per_epoch) for own in configs]
    hyper = parallel.replicate(members.join(hypers, count))
    key = parallel.replicate(members.run_key(seeds, 1, count))
    step = parallel.pmap_step(members.lift(program.step, count))
    sizes = {"batch_size": config.train.batch_size, "accumulate": config.train.accumulate, "replicas": count}
    shapes = batch_shapes(facts.image_shape, **sizes)
    jax.eval_shape(step, state, shapes, hyper, key)  # fails before images are decoded
    loaders = create_loaders(
        dataset.source("train"),
        seeds,
        batch_size=config.train.batch_size // config.train.accumulate,
        kind=config.data.loader,
        memory_limit_mb=config.data.memory_limit_mb,
        num_workers=config.data.workers,
    )
    run = Run(
        config=config,
        members=group,
        replicas=count,
        schedule=schedule,
        lower=lambda state: parallel.lower_step(step, state, shapes, hyper, key),
        train_step=lambda state, batch: step(state, batch, hyper, key),
        batches=partial(member_batches, loaders, **sizes),
        validate=create_validation(
            program.model.apply,
            program.prepare_evaluation,
            validation_source(dataset.source("val"), loaders[0]),
            batch_size=config.evaluation.batch_size,
            replicas=count,
        ),
    )
    return run, state


def compile_step(run: Run, state: TrainState) -> None:
    """Compile the step that the loop runs from `state` on; print the devices, the batch, memory and time."""
    config, count = run.config, len(run.members)
    job = compiled.Plan(_title(run), jax.devices(), config.train.batch_size, config.train.accumulate, count)
    for line in compiled.describe_plan(job)[1:]:
        parallel.say(line)
    parallel.say(f"state: {compiled.show_bytes(compiled.state_bytes(state))} on each device")
    if int(state.step) < run.schedule.total:
        parallel.say(compiled.describe_step(compiled.compile_timed(run.lower(state))))


def compile_only(config: ConfigDict, chosen: Sequence[replicas.Replica] = ()) -> None:
    """Compile the step of `config` for the chosen topology, without data; print and write what it takes."""
    if _TOPOLOGY.value and jax.process_count() > 1:
        raise ValueError("--topology compiles for the whole slice: start one process, without --distributed")
    devices = parallel.topology_devices(_TOPOLOGY.value) if _TOPOLOGY.value else jax.devices()
    compiled.use_cache(_CACHE.value, _WORKDIR.value)
    build.check_config(config, len(devices))
    given = (_EXAMPLES.value, _IMAGE_SHAPE.value and tuple(map(int, _IMAGE_SHAPE.value)))
    if _CLASSES.value is None:
        if any(given):
            raise ValueError("--examples and --image_shape go with --classes: they replace a data set that is not here")
        facts = build.read_facts(build.create_data(config))
    else:
        facts = build.assume_facts(config, _CLASSES.value, *given)
    methods = _METHODS.value or [config.method]
    if chosen and methods != [config.method]:
        raise ValueError("--compile_methods compares single runs: leave out --replica")
    configs = {
        method: build.create_replicas(build.change_method(config, method), chosen, len(devices)) for method in methods
    }

    def lower(method: str, batch_size: int) -> jax.stages.Lowered:
        for own in configs[method]:
            own.train.batch_size = batch_size
        return lower_shapes(configs[method], facts, len(chosen) or None, devices if _TOPOLOGY.value else None)

    plan = compiled.Plan(
        title=_title_of(config, len(chosen) or 1),
        devices=devices,
        batch_size=config.train.batch_size,
        accumulate=config.train.accumulate,
        replicas=len(chosen) or 1,
    )
    report = compiled.report(plan, methods, lower, say=parallel.say)
    parallel.say(compiled.describe(report))
    path = _JSON.value or (_WORKDIR.value and f"{_WORKDIR.value}/compiled.json")
    if path and parallel.is_main_process():
        files.make_folder("--json" if _JSON.value else "--workdir", epath.Path(path).parent)
        files.write_json(epath.Path(path), report)
        parallel.say(f"numbers: {path}")


def lower_shapes(
    configs: Sequence[ConfigDict], facts: build.DataFacts, count: int | None, devices: Sequence[jax.Device] | None
) -> jax.stages.Lowered:
    """Lower the step of one config, or of `count` replicas, for devices of a topology; None for those here."""
    config, program = configs[0], build.create_program(configs[0], facts)
    seeds = [own.seed for own in configs]
    key = members.run_key(seeds, 0, count)
    state = build.state_shapes(config, program.model, program.image_shape, key)
    hypers = [build.create_hyper(own, program.schedule.steps_per_epoch) for own in configs]
    hyper = jax.eval_shape(lambda: members.join(hypers, count))
    sizes = {"batch_size": config.train.batch_size, "accumulate": config.train.accumulate, "replicas": count}
    batch = batch_shapes(facts.image_shape, devices=devices and len(devices), **sizes)
    step = parallel.pmap_step(members.lift(program.step, count), devices)
    return parallel.lower_step(step, state, batch, hyper, jax.eval_shape(lambda: key))


def loop(run: Run, state: TrainState, writers: Sequence[Writer], interrupt: Interrupt) -> bool:
    """Train from `state` to the last step; return False if interrupted, after saving everything."""
    config, schedule, start = run.config, run.schedule, int(state.step)
    stop = partial(_should_stop, writers[0].checkpoints, interrupt, config.log.every_steps)
    validated = all(writer.checkpoints.has_metrics(start) for writer in writers)
    if schedule.is_due(start, schedule.eval_every) and not validated:
        # The run was stopped before or during this validation.
        if not conclude(run, state, start, writers, interrupt, validate=True):
            return False
    images = config.train.batch_size * len(writers)
    bar = commands.progress_bar(
        total=schedule.total * images,
        initial=start * images,
        description=_title(run),
        enabled=config.log.progress and parallel.is_main_process(),
    )
    note = partial(_note, run, writers, bar, (time.perf_counter(), start))
    with bar, contextlib.closing(run.batches(start)) as batches:
        previous = None
        for step in range(start + 1, schedule.total + 1):
            state, terms = run.train_step(state, next(batches))
            if previous is not None:
                note(*previous)  # while the device works on this step
            previous = (step, terms)
            validate = schedule.is_due(step, schedule.eval_every)
            stopping = stop(step)
            if validate or stopping or schedule.is_due(step, schedule.checkpoint_every):
                note(*previous)
                previous = None
                concluded = conclude(run, state, step, writers, interrupt, validate=validate and not stopping)
                if stopping or not concluded:
                    return False
    return True


def conclude(
    run: Run, state: TrainState, step: int, writers: Sequence[Writer], interrupt: Interrupt, *, validate: bool
) -> bool:
    """Validate if `validate` is set, and save checkpoints; return False if interrupted during validation."""
    metrics = run.validate(state, interrupt) if validate else None
    members.save(writers, members.split(state, run.replicas), step, metrics)
    return metrics is not None or not validate


def _note(
    run: Run, writers: Sequence[Writer], bar: Any, began: tuple[float, int], step: int, terms: dict[str, jax.Array]
) -> None:
    """Fetch a step's terms, fail the members whose loss or gradient is not finite, and log the others when due."""
    going = members.require_finite(writers, step, members.rows(terms, run.replicas))
    images = run.config.train.batch_size * len(writers)
    bar.update(images)
    _, first = going[0]
    means = {name: np.mean([own[name] for _, own in going]) for name in SHOWN if name in first}
    bar.set_postfix_str(logbook.describe(means, SHOWN), refresh=False)
    if run.schedule.is_due(step, run.config.log.every_steps):
        time_at_start, start = began
        rate = (step - start) * images / (time.perf_counter() - time_at_start)
        for writer, own in going:
            writer.logbook.write(step, "train", own | {"images_per_second": rate})


def _should_stop(checkpoints: Checkpoints, interrupt: Interrupt, poll_every: int, step: int) -> bool:
    """Return whether to stop after `step`; the answer is the same in all processes."""
    if jax.process_count() == 1:
        return bool(interrupt)
    preempted = checkpoints.manager.reached_preemption(step)
    return preempted or (step % poll_every == 0 and parallel.any_process(bool(interrupt)))


def _title(run: Run) -> str:
    return _title_of(run.config, len(run.members))


def _title_of(config: ConfigDict, count: int) -> str:
    title = run_folder.title(config)
    return title if count == 1 else f"{title} × {count}"


def _opening(run: Run, state: TrainState, folder: str) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params)) // len(run.members)
    config, todo = run.config, run.schedule.left(int(state.step))
    devices = f"{jax.device_count()} {jax.devices()[0].platform} device{'s' if jax.device_count() > 1 else ''}"
    return (
        f"{_title(run)} · {config.data.name} · {config.model.name} ({count:,} parameters) · "
        f"{devices} · {todo} · {folder}"
    )


if __name__ == "__main__":
    launch.run(main)
