"""The study of docs/evidence/setting.md: one setting of SaliencyDecor, where images are scarce in several ways.

    python -m studies.resplit --path=tiny-imagenet-200 --out=fresh3 --draw=3
    python -m sdecor.sweep --config=configs/sweeps/setting.py:KIND_REGIME --workdir=runs/KIND_REGIME
    python -m sdecor.sweep --report runs/KIND_REGIME

KIND is

    smoothing  strong weight decay with and without label smoothing, with maps, on validation data
    joint      stronger consistency, likewise
    blocks     the same, with masks of whole blocks, likewise
    forms      other forms of decorrelation and other baselines, alone and with masks of blocks, likewise
    curve      cross-entropy with more and more epochs, on validation data: where more of them no longer help
    tuning     weight decays of each method, on validation data
    test       each method with its best decay, on the test split

and REGIME one of `REGIMES`. The first four kinds were run on `second`, the photographs of the study before. Those of
CIFAR-10 read folders of images: `cifar10/train/CLASS`, `cifar10/test/CLASS`. `scenes` and those of XAI-TRIS need
nothing.
"""

from configs.sweeps import scarce
from configs.sweeps.ablation import PRIMARY
from configs.sweeps.methods import DENSITY, ce, decor, gradpen, sdecor, sgt

PHOTOGRAPHS = "fresh3"  # the third draw
DECAYS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # 1, 3 and 10 first; the others where the best is at that edge
ENERGY = "energy_inside"  # needs boxes
MAPS = scarce.TEST | {"metrics": [*scarce.TEST["metrics"], "checkerboard"], "split": "val"}
TEST = scarce.RETEST | {"metrics": [*scarce.RETEST["metrics"], "checkerboard"]}


def _regime(
    overrides: dict,
    epochs: float,
    *,
    seeds: range = range(30, 35),
    config: str = "configs/tiny_imagenet.py",
    boxes: bool = True,
    block: int = 4,
) -> dict:
    """Return images to train on, and a network.

    Args:
      overrides: fields of the config.
      epochs: epochs of training; `curve` shows whether more of them help cross-entropy.
      seeds: seeds of the test.
      config: the config's file.
      boxes: whether the data set has them.
      block: side of the masked blocks of the methods that have them, in pixels.
    """
    known = {"overrides": overrides, "epochs": epochs, "seeds": seeds, "config": config}
    return known | {"boxes": boxes, "block": block}


def _cifar10(share: float) -> dict:
    return {"data.path": "cifar10", "data.val_fraction": 0.1, "data.train_fraction": share}


def _tris(background: str) -> dict:
    """Return a thousand images of 8×8 in which a T or L lies anywhere, turned, on white or correlated noise."""
    name = f"xai_tris/translations_rotations_{background}_8x8"
    return _regime({"data.name": name, "data.train_fraction": 0.125}, 100.0, config="configs/xai_tris.py", block=2)


