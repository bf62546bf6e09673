"""Table of the metrics by name: one row per metric, read by evaluation, summary and report.

To add a metric, write its function, a row here, and an export in `sdecor/metrics/__init__.py`. A metric whose function
takes other arguments than is usual for its `needs` also needs a function in `sdecor/evaluation/groups.py`.
"""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from sdecor.attribution.baselines import BLUR_SIGMA
from sdecor.metrics import (
    axiomatic,
    complexity,
    composite,
    correlations,
    faithfulness,
    grid,
    localization,
    network,
    randomization,
    regions,
    robustness,
)
from sdecor.metrics.infidelity import infidelity  # the package exports functions under these three module names
from sdecor.metrics.road import road, road_curves
from sdecor.metrics.sufficiency import sufficiency

# The inputs that metrics are computed from, by name. They decide the arguments of the functions.
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
RELATIVE = "_vs_random"  # suffix of a metric minus its value for a random order of pixels on the same network


class Curve(NamedTuple):
    """The title and axis labels for the figure of a metric's curve, which is stored as "<metric>_curve"."""

    title: str
    xlabel: str
    ylabel: str


class Metric(NamedTuple):
    """A metric and its properties.

    Attributes:
      function: function that computes the metric.
      higher_is_better: whether larger values are better; None = no direction is better.
      needs: the inputs that it is computed from, one of `NEEDS`.
      title: name in a table.
      description: meaning, in one sentence.
      percent: whether the value is a share, shown in per cent.
      whole: whether the value is a count, shown without decimals.
      chance: level of a meaningless map, or of a network with a constant prediction. It is a number, a function of the
        labels `[N]`, or the name of a value computed from the same examples, such as "area_share". None = the value of
        a random order if there is a `reference`, else unknown.
      reference: whether to evaluate a random order of pixels too. The difference to it is the metric "…_vs_random".
      confounded: whether the network's robustness to masked images decides the value as much as the maps do. A metric
        with a `reference` is confounded in any case.
      statistic: statistic over the data set: "mean"; "median" for a quotient whose denominator may be nearly 0, because
        one image could decide its mean; or "ratio", the mean of `derived_from` divided by the mean of its chance level.
      derived_from: the metric that it is computed from and reported with.
      preset: the smallest of `PRESETS` that includes it.
      signed: whether the function takes the attributions' sum over channels instead of the maps, so that signs count.
      signature: the functions that take its options, if `function` passes them on. The default of a later one wins.
      options: values in an evaluation that differ from the functions' defaults.
      follows: names of options that take the attribution method's own value ("baseline", "saliency_of"), if it has one.
      curve: texts of the curve's figure; None = no curve.
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
        """Return whether a difference between two runs shows which one has the better maps or network."""
        unclear = self.reference or self.confounded or self.needs == "set"
        return self.higher_is_better is not None and not unclear

    @property
    def functions(self) -> tuple[Callable, ...]:
        """Return the functions that take the options."""
        return self.signature or (self.function,)

    def keywords(self) -> dict[str, Any]:
        """Return the functions' keywords that have a default, with their values in an evaluation."""
        found = {}
        for function in self.functions:
            known = inspect.signature(function).parameters.values()
            found |= {p.name: p.default for p in known if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}
        return found | dict(self.options)


_CHANCE_OF_ORDER = "minus that of a random order of pixels on the same network; 0 is chance."
_PROBABILITY = "probability of the explained class"
_SENSITIVITIES, _STABILITIES = (robustness.sensitivities,), (robustness.relative_stabilities,)
_PATCHES = (regions.region_perturbation_curve,)
_STEPS = {"steps": 16, "blur_sigma": BLUR_SIGMA}  # options of the loop that insertion and deletion share

