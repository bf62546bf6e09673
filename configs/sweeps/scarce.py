"""The study of docs/evidence/scarce.md: accuracy and saliency where a network overfits.

    python -m studies.resplit --path=tiny-imagenet-200 --out=fresh
    python -m studies.resplit --path=tiny-imagenet-200 --out=fresh2 --draw=2
    python -m sdecor.sweep --config=configs/sweeps/scarce.py:PART --workdir=runs/PART
    python -m sdecor.sweep --report runs/PART

PART is KIND_DATA. The parts of the second study, retuning and retest, read `fresh2`. KIND is

    curve      cross-entropy with more and more epochs, on validation data: where more of them no longer help
    tuning     six settings of each method, on validation data
    edge       two more of ce, decor and sdecor, beyond the edge of the grid on which their best lay
    methods    the chosen settings, on the test split
    decay      ce, decor and sdecor at the same weight decay, on validation data (after the test, exploratory)
    retuning   the second study: four settings of each method, with strong weight decay, on validation data
    retest     its chosen settings and untuned cross-entropy, on its test split

and DATA one of `DATA`: photographs at 20 or 5 % of the training images.
"""

from configs.sweeps import cells
from configs.sweeps.ablation import PRIMARY
from configs.sweeps.methods import DENSITY, ce, decor, gradpen, sdecor, sgt

Cell = tuple[str, dict]
BATCH = 100
VALIDATION = 0.25
DATA = {  # name → share of the 6,000 training images, epochs
    "photographs20": (0.2, 100.0),
    "photographs5": (0.05, 400.0),
}
ACCURACY = {  # no metric of maps has a part in the tuning; an evaluation needs one
    "methods": ["gradient"],
    "metrics": ["gini"],
    "split": "val",
    "checkpoint": "latest",
    "map_images": 100,
    "images": 4,
}
COUNTS = {"curve_images": 1000, "robustness_images": 200}
TEST = {
    "methods": ["gradient"],
    "metrics": ["energy_inside", "gini", "insertion", "max_sensitivity"],
    "split": "test",
    "checkpoint": "latest",
    "images": 8,
} | COUNTS
RETEST = TEST | {"metrics": [*TEST["metrics"], "parameter_randomization"]}
SECOND = ("retuning", "retest")


def _base(kind: str, data: str) -> dict:
    share, epochs = DATA[data]
    return base(photographs("fresh2" if kind in SECOND else "fresh", share), epochs)


def photographs(path: str, share: float, **also: object) -> dict:
    """Return the overrides that train on a share of a directory of `studies.resplit`."""
    return {"data.path": path, "data.val_fraction": VALIDATION, "data.train_fraction": share} | also


def base(overrides: dict, epochs: float, config: str = "configs/tiny_imagenet.py") -> dict:
    """Return the base of a sweep that trains for so many epochs."""
    common = {"train.batch_size": BATCH, "log.tensorboard": False}
    return {"config": config, "overrides": {**overrides, **common, **lasting(epochs)}}


def lasting(epochs: float) -> dict:
    """Return the overrides that train for so many epochs, with ten validations and a twentieth of warm-up."""
    return {"train.epochs": epochs, "train.eval_every_epochs": epochs / 10, "optim.warmup_epochs": epochs / 20}


def _curve(data: str) -> list[Cell]:
    return [(f"ce_x{factor}", ce(**lasting(DATA[data][1] * factor))) for factor in (0.25, 0.5, 1, 2, 4)]


# Two bases of every method: no regularisation but a weak decay, and a strong one.
STRONG = {"optim.weight_decay": 0.3, "train.label_smoothing": 0.1}
STRONGEST = {"optim.weight_decay": 3.0, "train.label_smoothing": 0.1}
STRONG_BCE = {"optim.weight_decay": 0.3}  # label smoothing is another thing there
COVARIANCE = {"decorrelation.form": "covariance"}
BCE = {"train.loss": "bce"}


def _regularised(**also: object) -> list[Cell]:
    grid = {"optim.weight_decay": [1e-4, 0.3, 1.0], "train.label_smoothing": [0.0, 0.1]}
    return [(f"ce_{name}", overrides) for name, overrides in cells.grid(grid, also=ce(**also))]