UNCHANGED = {"augment.flip": False, "augment.crop_padding": 0}  # no augmentation
NARROW = {"model.name": "resnet18", "model.stem": "cifar", "model.width": 16}
TINY = {"model.name": "vit_ti", "model.patch_size": 8}
REGIMES = {
    "second": _regime(scarce.photographs("fresh2", 0.2), 100.0, seeds=range(2)),
    "photographs20": _regime(scarce.photographs(PHOTOGRAPHS, 0.2), 100.0, seeds=range(30, 40)),
    "photographs5": _regime(scarce.photographs(PHOTOGRAPHS, 0.05), 400.0),
    "cifar1": _regime(_cifar10(0.01), 250.0, config="configs/folder.py", boxes=False),
    "cifar10": _regime(_cifar10(0.1), 100.0, config="configs/folder.py", boxes=False),
    "plain": _regime(scarce.photographs(PHOTOGRAPHS, 0.2, **UNCHANGED), 100.0),
    "resnet": _regime(scarce.photographs(PHOTOGRAPHS, 0.2, **NARROW), 100.0),
    "resnet5": _regime(scarce.photographs(PHOTOGRAPHS, 0.05, **NARROW), 50.0),
    "vit5": _regime(scarce.photographs(PHOTOGRAPHS, 0.05, **TINY), 100.0),
    "scenes": _regime({"data.train_fraction": 0.1}, 150.0, config="configs/default.py"),
    "tris-white": _tris("white"),
    "tris-correlated": _tris("correlated"),
}
METHODS = {  # chosen from the table of docs/evidence/setting.md
    "ce": ce(**{"train.label_smoothing": 0.2}),
    "decor": decor(3.0, scarce.COVARIANCE),
    "sdecor": sdecor(0.1, 3.0, scarce.COVARIANCE),
    "sdecor-blocks": sdecor(3.0, 3.0, scarce.COVARIANCE, **{"masking.block": 4}),  # our own: blocks of pixels
    "sdecor-blocks-1": sdecor(1.0, 3.0, scarce.COVARIANCE, **{"masking.block": 4}),
    "sgt-blocks": sgt(3.0, **{"masking.block": 4, "train.label_smoothing": 0.1}),
}
TUNED = ("ce", "sdecor", "sdecor-blocks-1")  # in the other regimes
CHOSEN: dict[str, dict[str, float]] = {  # regime → method → weight decay, from tuning_*.csv
    "photographs20": dict.fromkeys(METHODS, 3.0),  # the second study's
    "photographs5": {"ce": 1.0, "sdecor": 3.0, "sdecor-blocks-1": 10.0},
    "cifar1": dict.fromkeys(TUNED, 10.0),
    "plain": {"ce": 30.0, "sdecor": 10.0, "sdecor-blocks-1": 10.0},
    "tris-white": {"ce": 10.0, "sdecor": 3.0, "sdecor-blocks-1": 3.0},  # of equal ones, that inside the grid
    "tris-correlated": dict.fromkeys(TUNED, 3.0),
}


STRONG = {"optim.weight_decay": 3.0}
SMOOTHED = {"train.label_smoothing": 0.1}
BLOCKS = {"masking.block": 4}
STOPPED = {"consistency.stop_gradient": True}


def _strongly(consistency: float, weight: float, **also: object) -> dict:
    return sdecor(consistency, weight, scarce.COVARIANCE, **STRONG | also)


def _smoothing(name: str) -> list[tuple[str, dict]]:
    """Return cells that ask whether label smoothing is what lowers confidence, and insertion with it."""
    return [
        ("ce_ls0", STRONG | ce()),
        ("decor_1.0_ls0", STRONG | decor(1.0, scarce.COVARIANCE)),
        ("decor_3.0_ls0", STRONG | decor(3.0, scarce.COVARIANCE)),
        ("sdecor_0.1_1.0_ls0", _strongly(0.1, 1.0)),
        ("sdecor_0.1_3.0_ls0", _strongly(0.1, 3.0)),
        ("ce_ls0.2", STRONG | METHODS["ce"]),
        ("sdecor_0.1_1.0_ls0.1", _strongly(0.1, 1.0, **SMOOTHED)),
    ]


def _joint(name: str) -> list[tuple[str, dict]]:
    """Return cells that ask how much consistency the gain of the covariance pays for."""
    weighted = [(f"sdecor_{c}_{w}_ls0", _strongly(c, w)) for c in (0.3, 1.0) for w in (1.0, 3.0)]
    return [*weighted, ("sdecor_1.0_3.0_stopped_ls0", _strongly(1.0, 3.0, **STOPPED))]


def _blocks(name: str) -> list[tuple[str, dict]]:
    """Return cells whose masks do not let the network read a part of the pixels of each stride only."""
    two, four = {"masking.block": 2}, BLOCKS
    return [
        ("sdecor_0.3_3.0_block2", _strongly(0.3, 3.0, **two)),
        ("sdecor_1.0_3.0_block2", _strongly(1.0, 3.0, **two)),
        ("sdecor_1.0_3.0_block2_stopped", _strongly(1.0, 3.0, **two, **STOPPED)),
        ("sdecor_1.0_3.0_block4", _strongly(1.0, 3.0, **four)),
        ("sdecor_0.3_3.0_stopped", _strongly(0.3, 3.0, **STOPPED)),
        ("sdecor_3.0_3.0_block2", _strongly(3.0, 3.0, **two)),
        ("sdecor_3.0_3.0_block4", _strongly(3.0, 3.0, **four)),
        # without the covariance, which does what smoothing does
        ("sgt_1.0_block4_ls0.1", sgt(1.0, **STRONG | SMOOTHED | four)),
    ]


