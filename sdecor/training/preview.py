"""A look at the compiled step before the job starts: does it fit, what does it cost, which batch is the largest.

The step is the one that `train.py` runs; only shapes stand in place of the state and the batch.
"""

from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from sdecor.core import files, parallel, watchdog
from sdecor.training import build, calls, compiled, device_split, members, replicas, run_folder
from sdecor.training.batches import batch_shapes


def compile_only(
    config: ConfigDict,
    chosen: Sequence[replicas.Replica] = (),
    *,
    topology: str | None = None,
    methods: Sequence[str] = (),
    classes: int | None = None,
    examples: int | None = None,
    image_shape: tuple[int, int] | None = None,
    folder: str | None = None,
    numbers: str | None = None,
) -> None:
    """Compile the step of a config without data; print and write what it takes.

    Args:
      config: config of the run.
      chosen: the replicas; empty for a single run.
      topology: TPU slice to compile for; None for the devices here.
      methods: training methods to compare; empty for the config's own.
      classes: number of classes, in place of the data set.
      examples: number of training examples, with `classes`.
      image_shape: height and width of the stored images, with `classes`.
      folder: folder of the run, if any.
      numbers: path of the JSON file; None for compiled.json in `folder`, if there is one.

    Raises:
      ValueError: for arguments that do not fit together, or a topology that cannot be compiled for.
    """
    if topology and jax.process_count() > 1:
        raise ValueError("--topology compiles for the whole slice: start one process, without --distributed")
    devices = parallel.topology_devices(topology) if topology else jax.devices()
    build.check_config(config, len(devices))
    if classes is None:
        if examples or image_shape:
            raise ValueError("--examples and --image_shape go with --classes: they replace a data set that is not here")
        facts = build.read_facts(_open_data(config))
    else:
        facts = build.assume_facts(config, classes, examples, image_shape)
    methods = methods or [config.method]
    if chosen and methods != [config.method]:
        raise ValueError("--compile_methods compares single runs: leave out --replica")
    configs = {
        method: build.create_replicas(build.change_method(config, method), chosen, len(devices)) for method in methods
    }

    def lower(method: str, batch_size: int) -> jax.stages.Lowered:
        for own in configs[method]:
            own.train.batch_size = batch_size
        return lower_shapes(configs[method], facts, len(chosen) or None, devices if topology else None)

    watchdog.beat("the compilation of the step", timed=False)
    plan = compiled.Plan(
        title=run_folder.title_of_members(config, len(chosen) or 1),
        devices=devices,
        batch_size=config.train.batch_size,
        accumulate=config.train.accumulate,
        replicas=len(chosen) or 1,
        steps=_steps(config, devices[0]),
    )
    report = compiled.report(plan, methods, lower, say=parallel.say)
    parallel.say(compiled.describe(report))
    path = numbers or (folder and f"{folder}/compiled.json")
    if path and parallel.is_main_process():
        files.make_folder("--json" if numbers else "--workdir", epath.Path(path).parent)
        files.write_json(epath.Path(path), report)
        parallel.say(f"numbers: {path}")


def parse_shape(words: Sequence[str] | None) -> tuple[int, int] | None:
    """Return the height and width of `--image_shape`; None for none.

    Raises:
      ValueError: for words that are not two whole numbers above 0.
    """
    if not words:
        return None
    if len(words) != 2 or not all(word.isdecimal() and int(word) for word in words):
        raise ValueError(f"--image_shape = {','.join(words)}: give a height and a width, such as 256,256")
    return int(words[0]), int(words[1])


def _open_data(config: ConfigDict) -> Any:
    try:
        return build.create_data(config)
    except (ValueError, FileNotFoundError) as error:
        without = "Or name --classes, --examples and --image_shape: --compile_only then needs no data set."
        raise type(error)(f"{error}\n{without}") from error


def lower_shapes(
    configs: Sequence[ConfigDict], facts: build.DataFacts, count: int | None, devices: Sequence[jax.Device] | None
) -> jax.stages.Lowered:
    """Lower the call of one config, or of `count` replicas, for devices of a topology; None for those here."""
    config, program = configs[0], build.create_program(configs[0], facts)
    seeds = [own.seed for own in configs]
    key = members.run_key(seeds, 0, count)
    state = build.state_shapes(config, program.model, program.image_shape, key)
    hypers = [build.create_hyper(own, program.schedule.steps_per_epoch) for own in configs]
    hyper = jax.eval_shape(lambda: members.join(hypers, count))
    sizes = {"batch_size": config.train.batch_size, "accumulate": config.train.accumulate, "replicas": count}
    steps, indices = _steps(config, (devices or jax.devices())[0]), config.data.loader == "device"
    given = (hyper, device_split.shapes(facts.examples, facts.image_shape, facts.dtype)) if indices else hyper
    sizes |= {"indices": indices, "dtype": facts.dtype}
    batch = batch_shapes(facts.image_shape, devices=devices and len(devices), steps=steps, **sizes)
    split_of = facts.image_shape if indices else None
    step = calls.create(program.step, steps, replicas=count, split_of=split_of, devices=devices)
    return parallel.lower_step(step, state, batch, given, jax.eval_shape(lambda: key))


def _steps(config: ConfigDict, device: jax.Device) -> int:
    """Return the steps of the program to look at: one where a call is no loop, so that all numbers are of one step."""
    return 1 if calls.is_unrolled(device) else config.train.steps_per_call
