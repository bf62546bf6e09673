"""Groups of metrics: which function computes them, with which arrays and options.

A group is computed by one loop over the network. A metric with a row in `sdecor.metrics.METRICS`, whose function takes
the usual arguments of its `needs`, is a group without any code here. Other groups have a function here, which takes a
`Context` and is listed in `_FUNCTIONS`.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdecor import metrics
from sdecor.attribution import ABOVE_MEAN
from sdecor.attribution.baselines import baseline_image
from sdecor.evaluation import baselines
from sdecor.evaluation.choices import Method
from sdecor.evaluation.context import Context
from sdecor.metrics.registry import KNOWN

WHOLE = ("attributions", "explanation", "parameters")  # `Group.needs` of groups that read all channels
# Keywords of metrics that are no options: the context sets them, or they keep their defaults.
_CONTEXT = ("key", "ignore", "chunk_size", "attributions", "contributions", "features_fn")
_LEFT = ("layers", "segments", "count", "k")


class Group(NamedTuple):
    """Metrics that are computed, stored and reused together.

    Attributes:
      name: name of the metric, or of the function that computes several.
      gives: names of the resulting arrays: metrics `[n]`, and curves `[n, S]`.
      needs: as in `metrics.Metric`; it decides the number of images.
      function: `function(context, **options)` returns the arrays in the order of `gives`. With `needs` "set" it is
        `function(maps [M, H, W], predictions [M], **options) -> [M]`.
      options: name and value of every option; they are stored with the numbers.
      reference: whether a random order of pixels is measured too, as the chance level.
      signed: whether the metrics read the attributions' sum over channels, rather than the maps.
      follows: names of options that take the method's own value, if it has one; see `of`.
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
        """Return the part of an attribution that the metrics read, as stored: all, its signed sum, or its map."""
        return "whole attribution" if self.needs in WHOLE else "signed sum over channels" if self.signed else "map"

    @property
    def draws(self) -> bool:
        """Return whether the metrics draw random numbers, if only for the order of equal values."""
        takers = [each for name in self.gives if name in KNOWN for each in KNOWN[name].functions]
        return self.needs == "mosaic" or any(accepted(each, {"key": None}) for each in takers)

    @property
    def title(self) -> str:
        """Return the names of its metrics, for a message."""
        return "/".join(name for name in self.gives if name in KNOWN)

    def of(self, method: Method, saliency_of: str) -> "Group":
        """Return the group with the baseline and score that the attribution method itself uses.

        Args:
          method: the attribution method.
          saliency_of: replaces the method's own default if that is "logit", see `Method.settings`.

        Raises:
          ValueError: if the group needs a single baseline and the method has none.
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
        """Return the group's arrays for a batch, by name."""
        return dict(zip(self.gives, self.function(context, **baselines.bound(dict(self.options))), strict=True))


def groups_of(names: Iterable[str], options: Mapping[str, Mapping[str, Any]]) -> dict[str, Group]:
    """Return the groups that compute the metrics `names`, by name of the group.

    Args:
      names: names of metrics; metrics without an explanation, or derived from others, are left out.
      options: group → options that differ from the group's defaults.
    """
    chosen = dict.fromkeys(name for name in (_GROUP_OF.get(name) for name in names) if name)
    return {name: _with_options(GROUPS[name], options.get(name, {})) for name in chosen}


def _with_options(group: Group, options: Mapping[str, Any]) -> Group:
    follows = tuple(name for name in group.follows if name not in options)
    return group._replace(options=tuple((dict(group.options) | dict(options)).items()), follows=follows)


