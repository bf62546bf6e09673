"""Store the values of shap 0.51.0 on regions and features of a small network.

    python benchmarks/references/shap_values.py    # writes tests/references/shap_values.npz

shap's KernelExplainer and ExactExplainer see the regions of an image as the features of a function: a row of zeros and
ones says which regions are visible, the others have the baseline. Both evaluate all coalitions of so few regions.
"""

import pathlib

import numpy as np
import shap

FOLDER = pathlib.Path(__file__).parents[2] / "tests" / "references"
BASELINE = 0.3


def main() -> None:
    rng = np.random.default_rng(11)
    images, weights, head = rng.normal(size=(2, 4, 4, 2)), rng.normal(size=(32, 7)), rng.normal(size=7)
    labels = np.array([[0, 0, 1, 1], [0, 5, 1, 1], [2, 2, 3, 3], [2, 4, 4, 3]])
    found = {"kernel": [], "exact": []}
    for image in images:

        def score(rows: np.ndarray, image: np.ndarray = image) -> np.ndarray:
            visible = rows[:, labels].astype(bool)[..., None]
            seen = np.where(visible, image[None], BASELINE)
            return np.tanh(seen.reshape(len(rows), -1) @ weights) @ head

        empty, full = np.zeros((1, 6)), np.ones((1, 6))
        explainer = shap.KernelExplainer(score, empty)
        found["kernel"].append(explainer.shap_values(full, nsamples=1000, l1_reg=False)[0])
        found["exact"].append(shap.explainers.ExactExplainer(score, empty)(full).values[0])
    arrays = {"images": images, "weights": weights, "head": head, "labels": labels}
    arrays |= {name: np.stack(values) for name, values in found.items()}
    np.savez_compressed(FOLDER / "shap_values.npz", **arrays)


if __name__ == "__main__":
    main()
