"""Ablation of SaliencyDecor on the embedded data set: each term alone, both, and neither, over five seeds.

The decorrelation has the paper's form, covariance, and in two further cells density.

    python -m sdecor.sweep --config=configs/sweeps/ablation.py --workdir=runs/ablation [--status]
    python -m sdecor.sweep --report runs/ablation

Thirty trials of the demo's network. On two CPU cores, each trains one to three minutes and evaluates as long.
"""

from configs.sweeps import cells

CELLS = {
    "ce": {"method": "ce"},
    "sgt": {"method": "sgt", "consistency.weight": 3.0},  # chosen on validation data; the default weight is for sdecor
    "decor": {"method": "decor"},
    "sdecor": {"method": "sdecor"},
    "decor_density": {"method": "decor", "form": "density"},
    "sdecor_density": {"method": "sdecor", "form": "density"},
}
PRIMARY = [
    "accuracy",
    "gradient/energy_inside",
    "gradient/insertion_vs_random",
    "gradient/gini",
    "gradient/max_sensitivity",
]


def get_config() -> dict:
    """Return the sweep (docs/sweeps.md)."""
    return {
        "base": {"config": "configs/default.py", "overrides": {"train.epochs": 6.0}},
        "cells": list(CELLS.items()),
        "seeds": 5,
        "evaluate": {
            "methods": ["gradient", "smoothgrad"],
            "metrics": ["quick", "max_sensitivity"],
            "split": "test",
            "curve_images": 500,
            "robustness_images": 100,
        },
        "tags": {"references": ["ce", "sgt"], "measures": PRIMARY},
        "tests": cells.against(["sdecor", "sdecor_density"], PRIMARY, ["ce", "sgt"]),
    }