def accepted(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of `offered` that a function takes as keywords."""
    known = inspect.signature(function).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in known.values())
    return {name: value for name, value in offered.items() if takes_all or name in known}


def _call(
    function: Callable[..., jax.Array], needs: str, signed: bool, context: Context, **options: Any
) -> tuple[jax.Array]:
    """Call a metric with the arguments of its `needs`."""
    arguments = {
        "maps": lambda: ((context.maps,), {}),
        "object": lambda: ((context.maps, context.objects), {"ignore": context.ignore}),
        "network": lambda: (
            (context.fn, context.images, context.signed if signed else context.maps, context.targets),
            {"key": context.keys, "chunk_size": context.chunk_size},
        ),
        "explanation": lambda: ((context.explain_one, context.images, context.targets), context.repeated()),
        "parameters": lambda: (context.randomized(), context.repeated()),
    }
    positional, keywords = arguments[needs]()
    return (function(*positional, **accepted(function, keywords), **options),)


def replacement(
    context: Context, *, steps: int, insertion_baseline: Any, deletion_baseline: Any
) -> tuple[jax.Array, ...]:
    """Return insertion, deletion and their curves."""
    images, n = context.images, context.images.shape[0]
    start, end = (
        metrics.baseline_images(images, baseline, key=context.keys).astype(images.dtype)
        for baseline in (insertion_baseline, deletion_baseline)
    )
    # Both curves in one loop, so that the network is compiled once.
    curves = metrics.replacement_curve(
        context.fn,
        jnp.concatenate([start, images]),
        jnp.concatenate([images, end]),
        jnp.concatenate([context.maps, context.maps]),
        jnp.tile(context.targets, 2),
        key=jnp.tile(context.keys, 2),
        steps=steps,
        chunk_size=context.chunk_size,
    )
    areas = metrics.area_under(curves)
    return areas[:n], areas[n:], curves[:n], curves[n:]


def road(context: Context, **options: Any) -> tuple[jax.Array, jax.Array]:
    """Return the mean accuracy over the removed percentages, and 1 or 0 per example and percentage."""
    batch = (context.images, context.maps, context.labels)
    curves = metrics.road_curves(context.fn, *batch, key=context.keys, chunk_size=context.chunk_size, **options)
    return curves.correct.mean(1), curves.correct


def masked_accuracy(context: Context, **options: Any) -> tuple[jax.Array, jax.Array]:
    """Return the mean accuracy over the replaced percentages, and 1 or 0 per example and percentage."""
    batch = (context.images, context.maps, context.labels)
    options |= {"key": context.keys, "chunk_size": context.chunk_size}
    curve = metrics.masked_accuracy_curve(context.fn, *batch, **options)
    return curve.mean(1), curve


def top_k_intersection(context: Context, *, share: float) -> tuple[jax.Array]:
    """Return the top-k intersection, with k the given share of the pixels."""
    k = max(1, round(share * context.maps[0].size))
    return (metrics.top_k_intersection(context.maps, context.objects, k=k, ignore=context.ignore),)


def non_sensitivity(context: Context, *, pixels: int, **options: Any) -> tuple[jax.Array]:
    """Return non-sensitivity over `pixels` random pixels, or all of a smaller input."""
    batch = (context.images, context.maps, context.targets)
    options |= {"pixels": min(pixels, context.maps[0].size), "key": context.keys, "chunk_size": context.chunk_size}
    return (metrics.non_sensitivity(context.fn, *batch, **options),)


def completeness(context: Context, *, baseline: Any, **options: Any) -> tuple:
    """Return the absolute completeness gap."""
    batch = (context.images, context.signed, context.targets)
    options |= {"baseline": _starts(context, baseline), "chunk_size": context.chunk_size}
    return (jnp.abs(metrics.completeness(context.fn, *batch, **options)),)


def infidelity(context: Context, *, baseline: Any, **options: Any) -> tuple:
    """Return infidelity; an attribution with fewer channels than the image counts equally for all channels."""
    whole = context.attributions.shape == context.images.shape
    batch = (context.images, context.attributions if whole else context.signed, context.targets)
    options |= {"key": context.keys, "contributions": context.contributions and whole}
    options |= {"baseline": _starts(context, baseline), "chunk_size": context.chunk_size}
    return (metrics.infidelity(context.fn, *batch, **options),)


def _starts(context: Context, baseline: Any) -> jax.Array:
    """Return the method's baseline images `[n, H, W, C]`, with the same noise if they are random."""
    one = partial(baseline_image, baseline)
    return jax.vmap(lambda image, key: one(image, key=key))(context.images, context.explanation_keys)


def sensitivities(context: Context, **options: Any) -> tuple[jax.Array, ...]:
    """Return max-sensitivity, average sensitivity and the local Lipschitz estimate."""
    explained = (context.explain_one, context.images, context.targets)
    return tuple(metrics.sensitivities(*explained, **context.repeated(), **options))


def stabilities(context: Context, **options: Any) -> tuple[jax.Array, ...]:
    """Return relative input, output and representation stability."""
    explained = (context.explain_one, context.fn, context.images, context.targets)
    options |= {"features_fn": context.features_fn}
    return tuple(metrics.relative_stabilities(*explained, **context.repeated(), **options))


def adcc(context: Context, **options: Any) -> tuple[jax.Array]:
    """Return ADCC."""
    explained = (context.explain_one, context.fn, context.images, context.targets)
    return (metrics.adcc(*explained, **context.repeated(), **options),)


def arcc(context: Context, **options: Any) -> tuple[jax.Array]:
    """Return ARCC."""
    explained = (context.explain_one, context.fn, context.images, context.targets)
    return (metrics.arcc(*explained, **context.repeated(), **options),)


def random_logit(context: Context, **options: Any) -> tuple[jax.Array]:
    """Return the similarity to the explanation of another class."""
    explained = (context.explain_one, context.images, context.targets)
    options |= {"num_classes": context.num_classes}
    return (metrics.random_logit(*explained, **context.repeated(), **options),)


def input_invariance(context: Context, **options: Any) -> tuple[jax.Array]:
    """Return the change of the explanation when image and network are shifted by the same constant."""
    explained = (context.explain_of, context.fn, context.images, context.targets)
    return (metrics.input_invariance(*explained, **context.repeated(), **options),)


def parameter_randomization(context: Context, **options: Any) -> tuple[jax.Array, jax.Array]:
    """Return the mean over the layers and each layer's value `[n, L]`."""
    layers = metrics.parameter_randomization(*context.randomized(), **context.repeated(), **options)
    return layers.mean(1), layers


def smooth_mprt(context: Context, **options: Any) -> tuple[jax.Array, jax.Array]:
    """Return the mean over the layers and each layer's value `[n, L]`."""
    # The known attributions are those of the image, not of its noisy copies.
    options |= {"key": context.explanation_keys, "chunk_size": context.chunk_size}
    layers = metrics.smooth_mprt(*context.randomized(), **options)
    return layers.mean(1), layers


def sufficiency(maps: np.ndarray, predictions: np.ndarray, **options: Any) -> np.ndarray:
    """Return the sufficiency of each map, `[M]`."""
    return np.asarray(metrics.sufficiency(jnp.asarray(maps), jnp.asarray(predictions), **options))


def consistency(maps: np.ndarray, predictions: np.ndarray, *, cells: int) -> np.ndarray:
    """Return consistency; explanations are equal if the same part is the most salient: of `cells` along each axis."""
    part = np.zeros((), int)
    for side in maps.shape[1:]:
        part = part[..., None] * cells + np.minimum(np.arange(side) * cells // side, cells - 1)
    rows = maps.reshape(len(maps), -1)
    sums = np.stack([np.where(part.ravel() == cell, rows, 0).sum(1) for cell in range(cells**part.ndim)], axis=1)
    values, defined = np.full(len(maps), np.nan, np.float32), np.isfinite(sums).all(1) & (sums > 0).any(1)
    codes = sums[defined].argmax(1)
    values[defined] = metrics.consistency(jnp.asarray(codes), jnp.asarray(predictions[defined]))
    return values


# Names of the arrays that each function above returns.
_FUNCTIONS: dict[Callable[..., Any], tuple[str, ...]] = {
    replacement: ("insertion", "deletion", "insertion_curve", "deletion_curve"),
    road: ("road", "road_curve"),
    masked_accuracy: ("masked_accuracy", "masked_accuracy_curve"),
    top_k_intersection: ("top_k_intersection",),
    non_sensitivity: ("non_sensitivity",),
    completeness: ("completeness",),
    infidelity: ("infidelity",),
    sensitivities: ("max_sensitivity", "avg_sensitivity", "local_lipschitz"),
    stabilities: ("relative_input_stability", "relative_output_stability", "relative_representation_stability"),
    adcc: ("adcc",),
    arcc: ("arcc",),
    random_logit: ("random_logit",),
    input_invariance: ("input_invariance",),
    parameter_randomization: ("parameter_randomization", "parameter_randomization_layers"),
    smooth_mprt: ("smooth_mprt", "smooth_mprt_layers"),
    sufficiency: ("sufficiency",),
    consistency: ("consistency",),
    metrics.grid_pointing_game: ("grid_pointing_game",),
}


def _group(name: str, function: Callable[..., Any], gives: tuple[str, ...]) -> Group:
    """Return the group of the metrics in `gives`; its options and properties come from their rows in `KNOWN`."""
    rows = {given: KNOWN[given] for given in gives if given in KNOWN}
    (needs,) = {row.needs for row in rows.values()}
    options: dict[str, Any] = {}
    for metric, row in rows.items():
        own = {option: value for option, value in row.keywords().items() if option not in _CONTEXT + _LEFT}
        options |= baselines.written_defaults(metric, own)
    reference, signed = any(row.reference for row in rows.values()), any(row.signed for row in rows.values())
    return Group(name, gives, needs, function, tuple(options.items()), reference, signed, rows[gives[0]].follows)


def _groups() -> dict[str, Group]:
    """Return all groups: those of `_FUNCTIONS`, then one for each other metric of explanations."""
    groups = {function.__name__: _group(function.__name__, function, gives) for function, gives in _FUNCTIONS.items()}
    shared = {name for group in groups.values() for name in group.gives}
    for name, row in metrics.METRICS.items():
        if name not in shared and row.needs not in ("model", "mask") and row.derived_from is None:
            groups[name] = _group(name, partial(_call, row.function, row.needs, row.signed), (name,))
    return groups


GROUPS: dict[str, Group] = _groups()
_GROUP_OF = {given: group.name for group in GROUPS.values() for given in group.gives}