# VCReg (arXiv 2306.13292) regularises variance and covariance of every block; DeCov (1511.06068) the last features.
VCREG = DENSITY | COVARIANCE


def _vcreg() -> list[tuple[str, dict]]:
    pairs = ((0.01, 0.1), (0.1, 0.1), (0.1, 1.0))  # covariance, variance
    return [(f"{w}_{v}", decor(w, VCREG | {"decorrelation.variance_weight": v})) for w, v in pairs]


def _both(name: str, values: list[tuple[str, dict]], strong: dict = STRONG) -> list[Cell]:
    """Return the cells of a method: three values on both bases."""
    bases = {"plain": {}, "strong": strong}
    return [(f"{name}_{value}_{base}", cell | bases[base]) for value, cell in values for base in bases]


def _bce() -> list[Cell]:
    grid = {"optim.weight_decay": [1e-4, 0.3, 1.0], "optim.lr": [2e-3, 1e-3]}
    return [(f"ce-bce_{name}", overrides) for name, overrides in cells.grid(grid, also=ce(**BCE))]


def _zca() -> list[tuple[str, dict]]:
    every = {"decorrelation.layers": ("conv*",), "decorrelation.group": 16}
    options = {
        "last": {},
        "last_group16": {"decorrelation.group": 16},
        "every_group16": every,
    }
    return [(name, decor(1.0, {"decorrelation.form": "zca"} | also)) for name, also in options.items()]


def _form(form: str, weights: tuple[float, ...]) -> list[tuple[str, dict]]:
    features = DENSITY if form == "density" else {"decorrelation.form": form}
    return [(str(w), decor(w, features)) for w in weights]


def _joint(pairs: tuple[tuple[float, float], ...], features: dict, **also: object) -> list[tuple[str, dict]]:
    return [(f"{c}_{w}", sdecor(c, w, features, **also)) for c, w in pairs]


JOINT = ((0.3, 1.0), (0.3, 3.0), (1.0, 1.0))  # consistency, covariance: the values of the pilot
JOINT_DENSITY = ((0.3, 0.3), (0.3, 1.0), (1.0, 1.0))


def _tuning(data: str) -> list[Cell]:
    """Return six cells of each method, named METHOD_…"""
    return [
        *_regularised(),
        *_both("sdecor", _joint(JOINT, COVARIANCE)),
        *_both("decor", _form("covariance", (0.3, 1.0, 3.0))),
        *_both("sgt", [(str(w), sgt(w)) for w in (0.1, 0.3, 1.0)]),
        *_both("sdecor-density", _joint(JOINT_DENSITY, DENSITY)),
        *_both("decor-density", _form("density", (0.1, 0.3, 1.0))),
        *_both("zca", _zca()),
        *_both("whitening", _form("whitening", (0.3, 1.0, 3.0))),
        *_both("vcreg", _vcreg()),
        *_both("decov", _form("decov", (0.01, 0.03, 0.1))),
        *_both("gradpen", [(str(w), gradpen(w)) for w in (0.01, 0.03, 0.1)]),
        *_bce(),
        *_both("sdecor-bce", _joint(JOINT, COVARIANCE, **BCE), STRONG_BCE),
    ]


def _edge(data: str) -> list[Cell]:
    stronger = STRONG | {"optim.weight_decay": 1.0}
    return [
        ("ce_wd1.0_ls0.2", ce(**{"optim.weight_decay": 1.0, "train.label_smoothing": 0.2})),
        ("ce_wd3.0_ls0.1", ce(**STRONGEST)),
        ("decor_10.0_strong", decor(10.0, COVARIANCE, **STRONG)),
        ("decor_3.0_stronger", decor(3.0, COVARIANCE, **stronger)),
        ("sdecor_0.3_10.0_strong", sdecor(0.3, 10.0, COVARIANCE, **STRONG)),
        ("sdecor_0.1_3.0_strong", sdecor(0.1, 3.0, COVARIANCE, **STRONG)),
    ]


