"""Train a network with SaliencyDecor or one of its ablations.

    python train.py --config=configs/cifar10.py:method=sdecor --workdir=runs/cifar10 [--config.optim.lr=0.1 …]
    python train.py --config=… --workdir=DIR --replica=seed=0 --replica=seed=1 --replica=strong:decorrelation.weight=1

Started again with the same command, a run continues exactly where its last checkpoint is. The loop's order is fixed:
input, step, the previous step's metrics, and where due validation and then a checkpoint. Replicas are runs that differ
in numbers alone, trained by one program (docs/sweeps.md); each has a folder like any run's, DIR/seed=0, DIR/strong.
"""

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from sdecor.core import commands, files, launch, parallel, rng
from sdecor.core.interrupt import Interrupt
from sdecor.losses import CENTRED, white_floor
from sdecor.training import build, logbook, members, replicas, run_folder, steps
from sdecor.training.batches import (
    Validate,
    create_loaders,
    create_validation,
    stacked_batches,
    step_batches,
    validation_source,
)
from sdecor.training.checkpoint import Checkpoints, restore_together
from sdecor.training.logbook import Logbook
from sdecor.training.members import Member, Record
from sdecor.training.state import TrainState

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's config, FILE or FILE:CHOICES.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, local or remote.", required=True)
_REPLICA = flags.DEFINE_multi_string(
    "replica", [], "[NAME:]FIELD=NUMBER,…: a replica; repeat to train several at once."
)