def _forms(name: str) -> list[tuple[str, dict]]:
    """Return cells that ask whether another form, or another regulariser, does as well as the covariance."""
    zca, whitening = {"decorrelation.form": "zca"}, {"decorrelation.form": "whitening"}
    every = zca | {"decorrelation.layers": ("conv*",), "decorrelation.group": 16}
    vcreg, decov = scarce.VCREG | {"decorrelation.variance_weight": 0.1}, {"decorrelation.form": "decov"}
    alone = {
        "zca": decor(1.0, zca),
        "zca_every": decor(1.0, every),
        "whitening": decor(1.0, whitening),
        "density": decor(0.1, DENSITY),
        "vcreg": decor(0.1, vcreg),
        "decov": decor(0.1, decov),
        "gradpen": gradpen(0.03),
    }
    masked = {
        "zca_block4": sdecor(1.0, 1.0, zca, **BLOCKS),
        "whitening_block4": sdecor(1.0, 1.0, whitening, **BLOCKS),
        "density_block4": sdecor(1.0, 0.1, DENSITY, **BLOCKS),
    }
    strong = STRONG | SMOOTHED
    bce = STRONG | scarce.BCE  # label smoothing is another thing there
    return [
        *((cell, overrides | strong) for cell, overrides in (alone | masked).items()),
        ("ce_bce", ce(**bce)),
        ("sdecor_1.0_3.0_block4_bce", sdecor(1.0, 3.0, scarce.COVARIANCE, **BLOCKS | bce)),
    ]


def _decayed(name: str, method: str, decay: float) -> dict:
    blocks = {"masking.block": REGIMES[name]["block"]} if "masking.block" in METHODS[method] else {}
    return METHODS[method] | blocks | {"optim.weight_decay": decay}


def _curve(name: str) -> list[tuple[str, dict]]:
    epochs = REGIMES[name]["epochs"]
    return [(f"ce_x{factor}", ce(**scarce.lasting(epochs * factor))) for factor in (0.5, 1, 2)]


def _tuning(name: str) -> list[tuple[str, dict]]:
    return [(f"{method}_decay{decay}", _decayed(name, method, decay)) for method in TUNED for decay in DECAYS]


def _test(name: str) -> list[tuple[str, dict]]:
    return [(method, _decayed(name, method, decay)) for method, decay in CHOSEN.get(name, {}).items()]


KINDS = {
    "smoothing": _smoothing,
    "joint": _joint,
    "blocks": _blocks,
    "forms": _forms,
    "curve": _curve,
    "tuning": _tuning,
    "test": _test,
}
EVALUATIONS = {"curve": scarce.ACCURACY, "tuning": scarce.ACCURACY, "test": TEST}  # kind → evaluation; others: MAPS


def _measured(evaluation: dict, boxes: bool) -> dict:
    metrics = [name for name in evaluation["metrics"] if boxes or name != ENERGY]
    return {"map_images": 2000} | evaluation | {"metrics": metrics}


def get_config(part: str = "tuning_photographs5") -> dict:
    """Return the sweep of a part."""
    kind, _, name = part.partition("_")
    if kind not in KINDS or name not in REGIMES:
        kinds, names = ", ".join(KINDS), ", ".join(REGIMES)
        raise ValueError(f"the part {part!r} is not known: choose one of {kinds}, then _, then one of {names}")
    regime = REGIMES[name]
    primary = [measure for measure in PRIMARY if regime["boxes"] or ENERGY not in measure]
    references = ["ce"] if kind == "test" else []
    return {
        "base": scarce.base(regime["overrides"], regime["epochs"], regime["config"]),
        "cells": KINDS[kind](name),
        "seeds": [0] if kind in ("curve", "tuning") else list(regime["seeds"]),
        "evaluate": _measured(EVALUATIONS.get(kind, MAPS), regime["boxes"]),
        "tags": {"measures": primary, "references": references},
        "tests": [],  # studies/compare.py makes them: insertion is tested at a fitted temperature
    }
