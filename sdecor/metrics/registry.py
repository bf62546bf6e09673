"""The metrics by name: their function, direction, what they need, and their words in a table."""

from collections.abc import Callable
from typing import NamedTuple

from sdecor.metrics.axiomatic import completeness, input_invariance, non_sensitivity
from sdecor.metrics.complexity import effective_complexity, entropy, gini
from sdecor.metrics.correlations import (
    faithfulness_correlation,
    faithfulness_estimate,
    monotonicity_correlation,
    sensitivity_n,
)
from sdecor.metrics.faithfulness import (
    average_drop,
    average_increase,
    deletion,
    deletion_vs_random,
    insertion,
    insertion_vs_random,
    masked_accuracy_curve,
    monotonicity,
    pixel_flipping,
)
from sdecor.metrics.grid import grid_pointing_game
from sdecor.metrics.infidelity import infidelity
from sdecor.metrics.localization import (
    area_share,
    attribution_localization,
    best_iou,
    energy_inside,
    pointing_game,
    relevance_rank_accuracy,
    roc_auc,
    top_k_intersection,
)
from sdecor.metrics.network import accuracy, calibration_error, confidence, cross_entropy, feature_diagnostics
from sdecor.metrics.randomization import efficient_mprt, parameter_randomization, random_logit, smooth_mprt
from sdecor.metrics.regions import irof, region_perturbation, selectivity
from sdecor.metrics.road import road
from sdecor.metrics.robustness import (
    avg_sensitivity,
    consistency,
    continuity,
    local_lipschitz,
    max_sensitivity,
    relative_input_stability,
    relative_output_stability,
    relative_representation_stability,
)
from sdecor.metrics.sufficiency import sufficiency

# What metrics are computed from, by name.
NEEDS = {
    "model": "the logits or the features",
    "maps": "the maps",
    "object": "maps and object masks",
    "network": "the network, and maps or sums of the attributions over channels",
    "attributions": "the network and whole attributions, signed and with their channels",
    "explanation": "the explanation as a function of the image, which is explained again",
    "parameters": "the explanation as a function of the network's parameters too",
    "mosaic": "explanations of mosaics of images",
    "set": "the maps and predictions of many images at once: a value depends on the other images",
}


class Metric(NamedTuple):
    """One measure.

    Attributes:
      function: computes it.
      higher_is_better: None = neither direction is.
      needs: what it is computed from, one of `NEEDS`.
      title: what a table calls it.
      description: what it says, in a sentence.
      percent: whether it is a share that is read in per cent.
    """

    function: Callable
    higher_is_better: bool | None
    needs: str
    title: str
    description: str
    percent: bool = False


_CHANCE_OF_ORDER = "0 is what a random order of pixels scores on the same network."

