"""Quantus's counterparts of our metrics, with the same options where it has them."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import quantus
import torch
from networks import Network, torch_network
from quantus.helpers import utils
from torch import nn

QUIET = {"disable_warnings": True, "display_progressbar": False}
BLACK = {"perturb_baseline": "black"}
if not hasattr(np, "trapz"):  # NumPy 2.4 dropped the name, and Quantus 0.6.0 still uses it
    np.trapz = np.trapezoid


class Gray(nn.Module):
    """Repetition of one channel three times: Quantus counts each channel of a pixel as a feature."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.expand(-1, 3, -1, -1)


def counterparts(network: Network, batch: Any) -> tuple[dict[str, Callable[[int], Any]], Callable[[], int]]:
    """Return `measure(n)`, on the first n images, by name of our metric; and a function that counts evaluations.

    Args:
      network: the network to explain.
      batch: `images` `[N, H, W, 3]` of gray pixels, `labels` `[N]`, `attributions` `[N, H, W, 3]`, `maps` and `objects`
        `[N, H, W]`.
    """
    warnings.filterwarnings("ignore", module="quantus")
    model, seen = torch_network(network), []
    model[-1].register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    gray = nn.Sequential(Gray(), *model).eval()
    colors, attributions = (x.transpose(0, 3, 1, 2).copy() for x in (batch.images, batch.attributions))
    pixels, maps, objects = colors[:, :1], batch.maps[:, None], batch.objects[:, None]
    corners = np.eye(4, dtype=int)[batch.labels % 4]

    def measured(metric: quantus.Metric, model: nn.Module, images: np.ndarray, **arrays: Any) -> Callable[[int], Any]:
        def measure(n: int) -> Any:
            given = {name: x[:n] if isinstance(x, np.ndarray) else x for name, x in arrays.items()}
            return metric(model=model, x_batch=images[:n], y_batch=batch.labels[:n], device="cpu", **given)

        return measure

    def on_maps(metric: type, **options: Any) -> Callable[[int], Any]:
        return measured(metric(**options, **QUIET), gray, pixels, a_batch=maps, s_batch=objects)

    def explaining(metric: type, **options: Any) -> Callable[[int], Any]:
        return measured(metric(**options, **QUIET), model, colors, explain_func=gradient)

    def explained(metric: type, **options: Any) -> Callable[[int], Any]:
        return measured(metric(**options, **QUIET), model, colors, a_batch=attributions, explain_func=gradient)

    _replace_in_quantus(network.shape)
    focus = measured(quantus.Focus(**QUIET), gray, pixels, a_batch=maps, custom_batch=corners)
    found = {
        "energy_inside": on_maps(quantus.RelevanceMassAccuracy),
        "pointing_game": on_maps(quantus.PointingGame),
        "attribution_localization": on_maps(quantus.AttributionLocalisation),
        "relevance_rank_accuracy": on_maps(quantus.RelevanceRankAccuracy),
        "top_k_intersection": on_maps(quantus.TopKIntersection, k=100),
        "roc_auc": on_maps(quantus.AUC),
        "grid_pointing_game": focus,
        "gini": on_maps(quantus.Sparseness),
        "entropy": on_maps(quantus.Complexity),
        "effective_complexity": on_maps(quantus.EffectiveComplexity),
        "sufficiency": on_maps(quantus.Sufficiency),
        "road": on_maps(quantus.ROAD, percentages=list(range(10, 100, 10))),
        "aopc_morf": on_maps(quantus.RegionPerturbation, patch_size=8, regions_evaluation=16, order="morf", **BLACK),
        "aopc_lerf": on_maps(quantus.RegionPerturbation, patch_size=8, regions_evaluation=16, order="lerf", **BLACK),
        "pixel_flipping": on_maps(quantus.PixelFlipping, features_in_step=32),
        "selectivity": on_maps(quantus.Selectivity, patch_size=4),
        "irof": on_maps(quantus.IROF),
        "monotonicity": on_maps(quantus.Monotonicity, features_in_step=32),
        "faithfulness_correlation": on_maps(quantus.FaithfulnessCorrelation, nr_runs=100, subset_size=204),
        "faithfulness_estimate": on_maps(quantus.FaithfulnessEstimate, features_in_step=32),
        "monotonicity_correlation": on_maps(quantus.MonotonicityCorrelation, nr_samples=10, features_in_step=32),
        "sensitivity_n": on_maps(quantus.SensitivityN, features_in_step=2),
        "infidelity": on_maps(quantus.Infidelity, perturb_patch_sizes=[4], n_perturb_samples=1),
        "non_sensitivity": on_maps(quantus.NonSensitivity),
        "completeness": explained(quantus.Completeness),
        "consistency": explained(quantus.Consistency, discretise_func=lambda a: int(np.argmax(a) // 64)),
        "max_sensitivity": explaining(quantus.MaxSensitivity, nr_samples=10, lower_bound=0.02),
        "avg_sensitivity": explaining(quantus.AvgSensitivity, nr_samples=10, lower_bound=0.02),
        "local_lipschitz": explaining(quantus.LocalLipschitzEstimate, nr_samples=10),
        "continuity": explaining(quantus.Continuity, nr_steps=8),
        "relative_input_stability": explaining(quantus.RelativeInputStability, nr_samples=10),
        "relative_output_stability": explaining(quantus.RelativeOutputStability, nr_samples=10),
        "relative_representation_stability": explaining(
            quantus.RelativeRepresentationStability, nr_samples=10, layer_indices=[-2]
        ),
        "random_logit": explaining(quantus.RandomLogit, num_classes=network.layers[-1][1]),
        "parameter_randomization": explaining(quantus.MPRT),
        "smooth_mprt": explaining(quantus.SmoothMPRT, nr_samples=50),
        "efficient_mprt": explaining(quantus.EfficientMPRT),
        "input_invariance": explained(quantus.InputInvariance),
    }
    return found, lambda: sum(seen)


def gradient(model: nn.Module, inputs: np.ndarray, targets: np.ndarray, **_: Any) -> np.ndarray:
    """Return the signed gradient of the target's logit, in the shape of the images."""
    x = torch.as_tensor(np.asarray(inputs), dtype=torch.float32).requires_grad_()
    model(x)[torch.arange(len(x)), torch.as_tensor(np.asarray(targets)).long()].sum().backward()
    return x.grad.numpy()


def _replace_in_quantus(shape: tuple[int, ...]) -> None:
    # Our patches instead of SLIC's segments, whose computation is not timed either.
    rows, columns = np.arange(shape[0]) // 4, np.arange(shape[1]) // 4
    patches = rows[:, None] * (columns[-1] + 1) + columns
    utils.get_superpixel_segments = lambda img, segmentation_method: patches
    # SmoothMPRT takes no explanation function; it calls this one.
    quantus.explain = gradient
