"""Store the metrics of Quantus 0.6.0 for robustness, randomisation and axioms on the reference network.

    python benchmarks/references/quantus_robustness.py        # writes tests/references/quantus_robustness.npz

Images are measured one at a time, without Quantus's normalisation (which spans the batch). The explanation is the
gradient of the logit. Random neighbours are drawn with JAX, with the keys that the tests use. Randomised weights, noise
and maps are stored with the results.
"""

import itertools

import jax
import numpy as np
import quantus
import torch
from network import FOLDER, load, torch_images, torch_network
from skimage.metrics import structural_similarity

IMAGES, SAMPLES, RADIUS = 4, 5, 0.05
NOISE = 0x6E6F6973
QUIET = {"disable_warnings": True, "display_progressbar": False}
TINT = torch.tensor([1.0, 0.5, -0.7]).reshape(1, 3, 1, 1)


class Gray(torch.nn.Module):
    """The network for images of one channel, seen through a mask: Quantus counts channels as features."""

    def __init__(self, network: torch.nn.Module, mask: torch.Tensor | float = 1.0):
        super().__init__()
        self.network, self.mask = network, mask

    def forward(self, x):
        return self.network(x * self.mask * TINT)


class First(torch.nn.Module):
    """The network with its first logits alone."""

    def __init__(self, network: torch.nn.Module, classes: int):
        super().__init__()
        self.network, self.classes = network, classes

    def forward(self, x):
        return self.network(x)[:, : self.classes]


def gradient(model, inputs, targets, **_):
    """Return the signed gradient of the target's logit, in the shape of the images."""
    x = torch.as_tensor(np.asarray(inputs), dtype=torch.float32).requires_grad_()
    model(x)[torch.arange(len(x)), torch.as_tensor(np.asarray(targets)).long()].sum().backward()
    return x.grad.numpy()


def strength(model, inputs, targets, **_):
    """Return the gradient's absolute values summed over channels, `[B, 1, H, W]`."""
    return np.abs(gradient(model, inputs, targets)).sum(1, keepdims=True)


def input_x_gradient(model, inputs, targets, **_):
    """Return the images times their gradient."""
    return np.asarray(inputs) * gradient(model, inputs, targets)


