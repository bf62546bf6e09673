"""SaliencyDecor in JAX: training whose gradient saliency comes out sharp and on the object, and its measurement.

What is asked for is imported then, so that each part needs only what it uses: `sdecor.attribution` jax and numpy.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = ("attribution", "data", "export", "losses", "masking", "metrics", "models", "report")
_FUNCTIONS = {
    "Tap": "models",
    "classification": "losses",
    "consistency": "losses",
    "create_model": "models",
    "decorrelation": "losses",
    "explain": "attribution",
    "fill": "masking",
    "frozen_statistics": "models",
    "gradient_penalty": "losses",
    "least_salient": "masking",
    "saliency_decor": "training.specification",
}

__all__ = [*_MODULES, *_FUNCTIONS]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"sdecor.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"sdecor.{_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module 'sdecor' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
