"""Measures of a classifier and of its saliency, computed on the device, one value per example.

A value never depends on how examples are batched: no statistic of the batch enters it. It is NaN where the
question has no answer (an empty object, a map of zeros), so that a summary can count such examples apart.
Measures of a whole data set are listed apart and finished on the host from sums.
"""

from collections.abc import Callable
from typing import NamedTuple

from sdecor.metrics.classification import accuracy, calibration_bins, calibration_error, confidence, cross_entropy
from sdecor.metrics.complexity import gini
from sdecor.metrics.faithfulness import (
    BASELINES,
    area_under,
    baseline_images,
    deletion,
    deletion_curve,
    insertion,
    insertion_curve,
    replacement_curve,
)
from sdecor.metrics.features import feature_diagnostics, feature_moments, merge_moments
from sdecor.metrics.localization import area_share, energy_inside, pointing_game


class Metric(NamedTuple):
    """One measure: its function, its better direction (None = neither), what it needs and what it says."""

    function: Callable
    higher_is_better: bool | None
    needs_object: bool
    description: str


_CHANCE_OF_ORDER = "0 is what a random order of pixels scores on the same network."

METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy, True, False, "Share of images whose most probable class is the right one."),
    "cross_entropy": Metric(cross_entropy, False, False, "Mean −log probability of the right class, in nats."),
    "confidence": Metric(confidence, None, False, "Mean probability of the predicted class."),
    "energy_inside": Metric(energy_inside, True, True, "Share of the saliency that falls on the object."),
    "area_share": Metric(area_share, None, True, "The object's share of the image's area."),
    "pointing_game": Metric(pointing_game, True, True, "Share of images whose most salient pixel is on the object."),
    "gini": Metric(gini, True, False, "Sparseness of the map: 0 spread evenly, near 1 on a few pixels."),
    "insertion": Metric(
        insertion,
        True,
        False,
        "Area under the explained class's probability while the most salient pixels enter a baseline image.",
    ),
    "deletion": Metric(
        deletion,
        False,
        False,
        "Area under the explained class's probability while a baseline replaces the most salient pixels.",
    ),
    "insertion_vs_random": Metric(insertion, True, False, f"Insertion, relative. {_CHANCE_OF_ORDER}"),
    "deletion_vs_random": Metric(deletion, False, False, f"Deletion, relative. {_CHANCE_OF_ORDER}"),
}

# Measures that belong to the data set as a whole, not to an example.
DATASET_METRICS: dict[str, Metric] = {
    "calibration_error": Metric(
        calibration_error, False, False, "Mean gap between confidence and accuracy over 15 equal-width bins."
    ),
    "energy_ratio": Metric(
        energy_inside,
        True,
        True,
        "Mean share of saliency on the object over the object's mean share of the area; 1 is chance.",
    ),
    "mean_abs_correlation": Metric(
        feature_diagnostics, False, False, "Mean absolute correlation between pairs of features that vary."
    ),
    "effective_rank": Metric(
        feature_diagnostics, True, False, "Directions that the features use: exp of the spectrum's entropy."
    ),
    "mean_std": Metric(feature_diagnostics, None, False, "Mean standard deviation of the features."),
    "dead_features": Metric(feature_diagnostics, False, False, "Features that do not vary over the data set."),
}

__all__ = [
    "BASELINES",
    "DATASET_METRICS",
    "METRICS",
    "Metric",
    "accuracy",
    "area_share",
    "area_under",
    "baseline_images",
    "calibration_bins",
    "calibration_error",
    "confidence",
    "cross_entropy",
    "deletion",
    "deletion_curve",
    "energy_inside",
    "feature_diagnostics",
    "feature_moments",
    "gini",
    "insertion",
    "insertion_curve",
    "merge_moments",
    "pointing_game",
    "replacement_curve",
]
