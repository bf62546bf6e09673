"""What an evaluation comprises: its methods, its metrics, and on how many images each is taken."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdecor.core.files import plain_settings as plain
from sdecor.data.augment import center_crop
from sdecor.evaluation.choices import RANDOM, Method, choose_methods
from sdecor.evaluation.measures import MEASURES, WHOLE, Measure, measures_of
from sdecor.evaluation.programs import Setup, make_explanation, make_measurement
from sdecor.evaluation.results import Results
from sdecor.metrics import DATASET_METRICS, METRICS, make_mosaics


class Plan(NamedTuple):
    """An evaluation of one network.

    Attributes:
      setup: how the network is fed and what of it is explained.
      methods: what explains, by key; a random order of pixels first, where a measure is compared with it.
      measures: what is measured of each method.
      images: by `Measure.needs`, on how many images.
      shown: the metrics that were asked for.
      refused: parts, "method/measure", that there cannot be.
    """

    setup: Setup
    methods: dict[str, Method]
    measures: tuple[Measure, ...]
    images: dict[str, int]
    shown: tuple[str, ...]
    refused: frozenset[str] = frozenset()

    def parts(self, method: Method) -> dict[str, tuple[Measure, dict[str, Any]]]:
        """Return what is measured of a method: name of the part → the measure, and all that its numbers depend on."""
        own = {"options": method.settings(self.setup.saliency_of), "reduction": self.setup.reduction}
        parts = {}
        for measure in self.measures:
            part = f"{method.key}/{measure.name}"
            if part not in self.refused and (measure.reference or method.key != RANDOM.key):
                measure = measure.of(method, self.setup.saliency_of)
                settings = {"images": self.images[measure.needs], "options": dict(measure.options)}
                settings["looks_at"] = measure.looks_at
                parts[part] = (measure, plain({"method": own, "measure": settings}))
        return parts

    def all_parts(self) -> dict[str, dict[str, Any]]:
        """Return of all parts what their numbers depend on."""
        found = {}
        for method in self.methods.values():
            found |= {part: settings for part, (_, settings) in self.parts(method).items()}
        return found

    def settings(self) -> dict[str, Any]:
        """Return the options of all methods and measures, for the record."""
        methods = {key: method.settings(self.setup.saliency_of) for key, method in self.explained().items()}
        measures = {}
        for each in self.measures:
            options = dict(each.options) | {
                name: f"the method's, else {dict(each.options)[name]}" for name in each.follows
            }
            measures[each.name] = {"images": self.images[each.needs], "looks_at": each.looks_at, **options}
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
        part_of = {name: measure.name for measure in self.measures for name in measure.gives}
        asked = {name for name in part_of if name in self.shown or name not in METRICS | DATASET_METRICS}
        parts = self.all_parts()

        def chosen(key: str) -> bool:
            method, _, name = key.rpartition("/")
            return not method or (name in asked and f"{method}/{part_of[name]}" in parts)

        return Results({key: x for key, x in results.examples.items() if chosen(key)}, results.moments)

    def with_stored(self, stored: Mapping[str, Any], options: Mapping[str, Mapping[str, Any]]) -> "Plan":
        """Add what is stored with the settings that it would have today, and all that it gives.

        Args:
          stored: settings by part, as of `parts`; those of this plan are among them.
          options: of measures, see `measures_of`.
        """
        methods, measures = dict(self.methods), {each.name: each for each in self.measures}
        for part, settings in stored.items():
            key, _, name = part.rpartition("/")
            method = methods.get(key) or _method_of(key)
            measure = measures.get(name) or _measure_of(name, settings, options)
            one = self._replace(measures=(measure,) if measure else (), refused=frozenset())
            if method and settings in [mine for _, mine in one.parts(method).values()]:
                methods[key], measures[name] = method, measure
        shown = (*self.shown, *(name for each in measures.values() for name in each.gives))
        missing = {f"{key}/{name}" for key in methods for name in measures} - {*stored}
        plan = self._replace(methods=methods, measures=tuple(measures.values()), shown=shown)
        plan = plan._replace(refused=self.refused | missing)  # before the others' settings: some pairs have none
        other = {part for part, settings in plan.all_parts().items() if stored[part] != settings}
        return plan._replace(refused=plan.refused | other)


def _method_of(key: str) -> Method | None:
    """Return the method of a key; None where this version does not know it."""
    try:
        return RANDOM if key == RANDOM.key else next(iter(choose_methods([key]).values()))[0]
    except ValueError:
        return None


def _measure_of(name: str, settings: Mapping[str, Any], options: Mapping[str, Mapping[str, Any]]) -> Measure | None:
    """Return the measure of a stored part; None where this version does not know it."""
    if name not in MEASURES:
        return None
    (measure,) = measures_of(MEASURES[name].gives, options).values()
    if measure.needs != "mosaic":
        return measure
    resize = settings["measure"]["options"].get("resize")  # the network decides it, see `make_plan`
    return measure._replace(options=(*measure.options, ("resize", resize)))


_REFUSALS = (ValueError, NotImplementedError)  # what methods and measures raise against a network


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
    explained, examples = _explaining(setup, methods, variables, batch, notes)
    chosen, refused = [], set()
    for measure in measures_of(metrics, options).values():
        named = any(metrics.get(name, False) for name in measure.gives)
        if measure.needs == "object" and "object" not in batch:
            if named:
                raise ValueError(f"--metrics has {measure.name}: the data set has neither object masks nor boxes")
            continue
        if measure.needs == "mosaic":
            measure, refusal = _fitting_mosaics(measure, setup, variables, batch)
            refusals = {} if refusal is None else dict.fromkeys(explained, refusal)
        else:
            refusals = _refusals(
                measure, setup, explained, variables, {key: batch | examples[key] for key in explained}
            )
        if len(refusals) == len(explained):
            _leave_out(notes, f"measure {measure.name}", next(iter(refusals.values())), named)
            continue
        for key, refusal in refusals.items():
            _leave_out(notes, f"measure {measure.name} of {key}", refusal, named and methods[key][1])
        refused |= {f"{key}/{measure.name}" for key in refusals}
        chosen.append(measure)
    reference = {RANDOM.key: RANDOM} if any(measure.reference for measure in chosen) else {}
    return Plan(setup, reference | explained, tuple(chosen), dict(images), tuple(metrics), frozenset(refused)), notes


def _refusals(
    measure: Measure, setup: Setup, explained: Mapping[str, Method], variables: Any, batches: Mapping[str, Any]
) -> dict[str, Exception]:
    """Return what a measure says against those of the methods that it cannot measure.

    A measure that looks at no whole attribution is tried once for all methods with the same options.
    """
    refusals, tried = {}, {}
    for key, method in explained.items():
        try:
            own = measure.of(method, setup.saliency_of)
        except ValueError as error:
            refusals[key] = error
            continue
        whole = own.needs in WHOLE
        program = (own, key if whole else None)
        if measure.needs != "set" and program not in tried:
            step = make_measurement(setup, (own,), method if whole else None)
            tried[program] = _tried(step, variables, batches[key], jax.random.key(0))[1]
        if tried.get(program) is not None:
            refusals[key] = tried[program]
    return refusals


def _explaining(
    setup: Setup,
    methods: Mapping[str, tuple[Method, bool]],
    variables: Any,
    batch: Mapping[str, Any],
    notes: list[str],
) -> tuple[dict[str, Method], dict[str, Any]]:
    """Return the methods that explain the network, and the shapes of what each of them returns."""
    explained, examples = {}, {}
    for name, (method, named) in methods.items():
        # What an option's text stands for is checked by the method, and may break it anywhere.
        expected = (Exception,) if method.options else _REFUSALS
        found, refusal = _tried(make_explanation(setup, method), variables, batch, jax.random.key(0), expected=expected)
        if refusal is None:
            explained[name], examples[name] = method, found
        else:
            _leave_out(notes, f"method {name}", refusal, named)
    if not explained:
        raise ValueError("no method is left to evaluate: " + "; ".join(notes))
    return explained, examples


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


def _tried(
    program: Callable[..., Any], *arguments: Any, expected: tuple[type[Exception], ...] = _REFUSALS
) -> tuple[Any, Exception | None]:
    """Trace a program: return the shapes of its results, or what it says against the network or its options."""
    try:
        return jax.eval_shape(program, *arguments), None
    except expected as error:
        return None, error


def _leave_out(notes: list[str], what: str, refusal: Exception, named: bool) -> None:
    reason = str(refusal) if isinstance(refusal, _REFUSALS) else f"{type(refusal).__name__}: {refusal}"
    if named:
        raise ValueError(f"{what} cannot be taken of this network: {reason}") from refusal
    notes.append(f"{what} is left out: {reason.splitlines()[0]}")
