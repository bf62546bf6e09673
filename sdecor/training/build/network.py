"""Build the network of a config, with the layers that its decorrelation reads or whitens."""

import fnmatch
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from sdecor import losses, models
from sdecor.core import parallel
from sdecor.core.checks import check_choice

WHITENED = "zca"  # the form of decorrelation that is part of the network instead of the loss


def create_model(
    config: ConfigDict, num_classes: int, image_shape: tuple[int, ...], *, tapped: bool = True
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


def _whitening(config: ConfigDict, model: nn.Module, image_shape: tuple[int, ...]) -> dict[str, Any]:
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


def _chosen_layers(config: ConfigDict, model: nn.Module, image_shape: tuple[int, ...]) -> tuple[str, ...]:
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


def warn_small_batch(config: ConfigDict, model: nn.Module, image_shape: tuple[int, ...]) -> None:
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


def _warn_small_groups(config: ConfigDict, model: models.Whitened, image_shape: tuple[int, ...]) -> None:
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


def _feature_shapes(model: nn.Module, n: int, image_shape: tuple[int, ...]) -> Any:
    """Return the shapes of the model's features for `n` images."""
    images = jax.ShapeDtypeStruct((n, *image_shape), np.float32)
    (_, features), _ = jax.eval_shape(partial(model.init_with_output, train=False), jax.random.key(0), images)
    return features
