"""The metrics by name: a row holds all that is known of one, and evaluation, summary and report read it.

A new metric whose function takes the usual arguments of its `needs` is its function, a row here and an export in
`sdecor/metrics/__init__.py`. One that needs more than a call has a function in `sdecor/evaluation/groups.py` too.
"""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from sdecor.metrics import (
    axiomatic,
    complexity,
    correlations,
    faithfulness,
    grid,
    localization,
    network,
    randomization,
    regions,
    robustness,
)
from sdecor.metrics.infidelity import infidelity  # the package's names of these three are the functions
from sdecor.metrics.road import road, road_curves
from sdecor.metrics.sufficiency import sufficiency

# What metrics are computed from, by name. It decides the arguments of their functions.
NEEDS = {
    "model": "the logits or the features",
    "mask": "object masks alone",
    "maps": "the maps",
    "object": "maps and object masks",
    "network": "the network, and maps or sums of the attributions over channels",
    "attributions": "the network and whole attributions, signed and with their channels",
    "explanation": "the explanation as a function of the image, which is explained again",
    "parameters": "the explanation as a function of the network's parameters too",
    "mosaic": "explanations of mosaics of images",
    "set": "the maps and predictions of many images at once: a value depends on the other images",
}
PRESETS = ("quick", "standard", "full")  # each holds the ones before it
RELATIVE = "_vs_random"  # ends the name of a metric less its value for a random order of pixels on the same network


class Curve(NamedTuple):
    """The words on the figure of a metric's curve, which is stored as "<metric>_curve"."""

    title: str
    xlabel: str
    ylabel: str


class Metric(NamedTuple):
    """One metric.

    Attributes:
      function: computes it.
      higher_is_better: None = neither direction is.
      needs: what it is computed from, one of `NEEDS`.
      title: its name in a table.
      description: its meaning, in a sentence.
      percent: whether it is a share that is read in per cent.
      whole: whether it is a count, written without decimals.
      chance: the level that a meaningless map, or a network that always answers alike, reaches. A number, a function
        of the labels `[N]`, or the name of what is computed of the same examples, such as "area_share". None = that of
        a random order where there is a `reference`, else unknown.
      reference: whether a random order of pixels is measured too. The difference to it is a metric, "…_vs_random".
      confounded: whether it depends as much on how the network withstands masked images as on the maps. Metrics with a
        `reference` do in any case.
      statistic: of the data set: the "mean"; the "median" where one image can decide the mean (a quotient whose
        denominator may be nearly 0); or the "ratio" of two means, of `derived_from` and of its chance level.
      derived_from: the metric that it is computed from and reported with.
      preset: the smallest of `PRESETS` that holds it.
      signed: whether it sees the attributions' sum over channels rather than the maps, so that signs count.
      signature: the functions that take its options, where `function` passes them on. Later ones' defaults come first.
      options: values of an evaluation that differ from the functions' defaults.
      follows: names of options whose value is the attribution method's own, where it has them.
      curve: the figure of its curve; None = there is none.
    """

    function: Callable
    higher_is_better: bool | None
    needs: str
    title: str
    description: str
    percent: bool = False
    whole: bool = False
    chance: float | str | Callable[[Any], float] | None = None
    reference: bool = False
    confounded: bool = False
    statistic: str = "mean"
    derived_from: str | None = None
    preset: str = "full"
    signed: bool = False
    signature: tuple[Callable, ...] = ()
    options: Mapping[str, Any] = MappingProxyType({})
    follows: tuple[str, ...] = ()
    curve: Curve | None = None

    @property
    def ranks_runs(self) -> bool:
        """Whether a difference between two runs tells which has the better maps or network."""
        unclear = self.reference or self.confounded or self.needs == "set"
        return self.higher_is_better is not None and not unclear

    def keywords(self) -> dict[str, Any]:
        """Return the keywords of its functions that have a default, with the values of an evaluation."""
        found = {}
        for function in self.signature or (self.function,):
            known = inspect.signature(function).parameters.values()
            found |= {p.name: p.default for p in known if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}
        return found | dict(self.options)


_CHANCE_OF_ORDER = "0 is what a random order of pixels scores on the same network."
_PROBABILITY = "probability of the explained class"
_SENSITIVITIES, _STABILITIES = (robustness.sensitivities,), (robustness.relative_stabilities,)
_PATCHES = (regions.region_perturbation_curve,)
_STEPS = {"steps": 16, "blur_sigma": 5.0}  # of the loop that insertion and deletion share

