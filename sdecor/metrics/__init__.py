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
  composite                 coherency, ADCC and ARCC: harmonic means of several properties
  correlations, infidelity  relevance against the change of the score
  robustness, sufficiency   maps of similar images; predictions of images with similar maps
  randomization             maps after the parameters or the class are changed
  parameters                layers of the parameters, and random parameters
  axiomatic                 completeness, non-sensitivity, input invariance
  similarity                correlation, cosine and SSIM of two maps
"""

from sdecor.attribution.baselines import blurred as blurred
from sdecor.metrics.axiomatic import (
    completeness as completeness,
    input_invariance as input_invariance,
    non_sensitivity as non_sensitivity,
)
from sdecor.metrics.complexity import (
    checkerboard as checkerboard,
    effective_complexity as effective_complexity,
    entropy as entropy,
    gini as gini,
    mst_compactness as mst_compactness,
)
from sdecor.metrics.composite import adcc as adcc, arcc as arcc, coherency as coherency
from sdecor.metrics.correlations import (
    faithfulness_correlation as faithfulness_correlation,
    faithfulness_estimate as faithfulness_estimate,
    monotonicity_correlation as monotonicity_correlation,
    sensitivity_n as sensitivity_n,
    sensitivity_n_curve as sensitivity_n_curve,
)
from sdecor.metrics.faithfulness import (
    average_drop as average_drop,
    average_increase as average_increase,
    deletion as deletion,
    deletion_curve as deletion_curve,
    deletion_vs_random as deletion_vs_random,
    insertion as insertion,
    insertion_curve as insertion_curve,
    insertion_vs_random as insertion_vs_random,
    masked_accuracy_curve as masked_accuracy_curve,
    monotonicity as monotonicity,
    pixel_flipping as pixel_flipping,
    pixel_flipping_curve as pixel_flipping_curve,
    relative_to_random as relative_to_random,
)
from sdecor.metrics.grid import (
    choose_mosaics as choose_mosaics,
    grid_pointing_game as grid_pointing_game,
    make_mosaics as make_mosaics,
)
from sdecor.metrics.infidelity import infidelity as infidelity
from sdecor.metrics.localization import (
    area_share as area_share,
    attribution_localization as attribution_localization,
    best_iou as best_iou,
    boxes_to_masks as boxes_to_masks,
    energy_inside as energy_inside,
    pointing_game as pointing_game,
    relevance_rank_accuracy as relevance_rank_accuracy,
    roc_auc as roc_auc,
    top_k_intersection as top_k_intersection,
)
from sdecor.metrics.network import (
    accuracy as accuracy,
    calibration_bins as calibration_bins,
    calibration_error as calibration_error,
    confidence as confidence,
    cross_entropy as cross_entropy,
    feature_diagnostics as feature_diagnostics,
    feature_moments as feature_moments,
    fit_temperature as fit_temperature,
    majority_share as majority_share,
    merge_moments as merge_moments,
)
from sdecor.metrics.parameters import layers_of as layers_of, leaf_names as leaf_names, redraw as redraw
from sdecor.metrics.randomization import (
    efficient_mprt as efficient_mprt,
    histogram_entropy as histogram_entropy,
    parameter_randomization as parameter_randomization,
    random_logit as random_logit,
    smooth_mprt as smooth_mprt,
)
from sdecor.metrics.regions import (
    irof as irof,
    irof_curve as irof_curve,
    region_perturbation as region_perturbation,
    region_perturbation_curve as region_perturbation_curve,
    selectivity as selectivity,
    selectivity_curve as selectivity_curve,
)
from sdecor.metrics.registry import (
    DATASET_METRICS as DATASET_METRICS,
    METRICS as METRICS,
    NEEDS as NEEDS,
    Metric as Metric,
)
from sdecor.metrics.replacement import (
    BASELINES as BASELINES,
    area_under as area_under,
    baseline_images as baseline_images,
    replacement_curve as replacement_curve,
)
from sdecor.metrics.road import RoadCurves as RoadCurves, impute as impute, road as road, road_curves as road_curves
from sdecor.metrics.robustness import (
    avg_sensitivity as avg_sensitivity,
    consistency as consistency,
    continuity as continuity,
    local_lipschitz as local_lipschitz,
    max_sensitivity as max_sensitivity,
    relative_input_stability as relative_input_stability,
    relative_output_stability as relative_output_stability,
    relative_representation_stability as relative_representation_stability,
    relative_stabilities as relative_stabilities,
    sensitivities as sensitivities,
)
from sdecor.metrics.similarity import cosine as cosine, pearson as pearson, spearman as spearman, ssim as ssim
from sdecor.metrics.sufficiency import sufficiency as sufficiency