def neighbours(example: int):
    """Return a perturbation function that returns the neighbours of one image in turn."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), example), NOISE)
    count = itertools.count()

    def perturb(arr, **_):
        words = np.asarray(jax.random.bits(jax.random.fold_in(key, next(count)), (arr.size // 2,)))
        draw = RADIUS * ((np.concatenate([words >> 16, words & 0xFFFF]) + 0.5) / 2**15 - 1)
        return arr + draw.reshape(16, 16, 3).transpose(2, 0, 1).reshape(1, -1).astype(np.float32)

    return perturb


def one_by_one(evaluate) -> np.ndarray:
    """Return `evaluate(i, x, y)` of each image, as an array."""
    images, labels = torch_images().numpy(), load()["labels"]
    return np.array([evaluate(i, images[i : i + 1], labels[i : i + 1]) for i in range(IMAGES)], np.float32)


def robustness(network) -> dict[str, np.ndarray]:
    plain = QUIET | {"normalise": False, "abs": False}

    def near(metric, samples="nr_samples", **options):
        def evaluate(i, x, y):
            scorer = metric(perturb_func=neighbours(i), **{samples: SAMPLES}, **plain, **options)
            return scorer(model=network, x_batch=x, y_batch=y, explain_func=gradient, softmax=False)[0]

        return one_by_one(evaluate)

    def moved(i, x, y):
        scorer = quantus.Continuity(nr_steps=4, **plain)  # shifts of −8, 0, 8 and 16 pixels
        return scorer(model=network, x_batch=x, y_batch=y, explain_func=gradient)[0]

    cells = quantus.Consistency(discretise_func=lambda a: int(np.argmax(a) // 64), **plain)
    return {
        "max_sensitivity": near(quantus.MaxSensitivity),
        "avg_sensitivity": near(quantus.AvgSensitivity),
        "local_lipschitz": near(quantus.LocalLipschitzEstimate),
        "relative_input_stability": near(quantus.RelativeInputStability),
        "relative_output_stability": near(quantus.RelativeOutputStability),
        "relative_representation_stability": near(quantus.RelativeRepresentationStability, layer_names=["relu3"]),
        "continuity": one_by_one(moved),
        "consistency": np.array(
            cells(model=network, x_batch=torch_images().numpy(), y_batch=load()["labels"], explain_func=strength),
            np.float32,
        ),
    }


def randomization(network) -> dict[str, np.ndarray]:
    plain = QUIET | {"normalise": False}
    arrays: dict[str, np.ndarray] = {}

    def table(metric, model, explain, **options):
        def evaluate(i, x, y):
            scorer = metric(**plain, **options)
            x = x.mean(1, keepdims=True) if isinstance(model, Gray) else x
            scores = scorer(model=model, x_batch=x, y_batch=y, explain_func=explain)
            return [value[0] for layer, value in scores.items() if layer != "original"]

        return one_by_one(evaluate)

    for order in ("top_down", "independent"):
        arrays[f"mprt/{order}"] = table(quantus.MPRT, network, strength, layer_order=order, abs=True)
    wrapped = quantus.helpers.model.pytorch_model.PyTorchModel(network, channel_first=True)
    *_, (_, last) = wrapped.get_random_layer_generator(order="top_down", seed=42)
    for name, module in last.named_children():
        if hasattr(module, "weight"):
            kernel = module.weight.detach().numpy()
            arrays[f"random/{name}/kernel"] = kernel.transpose((2, 3, 1, 0) if kernel.ndim == 4 else (1, 0))
            arrays[f"random/{name}/bias"] = module.bias.detach().numpy()

    arrays["noise"] = np.random.default_rng(3).normal(size=(2, 16, 16, 1)).astype(np.float32)
    draws = itertools.cycle(arrays["noise"].transpose(0, 3, 1, 2)[:, None])
    randn, explain = np.random.randn, quantus.explain
    np.random.randn = lambda *_: next(draws)
    quantus.explain = gradient
    arrays["smooth_mprt"] = table(
        quantus.SmoothMPRT, Gray(network).eval(), gradient, layer_order="top_down", nr_samples=3, noise_magnitude=0.1
    )
    np.random.randn, quantus.explain = randn, explain

    def complexity(_, x, y):
        return quantus.EfficientMPRT(**plain)(model=network, x_batch=x, y_batch=y, explain_func=strength)[0]

    arrays["efficient_mprt"] = one_by_one(complexity)

    def ssim(a, b, **_):
        span = max(a.max(), b.max()) - min(a.min(), b.min())
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": span}
        # Quantus flattens the maps. scikit-image also averages places near the border, which are left out here.
        _, places = structural_similarity(a.reshape(16, 16), b.reshape(16, 16), full=True, **options)
        return [places[5:-5, 5:-5].mean()]

    def other_class(_, x, y):
        scorer = quantus.RandomLogit(similarity_func=ssim, num_classes=2, **plain)  # two: no choice is left
        return scorer(model=First(network, 2).eval(), x_batch=x, y_batch=y % 2, explain_func=strength)[0]

    arrays["random_logit"] = one_by_one(other_class)
    return arrays


def axioms(network) -> dict[str, np.ndarray]:
    plain = QUIET | {"normalise": False}
    rng = np.random.default_rng(5)
    seen = (rng.random((16, 16)) < 0.5).astype(np.float32)
    maps = (rng.normal(size=(IMAGES, 16, 16)) * np.where(rng.random((IMAGES, 16, 16)) < 0.3, 0, 1)).astype(np.float32)
    maps *= np.where(rng.random((IMAGES, 16, 16)) < 0.8, seen, 1)
    rises: list[float] = []

    def rise(difference):
        rises.append(difference.item())
        return difference

    def gap(i, x, y):
        a = gradient(network, x, y)
        quantus.Completeness(output_func=rise, **plain)(model=network, x_batch=x, y_batch=y, a_batch=a)
        return a.sum() - rises[-1]

    def mismatches(i, x, y):
        gray, a = x.mean(1, keepdims=True), maps[i][None, None] / np.abs(maps[i]).max()
        scorer = quantus.NonSensitivity(abs=True, **plain)
        model = Gray(network, torch.from_numpy(seen)).eval()
        return scorer(model=model, x_batch=gray, y_batch=y, a_batch=a, softmax=True)[0]

    def invariant(explain, padding):
        convolution = torch.nn.Conv2d(3, 8, 3, padding=padding)
        convolution.load_state_dict(network.conv1.state_dict())
        layers = [convolution, torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]

        def evaluate(_, x, y):
            model = torch.nn.Sequential(*layers).eval()
            scorer, a = quantus.InputInvariance(**QUIET), explain(model, x, y)
            return scorer(model=model, x_batch=x, y_batch=y, a_batch=a, explain_func=explain)[0]

        return one_by_one(evaluate)

    return {
        "completeness": one_by_one(gap),
        "seen": seen,
        "maps": maps,
        "non_sensitivity": one_by_one(mismatches),
        "input_invariance/gradient": invariant(gradient, 0),
        "input_invariance/input_x_gradient": invariant(input_x_gradient, 0),
        "input_invariance/gradient_padded": invariant(gradient, 1),
    }


if __name__ == "__main__":
    network = torch_network()
    results = robustness(network) | randomization(network) | axioms(network)
    np.savez_compressed(FOLDER / "quantus_robustness.npz", **results)
