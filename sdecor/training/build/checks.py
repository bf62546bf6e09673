"""Validate a config: every value that can be judged before data is read or anything is compiled."""

import math
from typing import Any

import jax
from ml_collections import ConfigDict

from sdecor import attribution, losses, masking, models
from sdecor.core import parallel
from sdecor.core.checks import check_choice, check_count, check_range
from sdecor.data.loader import KINDS
from sdecor.data.reading import ON_ERROR
from sdecor.training.build.loss import get_field
from sdecor.training.build.network import WHITENED
from sdecor.training.health import POLICIES
from sdecor.training.objective import FORWARDS
from sdecor.training.state import SCHEDULES, create_optimizer
from sdecor.training.terms import METHODS, TERMS


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


def check_blocks(config: ConfigDict, image_shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `masking.block` divides the input `[*positions, C]`, and at least one block is masked."""
    masks, positions = config.masking, image_shape[:-1]
    if not config.consistency.weight:
        return
    if any(size % masks.block for size in positions):
        common = math.gcd(*positions)
        right = max(n for n in range(1, min(masks.block, common) + 1) if common % n == 0)
        raise ValueError(
            f"config.masking.block = {masks.block} does not divide the network's input of "
            f"{'×'.join(map(str, positions))} positions: use a divisor, such as {right}"
        )
    blocks = math.prod(size // masks.block for size in positions)
    if masks.block > 1 and masks.fraction > 0 and masks.fraction * blocks + 1e-3 < 1:
        raise ValueError(
            f"config.masking.fraction = {masks.fraction} masks none of the {blocks} blocks of config.masking.block = "
            f"{masks.block}: use {1 / blocks:.3g} or more, or smaller blocks"
        )


def _check_terms(config: ConfigDict) -> None:
    consistency, masks, decor = config.consistency, config.masking, config.decorrelation
    check_choice("config.consistency.direction", consistency.direction, losses.DIRECTIONS)
    check_range("config.masking.fraction", masks.fraction, 0, 1, high_open=True)
    check_range("config.masking.ramp_epochs", masks.ramp_epochs, 0)
    check_count("config.masking.block", masks.block)
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
