"""Metrics of a classifier and of its attribution maps, computed on the device, one value per example.

A value does not depend on the batch of its example. It is NaN if the metric is undefined for an example, such as one
with an empty object or a map of zeros, so that a summary can count such examples. Metrics of a whole data set are in
`DATASET_METRICS`; the host computes them from sums.

Files:
  registry                  the table of metrics: one row each, with all its facts
  inputs                    validation of a metric's arguments
  network                   accuracy, calibration, and correlation of features
  localization, grid        maps against object masks; the grid pointing game
  complexity                how concentrated a map is
  faithfulness, regions     score after pixels, or patches and segments, are replaced in the map's order
  road, replacement         ROAD; the replacement loop of these metrics
  correlations, infidelity  relevance against the change of the score
  robustness, sufficiency   maps of similar images; predictions of images with similar maps
  randomization             maps after the parameters or the class are changed
  parameters                layers of the parameters, and random parameters
  axiomatic                 completeness, non-sensitivity, input invariance
  similarity                correlation, cosine and SSIM of two maps
"""

from sdecor.metrics.axiomatic import completeness, input_invariance, non_sensitivity
from sdecor.metrics.complexity import effective_complexity, entropy, gini
from sdecor.metrics.correlations import (
    faithfulness_correlation,
    faithfulness_estimate,
    monotonicity_correlation,
    sensitivity_n,
    sensitivity_n_curve,
)
from sdecor.metrics.faithfulness import (
    average_drop,
    average_increase,
    deletion,
    deletion_curve,
    deletion_vs_random,
    insertion,
    insertion_curve,
    insertion_vs_random,
    masked_accuracy_curve,
    monotonicity,
    pixel_flipping,
    pixel_flipping_curve,
    relative_to_random,
)
from sdecor.metrics.grid import choose_mosaics, grid_pointing_game, make_mosaics
from sdecor.metrics.infidelity import infidelity
from sdecor.metrics.localization import (
    area_share,
    attribution_localization,
    best_iou,
    boxes_to_masks,
    energy_inside,
    pointing_game,
    relevance_rank_accuracy,
    roc_auc,
    top_k_intersection,
)
from sdecor.metrics.network import (
    accuracy,
    calibration_bins,
    calibration_error,
    confidence,
    cross_entropy,
    feature_diagnostics,
    feature_moments,
    majority_share,
    merge_moments,
)
from sdecor.metrics.parameters import layers_of, leaf_names, redraw
from sdecor.metrics.randomization import (
    efficient_mprt,
    histogram_entropy,
    parameter_randomization,
    random_logit,
    smooth_mprt,
)
from sdecor.metrics.regions import (
    irof,
    irof_curve,
    region_perturbation,
    region_perturbation_curve,
    selectivity,
    selectivity_curve,
)
from sdecor.metrics.registry import DATASET_METRICS, METRICS, NEEDS, Metric
from sdecor.metrics.replacement import BASELINES, area_under, baseline_images, blurred, replacement_curve
from sdecor.metrics.road import RoadCurves, impute, road, road_curves
from sdecor.metrics.robustness import (
    avg_sensitivity,
    consistency,
    continuity,
    local_lipschitz,
    max_sensitivity,
    relative_input_stability,
    relative_output_stability,
    relative_representation_stability,
    relative_stabilities,
    sensitivities,
)
from sdecor.metrics.similarity import cosine, pearson, spearman, ssim
from sdecor.metrics.sufficiency import sufficiency

__all__ = [
    "BASELINES",
    "DATASET_METRICS",
    "METRICS",
    "NEEDS",
    "Metric",
    "RoadCurves",
    "accuracy",
    "area_share",
    "area_under",
    "attribution_localization",
    "average_drop",
    "average_increase",
    "avg_sensitivity",
    "baseline_images",
    "best_iou",
    "blurred",
    "boxes_to_masks",
    "calibration_bins",
    "calibration_error",
    "choose_mosaics",
    "completeness",
    "confidence",
    "consistency",
    "continuity",
    "cosine",
    "cross_entropy",
    "deletion",
    "deletion_curve",
    "deletion_vs_random",
    "effective_complexity",
    "efficient_mprt",
    "energy_inside",
    "entropy",
    "faithfulness_correlation",
    "faithfulness_estimate",
    "feature_diagnostics",
    "feature_moments",
    "gini",
    "grid_pointing_game",
    "histogram_entropy",
    "impute",
    "infidelity",
    "input_invariance",
    "insertion",
    "insertion_curve",
    "insertion_vs_random",
    "irof",
    "irof_curve",
    "layers_of",
    "leaf_names",
    "local_lipschitz",
    "majority_share",
    "make_mosaics",
    "masked_accuracy_curve",
    "max_sensitivity",
    "merge_moments",
    "monotonicity",
    "monotonicity_correlation",
    "non_sensitivity",
    "parameter_randomization",
    "pearson",
    "pixel_flipping",
    "pixel_flipping_curve",
    "pointing_game",
    "random_logit",
    "redraw",
    "region_perturbation",
    "region_perturbation_curve",
    "relative_input_stability",
    "relative_output_stability",
    "relative_representation_stability",
    "relative_stabilities",
    "relative_to_random",
    "relevance_rank_accuracy",
    "replacement_curve",
    "road",
    "road_curves",
    "roc_auc",
    "selectivity",
    "selectivity_curve",
    "sensitivities",
    "sensitivity_n",
    "sensitivity_n_curve",
    "smooth_mprt",
    "spearman",
    "ssim",
    "sufficiency",
    "top_k_intersection",
]
