"""Train a network with SaliencyDecor or one of its ablations.

    python train.py --config=configs/cifar10.py:method=sdecor --workdir=runs/cifar10 [--config.optim.lr=0.1 …]

Started again with the same command, a run continues exactly where its last checkpoint is. The loop's order is fixed:
input, step, the previous step's metrics, and where due validation and then a checkpoint.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from sdecor import build, cli, logbook, parallel, steps, workdir
from sdecor.checkpoint import Checkpoints
from sdecor.data import create_loader, evaluation_batches, load_in_memory
from sdecor.interrupt import Interrupt
from sdecor.losses import white_floor
from sdecor.state import TrainState

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's config, FILE or FILE:CHOICES.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, local or remote.", required=True)

SHOWN = ("loss", "consistency", "decorrelation", "accuracy")  # in the progress bar
INTERRUPTED = 130  # exit status of a run that a signal stopped and the same command continues


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything the loop needs beside the state, built from the config."""

    config: ConfigDict
    workdir: str
    schedule: build.Schedule
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    batches: Callable[[int], Iterator[Any]]  # device batches from a step on
    validate: Callable[[TrainState, Interrupt], dict[str, float] | None]


def main() -> None:
    """Train the run that the flags name."""
    if _CONFIG.value is None:
        raise ValueError("--config is missing: name a file, for example --config=configs/default.py:method=sdecor")
    try:
        _ = _CONFIG.value.method
    except OSError as error:  # raised when the config is first read
        raise ValueError(f"--config: {error}") from error
    try:
        finished = train(_CONFIG.value, _WORKDIR.value)
    except KeyboardInterrupt:
        raise SystemExit("train.py: stopped; nothing saved is lost, run the same command to go on") from None
    if not finished:
        raise SystemExit(INTERRUPTED)


def train(config: ConfigDict, folder: str) -> bool:
    """Train the run of `config` in `folder`, from its last checkpoint; return False when it was interrupted.

    Raises:
      ValueError: for a config that cannot work, or a folder of another run.
      FloatingPointError: when the loss or its gradient is not finite.
    """
    run, state = build_run(config, folder)
    log = config.log
    with Interrupt(processes=jax.process_count()) as interrupt, Checkpoints(folder) as checkpoints:
        restored = checkpoints.restore(state)
        if restored is not None:
            state, position = restored
            _check_position(position, state, config)
        start = int(state.step)
        say(_opening(run, state))
        with logbook.Logbook(
            folder, step=start, tensorboard=log.tensorboard, enabled=parallel.is_main_process()
        ) as book:
            finished = loop(run, state, checkpoints, book, interrupt)
        checkpoints.manager.wait_until_finished()
        best = checkpoints.best_step()
    say(_closing(run, finished, best))
    return finished