# Tables and reports list the metrics in this order.
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
        "Share of the K most salient pixels that are on the object, with K the object's number of pixels.",
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
        "Sparseness of the map: 0 if spread evenly, near 1 if on a few pixels.", preset="quick"),
    "checkerboard": Metric(
        complexity.checkerboard, False, "maps", "Checkerboard",
        "Share of the saliency that favours some places of a grid of 2×2 pixels: an artefact of strides.",
        percent=True, preset="standard"),
    "entropy": Metric(
        complexity.entropy, False, "maps", "Complexity (entropy)",
        "Entropy of the pixels' shares of the saliency, in nats.", preset="standard"),
    "effective_complexity": Metric(
        complexity.effective_complexity, False, "maps", "Effective complexity",
        "Number of pixels whose saliency is not negligible compared with the map's largest."),
    "mst_compactness": Metric(
        complexity.mst_compactness, True, "maps", "Structural compactness (MST-C)",
        "Compactness of the most salient fifth of the pixels: few clusters in a small area have a large value."),
    "insertion": Metric(
        faithfulness.insertion, True, "network", "Insertion area",
        "Area under the explained class's probability while the most salient pixels replace those of a baseline image.",
        reference=True, preset="quick", options=_STEPS | {"insertion_baseline": "blur"},
        curve=Curve("Insertion", "% of pixels inserted, most salient first", _PROBABILITY)),
    "insertion_vs_random": Metric(
        faithfulness.insertion_vs_random, True, "network", "Insertion area, relative to random",
        f"Insertion area {_CHANCE_OF_ORDER}", chance=0.0, derived_from="insertion"),
    "deletion": Metric(
        faithfulness.deletion, False, "network", "Deletion area",
        "Area under the explained class's probability while a baseline replaces the most salient pixels.",
        reference=True, preset="quick", options=_STEPS | {"deletion_baseline": "zero"},
        curve=Curve("Deletion", "% of pixels deleted, most salient first", _PROBABILITY)),
    "deletion_vs_random": Metric(
        faithfulness.deletion_vs_random, False, "network", "Deletion area, relative to random",
        f"Deletion area {_CHANCE_OF_ORDER}", chance=0.0, derived_from="deletion"),
    "road": Metric(
        road, False, "network", "ROAD accuracy",
        "Share of right predictions while the most salient pixels are removed by noisy imputation.",
        percent=True, reference=True, preset="standard", signature=(road_curves,),
        curve=Curve("ROAD", "% of pixels imputed, most salient first", "accuracy")),
    "masked_accuracy": Metric(
        faithfulness.masked_accuracy_curve, False, "network", "Masked accuracy",
        "Share of right predictions while the pixels of largest absolute saliency are blackened.",
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
        "Share of images whose explained class never loses probability while pixels are inserted, least salient first.",
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
        "Correlation of attribution and score drop over groups of pixels of similar relevance, each removed alone.",
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
        "Mean squared error of the optimally scaled attribution as a linear model of the score around the image.",
        preset="standard", options={"scaling": "optimal"}, follows=("baseline", "saliency_of")),
    "max_sensitivity": Metric(
        robustness.max_sensitivity, False, "explanation", "Max-sensitivity",
        "Largest relative change of the explanation under small changes of the image.",
        preset="standard", signature=_SENSITIVITIES),
    "avg_sensitivity": Metric(
        robustness.avg_sensitivity, False, "explanation", "Average sensitivity",
        "Mean relative change of the explanation under small changes of the image.",
        preset="standard", signature=_SENSITIVITIES),
    "local_lipschitz": Metric(
        robustness.local_lipschitz, False, "explanation", "Local Lipschitz estimate",
        "Largest relative change of the explanation per change of the image.", signature=_SENSITIVITIES),
    "continuity": Metric(
        robustness.continuity, False, "explanation", "Continuity",
        "Largest relative change of the explanation per image change, as the image moves sideways by a few pixels."),
    "relative_input_stability": Metric(
        robustness.relative_input_stability, False, "explanation", "Relative input stability",
        "Largest ratio of the explanation's relative change to the image's relative change.",
        statistic="median", signature=_STABILITIES),
    "relative_output_stability": Metric(
        robustness.relative_output_stability, False, "explanation", "Relative output stability",
        "Largest ratio of the explanation's relative change to the change of the logits.",
        statistic="median", signature=_STABILITIES),
    "relative_representation_stability": Metric(
        robustness.relative_representation_stability, False, "explanation", "Relative representation stability",
        "Largest ratio of the explanation's relative change to the features' relative change.",
        statistic="median", signature=_STABILITIES),
    "coherency": Metric(
        composite.coherency, True, "explanation", "Coherency",
        "Correlation of the map with the map of the image that it masks, scaled to [0, 1]."),
    "adcc": Metric(
        composite.adcc, True, "explanation", "ADCC",
        "Harmonic mean of coherency, 1 − complexity and 1 − average drop.", confounded=True),
    "arcc": Metric(
        composite.arcc, True, "explanation", "ARCC",
        "Harmonic mean of coherency, 1 − complexity and the combined ROAD score.", confounded=True),
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
        "Relative change of the explanation when image and network are shifted so that no output changes."),
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
        "Number of directions that the features use: exponential of the spectrum's entropy."),
    "mean_std": Metric(
        network.feature_diagnostics, None, "model", "Feature scale",
        "Mean standard deviation of the features."),
    "dead_features": Metric(
        network.feature_diagnostics, False, "model", "Dead features",
        "Number of features that do not vary over the data set.", whole=True),
}
# fmt: on


def _with_relative() -> dict[str, Metric]:
    """Return all metrics; each one with a `reference` is followed by its difference to this reference."""
    known = {}
    for name, metric in METRICS.items():
        known[name] = metric
        relative = name + RELATIVE
        if metric.reference and relative not in METRICS:
            words = f"Value {_CHANCE_OF_ORDER}"
            title = f"{metric.title}, relative to random"
            row = Metric(metric.function, metric.higher_is_better, metric.needs, title, words, metric.percent)
            known[relative] = row._replace(chance=0.0, derived_from=name)
    return known | DATASET_METRICS


KNOWN: dict[str, Metric] = _with_relative()
