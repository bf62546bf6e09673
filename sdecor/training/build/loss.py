"""Build the loss of a config: its terms with their options, and the numbers that the compiled step takes."""

import functools
from functools import partial
from operator import getitem
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from sdecor.training.build.network import WHITENED
from sdecor.training.objective import Masking, Objective, Ramp
from sdecor.training.steps import Hyper
from sdecor.training.terms import TERMS, Term, watch

MASK_RAMP = ("fraction", "ramp_epochs", "start_epoch")  # fields of config.masking that are an argument of the step


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
