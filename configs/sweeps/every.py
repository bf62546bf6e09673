"""Cost and effect of masking a part of each batch, `masking.every`, on scenes and on photographs.

    python -m sdecor.sweep --config=configs/sweeps/every.py:scenes --workdir=runs/every/scenes
    python -m sdecor.sweep --config=configs/sweeps/every.py:photographs --workdir=runs/every/photographs \
        --set config.data.path=tiny-imagenet-200

The paper's method with the defaults of the configs, three seeds, measured on the validation split. docs/performance.md
has the result.
"""

from configs.sweeps.evidence import VALIDATION

BASES = {
    "scenes": {"config": "configs/default.py", "overrides": {"train.epochs": 6.0}},
    "photographs": {"config": "configs/tiny_imagenet.py", "overrides": {"train.epochs": 10.0}},
}


def get_config(part: str = "scenes") -> dict:
    """Return a part of the study (docs/sweeps.md).

    Raises:
      ValueError: for an unknown part.
    """
    if part not in BASES:
        raise ValueError(f"every.py:{part} is no part of the study: name one of {', '.join(BASES)}")
    forwards = {
        f"sdecor_{forward}_{every}": {"masking.forward": forward, "masking.every": every}
        for every in (1, 2, 4)
        for forward in ("shared", "frozen")
    }
    return {
        "base": BASES[part],
        "cells": [("ce", {"method": "ce"}), *forwards.items()],
        "seeds": 3,
        "evaluate": VALIDATION,
        "tags": {
            "references": ["ce", "sdecor_shared_1"],
            "measures": ["accuracy", *(f"gradient/{metric}" for metric in VALIDATION["metrics"])],
        },
        "tests": [],
    }
