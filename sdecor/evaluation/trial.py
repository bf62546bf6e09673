"""Which of the wanted methods and measures there can be for a network and its data: each is traced, none computed."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sdecor.data.augment import center_crop
from sdecor.evaluation.choices import RANDOM, Method
from sdecor.evaluation.device import Setup, make_explanation, make_measurement
from sdecor.evaluation.measures import WHOLE, Measure, measures_of
from sdecor.evaluation.plan import Plan
from sdecor.metrics import make_mosaics

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
