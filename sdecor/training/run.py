"""A run, built from its config: all that the loop of train.py needs beside the state."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
from ml_collections import ConfigDict

from sdecor.core import files, parallel, processes, watchdog
from sdecor.training import build, calls, compiled, device_split, health, members, replicas, run_folder
from sdecor.training.batches import (
    Validate,
    batch_shapes,
    create_loaders,
    create_validation,
    member_batches,
    record_left_out,
    reordered,
    validation_source,
)
from sdecor.training.checkpoint import Checkpoints
from sdecor.training.members import Member
from sdecor.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Run:
    """All that the loop needs beside the state, built from the config.

    One state, one batch and one dict of terms hold the arrays of all members (see `sdecor.training.members`).
    """

    config: ConfigDict  # the config without the replicas' own fields
    members: Sequence[Member]
    replicas: int | None  # number of replicas; None for a single run
    schedule: build.Schedule
    lower: Callable[..., jax.stages.Lowered]  # (state, steps=1): traces a call; once compiled, `train_step` runs it
    train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]  # (state, batch, steps=1)
    batches: Callable[[int, int], Iterator[Any]]  # (step, order): yields the batches of the calls after it
    validate: Validate
    policy: health.Policy  # for a loss that is not finite


def build_run(config: ConfigDict, folder: str, chosen: Sequence[replicas.Replica] = ()) -> tuple[Run, TrainState]:
    """Build the run and its state before the first step: open the data, validate the config, claim the folders."""
    configs = build.create_replicas(config, chosen)
    seeds = [own.seed for own in configs]
    group, count = members.create(folder, chosen, seeds), len(chosen) or None
    dataset = build.create_data(config, run_folder.known_dataset(group[0].folder))
    facts = build.read_facts(dataset)
    program = build.create_program(configs[0], facts)
    schedule = program.schedule
    state = build.create_state(config, program.model, program.image_shape, members.run_key(seeds, 0, count))
    if parallel.is_main_process():
        build.warn_small_batch(config, program.model, program.image_shape)
    # Every process validates, so that all raise the same error; one process writes.
    for member, own in zip(group, configs, strict=True):
        run_folder.claim(member.folder, own, dataset.info(), write=parallel.is_main_process())
    given = {"config": config.to_dict(), "dataset": dataset.info(), "folder": folder, "versions": files.versions()}
    replicas_given = {each.name: dict(each.overrides) for each in chosen}
    # A folder that one process does not see would let the processes read different checkpoints, and wait for ever.
    found = {member.folder: Checkpoints(member.folder, create=False).steps() for member in group}
    given |= {f"checkpoints in the shared folder {each}": checkpoints for each, checkpoints in found.items()}
    processes.compare("the run", lambda: given | {"replicas": replicas_given, "devices": jax.local_device_count()})
    record_left_out(dataset, folder)
    continues = bool(set.intersection(*map(set, found.values())))  # and then needs no file of weights
    if config.model.init_from and not continues:
        state, notes = build.initialise_from(config, program.model, program.image_shape, state, count)
        for note in notes:
            parallel.say(note)
    hypers = [build.create_hyper(own, schedule.steps_per_epoch) for own in configs]
    hyper = parallel.replicate(members.join(hypers, count))
    key = parallel.replicate(members.run_key(seeds, 1, count))
    indices = config.data.loader == "device"
    programs = {
        steps: calls.create(program.step, steps, replicas=count, split_of=facts.image_shape if indices else None)
        for steps in {1, schedule.steps_per_call}
    }
    sizes = {"batch_size": config.train.batch_size, "accumulate": config.train.accumulate, "replicas": count}
    shapes = partial(batch_shapes, facts.image_shape, indices=indices, dtype=facts.dtype, **sizes)
    given = hyper
    if indices:
        device_split.check_fits(facts.examples, facts.image_shape, jax.local_devices()[0], facts.dtype)
        given = (hyper, device_split.shapes(facts.examples, facts.image_shape, facts.dtype))
    jax.eval_shape(programs[1], state, shapes(), given, key)  # fails before images are decoded
    loaders = create_loaders(
        dataset.source("train"),
        seeds,
        batch_size=config.train.batch_size // config.train.accumulate,
        kind=config.data.loader,
        memory_limit_mb=config.data.memory_limit_mb,
        num_workers=config.data.workers,
    )
    if indices:
        given = (hyper, device_split.create(loaders[0].source))

    def batches(start: int, order: int) -> Iterator[Any]:
        counts = calls.sizes(schedule, start)
        return member_batches(reordered(loaders, seeds, order), start, calls=counts, **sizes)

    run = Run(
        config=config,
        members=group,
        replicas=count,
        schedule=schedule,
        lower=lambda state, steps=1: parallel.lower_step(programs[steps], state, shapes(steps=steps), given, key),
        train_step=lambda state, batch, steps=1: programs[steps](state, batch, given, key),
        batches=batches,
        validate=create_validation(
            program.model.apply,
            program.prepare_evaluation,
            validation_source(dataset.source("val"), loaders[0]),
            batch_size=config.evaluation.batch_size,
            replicas=count,
        ),
        policy=build.create_policy(config),
    )
    return run, state


def compile_step(run: Run, state: TrainState) -> None:
    """Compile what the loop calls from `state` on; print the devices, the batch, memory and time."""
    config, count = run.config, len(run.members)
    job = compiled.Plan(title(run), jax.devices(), config.train.batch_size, config.train.accumulate, count)
    for line in compiled.describe_plan(job)[1:]:
        parallel.say(line)
    parallel.say(f"state: {compiled.show_bytes(compiled.state_bytes(state))} on each device")
    start = int(state.step)
    if run.schedule.steps_per_call > 1 and start < run.schedule.total:
        parallel.say(f"calls: {calls.describe(run.schedule, start)}")
    for steps in sorted(set(calls.sizes(run.schedule, start))):
        watchdog.beat("the compilation of the step", timed=False)
        what = "step" if steps == 1 else f"{steps} steps"
        parallel.say(compiled.describe_step(compiled.compile_timed(run.lower(state, steps)), what))


def title(run: Run) -> str:
    """Return the title of the run, or of its replicas with their number."""
    return run_folder.title_of_members(run.config, len(run.members))


def opening(run: Run, state: TrainState, folder: str) -> str:
    """Return the first line that a run prints: what is trained, on which data, devices and parameters."""
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params)) // len(run.members)
    config, todo = run.config, run.schedule.left(int(state.step))
    devices = f"{jax.device_count()} {jax.devices()[0].platform} device{'s' if jax.device_count() > 1 else ''}"
    return (
        f"{title(run)} · {config.data.name} · {config.model.name} ({count:,} parameters) · "
        f"{devices} · {todo} · {folder}"
    )
