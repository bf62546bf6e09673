"""Store the faithfulness metrics of Quantus 0.6.0 on the reference network.

    python benchmarks/references/quantus_faithfulness.py    # writes tests/references/quantus_faithfulness.npz

Needs torch, quantus==0.6.0 and numpy<2.4 (which still has np.trapz). Quantus counts each channel of a pixel as a
feature, so images have one channel, which the network sees as three (`GAINS`). Quantus normalises over the batch, so
images are measured one at a time and maps are not normalised. Where Quantus draws random numbers, or perturbs in a way
that differs from its definition, the perturbation is passed in; the comments say why.
"""

import functools

import numpy as np
import quantus
import torch
from network import FOLDER, load, torch_network
from quantus.helpers import utils

GAINS = (1.0, 0.5, -0.7)
STEP = 16  # pixels per step
PATCH = 4
PERCENTAGES = list(range(10, 100, 10))
COMMON = {"normalise": False, "abs": False, "disable_warnings": True, "display_progressbar": False}


class OneChannel(torch.nn.Module):
    """The reference network for one channel; the images' mean is subtracted from its logits, so that classes vary."""

    def __init__(self):
        super().__init__()
        self.network = torch_network()
        with torch.no_grad():
            self.center = self.logits(torch.from_numpy(load()["images"][:, None, :, :, 0])).mean(0)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images * torch.tensor(GAINS).reshape(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits(images) - self.center


def singly(metric, images, labels, maps, **options) -> np.ndarray:
    """Return the metric's values, computed for one image at a time."""
    model = OneChannel().eval()
    values = []
    for i in range(len(images)):
        one = slice(i, i + 1)
        made = metric(images[one]) if callable(metric) and not isinstance(metric, quantus.Metric) else metric
        value = made(model, images[one], labels[one], a_batch=maps[one], device="cpu", **options)
        values.append(list(value.values()) if isinstance(value, dict) else np.asarray(value)[0])
    return np.asarray(values, np.float64)


def curves(images, labels, maps) -> dict[str, np.ndarray]:
    """Return the metrics whose values are curves, and the metrics derived from curves."""
    region = functools.partial(
        quantus.RegionPerturbation, patch_size=PATCH, regions_evaluation=10, perturb_baseline="black", **COMMON
    )
    flipping = quantus.PixelFlipping(features_in_step=STEP, perturb_baseline="black", **COMMON)
    selectivity = quantus.Selectivity(patch_size=PATCH, perturb_baseline="black", **COMMON)
    run = functools.partial(singly, images=images, labels=labels, maps=maps)
    return {
        "pixel_flipping": run(flipping),
        "region_perturbation_morf": run(region(order="morf")),
        "region_perturbation_lerf": run(region(order="lerf")),
        "selectivity": run(selectivity),
        "irof": run(_irof),
        "monotonicity": run(_monotonicity),
        "road": run(quantus.ROAD(percentages=PERCENTAGES, noise=0.0, **COMMON)),
    }


def _irof(image: np.ndarray) -> quantus.Metric:
    # Quantus fills with the mean of the image after each step; its definition says the mean of the original image.
    def fill(arr, mask, **_):
        return np.where(mask, image.mean(), arr)

    return quantus.IROF(perturb_func=fill, perturb_baseline="mean", return_aggregate=False, **COMMON)


def _monotonicity(image: np.ndarray) -> quantus.Metric:
    # Quantus replaces pixels of the baseline by the baseline, and so never shows the image to the network.
    def insert(arr, indices, **_):
        arr = arr.copy()
        np.put_along_axis(arr, indices, np.take_along_axis(image.reshape(1, -1), indices, 1), 1)
        return arr

    return quantus.Monotonicity(
        features_in_step=4 * STEP, perturb_func=insert, perturb_baseline="black", return_aggregate=False, **COMMON
    )


def correlations(images, labels, maps) -> dict[str, np.ndarray]:
    """Return the metrics that are correlations or errors, and the random sets drawn for them."""
    drawn = []

    def record(arr, indices, **options):
        drawn.append(indices[0].copy())
        return quantus.perturb_func.batch_baseline_replacement_by_indices(arr, indices, **options)

    correlation = quantus.FaithfulnessCorrelation(
        nr_runs=20, subset_size=40, perturb_func=record, perturb_baseline="black", return_aggregate=False, **COMMON
    )
    estimate = quantus.FaithfulnessEstimate(features_in_step=STEP, perturb_baseline="black", **COMMON)
    monotonicity = quantus.MonotonicityCorrelation(
        features_in_step=STEP, nr_samples=1, perturb_baseline="black", **COMMON
    )
    run = functools.partial(singly, images=images, labels=labels, maps=maps)
    np.random.seed(0)
    values = {
        "faithfulness_correlation": run(correlation),
        "faithfulness_estimate": run(estimate),
        "monotonicity_correlation": run(monotonicity),
        "infidelity": run(_infidelity),
    }
    return values | {"subsets": np.asarray(drawn, np.int16).reshape(len(images), 20, 40)}


def _infidelity(image: np.ndarray) -> quantus.Metric:
    # Quantus keeps earlier patches replaced; in the definition each patch is replaced alone.
    def replace(arr, indices, **options):
        alone = image.reshape(1, -1)
        return quantus.perturb_func.batch_baseline_replacement_by_indices(alone, indices, **options)

    return quantus.Infidelity(
        perturb_func=replace, perturb_baseline="black", perturb_patch_sizes=[PATCH], n_perturb_samples=1, **COMMON
    )


def together(images, labels, maps) -> dict[str, np.ndarray]:
    """Return the metrics that compare images with each other."""
    model = OneChannel().eval()
    sensitivity = quantus.SensitivityN(
        features_in_step=STEP, n_max_percentage=0.8, perturb_baseline="black", return_aggregate=False, **COMMON
    )
    sufficiency = quantus.Sufficiency(threshold=0.95, return_aggregate=False, **COMMON)
    return {
        "sensitivity_n": np.asarray(sensitivity(model, images, labels, a_batch=maps, device="cpu")),
        "sufficiency": np.asarray(sufficiency(model, images, labels, a_batch=maps, device="cpu")),
    }


if __name__ == "__main__":
    arrays = load()
    images = arrays["images"].transpose(0, 3, 1, 2)[:, :1].copy()
    rng = np.random.default_rng(17)
    maps = rng.normal(size=(8, 1, 16, 16)).astype(np.float32) + images * 0.5
    with torch.no_grad():
        labels = OneChannel()(torch.from_numpy(images)).argmax(1).numpy()
    stored = {"maps": maps[:, 0], "labels": labels, "center": OneChannel().center.numpy()}
    rows = np.arange(16) // PATCH
    grid = rows[:, None] * 4 + rows[None, :]
    utils.get_superpixel_segments = lambda img, segmentation_method: grid  # instead of SLIC's segments
    values = curves(images, labels, maps) | correlations(images, labels, maps) | together(images, labels, maps)
    np.savez_compressed(FOLDER / "quantus_faithfulness.npz", **stored, **values)
    for name, value in values.items():
        print(name, value.shape)
