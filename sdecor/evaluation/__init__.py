"""Evaluation of a network on a split: its predictions, their explanations, and metrics of both.

Metrics are values per example. They depend neither on the batch size nor on the number of devices.

Files, in the order in which an evaluation uses them:
  runs                 restore trained runs, and set up their evaluation
  temperature          a run with its logits divided by a temperature
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
    METHOD_PRESETS as METHOD_PRESETS,
    METRIC_PRESETS as METRIC_PRESETS,
    RANDOM as RANDOM,
    Method as Method,
    choose_methods as choose_methods,
    choose_metrics as choose_metrics,
    split_words as split_words,
)
from sdecor.evaluation.explained import grid_pointing_game as grid_pointing_game, measure as measure
from sdecor.evaluation.groups import GROUPS as GROUPS, Group as Group, groups_of as groups_of
from sdecor.evaluation.plan import Plan as Plan, make_plan as make_plan
from sdecor.evaluation.programs import (
    IGNORE as IGNORE,
    TARGETS as TARGETS,
    Setup as Setup,
    Subject as Subject,
    make_explanation as make_explanation,
    make_measurement as make_measurement,
    make_prediction as make_prediction,
    nested_order as nested_order,
    predict as predict,
)
from sdecor.evaluation.results import (
    Results as Results,
    collect as collect,
    extend as extend,
    load as load,
    merge as merge,
    save as save,
)
from sdecor.evaluation.store import Store as Store
