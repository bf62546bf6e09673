"""Build the objects of a run from its config.

Only this file, train.py, evaluate.py, `evaluation.runs` and `sdecor.sweep` read configs; other files take plain values.
"""

import dataclasses
import fnmatch
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import getitem
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from absl import logging
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from sdecor import attribution, losses, masking, models
from sdecor.core import parallel, rng
from sdecor.core.checks import check_choice, check_count, check_range
from sdecor.data.augment import augment, center_crop, normalise, to_float
from sdecor.data.batches import steps_per_epoch
from sdecor.data.loader import KINDS
from sdecor.data.reading import ON_ERROR
from sdecor.models import freezing, pretrained
from sdecor.training import replicas, run_folder, steps
from sdecor.training.checkpoint import Checkpoints
from sdecor.training.health import POLICIES, Policy
from sdecor.training.objective import FORWARDS, Masking, Objective, Ramp
from sdecor.training.state import SCHEDULES, TrainState, create_optimizer, create_train_state, learning_rate_schedule
from sdecor.training.steps import Hyper
from sdecor.training.terms import METHODS, TERMS, Term, watch

MASK_RAMP = ("fraction", "ramp_epochs", "start_epoch")  # fields of config.masking that are an argument of the step
WHITENED = "zca"  # the form of decorrelation that is part of the network instead of the loss


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The lengths of a run, in optimizer steps."""

    steps_per_epoch: int
    total: int
    warmup: int
    eval_every: int
    checkpoint_every: int | None
    steps_per_call: int = 1

    def is_due(self, step: int, every: int | None) -> bool:
        """Return whether an action that is due every `every` steps, and at the last step, is due after `step`."""
        return every is not None and step > 0 and (step % every == 0 or step == self.total)

    def until_due(self, step: int) -> int:
        """Return the number of steps from `step` to the next validation, checkpoint by steps, or end of the run."""
        lengths = [every for every in (self.eval_every, self.checkpoint_every) if every is not None]
        return min([self.total - step, *(every - step % every for every in lengths)])

    def left(self, start: int) -> str:
        """Return a text about the steps left from `start` on."""
        if start >= self.total:
            return f"all {self.total} steps are done"
        begin = f"continuing at step {start} of {self.total}" if start else f"starting: {self.total} steps"
        return f"{begin} ({self.steps_per_epoch} per epoch)"


def check_config(config: ConfigDict, devices: int | None = None) -> None:
    """Raise ValueError for an invalid value, before data is read or anything is compiled.

    `devices` is the number of devices of the run; by default all that JAX sees.
    """
    _check_training(config, devices)
    _check_method(config)
    _check_terms(config)
    _check_input(config)
    evaluation = config.evaluation
    check_range("config.evaluation.batch_size", evaluation.batch_size, 1)
    check_range("config.evaluation.curve_steps", evaluation.curve_steps, 1)
    check_range("config.evaluation.resamples", evaluation.resamples, 1)
    check_choice("config.evaluation.saliency_of", evaluation.saliency_of, attribution.SALIENCY_OF)
    for field in ("map_images", "curve_images", "robustness_images"):
        _check_if_set(f"config.evaluation.{field}", evaluation[field], 1)
    check_range("config.log.every_steps", config.log.every_steps, 1)


def _check_if_set(field: str, value: float | None, low: float, high: float | None = None, **options: bool) -> None:
    if value is not None:
        check_range(field, value, low, high, **options)


def _check_training(config: ConfigDict, devices: int | None) -> None:
    train, optimizer = config.train, config.optim
    check_choice("config.model.name", config.model.name, models.MODELS)
    check_choice("config.model.dtype", config.model.dtype, models.DTYPES)
    create_optimizer(optimizer.name, momentum=optimizer.momentum, clip_norm=optimizer.clip_norm)
    check_choice("config.optim.schedule", optimizer.schedule, SCHEDULES)
    check_range("config.optim.lr", optimizer.lr, 0, float("inf"), low_open=True, high_open=True)
    check_range("config.optim.weight_decay", optimizer.weight_decay, 0)
    check_range("config.optim.warmup_epochs", optimizer.warmup_epochs, 0)
    _check_if_set("config.optim.ema_decay", optimizer.ema_decay, 0, 1, high_open=True)
    _check_if_set("config.optim.backbone_lr", optimizer.backbone_lr, 0, low_open=True)
    _check_patterns("config.train.freeze", train.freeze)
    check_range("config.train.accumulate", train.accumulate, 1)
    parallel.check_batch_size("config.train.batch_size", train.batch_size, train.accumulate, devices)
    _check_masked_share(config, train.batch_size // train.accumulate // (devices or jax.device_count()))
    check_count("config.train.steps_per_call", train.steps_per_call, 1)
    check_range("config.train.epochs", train.epochs, 0, low_open=True)
    check_range("config.train.eval_every_epochs", train.eval_every_epochs, 0, low_open=True)
    check_choice("config.train.loss", train.loss, losses.CLASSIFICATIONS)
    check_range("config.train.label_smoothing", train.label_smoothing, 0, 1, high_open=True)
    _check_if_set("config.train.checkpoint_every_steps", train.checkpoint_every_steps, 1)
    check_range("config.train.checkpoint_every_minutes", train.checkpoint_every_minutes, 0)
    check_choice("config.train.on_nonfinite", train.on_nonfinite, POLICIES)
    check_count("config.train.max_skips", train.max_skips, 1)
    check_count("config.train.max_rollbacks", train.max_rollbacks, 1)
    _check_if_set("config.train.loss_limit", train.loss_limit, 0, low_open=True)


def _check_patterns(field: str, patterns: Any) -> None:
    if not isinstance(patterns, list | tuple) or not all(isinstance(each, str) and each for each in patterns):
        raise ValueError(f'{field} = {patterns!r} must be a sequence of names or patterns, such as ("stage1", "norm*")')


def _check_method(config: ConfigDict) -> None:
    """Raise ValueError unless the weights fit `config.method`, which names the run in tables."""
    check_choice("config.method", config.method, METHODS)
    weights: dict[str, dict[str, float]] = {}  # by config group
    for term in TERMS.values():
        weight = get_field(config, term.weight)
        check_range(f"config.{term.weight}", weight, 0)
        _check_if_set(f"config.{term.ramp}", get_field(config, term.ramp), 0)
        weights.setdefault(term.weight.partition(".")[0], {})[term.weight] = weight
    for group, found in weights.items():
        if not any(group in groups for groups in METHODS.values()):
            raise ValueError(
                f"config.{group} is a group of no training method: add it to one in METHODS of "
                "sdecor/training/terms.py and of configs/default.py"
            )
        has_term = group in METHODS[config.method]
        if any(found.values()) != has_term:
            wrong = {field: weight for field, weight in found.items() if has_term or weight}
            field, weight = next(iter(wrong.items()))
            right = "above 0" if has_term else "0"
            raise ValueError(
                f"config.{field} = {weight!r} contradicts config.method = {config.method!r}, where it is "
                f"{right}: choose the method by the config string, --config=FILE:method={'|'.join(METHODS)}"
            )


def _check_masked_share(config: ConfigDict, images: int) -> None:
    """Raise ValueError unless `masking.every` divides the images of a micro-batch on one device."""
    every = config.masking.every
    check_count("config.masking.every", every, 1)
    if config.consistency.weight and images % every:
        raise ValueError(
            f"config.masking.every = {every} does not divide the {images} images of a batch on one device: use a "
            f"divisor, such as {max(n for n in range(1, min(every, images) + 1) if images % n == 0)}"
        )


def _check_terms(config: ConfigDict) -> None:
    consistency, masks, decor = config.consistency, config.masking, config.decorrelation
    check_choice("config.consistency.direction", consistency.direction, losses.DIRECTIONS)
    check_range("config.masking.fraction", masks.fraction, 0, 1, high_open=True)
    check_range("config.masking.ramp_epochs", masks.ramp_epochs, 0)
    check_range("config.masking.start_epoch", masks.start_epoch, 0, config.train.epochs, high_open=True)
    check_choice("config.masking.rank_by", masks.rank_by, masking.RANKINGS)
    check_choice("config.masking.saliency_of", masks.saliency_of, masking.SALIENCY_OF)
    check_choice("config.masking.order", masks.order, masking.ORDERS)
    check_choice("config.masking.fill", masks.fill, masking.FILLS)
    check_range("config.masking.blur_sigma", masks.blur_sigma, 0, low_open=True)
    check_choice("config.masking.forward", masks.forward, FORWARDS)
    check_choice("config.decorrelation.form", decor.form, (*losses.FORMS, WHITENED))
    if decor.form == WHITENED and decor.weight > 0:
        _check_whitening(config)
    check_choice("config.decorrelation.spatial", decor.spatial, losses.SPATIALS)
    check_range("config.decorrelation.iterations", decor.iterations, 1)
    _check_if_set("config.decorrelation.epsilon", decor.epsilon, 0)
    check_choice("config.gradient_penalty.of", config.gradient_penalty.of, losses.PENALTY_OF)
    if config.model.get("remat", None) not in (None, "none"):
        _check_remat(config)


def _check_whitening(config: ConfigDict) -> None:
    """Raise ValueError for fields that mean nothing, or something else, with whitening in the forward pass."""
    decor = config.decorrelation
    wrong = {"weight": 1.0, "ramp_epochs": 0.0, "variance_weight": 0.0, "rectify": False}
    for field, right in wrong.items():
        if decor[field] != right:
            raise ValueError(
                f"config.decorrelation.{field} = {decor[field]!r} does not go with config.decorrelation.form = "
                f"{WHITENED!r}, which is no term of the loss but a part of the network: leave it at {right!r}"
            )
    if decor.epsilon is not None and decor.epsilon == 0:
        raise ValueError("config.decorrelation.epsilon = 0.0 must be above 0 with form 'zca': use 0.001, the default")
    _check_if_set("config.decorrelation.group", decor.group, 1)
    if config.consistency.weight > 0 and config.masking.forward == "frozen":
        raise ValueError(
            "config.masking.forward = 'frozen' does not go with config.decorrelation.form = 'zca', whose statistics "
            "it does not freeze: use 'shared' or 'eval'"
        )


def _check_remat(config: ConfigDict) -> None:
    """Raise ValueError if the loss needs values from inside a block, which rematerialisation does not hand out."""
    remat, decor = config.model.remat, config.decorrelation
    name, right = None, None
    if decor.layers and max(decor.weight, decor.variance_weight) > 0:
        name, value, right = "decorrelation.layers", decor.layers, "the features of the last layer, ()"
    elif config.masking.forward == "frozen" and config.consistency.weight > 0:
        name, value, right = "masking.forward", "frozen", "'shared' or 'eval'"
    if name:
        raise ValueError(
            f"config.model.remat = {remat!r} does not go with config.{name} = {value!r}, which needs values from "
            f"inside a block: use {right}, or leave config.model.remat at 'none'"
        )


def _check_input(config: ConfigDict) -> None:
    """Raise ValueError for an invalid loader or augmentation; `create_data` validates the fields of the data set."""
    data, options = config.data, config.augment
    check_choice("config.data.loader", data.loader, KINDS)
    check_range("config.data.workers", data.workers, 0)
    check_choice("config.data.on_error", data.get("on_error", "stop"), ON_ERROR)
    check_range("config.augment.crop_padding", options.crop_padding, 0)
    _check_if_set("config.augment.size", options.size, 1)


def create_schedule(config: ConfigDict, micro_batches_per_epoch: int) -> Schedule:
    """Convert the config's epochs to steps.

    Raises:
      ValueError: if the run would have no step, or no call of `train.steps_per_call` steps.
    """
    train = config.train
    steps_per_epoch = micro_batches_per_epoch // train.accumulate
    total = round(train.epochs * steps_per_epoch)
    if total < 1:
        raise ValueError(
            f"config.train.epochs = {train.epochs} of {steps_per_epoch} steps is less than one step: "
            "train longer, or lower train.batch_size or train.accumulate"
        )
    schedule = Schedule(
        steps_per_epoch=steps_per_epoch,
        total=total,
        warmup=round(config.optim.warmup_epochs * steps_per_epoch),
        eval_every=max(round(train.eval_every_epochs * steps_per_epoch), 1),
        checkpoint_every=train.checkpoint_every_steps,
        steps_per_call=train.steps_per_call,
    )
    if schedule.until_due(0) < schedule.steps_per_call:
        raise ValueError(
            f"config.train.steps_per_call = {train.steps_per_call}: a call ends at each validation, checkpoint by "
            f"steps and end of the run, and these are {schedule.until_due(0)} steps apart. Use at most so many, or "
            "change config.train.eval_every_epochs or config.train.checkpoint_every_steps"
        )
    return schedule


def create_policy(config: ConfigDict) -> Policy:
    """Return what the config chooses for a loss or gradient that is not finite."""
    fields = ("on_nonfinite", "max_skips", "max_rollbacks", "loss_limit")
    return Policy(**{field: config.train[field] for field in fields})


def create_data(config: ConfigDict, known: Mapping[str, Any] | None = None) -> Any:
    """Open the config's data set (`sdecor.data.Dataset`).

    Args:
      config: config of the run.
      known: facts of the data set that the run recorded. With data.on_error = "skip" its mean and std are used instead
        of measured ones, because they change when an image cannot be read any more.

    Raises:
      ValueError: for a data set of one class, or one that `create_dataset` refuses.
    """
    from sdecor.data import create_dataset

    data = config.data
    fields = ("path", "data_dir", "canvas", "canvas_fit", "mask_encoding", "channels", "val_fraction", "split_seed")
    fields += ("mean", "std", "limit")
    on_error = data.get("on_error", "stop")  # configs of earlier versions lack it and train_fraction
    values = {field: data[field] for field in fields}
    values["train_fraction"] = data.get("train_fraction", 1.0)
    if known is not None and on_error == "skip":
        values |= {field: known[field] for field in ("mean", "std") if values[field] is None}
    try:
        dataset = create_dataset(data.name, **values, on_error=on_error)
    except ValueError as error:
        prefix = "config." if str(error).startswith("data.") else ""  # the library knows no config
        raise ValueError(f"{prefix}{error}") from error
    if dataset.num_classes < 2:
        where = "" if data.path is None else f", data.path = {data.path!r},"
        raise ValueError(
            f"config.data.name = {data.name!r}{where} has one class, {dataset.class_names[0]!r}: a classifier of one "
            "class is always right and learns nothing. Give at least two, such as a folder of images without the object"
        )
    return dataset


class DataFacts(NamedTuple):
    """The facts of a data set that enter the compiled step.

    Attributes:
      num_classes: K.
      image_shape: `(H, W, C)` of the stored images.
      mean, std: per channel, of pixel values in [0, 1].
      examples: number of training examples.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    examples: int


