"""The four cells of the method on the embedded data set: each term alone, both, and neither, over five seeds.

    python -m sdecor.sweep --config=configs/sweeps/ablation.py --workdir=runs/ablation [--status]
    python -m sdecor.sweep --report runs/ablation

Twenty runs of the demo's network. Each takes one to three minutes of two CPU cores, and as long again to measure.
"""

from configs.sweeps import cells

METHODS = ["ce", "sgt", "decor", "sdecor"]
TUNED = {"sgt": {"consistency.weight": 3.0}}  # the config's weights are those of decor and sdecor
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
        "cells": [(method, {"method": method} | TUNED.get(method, {})) for method in METHODS],
        "seeds": 5,
        "evaluate": {
            "methods": ["gradient", "smoothgrad"],
            "metrics": ["quick", "max_sensitivity"],
            "split": "test",
            "curve_images": 500,
            "robustness_images": 100,
        },
        "tags": {"references": ["ce", "sgt"], "measures": PRIMARY},
        "tests": cells.against(["sdecor"], PRIMARY, ["ce", "sgt"]),
    }