# In the order in which they are read.
# fmt: off
METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        accuracy, True, "model", "Accuracy",
        "Share of images whose most probable class is the right one.", percent=True),
    "cross_entropy": Metric(
        cross_entropy, False, "model", "Cross-entropy",
        "Mean −log probability of the right class, in nats."),
    "confidence": Metric(
        confidence, None, "model", "Confidence",
        "Mean probability of the predicted class.", percent=True),
    "energy_inside": Metric(
        energy_inside, True, "object", "Saliency on the object",
        "Share of the saliency that falls on the object.", percent=True),
    "area_share": Metric(
        area_share, None, "object", "Object's share of the area",
        "The object's share of the image's area.", percent=True),
    "pointing_game": Metric(
        pointing_game, True, "object", "Pointing game",
        "Share of images whose most salient pixel is on the object.", percent=True),
    "attribution_localization": Metric(
        attribution_localization, True, "object", "Attribution localization",
        "Share of the saliency that falls on the object over the object's share of the area; 1 is chance."),
    "relevance_rank_accuracy": Metric(
        relevance_rank_accuracy, True, "object", "Relevance rank accuracy",
        "Share of the most salient pixels, as many as the object has, that are on the object.", percent=True),
    "top_k_intersection": Metric(
        top_k_intersection, True, "object", "Top-k intersection",
        "Share of the k most salient pixels that are on the object.", percent=True),
    "roc_auc": Metric(
        roc_auc, True, "object", "ROC-AUC of the object",
        "Probability that a pixel of the object is more salient than one of the background."),
    "best_iou": Metric(
        best_iou, True, "object", "IoU at the best threshold",
        "Intersection over union of the object and the pixels above the best threshold.", percent=True),
    "grid_pointing_game": Metric(
        grid_pointing_game, True, "mosaic", "Grid pointing game",
        "Share of a class's saliency in its own cell of a mosaic of four confidently classified images.", percent=True),
    "gini": Metric(
        gini, True, "maps", "Sparseness (Gini)",
        "Sparseness of the map: 0 spread evenly, near 1 on a few pixels."),
    "entropy": Metric(
        entropy, False, "maps", "Complexity (entropy)",
        "Entropy of the pixels' shares of the saliency, in nats."),
    "effective_complexity": Metric(
        effective_complexity, False, "maps", "Effective complexity",
        "Pixels whose saliency is not negligible beside the map's largest."),
    "insertion": Metric(
        insertion, True, "network", "Insertion area",
        "Area under the explained class's probability while the most salient pixels enter a baseline image."),
    "insertion_vs_random": Metric(
        insertion_vs_random, True, "network", "Insertion area, relative to random",
        f"Insertion, relative. {_CHANCE_OF_ORDER}"),
    "deletion": Metric(
        deletion, False, "network", "Deletion area",
        "Area under the explained class's probability while a baseline replaces the most salient pixels."),
    "deletion_vs_random": Metric(
        deletion_vs_random, False, "network", "Deletion area, relative to random",
        f"Deletion, relative. {_CHANCE_OF_ORDER}"),
    "road": Metric(
        road, False, "network", "ROAD accuracy",
        "Share of right predictions while the most salient pixels are removed by noisy imputation.", percent=True),
    "masked_accuracy": Metric(
        masked_accuracy_curve, False, "network", "Masked accuracy",
        "Share of right predictions while the pixels of greatest absolute saliency are blackened.", percent=True),
    "aopc_morf": Metric(
        region_perturbation, True, "network", "AOPC, most relevant first",
        "Mean drop of the explained class's probability while the most salient patches become noise."),
    "aopc_lerf": Metric(
        region_perturbation, False, "network", "AOPC, least relevant first",
        "Mean drop of the explained class's probability while the least salient patches become noise."),
    "pixel_flipping": Metric(
        pixel_flipping, False, "network", "Pixel flipping area",
        "Area under the explained class's probability while the most salient pixels are blackened."),
    "selectivity": Metric(
        selectivity, False, "network", "Selectivity",
        "Area under the explained class's probability while the most salient patches are removed."),
    "irof": Metric(
        irof, True, "network", "IROF",
        "Area over the share of the probability that is left while the most salient patches are removed."),
    "monotonicity": Metric(
        monotonicity, True, "network", "Monotonicity",
        "Share of images whose probability never falls while pixels enter, least salient first.", percent=True),
    "average_drop": Metric(
        average_drop, False, "network", "Average drop",
        "Share of the explained class's probability that is lost when the map masks the image.", percent=True),
    "average_increase": Metric(
        average_increase, True, "network", "Average increase",
        "Share of images whose explained class gains probability when the map masks the image.", percent=True),
    "faithfulness_correlation": Metric(
        faithfulness_correlation, True, "network", "Faithfulness correlation",
        "Correlation of the attribution's sum over random sets of pixels and the score's drop without them."),
    "faithfulness_estimate": Metric(
        faithfulness_estimate, True, "network", "Faithfulness estimate",
        "Correlation of the attribution's sum over groups of like relevance and the score's drop without them."),
    "monotonicity_correlation": Metric(
        monotonicity_correlation, True, "network", "Monotonicity correlation",
        "Rank correlation of the saliency of groups of pixels and the effect of noise on them."),
    "sensitivity_n": Metric(
        sensitivity_n, True, "network", "Sensitivity-n",
        "Correlation of attribution and effect over random sets of n pixels, mean over n."),
    "infidelity": Metric(
        infidelity, False, "attributions", "Infidelity",
        "Mean squared error of the attribution, scaled at best, as a linear model of the score around the image."),
    "max_sensitivity": Metric(
        max_sensitivity, False, "explanation", "Max-sensitivity",
        "Largest relative change of the explanation between the image and one that hardly differs."),
    "avg_sensitivity": Metric(
        avg_sensitivity, False, "explanation", "Average sensitivity",
        "Mean relative change of the explanation between the image and those that hardly differ."),
    "local_lipschitz": Metric(
        local_lipschitz, False, "explanation", "Local Lipschitz estimate",
        "Steepest relative change of the explanation per change of the image."),
    "continuity": Metric(
        continuity, False, "explanation", "Continuity",
        "Steepest relative change of the explanation as the image moves sideways by a few pixels."),
    "relative_input_stability": Metric(
        relative_input_stability, False, "explanation", "Relative input stability",
        "Largest relative change of the explanation over that of the image."),
    "relative_output_stability": Metric(
        relative_output_stability, False, "explanation", "Relative output stability",
        "Largest relative change of the explanation over the change of the logits."),
    "relative_representation_stability": Metric(
        relative_representation_stability, False, "explanation", "Relative representation stability",
        "Largest relative change of the explanation over that of the features."),
    "random_logit": Metric(
        random_logit, False, "explanation", "Random logit",
        "Similarity of the explanation to that of another class."),
    "parameter_randomization": Metric(
        parameter_randomization, False, "parameters", "Parameter randomization (MPRT)",
        "Similarity of the explanation to that of a network whose layers are random, mean over the layers."),
    "smooth_mprt": Metric(
        smooth_mprt, False, "parameters", "Smooth MPRT",
        "Parameter randomization of the explanation averaged over noisy images."),
    "efficient_mprt": Metric(
        efficient_mprt, True, "parameters", "Efficient MPRT",
        "Relative rise of the explanation's entropy when all parameters are random."),
    "completeness": Metric(
        completeness, False, "network", "Completeness error",
        "Gap between the attribution's sum and the rise of the score from the baseline, over the size of the rise."),
    "non_sensitivity": Metric(
        non_sensitivity, False, "network", "Non-sensitivity",
        "Share of pixels that matter to the network and are not salient, or the other way round.", percent=True),
    "input_invariance": Metric(
        input_invariance, False, "explanation", "Input invariance error",
        "Relative change of the explanation when image and network are shifted alike."),
}

