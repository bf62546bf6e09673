"""Evaluating a network on a split: what it predicts, how it is explained, and how good the explanations are.

A metric belongs to its example, so results depend neither on the batch size nor on the number of devices. In order:
`choices` (which methods and metrics), `plan` (what fits the network and data), `programs` and `explained` (predict,
explain and measure on all devices), `results` (what was found, joined and stored). `sdecor.evaluation.summary` makes
numbers with intervals of it.
"""

from sdecor.evaluation.choices import (
    METHOD_PRESETS,
    METRIC_PRESETS,
    RANDOM,
    Method,
    choose_methods,
    choose_metrics,
    split_words,
)
from sdecor.evaluation.explained import grid_pointing_game, measure
from sdecor.evaluation.groups import GROUPS, Group, groups_of
from sdecor.evaluation.plan import Plan, make_plan
from sdecor.evaluation.programs import (
    IGNORE,
    TARGETS,
    Setup,
    Subject,
    make_explanation,
    make_measurement,
    make_prediction,
    nested_order,
    predict,
)
from sdecor.evaluation.results import Results, collect, extend, load, merge, save
from sdecor.evaluation.store import Store

__all__ = [
    "GROUPS",
    "IGNORE",
    "METHOD_PRESETS",
    "METRIC_PRESETS",
    "RANDOM",
    "TARGETS",
    "Group",
    "Method",
    "Plan",
    "Results",
    "Setup",
    "Store",
    "Subject",
    "choose_methods",
    "choose_metrics",
    "collect",
    "extend",
    "grid_pointing_game",
    "groups_of",
    "load",
    "make_explanation",
    "make_measurement",
    "make_plan",
    "make_prediction",
    "measure",
    "merge",
    "nested_order",
    "predict",
    "save",
    "split_words",
]