# In the order in which they are read.
# fmt: off
METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        network.accuracy, True, "model", "Accuracy",
        "Share of images whose most probable class is the right one.", percent=True, chance=network.majority_share),
    "cross_entropy": Metric(
        network.cross_entropy, False, "model", "Cross-entropy",
        "Mean −log probability of the right class, in nats."),
    "confidence": Metric(
        network.confidence, None, "model", "Confidence",
        "Mean probability of the predicted class.", percent=True),
    "energy_inside": Metric(
        localization.energy_inside, True, "object", "Saliency on the object",
        "Share of the saliency that falls on the object.", percent=True, chance="area_share", preset="quick"),
    "area_share": Metric(
        localization.area_share, None, "mask", "Object's share of the area",
        "The object's share of the image's area.", percent=True),
    "pointing_game": Metric(
        localization.pointing_game, True, "object", "Pointing game",
        "Share of images whose most salient pixel is on the object.",
        percent=True, chance="area_share", preset="quick"),
    "attribution_localization": Metric(
        localization.attribution_localization, True, "object", "Attribution localization",
        "Share of the saliency that falls on the object over the object's share of the area; 1 is chance.",
        chance=1.0, options={"weighted": True}),
    "relevance_rank_accuracy": Metric(
        localization.relevance_rank_accuracy, True, "object", "Relevance rank accuracy",
        "Share of the most salient pixels, as many as the object has, that are on the object.",
        percent=True, chance="area_share", preset="standard"),
    "top_k_intersection": Metric(
        localization.top_k_intersection, True, "object", "Top-k intersection",
        "Share of the k most salient pixels that are on the object.",
        percent=True, chance="area_share", options={"share": 0.05}),
    "roc_auc": Metric(
        localization.roc_auc, True, "object", "ROC-AUC of the object",
        "Probability that a pixel of the object is more salient than one of the background.",
        chance=0.5, preset="standard"),
    "best_iou": Metric(
        localization.best_iou, True, "object", "IoU at the best threshold",
        "Intersection over union of the object and the pixels above the best threshold.",
        percent=True, preset="standard"),
    "grid_pointing_game": Metric(
        grid.grid_pointing_game, True, "mosaic", "Grid pointing game",
        "Share of a class's saliency in its own cell of a mosaic of four confidently classified images.",
        percent=True, chance=0.25, preset="standard"),
    "gini": Metric(
        complexity.gini, True, "maps", "Sparseness (Gini)",
        "Sparseness of the map: 0 spread evenly, near 1 on a few pixels.", preset="quick"),
    "entropy": Metric(
        complexity.entropy, False, "maps", "Complexity (entropy)",
        "Entropy of the pixels' shares of the saliency, in nats.", preset="standard"),
    "effective_complexity": Metric(
        complexity.effective_complexity, False, "maps", "Effective complexity",
        "Pixels whose saliency is not negligible beside the map's largest."),
    "insertion": Metric(
        faithfulness.insertion, True, "network", "Insertion area",
        "Area under the explained class's probability while the most salient pixels enter a baseline image.",
        reference=True, preset="quick", options=_STEPS | {"insertion_baseline": "blur"},
        curve=Curve("Insertion", "% of pixels inserted, most salient first", _PROBABILITY)),
    "insertion_vs_random": Metric(
        faithfulness.insertion_vs_random, True, "network", "Insertion area, relative to random",
        f"Insertion, relative. {_CHANCE_OF_ORDER}", chance=0.0, derived_from="insertion"),
    "deletion": Metric(
        faithfulness.deletion, False, "network", "Deletion area",
        "Area under the explained class's probability while a baseline replaces the most salient pixels.",
        reference=True, preset="quick", options=_STEPS | {"deletion_baseline": "zero"},
        curve=Curve("Deletion", "% of pixels deleted, most salient first", _PROBABILITY)),
    "deletion_vs_random": Metric(
        faithfulness.deletion_vs_random, False, "network", "Deletion area, relative to random",
        f"Deletion, relative. {_CHANCE_OF_ORDER}", chance=0.0, derived_from="deletion"),
    "road": Metric(
        road, False, "network", "ROAD accuracy",
        "Share of right predictions while the most salient pixels are removed by noisy imputation.",
        percent=True, reference=True, preset="standard", signature=(road_curves,),
        curve=Curve("ROAD", "% of pixels imputed, most salient first", "accuracy")),
    "masked_accuracy": Metric(
        faithfulness.masked_accuracy_curve, False, "network", "Masked accuracy",
        "Share of right predictions while the pixels of greatest absolute saliency are blackened.",
        percent=True, reference=True,
        curve=Curve("Masked accuracy", "% of pixels replaced, most salient first", "accuracy")),
    "aopc_morf": Metric(
        regions.region_perturbation, True, "network", "AOPC, most relevant first",
        "Mean drop of the explained class's probability while the most salient patches become noise.",
        reference=True, preset="standard", signature=_PATCHES, options={"order": "morf"}),
    "aopc_lerf": Metric(
        regions.region_perturbation, False, "network", "AOPC, least relevant first",
        "Mean drop of the explained class's probability while the least salient patches become noise.",
        reference=True, preset="standard", signature=_PATCHES, options={"order": "lerf"}),
    "pixel_flipping": Metric(
        faithfulness.pixel_flipping, False, "network", "Pixel flipping area",
        "Area under the explained class's probability while the most salient pixels are blackened.",
        reference=True, signature=(faithfulness.deletion_curve, faithfulness.pixel_flipping_curve)),
    "selectivity": Metric(
        regions.selectivity, False, "network", "Selectivity",
        "Area under the explained class's probability while the most salient patches are removed.",
        reference=True, signature=(*_PATCHES, regions.selectivity_curve), options={"regions": None}),
    "irof": Metric(
        regions.irof, True, "network", "IROF",
        "Area over the share of the probability that is left while the most salient patches are removed.",
        reference=True, signature=(regions.irof_curve,)),
    "monotonicity": Metric(
        faithfulness.monotonicity, True, "network", "Monotonicity",
        "Share of images whose probability never falls while pixels enter, least salient first.",
        percent=True, options={"saliency_of": "probability"}),
    "average_drop": Metric(
        faithfulness.average_drop, False, "network", "Average drop",
        "Share of the explained class's probability that is lost when the map masks the image.",
        percent=True, confounded=True, preset="standard", options={"baseline": "zero", "saliency_of": "probability"}),
    "average_increase": Metric(
        faithfulness.average_increase, True, "network", "Average increase",
        "Share of images whose explained class gains probability when the map masks the image.",
        percent=True, confounded=True, options={"baseline": "zero", "saliency_of": "probability"}),
    "faithfulness_correlation": Metric(
        correlations.faithfulness_correlation, True, "network", "Faithfulness correlation",
        "Correlation of the attribution's sum over random sets of pixels and the score's drop without them.",
        signed=True, preset="standard"),
    "faithfulness_estimate": Metric(
        correlations.faithfulness_estimate, True, "network", "Faithfulness estimate",
        "Correlation of the attribution's sum over groups of like relevance and the score's drop without them.",
        signed=True),
    "monotonicity_correlation": Metric(
        correlations.monotonicity_correlation, True, "network", "Monotonicity correlation",
        "Rank correlation of the saliency of groups of pixels and the effect of noise on them."),
    "sensitivity_n": Metric(
        correlations.sensitivity_n, True, "network", "Sensitivity-n",
        "Correlation of attribution and effect over random sets of n pixels, mean over n.",
        signed=True, signature=(correlations.sensitivity_n_curve,)),
    "infidelity": Metric(
        infidelity, False, "attributions", "Infidelity",
        "Mean squared error of the attribution, scaled at best, as a linear model of the score around the image.",
        preset="standard", options={"scaling": "optimal"}, follows=("baseline", "saliency_of")),
    "max_sensitivity": Metric(
        robustness.max_sensitivity, False, "explanation", "Max-sensitivity",
        "Largest relative change of the explanation between the image and one that hardly differs.",
        preset="standard", signature=_SENSITIVITIES),
    "avg_sensitivity": Metric(
        robustness.avg_sensitivity, False, "explanation", "Average sensitivity",
        "Mean relative change of the explanation between the image and those that hardly differ.",
        preset="standard", signature=_SENSITIVITIES),
    "local_lipschitz": Metric(
        robustness.local_lipschitz, False, "explanation", "Local Lipschitz estimate",
        "Steepest relative change of the explanation per change of the image.", signature=_SENSITIVITIES),
    "continuity": Metric(
        robustness.continuity, False, "explanation", "Continuity",
        "Steepest relative change of the explanation as the image moves sideways by a few pixels."),
    "relative_input_stability": Metric(
        robustness.relative_input_stability, False, "explanation", "Relative input stability",
        "Largest relative change of the explanation over that of the image.",
        statistic="median", signature=_STABILITIES),
    "relative_output_stability": Metric(
        robustness.relative_output_stability, False, "explanation", "Relative output stability",
        "Largest relative change of the explanation over the change of the logits.",
        statistic="median", signature=_STABILITIES),
    "relative_representation_stability": Metric(
        robustness.relative_representation_stability, False, "explanation", "Relative representation stability",
        "Largest relative change of the explanation over that of the features.",
        statistic="median", signature=_STABILITIES),
    "random_logit": Metric(
        randomization.random_logit, False, "explanation", "Random logit",
        "Similarity of the explanation to that of another class."),
    "parameter_randomization": Metric(
        randomization.parameter_randomization, False, "parameters", "Parameter randomization (MPRT)",
        "Similarity of the explanation to that of a network whose layers are random, mean over the layers."),
    "smooth_mprt": Metric(
        randomization.smooth_mprt, False, "parameters", "Smooth MPRT",
        "Parameter randomization of the explanation averaged over noisy images.",
        signature=(randomization.smooth_mprt, randomization.parameter_randomization), options={"samples": 10}),
    "efficient_mprt": Metric(
        randomization.efficient_mprt, True, "parameters", "Efficient MPRT",
        "Relative rise of the explanation's entropy when all parameters are random."),
    "completeness": Metric(
        axiomatic.completeness, False, "network", "Completeness error",
        "Gap between the attribution's sum and the rise of the score from the baseline, over the size of the rise.",
        statistic="median", signed=True, options={"relative": True}, follows=("baseline", "saliency_of")),
    "non_sensitivity": Metric(
        axiomatic.non_sensitivity, False, "network", "Non-sensitivity",
        "Share of pixels that matter to the network and are not salient, or the other way round.",
        percent=True, options={"pixels": 64}),
    "input_invariance": Metric(
        axiomatic.input_invariance, False, "explanation", "Input invariance error",
        "Relative change of the explanation when image and network are shifted alike."),
}

