"""The studies of docs/evidence/first_studies.md: what sharpens gradient saliency, and its cost in accuracy.

    python -m sdecor.sweep --config=configs/sweeps/evidence.py:PART --workdir=runs/evidence/PART
    python -m sdecor.sweep --report runs/evidence/PART

PART is one of `PARTS`. Parts on photographs need the 20 classes of Tiny ImageNet that the study names:
`--set config.data.path=tiny-imagenet-200`. `tuning_*`, `forms` and `factors` use only the validation split. The
preregistered parts are `methods_*`, on the test split, and `confirmation`, on newly held-out images.
"""

from configs.sweeps import cells
from configs.sweeps.ablation import PRIMARY
from configs.sweeps.methods import DENSITY, ce, decor, gradpen, ramp, sdecor, sgt

Cell = tuple[str, dict]
BEFORE = {  # the defaults at the start of the study, on which its cells are based
    "consistency.ramp_epochs": 0.0,
    "decorrelation.form": "covariance",
    "decorrelation.layers": (),
    "decorrelation.spatial": "pool",
    "decorrelation.rectify": False,
}
SCENES = {"config": "configs/default.py", "overrides": BEFORE | {"train.epochs": 6.0}}
PHOTOGRAPHS = {
    "config": "configs/tiny_imagenet.py",
    "overrides": BEFORE | {"data.path": "tiny-imagenet-200", "train.epochs": 10.0},
}
VALIDATION = {
    "methods": ["gradient"],
    "metrics": ["energy_inside", "gini", "insertion", "max_sensitivity"],
    "split": "val",
    "curve_images": 500,
    "robustness_images": 100,
    "images": 4,
}
TEST = VALIDATION | {"split": "test", "images": 8}


def _tuning_photographs() -> list[Cell]:
    ramped = ramp(10.0)
    variants = {
        "stop_gradient": {"consistency.stop_gradient": True},
        "fraction_0.25": {"masking.fraction": 0.25},
        "blur": {"masking.fill": "blur"},
    }
    return [
        ("ce", ce()),
        *((f"sgt_{w}", sgt(w)) for w in (0.03, 0.1, 0.3, 1.0, 3.0)),
        *((f"sgt_{w}_ramp", sgt(w, **ramped)) for w in (0.3, 1.0)),
        *((f"decor_{w}", decor(w)) for w in (0.3, 1.0, 2.0, 4.0, 8.0)),
        *((f"sdecor_{c}_{w}", sdecor(c, w)) for c, w in ((0.1, 0.3), (0.1, 1.0), (0.3, 1.0), (0.3, 3.0), (1.0, 1.0))),
        *((f"sdecor_{c}_{w}_ramp", sdecor(c, w, **ramped)) for c, w in ((0.3, 1.0), (1.0, 1.0))),
        *((f"sdecor_0.3_1.0_{name}", sdecor(0.3, 1.0, **also)) for name, also in variants.items()),
        ("sgt_1.0_blur", sgt(1.0, **{"masking.fill": "blur"})),
        ("sdecor_1.0_1.0_blur", sdecor(1.0, 1.0, **{"masking.fill": "blur"})),
        *((f"gradpen_{w}", gradpen(w)) for w in (0.003, 0.01, 0.03, 0.1, 0.3)),
        *((f"other_covariance_{w}", decor(w, {})) for w in (1.0, 10.0)),
    ]


def _tuning_scenes() -> list[Cell]:
    ramped = ramp(6.0)
    return [
        ("ce", ce()),
        *((f"sgt_{w}_ramp", sgt(w, **ramped)) for w in (0.3, 1.0, 3.0)),
        *((f"decor_{w}", decor(w)) for w in (0.3, 1.0, 3.0)),
        *((f"sdecor_{c}_{w}_ramp", sdecor(c, w, **ramped)) for c, w in ((0.3, 1.0), (1.0, 1.0), (1.0, 3.0))),
        *((f"gradpen_{w}", gradpen(w)) for w in (0.01, 0.03, 0.1)),
    ]