_UNKNOWN = ((0.5,), (0.25,))  # mean and standard deviation of images that are not at hand


def read_facts(dataset: Any) -> DataFacts:
    """Return the facts of a data set that `create_data` opened."""
    shape, examples = tuple(dataset.image_shape), len(dataset.source("train"))
    return DataFacts(dataset.num_classes, shape, dataset.mean, dataset.std, examples)


def assume_facts(
    config: ConfigDict, classes: int, examples: int | None = None, image_shape: Sequence[int] | None = None
) -> DataFacts:
    """Return the facts of a data set that is not at hand.

    Args:
      config: config of the run; it provides the canvas, and mean and standard deviation if it has them. Else these are
        the published ones, or 0.5 and 0.25, which change no size and no time.
      classes: number of classes.
      examples: number of training examples; None for a thousand steps per epoch. Only the schedule depends on it.
      image_shape: `(H, W)` of the stored images; None for the config's canvas.

    Raises:
      ValueError: if a number is out of range, or the size of the images is unknown.
    """
    from sdecor.data.dataset import PUBLISHED, resolve

    data = config.data
    check_range("--classes", classes, 2)
    if examples is not None:
        check_range("--examples", examples, 1)
    size = image_shape or data.canvas
    if not size:
        raise ValueError("--image_shape is missing: config.data.canvas is None, so give the images' height and width")
    size = (size, size) if isinstance(size, int) else tuple(size)
    if len(size) != 2 or not all(isinstance(each, int) and each >= 1 for each in size):
        raise ValueError(f"--image_shape = {','.join(map(str, size))}: give a height and a width, such as 256,256")
    found = PUBLISHED.get(data.name.partition(":")[0], _UNKNOWN)
    mean, std = found if len(found[0]) in (1, data.channels) else _UNKNOWN
    mean, std = resolve(data.name, data.mean or mean, data.std or std, channels=data.channels, train=list)
    return DataFacts(classes, (*size, data.channels), mean, std, examples or 1000 * config.train.batch_size)