SHOWN = ("loss", "consistency", "decorrelation", "gradient_penalty", "accuracy")  # in the progress bar
INTERRUPTED = 130  # exit status of a run that a signal stopped and the same command continues


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything the loop needs beside the state, built from the config.

    With replicas, what the loop passes between these functions has a leading axis, `[R]`.
    """

    config: ConfigDict  # of replicas, what they have in common
    members: tuple[Member, ...]
    replicas: int | None  # None where the only member is a run of its own
    schedule: build.Schedule
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    batches: Callable[[int], Iterator[Any]]  # device batches from a step on
    validate: Validate


class PartlyFinished(FloatingPointError):
    """Some replicas failed, the others are finished."""


def main() -> None:
    """Train the run that the flags name."""
    if _CONFIG.value is None:
        raise ValueError("--config is missing: name a file, for example --config=configs/default.py:method=sdecor")
    try:
        _ = _CONFIG.value.method
    except OSError as error:  # raised when the config is first read
        raise ValueError(f"--config: {error}") from error
    try:
        finished = train(_CONFIG.value, _WORKDIR.value, replicas.parse(_REPLICA.value))
    except KeyboardInterrupt:
        raise SystemExit("train.py: stopped. What was saved is kept: run the same command to continue.") from None
    except PartlyFinished as error:
        print(f"train.py: {error}", file=sys.stderr)
        raise SystemExit(replicas.PARTLY) from None
    if not finished:
        raise SystemExit(INTERRUPTED)


def train(config: ConfigDict, folder: str, chosen: Sequence[replicas.Replica] = ()) -> bool:
    """Train the run of `config` in `folder`, from its last checkpoint; return False when it was interrupted.

    Args:
      config: of the run; of replicas, what they have in common.
      folder: of the run; of replicas, where their folders are.
      chosen: the replicas; none for a run of its own.

    Raises:
      ValueError: for a config that cannot work, or a folder of another run.
      FloatingPointError: when the loss or its gradient is not finite, of all replicas.
      PartlyFinished: when they were not of some replicas, once the others are finished.
    """
    build.check_config(config)
    failures = _former_failures(config, folder, chosen) if chosen else {}
    left = [each for each in chosen if not failures[each.name]]
    if chosen and not left:
        raise FloatingPointError(_listed(failures))
    run, state = build_run(config, folder, left)
    with Interrupt(processes=jax.process_count()) as interrupt, contextlib.ExitStack() as stack:
        checkpoints = [stack.enter_context(Checkpoints(member.folder)) for member in run.members]
        state = restore(run, state, checkpoints)
        parallel.say(_opening(run, state, folder))
        options = {"tensorboard": config.log.tensorboard, "enabled": parallel.is_main_process()}
        records = [
            Record(member, saved, stack.enter_context(Logbook(member.folder, step=int(state.step), **options)))
            for member, saved in zip(run.members, checkpoints, strict=True)
        ]
        finished = loop(run, state, records, interrupt)
        for saved in checkpoints:
            saved.manager.wait_until_finished()
        for record in records:
            if not record.failure:
                parallel.say(record.closing(finished))
    failures |= {record.member.name: record.failure for record in records}
    if finished and any(failures.values()):
        raise PartlyFinished(_listed(failures))
    return finished


def build_run(config: ConfigDict, folder: str, chosen: Sequence[replicas.Replica] = ()) -> tuple[Run, TrainState]:
    """Check the config, open the data and claim the folders; return the run and its state before the first step."""
    configs = build.create_replicas(config, chosen) if chosen else [config]
    folders = [f"{folder}/{replica.name}" for replica in chosen] or [folder]
    for place in folders:
        files.check_checkpoints("--workdir", place)
    dataset = build.create_data(config)
    canvas = tuple(dataset.image_shape)
    image_shape = build.image_size(config, canvas)
    model = build.create_model(config, dataset.num_classes, image_shape)
    prepare, prepare_evaluation = build.create_preparation(config, dataset.mean, dataset.std)
    build.check_preparation(prepare, canvas)
    sizes = {"batch_size": config.train.batch_size, "accumulate": config.train.accumulate}
    loaders = create_loaders(
        dataset.source("train"),
        [own.seed for own in configs],
        batch_size=config.train.batch_size // config.train.accumulate,
        kind=config.data.loader,
        memory_limit_mb=config.data.memory_limit_mb,
        num_workers=config.data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    schedule = build.create_schedule(config, loaders[0].steps_per_epoch)
    learning_rate = build.create_learning_rate(config, schedule)
    seeds = [own.seed for own in configs] if chosen else config.seed
    state = build.create_state(config, model, image_shape, seeds)
    _warn_small_batch(config, model, image_shape)
    # Every process checks, and raises alike; one writes.
    for own, place in zip(configs, folders, strict=True):
        run_folder.claim(place, own, dataset.info(), write=parallel.is_main_process())
    parallel.wait_for_all("config")
    step = partial(
        steps.train_step,
        objective=build.create_objective(configs[0]),
        prepare=prepare,
        schedule=learning_rate,
        ema_decay=config.optim.ema_decay,
        accumulate=config.train.accumulate,
        axis_name=parallel.AXIS,
    )
    hypers = [build.create_hyper(own, schedule.steps_per_epoch) for own in configs]
    hyper = parallel.replicate(members.stack(hypers) if chosen else hypers[0])
    key = parallel.replicate(rng.run_key(seeds, 1))
    compiled = parallel.pmap_step(members.lift(step) if chosen else step)
    run = Run(
        config=config,
        members=tuple(map(Member, [each.name for each in chosen] or [""], folders, [own.seed for own in configs])),
        replicas=len(chosen) or None,
        schedule=schedule,
        train_step=lambda state, batch: compiled(state, batch, hyper, key),
        batches=(partial(stacked_batches, loaders, **sizes) if chosen else partial(step_batches, loaders[0], **sizes)),
        validate=create_validation(
            model.apply,
            prepare_evaluation,
            validation_source(dataset.source("val"), loaders[0]),
            batch_size=config.evaluation.batch_size,
            stacked=bool(chosen),
        ),
    )
    return run, state


def restore(run: Run, state: TrainState, checkpoints: Sequence[Checkpoints]) -> TrainState:
    """Return the state to go on from: that of the last checkpoint which all members have, or `state`.

    Raises:
      ValueError: when the input's position, a function of step and seed, is not this run's.
    """
    if run.replicas is None:
        found = [checkpoints[0].restore(state)]
    else:
        saved = {member.name: each for member, each in zip(run.members, checkpoints, strict=True)}
        begun = [member.name for member in run.members if logbook.read_rows(member.folder)]
        found = restore_together(saved, parallel.replicate(members.unstack_state(state)[0]), begun=begun)
    if None in found:
        return state
    for (own, position), member in zip(found, run.members, strict=True):
        expected = {"step": int(own.step), "seed": member.seed}
        if position != expected:
            raise ValueError(
                f"{member.folder}: the checkpoint's input position is {position}, this run's is {expected}"
            )
    states = [own for own, _ in found]
    return states[0] if run.replicas is None else parallel.replicate(members.stack_states(states))


def loop(run: Run, state: TrainState, records: Sequence[Record], interrupt: Interrupt) -> bool:
    """Train from `state` to the last step; return False when interrupted, with everything saved."""
    start, total, config = int(state.step), run.schedule.total, run.config
    stop = partial(_should_stop, records[0].checkpoints, interrupt, config.log.every_steps)
    validated = all(record.checkpoints.has_metrics(start) for record in records)
    if _is_due(start, run.schedule.eval_every, total) and not validated:
        # The run was stopped before or in the middle of this validation.
        if not conclude(run, state, start, records, interrupt, validate=True):
            return False
    images = config.train.batch_size * len(records)
    bar = commands.progress_bar(
        total=total * images,
        initial=start * images,
        description=_title(run),
        enabled=config.log.progress and parallel.is_main_process(),
    )
    note = partial(_note, run, records, bar, (time.perf_counter(), start))
    with bar, contextlib.closing(run.batches(start)) as batches:
        previous = None
        for step in range(start + 1, total + 1):
            state, terms = run.train_step(state, next(batches))
            if previous is not None:
                note(*previous)  # while the device works on this step
            previous = (step, terms)
            validate = _is_due(step, run.schedule.eval_every, total)
            stopping = stop(step)
            if validate or stopping or _is_due(step, run.schedule.checkpoint_every, total):
                note(*previous)
                previous = None
                concluded = conclude(run, state, step, records, interrupt, validate=validate and not stopping)
                if stopping or not concluded:
                    return False
    return True


def conclude(
    run: Run, state: TrainState, step: int, records: Sequence[Record], interrupt: Interrupt, *, validate: bool
) -> bool:
    """Validate where asked to and save checkpoints; return False when interrupted during validation."""
    found = run.validate(state, interrupt) if validate else None
    metrics = [None] * len(records) if found is None else members.rows(found, run.replicas)
    for record, values in zip(records, metrics, strict=True):
        if values is not None and not record.failure:
            record.book.write(step, "val", values)
        record.book.flush()
    for record in records:  # so that a kill leaves no replica more than one checkpoint behind another
        record.checkpoints.manager.wait_until_finished()
    states = [state] if run.replicas is None else members.unstack_state(state)
    for record, own, values in zip(records, states, metrics, strict=True):
        record.save(own if run.replicas is None else parallel.replicate(own), step, values)
        if jax.process_count() > 1:  # orbax's barriers do not tell one replica's checkpoint from another's
            record.checkpoints.manager.wait_until_finished()
    return found is not None or not validate


def _note(
    run: Run, records: Sequence[Record], bar: Any, began: tuple[float, int], step: int, terms: dict[str, jax.Array]
) -> None:
    """Fetch a step's terms, stop what has a loss or gradient that is not finite, and log the rest where due."""
    rows = members.rows(parallel.to_host(terms), run.replicas)
    for record, row in zip(records, rows, strict=True):
        record.check(step, row)
    going = [(record, row) for record, row in zip(records, rows, strict=True) if not record.failure]
    if not going:
        raise FloatingPointError(_listed({record.member.name: record.failure for record in records}))
    images = run.config.train.batch_size * len(records)
    bar.update(images)
    means = {name: np.mean([row[name] for _, row in going]) for name in SHOWN if name in rows[0]}
    bar.set_postfix_str(logbook.describe(means, SHOWN), refresh=False)
    if _is_due(step, run.config.log.every_steps, run.schedule.total):
        time_at_start, start = began
        rate = (step - start) * images / (time.perf_counter() - time_at_start)
        for record, row in going:
            record.book.write(step, "train", row | {"images_per_second": rate})