# By the rule of docs/evidence/scarce.md, from validation data: tuning_*.csv and edge_*.csv.
CHOSEN: dict[str, list[Cell]] = {
    "photographs20": [
        ("ce", ce(**STRONGEST)),
        ("sdecor", sdecor(0.1, 3.0, COVARIANCE, **STRONG)),
        ("decor", decor(3.0, COVARIANCE, **STRONG | {"optim.weight_decay": 1.0})),
        ("sgt", sgt(0.1, **STRONG)),
        ("decor-density", decor(0.1, **STRONG)),
        ("sdecor-density", sdecor(0.3, 1.0, **STRONG)),
    ],
    "photographs5": [],
}


def _methods(data: str) -> list[Cell]:
    long = [("ce-long", cell | lasting(DATA[data][1] * 7 / 3)) for name, cell in CHOSEN[data] if name == "ce"]
    return CHOSEN[data] + long


def _decay(data: str) -> list[Cell]:
    return [
        ("ce_decay3", ce(**STRONGEST)),
        ("decor_3.0_decay3", decor(3.0, COVARIANCE, **STRONGEST)),
        ("sdecor_0.1_3.0_decay3", sdecor(0.1, 3.0, COVARIANCE, **STRONGEST)),
    ]


def _retuning(data: str) -> list[Cell]:
    """Return four cells of each method: two strong decays, with two values of its own."""
    decays = [{"optim.weight_decay": decay, "train.label_smoothing": 0.1} for decay in (3.0, 10.0)]
    values = [
        ("ce_ls0.1", ce()),
        ("ce_ls0.2", ce(**{"train.label_smoothing": 0.2})),
        *((f"decor_{w}", decor(w, COVARIANCE)) for w in (1.0, 3.0)),
        *((f"sdecor_{c}_{w}", sdecor(c, w, COVARIANCE)) for c, w in ((0.1, 1.0), (0.1, 3.0))),
        *((f"sgt_{w}", sgt(w)) for w in (0.03, 0.1)),
        *((f"decor-density_{w}", decor(w)) for w in (0.03, 0.1)),
        *((f"sdecor-density_{c}_{w}", sdecor(c, w)) for c, w in ((0.1, 0.1), (0.1, 0.3))),
    ]
    return [(f"{name}_wd{decay['optim.weight_decay']}", decay | cell) for name, cell in values for decay in decays]


RECHOSEN: dict[str, list[Cell]] = {  # by the rule of docs/evidence/scarce.md, from retuning_*.csv
    "photographs20": [
        ("ce", ce(**{"optim.weight_decay": 3.0, "train.label_smoothing": 0.2})),
        ("sdecor", sdecor(0.1, 1.0, COVARIANCE, **STRONGEST)),
        ("decor", decor(3.0, COVARIANCE, **STRONGEST)),
    ],
    "photographs5": [],
}


def _retest(data: str) -> list[Cell]:
    return [("ce-plain", ce()), *RECHOSEN[data]]


PARTS = {
    "curve": _curve,
    "tuning": _tuning,
    "edge": _edge,
    "methods": _methods,
    "decay": _decay,
    "retuning": _retuning,
    "retest": _retest,
}
TESTED = {  # part on the test split → its seeds, its evaluation, and the references of sdecor's hypotheses
    "methods": (range(10, 20), TEST, ["ce"]),
    "retest": (range(20, 30), RETEST, ["ce", "ce-plain"]),
}


def get_config(part: str = "tuning_photographs20") -> dict:
    """Return the sweep of a part."""
    kind, _, data = part.partition("_")
    if kind not in PARTS or data not in DATA:
        raise ValueError(
            f"the part {part!r} is not known: choose one of {', '.join(PARTS)}, then _, then one of {', '.join(DATA)}"
        )
    seeds, evaluation, references = TESTED.get(kind, (range(2), ACCURACY, []))
    return {
        "base": _base(kind, data),
        "cells": PARTS[kind](data),
        "seeds": list(seeds),
        "evaluate": evaluation,
        "tags": {"measures": list(PRIMARY), "references": references},
        "tests": cells.against(["sdecor"], list(PRIMARY), references),
    }