class Program(NamedTuple):
    """The training program of a config: its model, schedule and step, of which nothing is computed yet.

    Attributes:
      model: the network.
      image_shape: `(H, W, C)` of the network's input.
      prepare_evaluation: preparation of uint8 images for validation.
      schedule: the lengths of the run.
      step: `train_step` with all static choices bound.
    """

    model: nn.Module
    image_shape: tuple[int, int, int]
    prepare_evaluation: Callable
    schedule: Schedule
    step: Callable


def create_program(config: ConfigDict, facts: DataFacts) -> Program:
    """Build the training program of a config for a data set.

    Raises:
      ValueError: for a config that does not fit the data set.
    """
    image_shape = image_size(config, facts.image_shape)
    model = create_model(config, facts.num_classes, image_shape)
    prepare, prepare_evaluation = create_preparation(config, facts.mean, facts.std)
    check_preparation(prepare, facts.image_shape)
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


def create_model(
    config: ConfigDict, num_classes: int, image_shape: tuple[int, int, int], *, tapped: bool = True
) -> nn.Module:
    """Build the config's model, in a `Tap` if the loss decorrelates other layers than the last.

    With `tapped=False` the model always returns the features that enter the last layer, with the same parameters. The
    evaluation needs these to compare runs. With form "zca" the model is in a `Whitened`.

    Raises:
      ValueError: for an option that the model does not take, or a layer that it does not have.
    """
    options = {name: value for name, value in config.model.items() if value is not None}
    for field in ("name", "dtype", "init_from"):
        options.pop(field, None)
    if "widths" in options:
        options["widths"] = tuple(options["widths"])
    model = models.create_model(
        config.model.name, num_classes=num_classes, dtype=config.model.dtype, axis_name=parallel.AXIS, **options
    )
    decor = config.decorrelation
    if decor.form == WHITENED and decor.weight > 0:
        return models.Whitened(model, **_whitening(config, model, image_shape), axis_name=parallel.AXIS)
    if not decor.layers or not tapped or max(decor.weight, decor.variance_weight) == 0:
        return model
    return models.Tap(model, layers=_chosen_layers(config, model, image_shape))