# Metrics that belong to the data set as a whole, not to an example.
DATASET_METRICS: dict[str, Metric] = {
    "calibration_error": Metric(
        network.calibration_error, False, "model", "Calibration error",
        "Mean gap between confidence and accuracy over 15 equal-width bins.", percent=True),
    "energy_ratio": Metric(
        localization.energy_inside, True, "object", "Saliency on the object, relative to its area",
        "Mean share of saliency on the object over the object's mean share of the area; 1 is chance.",
        chance=1.0, statistic="ratio", derived_from="energy_inside"),
    "sufficiency": Metric(
        sufficiency, True, "set", "Sufficiency",
        "Share of images with the same prediction among those with a similar map.", percent=True),
    "consistency": Metric(
        robustness.consistency, True, "set", "Consistency",
        "Share of images with the same prediction among those whose saliency is in the same place.",
        percent=True, options={"cells": 4}),
    "mean_abs_correlation": Metric(
        network.feature_diagnostics, False, "model", "Feature correlation",
        "Mean absolute correlation between pairs of features that vary.", chance="correlation_floor"),
    "effective_rank": Metric(
        network.feature_diagnostics, True, "model", "Effective rank of features",
        "Directions that the features use: exp of the spectrum's entropy."),
    "mean_std": Metric(
        network.feature_diagnostics, None, "model", "Feature scale",
        "Mean standard deviation of the features."),
    "dead_features": Metric(
        network.feature_diagnostics, False, "model", "Dead features",
        "Features that do not vary over the data set.", whole=True),
}
# fmt: on


def _with_relative() -> dict[str, Metric]:
    """Return all metrics; behind each with a `reference` follows its difference to that."""
    known = {}
    for name, metric in METRICS.items():
        known[name] = metric
        relative = name + RELATIVE
        if metric.reference and relative not in METRICS:
            words = "Less its value for a random order of pixels. 0 is what a random order scores on the same network."
            title = f"{metric.title}, relative to random"
            row = Metric(metric.function, metric.higher_is_better, metric.needs, title, words, metric.percent)
            known[relative] = row._replace(chance=0.0, derived_from=name)
    return known | DATASET_METRICS


KNOWN: dict[str, Metric] = _with_relative()
