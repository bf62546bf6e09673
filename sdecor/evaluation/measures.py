"""From a metric's name to its values for a batch: which function is called, with which arrays and which options.

A metric whose function has the usual arguments (they follow from `Metric.needs`) is measured by being in
`sdecor.metrics.METRICS`; options other than its function's defaults are a line in `_OPTIONS`. What needs more than a
call is a function in `loops.py` with an entry in `_LOOPS`.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax

from sdecor import metrics
from sdecor.attribution import ABOVE_MEAN
from sdecor.evaluation import baselines, loops
from sdecor.evaluation.choices import Method
from sdecor.evaluation.loops import Context

WHOLE = ("attributions", "explanation", "parameters")  # needs of measures that look at all channels of an attribution
# Keywords of metrics that are no options: the context fills them in, or they are left to the default.
_CONTEXT = ("key", "ignore", "chunk_size", "attributions", "contributions", "features_fn")
_LEFT = ("layers", "segments", "count")


class Measure(NamedTuple):
    """What is computed, stored and reused together.

    Attributes:
      name: of the metric, or of the loop that several share.
      gives: the names of its arrays: metrics `[n]`, and curves `[n, S]`.
      needs: as of `metrics.Metric`. It decides how many images are measured.
      function: `function(context, **options)` returns the arrays in the order of `gives`; of a "set" it is
        `function(maps [M, H, W], predictions [M], **options) -> [M]`.
      options: name and value of every option; they are recorded with the numbers.
      reference: whether a random order of pixels is measured too, as the level of chance.
      signed: whether it looks at the attributions' sum over channels rather than at the maps.
      follows: names of options whose value is the method's own, where it has them: see `of`.
    """

    name: str
    gives: tuple[str, ...]
    needs: str
    function: Callable[..., tuple[jax.Array, ...]]
    options: tuple[tuple[str, Any], ...] = ()
    reference: bool = False
    signed: bool = False
    follows: tuple[str, ...] = ()

    @property
    def looks_at(self) -> str:
        """What it sees of an attribution, for the record: all of it, its signed sum, or its reduction to a map."""
        return "whole attribution" if self.needs in WHOLE else "signed sum over channels" if self.signed else "map"

    def of(self, method: Method, saliency_of: str) -> "Measure":
        """Return the measure with the method's own baseline and score, against which its attribution is to be held.

        Args:
          method: what explains.
          saliency_of: stands for the method's own where that is the logit, see `Method.settings`.

        Raises:
          ValueError: where the method has no single baseline, and the measure needs one.
        """
        own, options = method.settings(saliency_of), {}
        if "saliency_of" in self.follows:
            options["saliency_of"] = own.get("saliency_of", saliency_of)
        if "baseline" in self.follows and method.info.sums_to == ABOVE_MEAN and self.name == "completeness":
            raise ValueError(
                f"{method.key} draws a baseline for each sample, so its attribution is complete on average only; its "
                "option with_error tells the sampling error"
            )
        start = method.info.baseline(own) if "baseline" in self.follows else None
        if start is not None:
            options |= baselines.written(start)
        return self._replace(options=tuple((dict(self.options) | options).items()))

    def __call__(self, context: Context) -> dict[str, jax.Array]:
        """Return the arrays of a batch by name."""
        return dict(zip(self.gives, self.function(context, **baselines.bound(dict(self.options))), strict=True))


def measures_of(names: Iterable[str], options: Mapping[str, Mapping[str, Any]]) -> dict[str, Measure]:
    """Return the measures that compute the metrics `names`, by the measures' own names.

    Args:
      names: of metrics; those that are computed without an explanation, or from others, are left out.
      options: by measure, those that differ from the measure's own.
    """
    chosen = dict.fromkeys(name for name in (_MEASURE_OF.get(name) for name in names) if name)
    return {name: _with_options(MEASURES[name], options.get(name, {})) for name in chosen}


def _with_options(measure: Measure, options: Mapping[str, Any]) -> Measure:
    follows = tuple(name for name in measure.follows if name not in options)
    return measure._replace(options=tuple((dict(measure.options) | dict(options)).items()), follows=follows)


def _call(
    function: Callable[..., jax.Array], needs: str, signed: bool, context: Context, **options: Any
) -> tuple[jax.Array]:
    """Call a metric with the arguments that its `needs` stands for."""
    arguments = {
        "maps": lambda: ((context.maps,), {}),
        "object": lambda: ((context.maps, context.objects), {"ignore": context.ignore}),
        "network": lambda: (
            (context.fn, context.images, context.signed if signed else context.maps, context.targets),
            {"key": context.keys, "chunk_size": context.chunk_size},
        ),
        "explanation": lambda: ((context.explain_one, context.images, context.targets), loops.repeated(context)),
        "parameters": lambda: (loops.randomized(context), loops.repeated(context)),
    }
    positional, keywords = arguments[needs]()
    known = inspect.signature(function).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in known):
        keywords = {name: value for name, value in keywords.items() if name in {p.name for p in known}}
    return (function(*positional, **keywords, **options),)


def _usual(name: str) -> Measure:
    """Return the measure that calls a metric's function."""
    metric, options = metrics.METRICS[name], {}
    for function in _SIGNATURES.get(name, (metric.function,)):
        options |= options_of(function)
    options = tuple((options | _OPTIONS.get(name, {})).items())
    signed = name in _SIGNED
    call = partial(_call, metric.function, metric.needs, signed)
    return Measure(name, (name,), metric.needs, call, options, name in _REFERENCE, signed)