def _whitening(config: ConfigDict, model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Return the options of the whitening in the forward pass: at the last layer, unless layers are named."""
    decor = config.decorrelation
    options = {name: decor[name] for name in ("group", "epsilon") if decor[name] is not None}
    if decor.layers:
        options["layers"] = _chosen_layers(config, model, image_shape)
    return options | {"iterations": decor.iterations, "through_root": decor.through_root}


def without_whitening(model: nn.Module, variables: Any) -> tuple[nn.Module, Any]:
    """Return a trained model and its variables with the whitening folded into the weights; others are unchanged."""
    if not isinstance(model, models.Whitened):
        return model, variables
    return model.module, models.fold_whitening(model, variables)


def _chosen_layers(config: ConfigDict, model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Return the layers that `config.decorrelation.layers` names."""
    known = models.layer_names(model, image_shape)
    layers = [
        layer
        for name in config.decorrelation.layers
        for layer in (model.activations if name == "activations" else _matches(name, known))
    ]
    return tuple(dict.fromkeys(layers))


def _matches(pattern: str, known: Sequence[str]) -> list[str]:
    """Return the layers that match a name or a pattern such as "norm*" or "stage4/*"; a `*` also matches a slash."""
    found = fnmatch.filter(known, pattern)
    if not found:
        check_choice("config.decorrelation.layers", pattern, ("activations", *known))
    return found


def warn_small_batch(config: ConfigDict, model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Warn if the batch is too small for a meaningful covariance; only centred forms need this."""
    decor = config.decorrelation
    if isinstance(model, models.Whitened):
        _warn_small_groups(config, model, image_shape)
        return
    if decor.weight == 0 or decor.rectify or decor.form not in losses.CENTRED:
        return
    n = config.train.batch_size // config.train.accumulate
    for layer in jax.tree.leaves(_feature_shapes(model, n, image_shape)):
        samples = n if decor.spatial == "pool" else math.prod(layer.shape[:-1])
        width = layer.shape[-1]
        if samples < 2 * width:
            floor = losses.white_floor(samples, width, form=decor.form)
            logging.warning(
                "decorrelation of %d features from %d samples: white features of mean 0 would score %s; "
                "use at least %d samples (config.train.batch_size / config.train.accumulate)",
                width, samples, f"{floor:.3g}", 2 * width,
            )  # fmt: skip


def _warn_small_groups(config: ConfigDict, model: models.Whitened, image_shape: tuple[int, int, int]) -> None:
    n = config.train.batch_size // config.train.accumulate
    if "head" not in model.layers:  # at other layers, each position of a map is a sample
        return
    group = model.group or _feature_shapes(model, n, image_shape).shape[-1]
    if n < 2 * group:
        logging.warning(
            "whitening of %d features together from %d samples is inexact: set config.decorrelation.group to at most "
            "%d, or use a batch of %d",
            group, n, n // 2, 2 * group,
        )  # fmt: skip


def _feature_shapes(model: nn.Module, n: int, image_shape: tuple[int, int, int]) -> Any:
    """Return the shapes of the model's features for `n` images."""
    images = jax.ShapeDtypeStruct((n, *image_shape), np.float32)
    (_, features), _ = jax.eval_shape(partial(model.init_with_output, train=False), jax.random.key(0), images)
    return features


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


def create_state(
    config: ConfigDict, model: nn.Module, image_shape: tuple[int, int, int], key: jax.Array | None = None
) -> TrainState:
    """Initialise the config's model and optimizer on the local devices; keys `[R]` give the state of R replicas.

    The default key is derived from the config's seed.
    """
    key = rng.run_key(config.seed, 0) if key is None else key
    return parallel.replicate(_initial_state(config, model, image_shape, key))


def state_shapes(config: ConfigDict, model: nn.Module, image_shape: tuple[int, int, int], key: jax.Array) -> TrainState:
    """Return the shapes of `create_state`, without computing it."""
    return jax.eval_shape(partial(_initial_state, config, model, image_shape), key)


def _initial_state(
    config: ConfigDict, model: nn.Module, image_shape: tuple[int, int, int], key: jax.Array
) -> TrainState:
    optimizer = config.optim
    patterns = tuple(config.train.get("freeze", ()))  # configs of earlier versions lack it
    tx = create_optimizer(
        optimizer.name,
        momentum=optimizer.momentum,
        clip_norm=optimizer.clip_norm,
        frozen=partial(freezing.frozen_parameters, patterns=patterns) if patterns else None,
        backbone=freezing.backbone_parameters,
        backbone_lr=optimizer.get("backbone_lr"),
    )
    apply = freezing.freeze(model.apply, patterns) if patterns else model.apply
    ema = optimizer.ema_decay is not None
    return create_train_state(model, tx, key=key, image_shape=image_shape, ema=ema, apply_fn=apply)


def initialise_from(
    config: ConfigDict, model: nn.Module, image_shape: tuple[int, int, int], state: TrainState, replicas: int | None
) -> tuple[TrainState, list[str]]:
    """Return the state before the first step with the weights of `config.model.init_from`, and lines about these.

    Replicas all get the same weights. Where the head's shape differs, each keeps its own.

    Raises:
      ValueError: for a file or run that is missing or does not fit the network.
    """
    source = config.model.init_from
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[replicas is not None :], x.dtype), variables)
    try:
        is_run = run_folder.is_checkpoint(source)
        loaded = _variables_of_run(source) if is_run else pretrained.read_pretrained(model, source)
        fitted, notes = pretrained.fit_variables(model, like, loaded, image_shape, source=source)
    except ValueError as error:
        raise ValueError(f"config.model.init_from: {error}") from error
    if replicas is not None:
        fitted = {path: np.broadcast_to(array, (replicas, *array.shape)) for path, array in fitted.items()}
    new = pretrained.replace_variables(variables, {path: parallel.replicate(leaf) for path, leaf in fitted.items()})
    state = state.replace(params=new["params"], batch_stats=new["batch_stats"])
    if state.ema_params is not None:  # an array of its own: the step donates its state
        copy = partial(jax.tree.map, jax.numpy.copy)
        state = state.replace(ema_params=copy(state.params), ema_batch_stats=copy(state.batch_stats))
    return state, [f"the network starts from {source}", *notes]


