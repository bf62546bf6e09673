"""Evaluating a network on a split: what it predicts, how it is explained, and how good the explanations are.

A metric belongs to its example, so results depend neither on the batch size nor on the number of devices. In order:
`choices` (which methods and metrics), `plan` (what fits the network and data), `programs` and `explained` (predict,
explain and measure on all devices), `results` (what was found, joined and stored). `sdecor.evaluation.summary` makes
numbers with intervals of it.
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
