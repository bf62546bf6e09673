"""What an evaluation of one network comprises: its methods, its measures, and on how many images each is taken."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdecor.data.augment import center_crop
from sdecor.evaluation.choices import RANDOM, Method
from sdecor.evaluation.device import Setup, make_explanation, make_measurement
from sdecor.evaluation.measures import Measure, measures_of
from sdecor.evaluation.results import Results
from sdecor.metrics import METRICS, make_mosaics


class Plan(NamedTuple):
    """An evaluation of one network.

    Attributes:
      setup: how the network is fed and what of it is explained.
      methods: what explains, by key; a random order of pixels first, where a measure is compared with it.
      measures: what is measured of each method.
      images: by `Measure.needs`, on how many images.
      shown: the metrics that were asked for.
    """

    setup: Setup
    methods: dict[str, Method]
    measures: tuple[Measure, ...]
    images: dict[str, int]
    shown: tuple[str, ...]

    def parts(self, method: Method) -> dict[str, tuple[Measure, dict[str, Any]]]:
        """Return what is measured of a method: name of the part → the measure, and all that its numbers depend on."""
        own = {"options": method.settings(self.setup.saliency_of), "reduction": self.setup.reduction}
        parts = {}
        for measure in self.measures:
            if measure.reference or method.key != RANDOM.key:
                settings = {"images": self.images[measure.needs], "options": dict(measure.options)}
                parts[f"{method.key}/{measure.name}"] = (measure, plain({"method": own, "measure": settings}))
        return parts

    def settings(self) -> dict[str, Any]:
        """Return the options of all methods and measures, for the record."""
        methods = {key: method.settings(self.setup.saliency_of) for key, method in self.explained().items()}
        images = self.images
        measures = {each.name: {"images": images[each.needs], **dict(each.options)} for each in self.measures}
        return plain({"methods": methods, "measures": measures})

    def explained(self) -> dict[str, Method]:
        """Return the methods without the random order."""
        return {key: method for key, method in self.methods.items() if key != RANDOM.key}

    def with_percentages(self, curves: Mapping[str, Any]) -> dict[str, Any]:
        """Add to mean curves at which percentages of the pixels those of ROAD were taken."""
        options = {name: value for each in self.measures if each.name == "road" for name, value in each.options}
        found = [key for key in curves if key.endswith("/road_curve")]
        return dict(curves) | {key.replace("road_curve", "road_percentages"): options["percentages"] for key in found}

    def select(self, results: Results) -> Results:
        """Return of stored results what this evaluation comprises."""
        curves = {name for measure in self.measures for name in measure.gives if name not in METRICS}
        names = {*self.shown, *curves}

        def chosen(key: str) -> bool:
            method, _, name = key.rpartition("/")
            return not method or (method in self.methods and name in names)

        return Results({key: x for key, x in results.examples.items() if chosen(key)}, results.moments)


def make_plan(
    setup: Setup,
    methods: Mapping[str, tuple[Method, bool]],
    metrics: Mapping[str, bool],
    *,
    variables: Any,
    batch: Mapping[str, Any],
    images: Mapping[str, int],
    options: Mapping[str, Mapping[str, Any]],
) -> tuple[Plan, list[str]]:
    """Choose what of the wanted methods and metrics there can be for a network and its data.

    Args:
      setup: see `Setup`.
      methods: as of `choose_methods`.
      metrics: as of `choose_metrics`.
      variables: the network's, arrays or shapes.
      batch: of one example, arrays or shapes; with `object` where the data set has masks.
      images: see `Plan`.
      options: of measures, those that differ from the measures' own.

    Returns:
      The plan, and a line for each method or measure of a preset that is left out because it refuses the network.

    Raises:
      ValueError: when one that was named itself does so.
    """
    batch, notes = {**batch, "target": batch["label"]}, []
    explained, example = _explaining(setup, methods, variables, batch, notes)
    chosen = []
    for measure in measures_of(metrics, options).values():
        named = any(metrics.get(name, False) for name in measure.gives)
        if measure.needs == "object" and "object" not in batch:
            if named:
                raise ValueError(f"--metrics has {measure.name}: the data set has neither object masks nor boxes")
            continue
        refusal = None
        if measure.needs == "mosaic":
            measure, refusal = _fitting_mosaics(measure, setup, variables, batch)
        elif measure.needs != "set":
            program = make_measurement(setup, (measure,), next(iter(explained.values())))
            _, refusal = _tried(program, variables, batch | example, jax.random.key(0))
        if refusal is None:
            chosen.append(measure)
        else:
            _leave_out(notes, f"measure {measure.name}", refusal, named)
    reference = {RANDOM.key: RANDOM} if any(measure.reference for measure in chosen) else {}
    return Plan(setup, reference | explained, tuple(chosen), dict(images), tuple(metrics)), notes


def _explaining(
    setup: Setup,
    methods: Mapping[str, tuple[Method, bool]],
    variables: Any,
    batch: Mapping[str, Any],
    notes: list[str],
) -> tuple[dict[str, Method], dict[str, Any]]:
    """Return the methods that explain the network, and the shapes of what the first of them returns."""
    explained, example = {}, {}
    for name, (method, named) in methods.items():
        found, refusal = _tried(make_explanation(setup, method), variables, batch, jax.random.key(0))
        if refusal is None:
            example = example or found
            explained[name] = method
        else:
            _leave_out(notes, f"method {name}", refusal, named)
    if not explained:
        raise ValueError("no method is left to evaluate: " + "; ".join(notes))
    return explained, example


def _fitting_mosaics(
    measure: Measure, setup: Setup, variables: Any, batch: Mapping[str, Any]
) -> tuple[Measure, Exception | None]:
    """Say whether mosaics are resized: not where the network takes larger images."""
    size = dict(measure.options)["size"]
    one = jax.eval_shape(lambda image: center_crop(image, setup.size), batch["image"])
    cells = jax.ShapeDtypeStruct((1, size**2, *one.shape[1:]), jnp.float32)
    resize, larger = False, jax.eval_shape(partial(make_mosaics, size=size), cells)
    try:
        jax.eval_shape(setup.apply, variables, larger)
    except Exception:  # whatever the network says of that size, it does not take it
        resize = True
    _, refusal = _tried(partial(make_mosaics, size=size, resize=resize), cells)
    return measure._replace(options=(*measure.options, ("resize", resize))), refusal


def plain(settings: Any) -> Any:
    """Return settings as JSON gives them back; functions and other objects by their name."""
    return json.loads(json.dumps(settings, default=lambda value: getattr(value, "__name__", str(value))))


def _tried(program: Callable[..., Any], *arguments: Any) -> tuple[Any, Exception | None]:
    """Trace a program: return the shapes of its results, or what it says against the network."""
    try:
        return jax.eval_shape(program, *arguments), None
    except (ValueError, NotImplementedError) as error:
        return None, error


def _leave_out(notes: list[str], what: str, refusal: Exception, named: bool) -> None:
    if named:
        raise ValueError(f"{what} cannot be taken of this network: {refusal}") from refusal
    notes.append(f"{what} is left out: {str(refusal).splitlines()[0]}")
