"""The plan of an evaluation: its methods, its metrics, and the number of images of each metric."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdecor.core.files import plain_settings
from sdecor.data.augment import center_crop
from sdecor.evaluation.choices import RANDOM, Method, choose_methods
from sdecor.evaluation.groups import GROUPS, WHOLE, Group, groups_of
from sdecor.evaluation.programs import Setup, make_explanation, make_measurement
from sdecor.evaluation.results import Results
from sdecor.metrics import DATASET_METRICS, METRICS, make_mosaics


class Plan(NamedTuple):
    """An evaluation of one network.

    Attributes:
      setup: the network's input, and the score that is explained.
      methods: attribution methods by key; first the random order of pixels, if a group needs it as a reference.
      groups: metrics to compute for each method.
      images: `Group.needs` → number of images.
      shown: names of the requested metrics.
      refused: parts, "method/group", that are not possible.
    """

    setup: Setup
    methods: dict[str, Method]
    groups: tuple[Group, ...]
    images: dict[str, int]
    shown: tuple[str, ...]
    refused: frozenset[str] = frozenset()

    def parts(self, method: Method) -> dict[str, tuple[Group, dict[str, Any]]]:
        """Return the parts of a method: name → (group, all settings that its numbers depend on)."""
        own = {"options": method.settings(self.setup.saliency_of), "reduction": self.setup.reduction}
        parts = {}
        for group in self.groups:
            part = f"{method.key}/{group.name}"
            if part not in self.refused and (group.reference or method.key != RANDOM.key):
                group = group.of(method, self.setup.saliency_of)
                settings = {"images": self.images[group.needs], "options": dict(group.options)}
                settings["looks_at"] = group.looks_at
                parts[part] = (group, plain_settings({"method": own, "measure": settings}))
        return parts

    def drawn(self) -> "Plan":
        """Return the plan of the parts that depend on random numbers, of the metric or of the attribution method."""
        refused = {
            f"{method.key}/{group.name}"
            for method in self.methods.values()
            for group in self.groups
            if not (group.draws or "key" in inspect.signature(method.function).parameters)
        }
        return self._replace(refused=self.refused | refused)

    def all_parts(self) -> dict[str, dict[str, Any]]:
        """Return all settings that the numbers of each part depend on, by name of the part."""
        found = {}
        for method in self.methods.values():
            found |= {part: settings for part, (_, settings) in self.parts(method).items()}
        return found

    def settings(self) -> dict[str, Any]:
        """Return the options of all methods and groups, for evaluation.json and the report."""
        methods = {key: method.settings(self.setup.saliency_of) for key, method in self.explained().items()}
        groups = {}
        for each in self.groups:
            options = dict(each.options) | {
                name: f"the method's, else {dict(each.options)[name]}" for name in each.follows
            }
            groups[each.name] = {"images": self.images[each.needs], "looks_at": each.looks_at, **options}
        return plain_settings({"methods": methods, "measures": groups})

    def explained(self) -> dict[str, Method]:
        """Return the methods without the random order of pixels."""
        return {key: method for key, method in self.methods.items() if key != RANDOM.key}

    def with_percentages(self, curves: Mapping[str, Any]) -> dict[str, Any]:
        """Add to mean curves the percentages of pixels at their points, if these are an option of the group."""
        options = {name: dict(each.options) for each in self.groups for name in each.gives}
        found = [key for key in curves if "percentages" in options.get(key.rpartition("/")[2], {})]
        percentages = {key: options[key.rpartition("/")[2]]["percentages"] for key in found}
        return dict(curves) | {key.removesuffix("curve") + "percentages": each for key, each in percentages.items()}

    def select(self, results: Results) -> Results:
        """Return the part of stored results that belongs to this evaluation."""
        part_of = {name: group.name for group in self.groups for name in group.gives}
        asked = {name for name in part_of if name in self.shown or name not in METRICS | DATASET_METRICS}
        parts = self.all_parts()

        def chosen(key: str) -> bool:
            method, _, name = key.rpartition("/")
            return not method or (name in asked and f"{method}/{part_of[name]}" in parts)

        return Results({key: x for key, x in results.examples.items() if chosen(key)}, results.moments)

    def with_stored(self, stored: Mapping[str, Any], options: Mapping[str, Mapping[str, Any]]) -> "Plan":
        """Add stored results whose settings equal today's.

        Args:
          stored: part → settings, as in `parts`; all parts of this plan are among them.
          options: options of groups, see `groups_of`.
        """
        methods, groups = dict(self.methods), {each.name: each for each in self.groups}
        for part, settings in stored.items():
            key, _, name = part.rpartition("/")
            method = methods.get(key) or _method_of(key)
            group = groups.get(name) or _group_of(name, settings, options)
            one = self._replace(groups=(group,) if group else (), refused=frozenset())
            if method and settings in [mine for _, mine in one.parts(method).values()]:
                methods[key], groups[name] = method, group
        shown = (*self.shown, *(name for each in groups.values() for name in each.gives))
        missing = {f"{key}/{name}" for key in methods for name in groups} - {*stored}
        plan = self._replace(methods=methods, groups=tuple(groups.values()), shown=shown)
        plan = plan._replace(refused=self.refused | missing)  # first, because settings do not exist for some pairs
        other = {part for part, settings in plan.all_parts().items() if stored[part] != settings}
        return plan._replace(refused=plan.refused | other)


def _method_of(key: str) -> Method | None:
    """Return the method of a key; None if this version does not know it."""
    try:
        return RANDOM if key == RANDOM.key else next(iter(choose_methods([key]).values()))[0]
    except ValueError:
        return None


def _group_of(name: str, settings: Mapping[str, Any], options: Mapping[str, Mapping[str, Any]]) -> Group | None:
    """Return the group of a stored part; None if this version does not know it."""
    if name not in GROUPS:
        return None
    (group,) = groups_of(GROUPS[name].gives, options).values()
    if group.needs != "mosaic":
        return group
    resize = settings["measure"]["options"].get("resize")  # it depends on the network, see `make_plan`
    return group._replace(options=(*group.options, ("resize", resize)))


_REFUSALS = (ValueError, NotImplementedError)  # errors of a method or metric that does not support a network


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
    """Drop the requested methods and metrics that this network or data set does not support (traced, not run).

    Args:
      setup: see `Setup`.
      methods: result of `choose_methods`.
      metrics: result of `choose_metrics`.
      variables: variables of the network, arrays or shapes.
      batch: a batch of one example, arrays or shapes; with `object` if the data set has masks.
      images: see `Plan`.
      options: group → options that differ from the group's defaults.

    Returns:
      The plan, and one line for each method or metric of a preset that was dropped.

    Raises:
      ValueError: if a method or metric that was named itself is not supported.
    """
    batch, notes = {**batch, "target": batch["label"]}, []
    explained, examples = _explaining(setup, methods, variables, batch, notes)
    chosen, refused = [], set()
    for group in groups_of(metrics, options).values():
        named = any(metrics.get(name, False) for name in group.gives)
        if group.needs == "object" and "object" not in batch:
            if named:
                raise ValueError(f"--metrics has {group.title}: the data set has neither object masks nor boxes")
            continue
        if group.needs == "mosaic":
            group, refusal = _fitting_mosaics(group, setup, variables, batch)
            refusals = {} if refusal is None else dict.fromkeys(explained, refusal)
        else:
            refusals = _refusals(group, setup, explained, variables, {key: batch | examples[key] for key in explained})
        if len(refusals) == len(explained):
            _leave_out(notes, f"metric {group.title}", next(iter(refusals.values())), named)
            continue
        for key, refusal in refusals.items():
            _leave_out(notes, f"metric {group.title} of {key}", refusal, named and methods[key][1])
        refused |= {f"{key}/{group.name}" for key in refusals}
        chosen.append(group)
    reference = {RANDOM.key: RANDOM} if any(group.reference for group in chosen) else {}
    return Plan(setup, reference | explained, tuple(chosen), dict(images), tuple(metrics), frozenset(refused)), notes


def _refusals(
    group: Group, setup: Setup, explained: Mapping[str, Method], variables: Any, batches: Mapping[str, Any]
) -> dict[str, Exception]:
    """Return the errors of a group, by key of the methods that it cannot measure.

    A group that does not read whole attributions is traced once for all methods with the same options.
    """
    refusals, tried = {}, {}
    for key, method in explained.items():
        try:
            own = group.of(method, setup.saliency_of)
        except ValueError as error:
            refusals[key] = error
            continue
        whole = own.needs in WHOLE
        program = (own, key if whole else None)
        if group.needs != "set" and program not in tried:
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
    """Return the methods that support the network, and the shapes of their results."""
    explained, examples = {}, {}
    for name, (method, named) in methods.items():
        # Methods validate their own options, and an invalid one may raise any error.
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
    group: Group, setup: Setup, variables: Any, batch: Mapping[str, Any]
) -> tuple[Group, Exception | None]:
    """Add the option `resize`: mosaics are resized only if the network does not accept larger images.

    A mosaic shows a class once, so that there is an error for a network of fewer classes than cells.
    """
    size = dict(group.options)["size"]
    one = jax.eval_shape(lambda image: center_crop(image, setup.size), batch["image"])
    if len(one.shape) != 4:
        return group, ValueError(f"mosaics are of images, and these inputs have the shape {one.shape[1:]}")
    single = jax.ShapeDtypeStruct((1, *one.shape[1:]), jnp.float32)
    classes = jax.eval_shape(setup.apply, variables, single)[0].shape[-1]
    if classes < size**2:
        return group, ValueError(f"a mosaic of {size**2} different classes needs more than the network's {classes}")
    cells = jax.ShapeDtypeStruct((1, size**2, *one.shape[1:]), jnp.float32)
    resize, larger = False, jax.eval_shape(partial(make_mosaics, size=size), cells)
    try:
        jax.eval_shape(setup.apply, variables, larger)
    except Exception:  # any error means that the network does not accept this size
        resize = True
    _, refusal = _tried(partial(make_mosaics, size=size, resize=resize), cells)
    return group._replace(options=(*group.options, ("resize", resize))), refusal


def _tried(
    program: Callable[..., Any], *arguments: Any, expected: tuple[type[Exception], ...] = _REFUSALS
) -> tuple[Any, Exception | None]:
    """Trace a program; return the shapes of its results, or its error about the network or the options."""
    try:
        return jax.eval_shape(program, *arguments), None
    except expected as error:
        return None, error


def _leave_out(notes: list[str], what: str, refusal: Exception, named: bool) -> None:
    reason = str(refusal) if isinstance(refusal, _REFUSALS) else f"{type(refusal).__name__}: {refusal}"
    if named:
        raise ValueError(f"{what} cannot be taken of this network: {reason}") from refusal
    notes.append(f"{what} is left out: {reason.splitlines()[0]}")
