"""The choice of methods and metrics by words: `--methods=standard,smoothgrad:samples=10`, `--metrics=quick,entropy`.

A word is a name, a preset, or a method's name with options: `name:option=value:option=value`.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdecor.attribution import METHOD_INFO, METHODS, MethodInfo
from sdecor.core.checks import check_choice
from sdecor.core.commands import parse_value
from sdecor.metrics import DATASET_METRICS, METRICS
from sdecor.metrics.registry import KNOWN, PRESETS

METHOD_PRESETS: dict[str, tuple[str, ...]] = {
    preset: tuple(name for name, info in METHOD_INFO.items() if preset in info.presets)
    for preset in ("quick", "standard")
} | {"full": tuple(METHODS)}
METRIC_PRESETS: dict[str, tuple[str, ...]] = {
    preset: tuple(
        name
        for name, metric in (METRICS | DATASET_METRICS).items()
        if metric.preset in PRESETS[: place + 1] and metric.derived_from is None
    )
    for place, preset in enumerate(PRESETS)
}
_OFFERED = ("key", "chunk_size", "with_error")  # keywords of a method that an evaluation sets itself


class Method(NamedTuple):
    """An attribution method with its options.

    Attributes:
      key: name under which its numbers are stored: the method's name, then each option that is not the default.
      function: function of one image, as in `attribution.METHODS`.
      options: name and value of each option that is not the default.
    """

    key: str
    function: Callable[..., Any]
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def info(self) -> MethodInfo:
        """Return the row of `attribution.METHOD_INFO` with this function, or a row of the function alone."""
        name = self.key.split(":")[0]
        row = METHOD_INFO.get(name)
        return row if row is not None and row.function is self.function else MethodInfo(self.function, name)

    @property
    def contributions(self) -> bool:
        """Return whether attributions are in score units, rather than score units per input unit."""
        return self.info.sums_to is not None

    def settings(self, saliency_of: str) -> dict[str, Any]:
        """Return the value of every option; `saliency_of` replaces the method's own default if that is "logit"."""
        settings = defaults_of(self.function)
        if settings.get("saliency_of") == "logit":
            settings["saliency_of"] = saliency_of
        return settings | dict(self.options)

    def bind(self, saliency_of: str) -> Callable[..., jax.Array]:
        """Return `(fn, image, target, key) -> attribution` with the options, one network evaluation at a time."""
        offered = inspect.signature(self.function).parameters
        settings = self.settings(saliency_of) | ({"chunk_size": 1} if "chunk_size" in offered else {})

        def explain_of(fn: Callable, image: jax.Array, target: jax.Array, key: jax.Array) -> jax.Array:
            drawing = {"key": key} if "key" in offered else {}
            return self.function(fn, image, target, **settings, **drawing).astype(jnp.float32)

        return explain_of


def _random_order(fn: Callable, image: jax.Array, target: jax.Array, *, saliency_of: str = "logit") -> jax.Array:
    """Return a constant map: metrics that rank pixels order equal values at random."""
    return jnp.ones((*image.shape[:-1], 1), jnp.float32)


RANDOM = Method("random", _random_order)


def split_words(text: str) -> list[str]:
    """Split a list at the commas outside brackets: "gradient,occlusion:window=(4,4)" is two words.

    Raises:
      ValueError: if brackets do not match.
    """
    words, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            break
        if character == "," and depth == 0:
            words.append("")
        else:
            words[-1] += character
    if depth:
        raise ValueError(f"the brackets of {text!r} do not match: write a list as a,b:option=(1,2)")
    return [word.strip() for word in words if word.strip()]


def choose_methods(words: Iterable[str]) -> dict[str, tuple[Method, bool]]:
    """Return the methods that `words` name: key → (method, whether it was named itself rather than by a preset).

    Raises:
      ValueError: for an unknown preset, method, option or value; the message names a similar one.
    """
    chosen: dict[str, tuple[Method, bool]] = {}
    for word in words:
        if word in METHOD_PRESETS:
            for name in METHOD_PRESETS[word]:
                chosen.setdefault(name, (Method(name, METHODS[name]), False))
        else:
            method = _method(word)
            chosen[method.key] = (method, True)
    if not chosen:
        raise ValueError("--methods is empty: name at least one method or preset")
    return chosen


def choose_metrics(words: Iterable[str]) -> dict[str, bool]:
    """Return the metrics that `words` name: name → whether it was named itself rather than by a preset.

    For a metric that is derived from another, the other one is chosen; both are reported.

    Raises:
      ValueError: for an unknown preset or metric; the message names a similar one.
    """
    chosen: dict[str, bool] = {}
    for word in words:
        check_choice("--metrics", word, (*METRIC_PRESETS, *KNOWN))
        for name in METRIC_PRESETS[word] if word in METRIC_PRESETS else (KNOWN[word].derived_from or word,):
            chosen[name] = chosen.get(name, False) or word not in METRIC_PRESETS
    return chosen


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the keyword options of a method and their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in _OFFERED}


def _method(word: str) -> Method:
    name, *settings = word.split(":")
    check_choice("--methods", name, (*METHOD_PRESETS, *METHODS))
    if name in METHOD_PRESETS:
        raise ValueError(f"--methods has {word!r}: a preset takes no options, name the method itself")
    function = METHODS[name]
    defaults, options = defaults_of(function), {}
    for setting in settings:
        option, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--methods has {word!r}: options have the form {name}:option=value:option=value")
        check_choice(f"option of {name}", option, defaults)
        value = parse_value(text)
        value = tuple(value) if isinstance(value, list) else value  # options are compared and hashed
        if value != defaults[option]:
            options[option] = value
    key = ":".join([name, *(f"{option}={value}" for option, value in sorted(options.items()))])
    return Method(key, function, tuple(sorted(options.items())))
