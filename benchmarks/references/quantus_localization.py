"""Store the metrics of Quantus 0.6.0 on fixed maps and objects, and scikit-image's structural similarity.

    python benchmarks/references/quantus_localization.py     # writes tests/references/quantus_localization.npz

Quantus gets one map at a time: it normalises by the largest absolute value of the batch, which is then the map's own.
Its results for a whole batch, or for an empty object, are stored under `defect/`; the tests show that the library
returns other values there.
"""

import numpy as np
import quantus
from network import FOLDER, load, torch_network
from skimage.metrics import structural_similarity

TOP_K = 40
THRESHOLD = 0.3
LOCALIZATION = {
    "PointingGame": {},
    "RelevanceMassAccuracy": {},
    "RelevanceRankAccuracy": {},
    "TopKIntersection": {"k": TOP_K},
    "AttributionLocalisation": {},
    "AUC": {},
}
COMPLEXITY = {"Sparseness": {}, "Complexity": {}, "EffectiveComplexity": {"eps": THRESHOLD}}


def draw() -> dict[str, np.ndarray]:
    """Return maps without equal values, signed and positive, and the cell of a mosaic that each map explains."""
    rng = np.random.default_rng(31)
    objects = load()["objects"]
    signed = rng.normal(size=objects.shape) + 0.7 * objects
    positive = rng.gamma(0.5, size=objects.shape) + 0.3 * objects
    return {
        "maps/signed": signed.astype(np.float32),
        "maps/positive": positive.astype(np.float32),
        "cells": rng.integers(0, 4, size=len(objects)).astype(np.int32),
    }


def measure(name: str, maps: np.ndarray, options: dict | None = None, **arrays) -> np.ndarray:
    """Return the values of a Quantus metric, `[N]` float64, for a whole batch."""
    metric = getattr(quantus, name)(disable_warnings=True, display_progressbar=False, **(options or {}))
    images = load()["images"].transpose(0, 3, 1, 2)[: len(maps)].copy()
    model = torch_network() if name == "Focus" else None  # Focus requires a model, although the maps are given
    values = metric(model=model, x_batch=images, y_batch=np.zeros(len(maps), int), a_batch=maps.copy(), **arrays)
    return np.asarray(values, np.float64).reshape(-1)


def one_by_one(name: str, maps: np.ndarray, options: dict | None = None, **arrays) -> np.ndarray:
    """Return the values for one map at a time."""
    return np.concatenate(
        [
            measure(name, maps[i : i + 1], options, **{key: array[i : i + 1] for key, array in arrays.items()})
            for i in range(len(maps))
        ]
    )


def similarity(a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    """Return the structural similarity of each pair, for both windows, with a fixed and with the pair's own range."""
    windows = {"uniform": {}, "gaussian": {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}}
    found = {}
    for window, options in windows.items():
        pairs = list(zip(a.astype(np.float64), b.astype(np.float64), strict=True))
        found[f"ssim/{window}/2"] = np.array([structural_similarity(x, y, data_range=2, **options) for x, y in pairs])
        ranges = [max(x.max(), y.max()) - min(x.min(), y.min()) for x, y in pairs]
        found[f"ssim/{window}/pair"] = np.array(
            [structural_similarity(x, y, data_range=r, **options) for (x, y), r in zip(pairs, ranges, strict=True)]
        )
    return found


def main() -> None:
    arrays = draw()
    objects = load()["objects"][:, None]
    corners = np.eye(4, dtype=int)[arrays["cells"]]
    for kind in ("signed", "positive"):
        maps = arrays[f"maps/{kind}"]
        for name, options in LOCALIZATION.items():
            arrays[f"{kind}/{name}"] = one_by_one(name, maps, options, s_batch=objects)
        for name, options in COMPLEXITY.items():
            arrays[f"{kind}/{name}"] = one_by_one(name, maps, options)
        arrays[f"{kind}/Focus"] = one_by_one("Focus", maps, custom_batch=corners)
    maps = arrays["maps/positive"]
    arrays |= similarity(arrays["maps/signed"], arrays["maps/signed"] + maps)
    uneven = maps * np.r_[100, np.ones(7)][:, None, None].astype(np.float32)
    arrays["defect/EffectiveComplexity"] = measure("EffectiveComplexity", uneven, {"eps": THRESHOLD})
    empty = np.zeros_like(objects)
    arrays["defect/PointingGame"] = measure("PointingGame", maps, s_batch=empty)
    arrays["defect/AttributionLocalisation"] = measure(
        "AttributionLocalisation", maps, {"weighted": True}, s_batch=objects
    )
    np.savez_compressed(FOLDER / "quantus_localization.npz", **arrays)


if __name__ == "__main__":
    main()
