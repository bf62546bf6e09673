"""Evaluation of a network on a split: its predictions, their explanations, and metrics of both.

Metrics are values per example. They depend neither on the batch size nor on the number of devices.

Files, in the order in which an evaluation uses them:
  runs                 restore trained runs, and set up their evaluation
  choices              methods and metrics chosen by words, such as --methods=quick
  groups, baselines    metrics that are computed together, and their options
  plan                 the methods and metrics that the network and data support
  programs, context    the programs on the devices, and the arguments of metrics
  explained            explain by one method and measure, over images and over mosaics
  stored               stored maps, in place of explanations
  results, store       results in memory, and in the run's folder
  statistics, summary  intervals and tests; the numbers of a run, and the differences of two runs
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