def _former_failures(config: ConfigDict, folder: str, chosen: Sequence[replicas.Replica]) -> dict[str, str]:
    """Return why each replica failed before, in a run of the same config; empty where it did not."""
    failures = {}
    for replica, own in zip(chosen, build.create_replicas(config, chosen), strict=True):
        place = f"{folder}/{replica.name}"
        step = replicas.failed_at(logbook.read_rows(place))
        same = step is not None and not files.differing_fields(
            run_folder.read(place)["config"], files.plain(own), ignore=run_folder.FREE
        )
        said = f"failed at step {step} of an earlier start; see {place}/metrics.jsonl"
        failures[replica.name] = said if same else ""
    return failures


def _listed(failures: dict[str, str]) -> str:
    listed = [f"  {name}: {failure}" for name, failure in failures.items() if failure]
    what = f"{len(listed)} of {len(failures)} replicas failed; start each of these again with a command of its own:"
    return "\n".join([what, *listed])


def _is_due(step: int, every: int | None, total: int) -> bool:
    """Tell whether something that happens every so many steps, and at the last, happens after `step`."""
    return every is not None and step > 0 and (step % every == 0 or step == total)


def _should_stop(checkpoints: Checkpoints, interrupt: Interrupt, poll_every: int, step: int) -> bool:
    """Tell whether to stop after `step`; all processes decide alike."""
    if jax.process_count() == 1:
        return bool(interrupt)
    preempted = checkpoints.manager.reached_preemption(step)
    return preempted or (step % poll_every == 0 and parallel.any_process(bool(interrupt)))