def _tuning_longer() -> list[Cell]:
    """Return as many cells of sgt as of sdecor, for longer training on photographs."""
    first = DENSITY | {"decorrelation.layers": ("norm0",)}
    return [
        ("ce", ce()),
        *((f"sgt_{w}", sgt(w)) for w in (0.1, 0.3, 1.0)),
        *((f"sdecor_{c}_1.0", sdecor(c, 1.0)) for c in (0.3, 1.0)),
        ("sdecor_0.3_1.0_first", sdecor(0.3, 1.0, first)),
    ]


# Cells that were chosen on the validation split, by the rules of docs/evidence/first_studies.md.
CHOSEN = {
    "scenes": {
        "sgt": sgt(3.0, **ramp(6.0)),
        "decor": decor(3.0),
        "sdecor": sdecor(1.0, 3.0, **ramp(6.0)),
        "gradpen": gradpen(0.1),
    },
    "photographs": {
        "sgt": sgt(0.3),
        "decor": decor(2.0),
        "sdecor": sdecor(1.0, 1.0, **{"masking.fill": "blur"}),
        "gradpen": gradpen(0.03),
    },
    "longer": {
        "sgt": sgt(0.3),
        "sdecor": sdecor(0.3, 1.0),
    },
}


def _methods(data: str, epochs: float) -> list[Cell]:
    """Return the training methods, and ce for 7/3 of the epochs: as many forward and backward passes as sdecor."""
    long = ("ce_equal_compute", ce(**{"train.epochs": epochs * 7 / 3}))
    return [("ce", ce()), *CHOSEN[data].items(), long]


# Evaluation on 1,000 newly held-out images of train, which no network of the second study was trained on. The last
# checkpoint is evaluated, so that these images choose nothing.
FRESH = VALIDATION | {"checkpoint": "latest", "curve_images": 1000, "robustness_images": 500}


# Tier 2, on photographs: the classifier's input, or the positions of layers before or after their ReLU.
def _form(form: str, layers: tuple[str, ...] = (), *, before: bool = False) -> dict:
    if not layers:
        return {"decorrelation.form": form}
    where = {"decorrelation.layers": layers, "decorrelation.spatial": "positions", "decorrelation.rectify": not before}
    return {"decorrelation.form": form} | where


def _forms() -> list[Cell]:
    forms = {
        "covariance_0.1": (0.1, _form("covariance")),
        "covariance_1": (1.0, _form("covariance")),
        "covariance_10": (10.0, _form("covariance")),
        "correlation_1": (1.0, _form("correlation")),
        "decov_0.01": (0.01, _form("decov")),
        "whitening_1": (1.0, _form("whitening")),
        "last_covariance_0.1": (0.1, _form("covariance", ("norm2",))),
        "last_correlation_1": (1.0, _form("correlation", ("norm2",))),
        "before_correlation_1": (1.0, _form("correlation", ("norm2",), before=True)),
        "last_cosine_1": (1.0, _form("cosine", ("norm2",))),
        "last_density_1": (1.0, _form("density", ("norm2",))),
        "first_density_1": (1.0, _form("density", ("norm0",))),
        "middle_density_1": (1.0, _form("density", ("norm1",))),
        "all_correlation_1": (1.0, _form("correlation", ("norm*",))),
        "all_cosine_1": (1.0, _form("cosine", ("norm*",))),
        "all_density_0.3": (0.3, DENSITY),
        "all_density_1": (1.0, DENSITY),
        "all_density_3": (3.0, DENSITY),
    }
    alone = ("covariance_1", "correlation_1", "whitening_1", "all_density_1")
    forwards = {f"all_density_1_{how}": {"masking.forward": how} for how in ("frozen", "eval")}
    return [
        ("ce", ce()),
        ("sgt", sgt(TIER2)),
        *((f"sdecor_{name}", sdecor(TIER2, weight, features)) for name, (weight, features) in forms.items()),
        *((f"decor_{name}", decor(*forms[name])) for name in alone),
        *((f"sdecor_{name}", sdecor(TIER2, 1.0, **also)) for name, also in forwards.items()),
    ]


