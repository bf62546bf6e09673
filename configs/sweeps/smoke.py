"""A small sweep that tests the tools: two cells, two seeds, a few steps each. Its numbers mean nothing.

python -m sdecor.sweep --config=configs/sweeps/smoke.py --workdir=runs/smoke
python -m sdecor.sweep --report runs/smoke
"""

from configs.sweeps import cells


def get_config() -> dict:
    """Return the sweep (docs/sweeps.md)."""
    tiny = {
        "data.limit": 96,
        "model.widths": (4, 8),
        "optim.warmup_epochs": 0.0,
        "train.batch_size": 32,
        "train.epochs": 2.0,
        "train.checkpoint_every_steps": 2,
        "evaluation.batch_size": 32,
        "evaluation.resamples": 100,
        "log.every_steps": 1,
    }
    measures = ["accuracy", "gradient/gini", "gradient/energy_inside"]
    return {
        "base": {"config": "configs/default.py", "overrides": tiny},
        "cells": [
            ("ce", {"method": "ce"}),
            *cells.grid({"masking.fraction": [0.5]}, prefix="sgt", also={"method": "sgt"}),
        ],
        "seeds": 2,
        "evaluate": {
            "methods": ["gradient"],
            "metrics": ["gini", "energy_inside"],
            "map_images": 32,
            "images": 2,
        },
        "tags": {"references": ["ce"], "measures": measures},
        "tests": cells.against(["sgt_fraction=0.5"], measures, ["ce"]),
    }