def _variables_of_run(source: str) -> dict[tuple[str, ...], np.ndarray]:
    """Return the variables of a trained run by their paths: of its best checkpoint, or of the one that is named."""
    folder, step = run_folder.split_checkpoint(source)
    recorded = run_folder.read(folder)
    config, known = ConfigDict(recorded["config"]), recorded["dataset"]
    image_shape = image_size(config, tuple(known["image_shape"]))
    model = create_model(config, known["num_classes"], image_shape, tapped=False)
    state = state_shapes(config, model, image_shape, rng.run_key(config.seed, 0))
    with Checkpoints(folder, create=False) as checkpoints:
        restored = checkpoints.restore(state, checkpoints.best_step() if step is None else step)
    if restored is None:
        raise ValueError(f"{folder} has no checkpoint")
    _, variables = without_whitening(model, restored[0].variables)
    return flatten_dict(jax.tree.map(np.asarray, parallel.to_host(variables)))


def create_objective(config: ConfigDict) -> Objective:
    """Build the loss: bind the terms of weight above 0 to their options, and collect the other static choices."""
    terms = {
        name: partial(term.function, **{field.rpartition(".")[2]: get_field(config, field) for field in term.options})
        for name, term in _used_terms(config).items()
    }
    decor = config.decorrelation
    rectify = decor.rectify and bool({"decorrelation", "variance"} & set(terms))
    return Objective(
        terms=terms,
        loss=config.train.loss,
        label_smoothing=config.train.label_smoothing,
        masking=Masking(**_without(config.masking, *MASK_RAMP)) if "consistency" in terms else None,
        penalty_of=config.gradient_penalty.of if "gradient_penalty" in terms else None,
        watch=partial(watch, spatial=decor.spatial, rectify=rectify),
    )


