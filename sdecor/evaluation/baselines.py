"""Translation of baselines between the options that a run stores and the functions that metrics take.

A run stores "blur" and its `blur_sigma` as two options; a metric takes both as one function.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from sdecor.attribution.baselines import BLUR_SIGMA, Baseline, blurred

# Stored without a sigma, so that results of earlier versions, which have none, are recognised.
_WITHOUT_SIGMA = (
    "average_drop",
    "average_increase",
    "completeness",
    "continuity",
    "monotonicity",
    "non_sensitivity",
)


def written_defaults(metric: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a metric's default options, with a `blur_sigma` after `baseline`, as they are stored."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        found[name] = value
        if name == "baseline" and metric not in _WITHOUT_SIGMA:
            found["blur_sigma"] = BLUR_SIGMA
    return found


def written(baseline: Baseline) -> dict[str, Any]:
    """Return a method's baseline as stored options; functions other than `blurred` stay functions."""
    if isinstance(baseline, partial) and baseline.func is blurred:
        return {"baseline": "blur", "blur_sigma": baseline.keywords["sigma"]}
    return {"baseline": baseline}


def bound(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a metric's options with "blur" and `blur_sigma` joined to one function."""
    options = dict(options)
    sigma = options.pop("blur_sigma", BLUR_SIGMA)
    if sigma == BLUR_SIGMA:
        return options
    return {
        name: partial(blurred, sigma=sigma) if name.endswith("baseline") and _is_blur(value) else value
        for name, value in options.items()
    }


def _is_blur(value: Any) -> bool:
    return isinstance(value, str) and value == "blur"