def build_run(config: ConfigDict, folder: str) -> tuple[Run, TrainState]:
    """Check the config, open the data and claim the folder; return the run and its state before the first step."""
    build.check_config(config)
    dataset = build.create_data(config)
    canvas = tuple(dataset.image_shape)
    image_shape = build.image_size(config, canvas)
    model = build.create_model(config, dataset.num_classes, image_shape)
    prepare, prepare_evaluation = build.create_preparation(config, dataset.mean, dataset.std)
    build.check_preparation(prepare, canvas)
    loader = create_loader(
        dataset.source("train"),
        batch_size=config.train.batch_size // config.train.accumulate,
        seed=config.seed,
        kind=config.data.loader,
        memory_limit_mb=config.data.memory_limit_mb,
        num_workers=config.data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    schedule = build.create_schedule(config, loader.steps_per_epoch)
    learning_rate = build.create_learning_rate(config, schedule)
    state = build.create_state(config, model, image_shape)
    _warn_small_batch(config, model, state, image_shape)
    # Every process checks, and raises alike; one writes.
    workdir.claim(folder, config, dataset.info(), write=parallel.is_main_process())
    parallel.wait_for_all("config")
    step = partial(
        steps.train_step,
        objective=build.create_objective(config),
        prepare=prepare,
        schedule=learning_rate,
        ema_decay=config.optim.ema_decay,
        accumulate=config.train.accumulate,
        axis_name=parallel.AXIS,
    )
    hyper = parallel.replicate(build.create_hyper(config, schedule.steps_per_epoch))
    key = parallel.replicate(jax.random.fold_in(jax.random.key(config.seed), 1))
    compiled = parallel.pmap_step(step)
    run = Run(
        config=config,
        workdir=folder,
        schedule=schedule,
        train_step=lambda state, batch: compiled(state, batch, hyper, key),
        batches=partial(_step_batches, config, loader),
        validate=_validation(config, _validation_source(dataset, loader), model, prepare_evaluation),
    )
    return run, state


def loop(run: Run, state: TrainState, checkpoints: Checkpoints, book: logbook.Logbook, interrupt: Interrupt) -> bool:
    """Train from `state` to the last step; return False when interrupted, with everything saved."""
    start, total, config = int(state.step), run.schedule.total, run.config
    stop = partial(_should_stop, checkpoints, interrupt, config.log.every_steps)
    if _is_due(start, run.schedule.eval_every, total) and not checkpoints.has_metrics(start):
        # The run was stopped before or in the middle of this validation.
        if not conclude(run, state, start, checkpoints, book, interrupt, validate=True):
            return False
    bar = logbook.progress_bar(
        total=total * config.train.batch_size,
        initial=start * config.train.batch_size,
        description=config.method,
        enabled=config.log.progress and parallel.is_main_process(),
    )
    record = partial(_record, run, checkpoints, book, bar, (time.perf_counter(), start))
    with bar, contextlib.closing(run.batches(start)) as batches:
        previous = None
        for step in range(start + 1, total + 1):
            state, terms = run.train_step(state, next(batches))
            if previous is not None:
                record(*previous)  # while the device works on this step
            previous = (step, terms)
            validate = _is_due(step, run.schedule.eval_every, total)
            stopping = stop(step)
            if validate or stopping or _is_due(step, run.schedule.checkpoint_every, total):
                record(*previous)
                previous = None
                concluded = conclude(
                    run, state, step, checkpoints, book, interrupt, validate=validate and not stopping
                )
                if stopping or not concluded:
                    return False
    return True


def conclude(
    run: Run,
    state: TrainState,
    step: int,
    checkpoints: Checkpoints,
    book: logbook.Logbook,
    interrupt: Interrupt,
    *,
    validate: bool,
) -> bool:
    """Validate where asked to and save a checkpoint; return False when interrupted during validation."""
    metrics = run.validate(state, interrupt) if validate else None
    if metrics is not None:
        book.write(step, "val", metrics)
    book.flush()
    checkpoints.save(state, position={"step": step, "seed": run.config.seed}, metrics=metrics)
    return metrics is not None or not validate


def say(text: str) -> None:
    """Print in the main process only."""
    if parallel.is_main_process():
        print(text, flush=True)


def _record(
    run: Run,
    checkpoints: Checkpoints,
    book: logbook.Logbook,
    bar: Any,
    began: tuple[float, int],
    step: int,
    terms: dict[str, jax.Array],
) -> None:
    """Fetch a step's terms, stop the run unless loss and gradient are finite, and log them where due."""
    terms = {name: float(value) for name, value in parallel.to_host(terms).items()}
    if not (math.isfinite(terms["loss"]) and math.isfinite(terms["gradient_norm"])):
        book.write(step, "train", terms)
        listed = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        good = max((s for s in checkpoints.steps() if s < step), default=None)
        where = "there is no earlier checkpoint" if good is None else f"the last good checkpoint is of step {good}"
        raise FloatingPointError(
            f"the loss or its gradient is not finite at step {step} ({listed}); {where} in {run.workdir}"
        )
    bar.update(run.config.train.batch_size)
    bar.set_postfix_str(logbook.describe(terms, SHOWN), refresh=False)
    if _is_due(step, run.config.log.every_steps, run.schedule.total):
        time_at_start, start = began
        rate = (step - start) * run.config.train.batch_size / (time.perf_counter() - time_at_start)
        book.write(step, "train", terms | {"images_per_second": rate})


def _check_position(position: dict[str, Any], state: TrainState, config: ConfigDict) -> None:
    """The input's position is a function of step and seed; both are in the checkpoint and must be this run's."""
    expected = {"step": int(state.step), "seed": config.seed}
    if position != expected:
        raise ValueError(f"the checkpoint's input position is {position}, this run's is {expected}")


def _is_due(step: int, every: int | None, total: int) -> bool:
    """Tell whether something that happens every so many steps, and at the last, happens after `step`."""
    return every is not None and step > 0 and (step % every == 0 or step == total)


def _should_stop(checkpoints: Checkpoints, interrupt: Interrupt, poll_every: int, step: int) -> bool:
    """Tell whether to stop after `step`; all processes decide alike."""
    if jax.process_count() == 1:
        return bool(interrupt)
    preempted = checkpoints.manager.reached_preemption(step)
    return preempted or (step % poll_every == 0 and parallel.any_process(bool(interrupt)))


def _step_batches(config: ConfigDict, loader: Any, start: int) -> Iterator[Any]:
    """Yield what each step from `start` on takes: its micro-batches, spread over the devices."""
    accumulate = config.train.accumulate
    size = config.train.batch_size // accumulate
    with contextlib.closing(loader.iterate(start * accumulate)) as batches:
        while True:
            micro = [next(batches) for _ in range(accumulate)]
            for i, batch in enumerate(micro):
                # Positions count through the step's micro-batches, so that no two examples draw alike.
                batch["position"] = batch["position"] + np.int32(i * size)
            yield parallel.shard_micro_batches(micro)


def _validation_source(dataset: Any, loader: Any) -> Any:
    """Open the validation split, decoded once where the training split is."""
    source = dataset.source("val")
    return load_in_memory(source, objects=False) if loader.kind == "memory" else source


def _validation(config: ConfigDict, source: Any, model: Any, prepare: Callable) -> Callable:
    """Return `(state, interrupt) -> metrics` over the validation split, None when interrupted."""

    def step(variables: Any, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        return steps.evaluation_step(model.apply, variables, prepare(batch["image"]), batch)

    compiled = parallel.pmap_evaluation(step)
    key = parallel.replicate(jax.random.key(0))

    def validate(state: TrainState, interrupt: Interrupt) -> dict[str, float] | None:
        batches = evaluation_batches(
            source,
            batch_size=parallel.round_up(config.evaluation.batch_size),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        sums: dict[str, float] = {}
        for batch in batches:
            batch = {name: batch[name] for name in ("image", "label", "weight")}
            outputs = parallel.to_host(compiled(state.variables, parallel.shard(batch), key))
            for name, value in outputs.items():
                sums[name] = sums.get(name, 0.0) + float(value.sum(dtype=np.float64))
            if interrupt and jax.process_count() == 1:
                return None
        sums = {name: float(np.sum(parallel.gather(np.array([value])))) for name, value in sums.items()}
        count = sums.pop("count")
        return {"accuracy": sums["correct"] / count, "cross_entropy": sums["cross_entropy"] / count}

    return validate


def _warn_small_batch(config: ConfigDict, model: Any, state: TrainState, image_shape: tuple[int, int, int]) -> None:
    """Warn where the batch is too small for its covariance to mean much."""
    if config.decorrelation.weight == 0:
        return
    n = config.train.batch_size // config.train.accumulate
    images = jax.ShapeDtypeStruct((n, *image_shape), np.float32)
    _, features = jax.eval_shape(partial(model.apply, train=False), state.variables, images)
    for layer in jax.tree.leaves(features):
        samples = n if config.decorrelation.spatial == "pool" else math.prod(layer.shape[:-1])
        width = layer.shape[-1]
        if samples < 2 * width:
            floor = white_floor(samples, width, form=config.decorrelation.form)
            logging.warning(
                "decorrelation of %d features from %d samples: perfectly white features would score %s; "
                "use at least %d samples (config.train.batch_size / config.train.accumulate)",
                width, samples, f"{floor:.3g}", 2 * width,
            )  # fmt: skip


def _opening(run: Run, state: TrainState) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    config, schedule, start = run.config, run.schedule, int(state.step)
    begin = f"continuing at step {start}" if start else "starting"
    return (
        f"{config.method} · {config.data.name} · {config.model.name} ({count:,} parameters) · "
        f"{jax.device_count()} {jax.devices()[0].platform} device(s) · {begin} of {schedule.total} "
        f"({schedule.steps_per_epoch} an epoch) · {run.workdir}"
    )


def _closing(run: Run, finished: bool, best: int | None) -> str:
    if not finished:
        return f"Interrupted; the state is saved in {run.workdir}. Run the same command to continue."
    rows = [row for row in logbook.read_rows(run.workdir) if row["split"] == "val"]
    scores = {row["step"]: row["accuracy"] for row in rows}
    named = {"best": best, "last": max(scores, default=None)}
    shown = ", ".join(f"{scores[step]:.1%} at step {step} ({name})" for name, step in named.items() if step in scores)
    return f"Finished. Validation accuracy: {shown}. Next: python evaluate.py --workdir={run.workdir}"


if __name__ == "__main__":
    cli.run(main)