def create_hyper(config: ConfigDict, steps_per_epoch: int) -> Hyper:
    """Build the numbers that are an argument of the compiled step; ramps are converted to steps."""

    def ramp(value: float, epochs: float | None, start: float | None = None) -> Ramp:
        epochs = config.train.epochs - (start or 0.0) if epochs is None else epochs
        begin = None if start is None else np.float32(round(start * steps_per_epoch))
        return Ramp(np.float32(value), np.float32(epochs * steps_per_epoch), begin)

    weights = {
        name: ramp(
            get_field(config, term.weight),
            get_field(config, term.ramp),
            get_field(config, term.start) if term.start else None,
        )
        for name, term in _used_terms(config).items()
    }
    masks = config.masking
    return Hyper(
        learning_rate=np.float32(config.optim.lr),
        weight_decay=np.float32(config.optim.weight_decay),
        mask_fraction=ramp(masks.fraction, masks.ramp_epochs, masks.start_epoch),
        weights=weights,
    )


def _used_terms(config: ConfigDict) -> dict[str, Term]:
    used = {name: term for name, term in TERMS.items() if get_field(config, term.weight) > 0}
    if config.decorrelation.form == WHITENED:
        used.pop("decorrelation", None)  # the network whitens its features itself
    return used


def get_field(config: ConfigDict, field: str) -> Any:
    """Return the value of the field with a dotted name."""
    return functools.reduce(getitem, field.split("."), config)