def _warn_small_batch(config: ConfigDict, model: Any, image_shape: tuple[int, int, int]) -> None:
    """Warn where the batch is too small for its covariance to mean much; of centred forms, which alone have a floor."""
    decor = config.decorrelation
    if decor.weight == 0 or decor.rectify or decor.form not in CENTRED:
        return
    n = config.train.batch_size // config.train.accumulate
    images = jax.ShapeDtypeStruct((n, *image_shape), np.float32)
    (_, features), _ = jax.eval_shape(partial(model.init_with_output, train=False), jax.random.key(0), images)
    for layer in jax.tree.leaves(features):
        samples = n if decor.spatial == "pool" else math.prod(layer.shape[:-1])
        width = layer.shape[-1]
        if samples < 2 * width:
            floor = white_floor(samples, width, form=decor.form)
            logging.warning(
                "decorrelation of %d features from %d samples: white features of mean 0 would score %s; "
                "use at least %d samples (config.train.batch_size / config.train.accumulate)",
                width, samples, f"{floor:.3g}", 2 * width,
            )  # fmt: skip


def _title(run: Run) -> str:
    title = run_folder.title(run.config)
    return title if run.replicas is None else f"{title} × {run.replicas}"


def _opening(run: Run, state: TrainState, folder: str) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params)) // (run.replicas or 1)
    config, schedule, start = run.config, run.schedule, int(state.step)
    if start >= schedule.total:
        steps = f"all {schedule.total} steps are done"
    else:
        begin = f"continuing at step {start} of {schedule.total}" if start else f"starting: {schedule.total} steps"
        steps = f"{begin} ({schedule.steps_per_epoch} an epoch)"
    devices = f"{jax.device_count()} {jax.devices()[0].platform} device{'s' if jax.device_count() > 1 else ''}"
    return (
        f"{_title(run)} · {config.data.name} · {config.model.name} ({count:,} parameters) · "
        f"{devices} · {steps} · {folder}"
    )


if __name__ == "__main__":
    launch.run(main)
