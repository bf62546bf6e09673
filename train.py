"""Train a network with SaliencyDecor or one of its ablations.

    python train.py --config=configs/cifar10.py:method=sdecor --workdir=runs/cifar10 [--config.optim.lr=0.1 …]

Started again with the same command, a run continues exactly where its last checkpoint is. The loop's order is fixed:
input, step, the previous step's metrics, and where due validation and then a checkpoint.
"""

import contextlib
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from sdecor import build, logbook, parallel, steps, workdir
from sdecor.checkpoint import Checkpoints
from sdecor.data import create_loader, evaluation_batches, load_in_memory
from sdecor.interrupt import Interrupt
from sdecor.losses import white_floor
from sdecor.state import TrainState

_CONFIG = config_flags.DEFINE_config_file("config", "configs/default.py", "The run's config.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, local or remote.", required=True)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join a job of several processes (Slurm, TPU, …).")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, where the cluster does not tell.")
_PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes, with --coordinator.")
_PROCESS = flags.DEFINE_integer("process", None, "This process's number, with --coordinator.")

SHOWN = ("loss", "consistency", "decorrelation", "accuracy")  # in the progress bar


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything the loop needs, built from the config."""

    config: ConfigDict
    workdir: str
    schedule: build.Schedule
    state: TrainState
    train_step: Callable
    batches: Callable[[int], Iterator[dict[str, np.ndarray]]]  # device batches from a step on
    validate: Callable[[TrainState, Interrupt], dict[str, float] | None]


def main(argv: list[str]) -> None:
    """Parse flags and train; errors in what was asked for end with one clear line."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    logging.set_verbosity(logging.WARNING)
    if _DISTRIBUTED.value or _COORDINATOR.value:
        parallel.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    try:
        finished = train(_CONFIG.value, _WORKDIR.value)
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        if os.environ.get("SDECOR_TRACEBACK"):
            raise
        sys.exit(f"train.py: {error}")
    except KeyboardInterrupt:
        sys.exit("train.py: stopped before the first step; nothing is lost, run the same command to start again")
    if not finished:
        sys.exit(130)


def train(config: ConfigDict, folder: str) -> bool:
    """Train the run of `config` in `folder`, from its last checkpoint; return False when it was interrupted.

    Raises:
      ValueError: for a config that cannot work, or a folder of another run.
      FloatingPointError: when the loss is not finite.
    """
    run = build_run(config, folder)
    processes = jax.process_count()
    with Checkpoints(folder) as checkpoints, Interrupt(processes=processes) as interrupt:
        state, _ = checkpoints.restore(run.state) or (run.state, None)
        start = int(state.step)
        log = config.log
        with logbook.Logbook(
            folder, step=start, tensorboard=log.tensorboard, enabled=parallel.is_main_process()
        ) as book:
            say(_opening(run, start))
            finished = loop(run, state, checkpoints, book, interrupt)
        best = checkpoints.best_step()
    say(_closing(run, finished, best))
    return finished


def build_run(config: ConfigDict, folder: str) -> Run:
    """Check the config, open the data, claim the folder and compile nothing yet."""
    build.check_config(config)
    dataset = build.create_data(config)
    canvas = tuple(dataset.image_shape)
    image_shape = build.image_size(config, canvas)
    model = build.create_model(config, dataset.num_classes, image_shape)
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
    prepare, prepare_evaluation = build.create_preparation(config, dataset.mean, dataset.std)
    state = build.create_state(config, model, image_shape)
    _warn_small_batch(config, model, state, image_shape)
    if parallel.is_main_process():
        workdir.claim(folder, config, dataset.info())
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
    return Run(
        config=config,
        workdir=folder,
        schedule=schedule,
        state=state,
        train_step=lambda state, batch: compiled(state, batch, hyper, key),
        batches=partial(_step_batches, config, loader),
        validate=_validation(config, _validation_source(dataset, loader), model, prepare_evaluation),
    )


def loop(run: Run, state: TrainState, checkpoints: Checkpoints, book: logbook.Logbook, interrupt: Interrupt) -> bool:
    """Train from `state` to the last step; return False when interrupted, with everything saved."""
    start, total, config = int(state.step), run.schedule.total, run.config
    stop = partial(_should_stop, checkpoints, interrupt, config.log.every_steps)
    if _is_due(start, run.schedule.eval_every, total) and not checkpoints.has_metrics(start):
        # The run was stopped in the middle of this validation.
        if not conclude(run, state, start, checkpoints, book, interrupt, validate=True):
            return False
    bar = logbook.progress_bar(
        total=total * config.train.batch_size,
        initial=start * config.train.batch_size,
        description=config.method,
        enabled=config.log.progress and parallel.is_main_process(),
    )
    record = partial(_record, run, checkpoints, book, bar)
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
                if not conclude(run, state, step, checkpoints, book, interrupt, validate=validate and not stopping):
                    return False
            if stopping:
                return step == total
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
    run: Run, checkpoints: Checkpoints, book: logbook.Logbook, bar: Any, step: int, terms: dict[str, jax.Array]
) -> None:
    """Fetch a step's terms, stop the run unless the loss is finite, and log them where due."""
    terms = {name: float(value) for name, value in parallel.to_host(terms).items()}
    if not math.isfinite(terms["loss"]):
        book.write(step, "train", terms)
        listed = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        good = max((s for s in checkpoints.steps() if s < step), default=None)
        where = "there is no earlier checkpoint" if good is None else f"the last good checkpoint is of step {good}"
        raise FloatingPointError(f"the loss is not finite at step {step} ({listed}); {where} in {run.workdir}")
    bar.update(run.config.train.batch_size)
    bar.set_postfix_str(logbook.describe(terms, SHOWN), refresh=False)
    if _is_due(step, run.config.log.every_steps, run.schedule.total):
        rate = bar.format_dict["rate"]
        book.write(step, "train", terms | ({"images_per_second": rate} if rate else {}))


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
            batch_size=config.evaluation.batch_size,
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


def _opening(run: Run, start: int) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(run.state.params))
    config, schedule = run.config, run.schedule
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
    last = max(scores, default=None)
    steps = {"best": best, "last": last}
    shown = ", ".join(f"{scores[step]:.1%} at step {step} ({name})" for name, step in steps.items() if step in scores)
    return f"Finished. Validation accuracy: {shown}. Next: python evaluate.py --workdir={run.workdir}"


if __name__ == "__main__":
    app.run(main)
