"""Build the training program of a config and of its replicas: model, schedule and step."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
from ml_collections import ConfigDict

from sdecor.core import parallel
from sdecor.core.checks import check_choice
from sdecor.data.batches import steps_per_epoch
from sdecor.training import replicas, steps
from sdecor.training.build.checks import check_blocks, check_config
from sdecor.training.build.inputs import DataFacts, check_preparation, create_preparation, image_size
from sdecor.training.build.loss import create_objective, get_field
from sdecor.training.build.network import create_model
from sdecor.training.build.schedule import Schedule, create_learning_rate, create_schedule
from sdecor.training.terms import METHODS


class Program(NamedTuple):
    """The training program of a config: its model, schedule and step, of which nothing is computed yet.

    Attributes:
      model: the network.
      image_shape: shape of the network's input, such as `(H, W, C)`.
      prepare_evaluation: preparation of stored images for validation.
      schedule: the lengths of the run.
      step: `train_step` with all static choices bound.
    """

    model: nn.Module
    image_shape: tuple[int, ...]
    prepare_evaluation: Callable
    schedule: Schedule
    step: Callable


def create_program(config: ConfigDict, facts: DataFacts) -> Program:
    """Build the training program of a config for a data set.

    Raises:
      ValueError: for a config that does not fit the data set.
    """
    image_shape = image_size(config, facts.image_shape)
    check_blocks(config, image_shape)
    model = create_model(config, facts.num_classes, image_shape)
    prepare, prepare_evaluation = create_preparation(config, facts.mean, facts.std)
    check_preparation(prepare, facts.image_shape, facts.dtype)
    micro_batch = config.train.batch_size // config.train.accumulate
    schedule = create_schedule(config, steps_per_epoch(facts.examples, micro_batch))
    step = partial(
        steps.train_step,
        objective=create_objective(config),
        prepare=prepare,
        schedule=create_learning_rate(config, schedule),
        ema_decay=config.optim.ema_decay,
        accumulate=config.train.accumulate,
        skip_nonfinite=config.train.on_nonfinite == "skip",
        axis_name=parallel.AXIS,
    )
    return Program(model, image_shape, prepare_evaluation, schedule, step)


def change_method(config: ConfigDict, method: str) -> ConfigDict:
    """Return the config with another training method; a term that the config lacks gets the weight 1.

    The weights are arguments of the compiled step: which positive values they have changes no program.
    """
    check_choice("training method", method, METHODS)
    config = config.copy_and_resolve_references()
    if method == config.method:
        return config
    config.method = method
    for group in sorted({group for groups in METHODS.values() for group in groups}):
        has_term = group in METHODS[method]
        config[group].weight = (config[group].weight or 1.0) if has_term else 0.0
    if "decorrelation" not in METHODS[method]:
        config.decorrelation.variance_weight = 0.0
    return config


def create_replicas(
    config: ConfigDict, chosen: Sequence[replicas.Replica], devices: int | None = None
) -> list[ConfigDict]:
    """Return the validated config of each replica, as for a single run; without replicas, the run's own config.

    Raises:
      ValueError: for an invalid value of a replica, whose name is in the message, or a weight that is 0 in some
        replicas only.
    """
    if not chosen:
        return [config]
    if config.train.on_nonfinite == "rollback":
        raise ValueError(
            "config.train.on_nonfinite = 'rollback' is for a single run, because replicas take their steps together: "
            "choose 'stop' or 'skip', or train each by a command of its own"
        )
    configs = []
    for replica in chosen:
        own = config.copy_and_resolve_references()
        own.update_from_flattened_dict(replica.overrides)
        try:
            check_config(own, devices)
        except ValueError as error:
            raise ValueError(f"replica {replica.name}: {error}") from error
        configs.append(own)
    for field in replicas.weight_fields():
        weights = [get_field(own, field) for own in configs]
        if min(weights) == 0 < max(weights):
            raise ValueError(
                f"config.{field} is 0 in some replicas and above 0 in others ({weights}): a term of weight 0 is not "
                "computed, so train those without it by a command of their own"
            )
    return configs