# Tier 3, on scenes: one field at a time.
FACTORS = {
    "masking.fraction": [0.1, 0.25, 0.75],
    "masking.fill": ["mean", "zero", "blur"],
    "masking.rank_by": ["signed"],
    "masking.saliency_of": ["log_probability"],
    "masking.order": ["highest", "alternate"],
    "masking.ramp_epochs": [3.0],
    "masking.forward": ["frozen", "eval"],
    "consistency.stop_gradient": [True],
    "consistency.direction": ["masked_clean"],
    "consistency.ramp_epochs": [0.0],
    "decorrelation.ramp_epochs": [3.0],
    "decorrelation.variance_weight": [0.1],
}


def _factors() -> list[Cell]:
    default = sdecor(1.0, 3.0, **ramp(3.0))  # the choice for scenes, with a ramp as long as this training
    varied = [
        cell
        for field, values in FACTORS.items()
        for cell in cells.one_factor({field: values}, prefix=f"sdecor_{field.partition('.')[0]}", also=default)
    ]
    return [("ce", ce()), ("sdecor", default), *varied]


TIER2 = 0.3  # weight of the consistency, without a ramp
_TESTS = cells.against(["sdecor"], PRIMARY, ["ce", "sgt"])


def _sweep(
    base: dict, found: list[Cell], seeds: int | list[int], evaluate: dict, references: list[str], **also: object
) -> dict:
    tags = {"references": references, "measures": PRIMARY}
    return {"base": base, "cells": found, "seeds": seeds, "evaluate": evaluate, "tags": tags, "tests": []} | also


def _lasting(base: dict, epochs: float, **also: object) -> dict:
    return base | {"overrides": base["overrides"] | {"train.epochs": epochs} | also}


PARTS = {
    "tuning_scenes": lambda: _sweep(SCENES, _tuning_scenes(), 1, VALIDATION, ["ce"]),
    "tuning_photographs": lambda: _sweep(PHOTOGRAPHS, _tuning_photographs(), 2, VALIDATION, ["ce"]),
    "tuning_longer": lambda: _sweep(_lasting(PHOTOGRAPHS, 24.0), _tuning_longer(), 1, VALIDATION, ["ce"]),
    "methods_scenes": lambda: _sweep(SCENES, _methods("scenes", 6.0), 5, TEST, ["ce", "sgt"], tests=_TESTS),
    "methods_photographs": lambda: _sweep(
        PHOTOGRAPHS, _methods("photographs", 10.0), 5, TEST, ["ce", "sgt"], tests=_TESTS
    ),
    "confirmation": lambda: _sweep(
        _lasting(PHOTOGRAPHS, 24.0, **{"data.split_seed": 1}),
        [("ce", ce()), *CHOSEN["longer"].items(), ("sgt_1.0", sgt(1.0))],
        [1, 2, 3, 4, 5],
        FRESH,
        ["ce", "sgt"],
        tests=_TESTS,
    ),
    "forms": lambda: _sweep(_lasting(PHOTOGRAPHS, 5.0), _forms(), 3, VALIDATION, ["ce", "sgt"]),
    "factors": lambda: _sweep(_lasting(SCENES, 3.0), _factors(), 3, VALIDATION, ["ce", "sdecor"]),
}


def get_config(part: str = "methods_scenes") -> dict:
    """Return a part of the study (docs/sweeps.md).

    Raises:
      ValueError: for an unknown part.
    """
    if part not in PARTS:
        raise ValueError(f"evidence.py:{part} is no part of the study: name one of {', '.join(PARTS)}")
    return PARTS[part]()