def _loop(name: str, gives: tuple[str, ...], like: Callable[..., Any], **changed: Any) -> Measure:
    """Return the measure of a function of `loops` that passes the options of the metric `like` on."""
    options = options_of(like) | changed
    return Measure(name, gives, _needs(gives), getattr(loops, name), tuple(options.items()))


def _needs(gives: tuple[str, ...]) -> str:
    """Return what the metrics of a loop need, which is the same of all."""
    (needs,) = {_KNOWN[name].needs for name in gives if name in _KNOWN}
    return needs


def options_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return a metric's options with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    optional = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty]
    options = {p.name: p.default for p in optional if p.name not in _CONTEXT + _LEFT}
    return baselines.written_defaults(function, options)


_KNOWN = metrics.METRICS | metrics.DATASET_METRICS
_OPTIONS: dict[str, dict[str, Any]] = {
    "attribution_localization": {"weighted": True},
    "aopc_morf": {"order": "morf"},
    "aopc_lerf": {"order": "lerf"},
    "average_drop": {"baseline": "zero", "saliency_of": "probability"},
    "average_increase": {"baseline": "zero", "saliency_of": "probability"},
    "monotonicity": {"saliency_of": "probability"},
    "non_sensitivity": {"pixels": 64},
    "selectivity": {"regions": None},
}
# Where to read the options of a metric that passes them on to another function.
_SIGNATURES: dict[str, tuple[Callable[..., Any], ...]] = {
    "aopc_morf": (metrics.region_perturbation_curve,),
    "aopc_lerf": (metrics.region_perturbation_curve,),
    "irof": (metrics.irof_curve,),
    "pixel_flipping": (metrics.deletion_curve, metrics.pixel_flipping_curve),
    "selectivity": (metrics.region_perturbation_curve, metrics.selectivity_curve),
    "sensitivity_n": (metrics.sensitivity_n_curve,),
}
# Questions about the sum of the attribution over pixels: signs count.
_SIGNED = ("faithfulness_correlation", "faithfulness_estimate", "sensitivity_n")
_REFERENCE = ("aopc_morf", "aopc_lerf", "pixel_flipping", "selectivity", "irof")
_LOOPS = (
    Measure(
        "replacement",
        ("insertion", "deletion", "insertion_curve", "deletion_curve"),
        _needs(("insertion", "deletion")),
        loops.replacement,
        (("steps", 16), ("insertion_baseline", "blur"), ("deletion_baseline", "zero"), ("blur_sigma", 5.0)),
        reference=True,
    ),
    _loop("road", ("road", "road_curve"), metrics.road_curves)._replace(reference=True),
    _loop("masked_accuracy", ("masked_accuracy", "masked_accuracy_curve"), metrics.masked_accuracy_curve)._replace(
        reference=True
    ),
    Measure("top_k_intersection", ("top_k_intersection",), "object", loops.top_k_intersection, (("share", 0.05),)),
    _loop("completeness", ("completeness",), metrics.completeness, relative=True)._replace(
        signed=True, follows=("baseline", "saliency_of")
    ),
    _loop("infidelity", ("infidelity",), metrics.infidelity, scaling="optimal")._replace(
        follows=("baseline", "saliency_of")
    ),
    _loop("sensitivities", ("max_sensitivity", "avg_sensitivity", "local_lipschitz"), metrics.sensitivities),
    _loop(
        "stabilities",
        ("relative_input_stability", "relative_output_stability", "relative_representation_stability"),
        metrics.relative_stabilities,
    ),
    _loop("random_logit", ("random_logit",), metrics.random_logit),
    _loop("input_invariance", ("input_invariance",), metrics.input_invariance),
    _loop(
        "parameter_randomization",
        ("parameter_randomization", "parameter_randomization_layers"),
        metrics.parameter_randomization,
    ),
    _loop(
        "smooth_mprt",
        ("smooth_mprt", "smooth_mprt_layers"),
        metrics.smooth_mprt,
        **options_of(metrics.parameter_randomization) | {"samples": 10},
    ),
    Measure("sufficiency", ("sufficiency",), "set", loops.sufficiency, (("threshold", 0.6),)),
    Measure("consistency", ("consistency",), "set", loops.consistency, (("cells", 4),)),
    Measure("grid_pointing_game", ("grid_pointing_game",), "mosaic", metrics.grid_pointing_game, (("size", 2),)),
)
# Without an explanation, or from other measures.
_ELSEWHERE = ("area_share", "insertion_vs_random", "deletion_vs_random")

_shared = {name for measure in _LOOPS for name in measure.gives}
MEASURES: dict[str, Measure] = {measure.name: measure for measure in _LOOPS} | {
    name: _usual(name)
    for name, metric in metrics.METRICS.items()
    if metric.needs != "model" and name not in (*_ELSEWHERE, *_shared)
}
_MEASURE_OF = {given: measure.name for measure in MEASURES.values() for given in measure.gives}