# Measures that belong to the data set as a whole, not to an example.
DATASET_METRICS: dict[str, Metric] = {
    "calibration_error": Metric(
        calibration_error, False, "model", "Calibration error",
        "Mean gap between confidence and accuracy over 15 equal-width bins.", percent=True),
    "energy_ratio": Metric(
        energy_inside, True, "object", "Saliency on the object, relative to its area",
        "Mean share of saliency on the object over the object's mean share of the area; 1 is chance."),
    "sufficiency": Metric(
        sufficiency, True, "set", "Sufficiency",
        "Share of images with the same prediction among those with a similar map.", percent=True),
    "consistency": Metric(
        consistency, True, "set", "Consistency",
        "Share of images with the same prediction among those whose saliency is in the same place.", percent=True),
    "mean_abs_correlation": Metric(
        feature_diagnostics, False, "model", "Feature correlation",
        "Mean absolute correlation between pairs of features that vary."),
    "effective_rank": Metric(
        feature_diagnostics, True, "model", "Effective rank of features",
        "Directions that the features use: exp of the spectrum's entropy."),
    "mean_std": Metric(
        feature_diagnostics, None, "model", "Feature scale",
        "Mean standard deviation of the features."),
    "dead_features": Metric(
        feature_diagnostics, False, "model", "Dead features",
        "Features that do not vary over the data set."),
}
# fmt: on


RELATIVE = "_vs_random"  # ends the name of a metric less its value for a random order of pixels on the same network
# A single image can decide their mean: a quotient whose denominator may be nearly 0. They are read as a median.
MEDIANS = (
    "completeness",
    "relative_input_stability",
    "relative_output_stability",
    "relative_representation_stability",
)


def _with_relative() -> dict[str, Metric]:
    known = {}
    for name, metric in METRICS.items():
        known[name] = metric
        relative = name + RELATIVE
        if metric.needs == "network" and not name.endswith(RELATIVE) and relative not in METRICS:
            words = "Less its value for a random order of pixels. 0 is what a random order scores on the same network."
            known[relative] = metric._replace(title=f"{metric.title}, relative to random", description=words)
    return known | DATASET_METRICS


KNOWN: dict[str, Metric] = _with_relative()
