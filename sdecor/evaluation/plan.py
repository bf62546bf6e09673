"""What an evaluation of one network comprises: its methods, its measures, and on how many images each is taken."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from sdecor.evaluation.choices import RANDOM, Method, choose_methods
from sdecor.evaluation.device import Setup
from sdecor.evaluation.measures import MEASURES, Measure, measures_of
from sdecor.evaluation.results import Results
from sdecor.metrics import DATASET_METRICS, METRICS


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


def plain(settings: Any) -> Any:
    """Return settings as JSON gives them back; functions and other objects by their name."""
    return json.loads(json.dumps(settings, default=lambda value: getattr(value, "__name__", str(value))))