def _without(group: ConfigDict, *fields: str) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in fields}


def create_learning_rate(config: ConfigDict, schedule: Schedule) -> optax.Schedule:
    """Build the learning rate's shape over the run."""
    return learning_rate_schedule(config.optim.schedule, total_steps=schedule.total, warmup_steps=schedule.warmup)


def check_preparation(prepare: Callable, canvas: tuple[int, int, int]) -> None:
    """Trace the training preparation, so that invalid augmentation fails before training.

    Raises:
      ValueError: for invalid augmentation; the message names the field and its valid values.
    """
    key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    image = jax.ShapeDtypeStruct((1, *canvas), np.uint8)
    try:
        jax.eval_shape(prepare, key, image)
    except ValueError as error:
        raise ValueError(f"config.augment: {error}") from error


def image_size(config: ConfigDict, canvas: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the shape of the model's input for images on the `canvas` (H, W, C).

    Raises:
      ValueError: if the input is larger than the canvas.
    """
    size = config.augment.size
    if size is None:
        return canvas
    check_range("config.augment.size", size, 1, min(canvas[:2]))
    return (size, size, canvas[2])


def create_preparation(config: ConfigDict, mean: Any, std: Any) -> tuple[Callable, Callable]:
    """Return the preparations of images on the device: training's `(keys, uint8) -> float32`, and evaluation's."""
    options = config.augment
    change = partial(
        augment,
        crop_padding=options.crop_padding,
        flip=options.flip,
        resized_crop=options.resized_crop and tuple(options.resized_crop),
        size=options.size,
    )

    def for_training(keys: jax.Array, images: jax.Array) -> jax.Array:
        return normalise(change(keys, to_float(images)), mean, std)

    def for_evaluation(images: jax.Array) -> jax.Array:
        return normalise(center_crop(images, options.size), mean, std)

    return for_training, for_evaluation
