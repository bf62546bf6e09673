"""SaliencyDecor in JAX: training for gradient saliency that is sharp and on the object, and its evaluation.

Folders:
  losses, masking     terms of the training loss; choice and filling of the masked positions
  models, data        networks in Flax Linen; data sets, batches and augmentation
  training            from a config to a trained run (train.py)
  attribution, rules  attribution methods; backward-pass rules of DeepLIFT, LRP and guided gradients
  metrics             metrics of the network and of its attribution maps
  evaluation, report  evaluation of trained runs, and its tables, figures and pages (evaluate.py)
  export              attribution maps of whole data sets in Zarr
  sweep               many runs: configs × seeds
  core                the base of all folders

The names in `__all__` are imported at their first use, so that each part needs only its own dependencies:
`sdecor.attribution`, for example, needs jax and numpy.
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
