"""Store the maps of captum 0.9.0 from gradients, paths and occlusion on the reference network.

    python benchmarks/references/captum_gradients.py    # writes tests/references/captum_gradients.npz

captum draws noise inside `NoiseTunnel` and `GradientShap`. Here the noisy copies are drawn with JAX, as the library
draws them, and captum's `Saliency` explains the copies. The statistics over copies are those of NoiseTunnel: means,
mean squares and biased variances. The first images in one batch, float32; results are NHWC.
"""

import jax
import numpy as np
import torch
from captum.attr import InputXGradient, IntegratedGradients, Occlusion, Saliency
from network import FOLDER, load, torch_images, torch_network

IMAGES, STEPS, SAMPLES, SCALE = 3, 7, 6, 0.3
RULES = {
    "gauss_legendre": "gausslegendre",
    "riemann_left": "riemann_left",
    "riemann_middle": "riemann_middle",
    "riemann_right": "riemann_right",
    "trapezoid": "riemann_trapezoid",
}
WINDOWS = {"square": ((4, 4), (2, 2)), "cut": ((5, 3), (4, 2))}


def nhwc(images: torch.Tensor) -> np.ndarray:
    """Return images in the library's layout, NHWC."""
    return images.detach().numpy().transpose(0, 2, 3, 1)


def nchw(images: np.ndarray) -> torch.Tensor:
    """Return images in PyTorch's layout, NCHW, as a leaf that requires a gradient."""
    return torch.from_numpy(np.ascontiguousarray(np.asarray(images).transpose(0, 3, 1, 2))).requires_grad_()


def paths(network, images, targets) -> dict[str, np.ndarray]:
    """Return integrated gradients by rule and by baseline, and the convergence deltas of the latter."""
    method = IntegratedGradients(network)
    found = {}
    for ours, theirs in RULES.items():
        maps = method.attribute(images, baselines=0.5, target=targets, n_steps=STEPS, method=theirs)
        # captum's trapezoid weights sum to 1 − 1/steps: a factor of the interval's length is missing.
        found[f"rule/{ours}"] = nhwc(maps) * (STEPS / (STEPS - 1) if ours == "trapezoid" else 1)
    pixels = images.detach()
    baselines = {
        "zero": torch.zeros_like(pixels),
        "mean": pixels.mean((2, 3), keepdim=True).expand_as(pixels),
        "white": pixels.amax((2, 3), keepdim=True).expand_as(pixels),
        "black": pixels.amin((2, 3), keepdim=True).expand_as(pixels),
        "own": pixels.flip(0),
    }
    for name, baseline in baselines.items():
        maps, delta = method.attribute(
            images, baselines=baseline, target=targets, n_steps=STEPS, return_convergence_delta=True
        )
        found[f"baseline/{name}"], found[f"error/{name}"] = nhwc(maps), delta.detach().numpy()
    return found


def noisy(network, arrays, targets) -> dict[str, np.ndarray]:
    """Return statistics of the gradients of noisy copies; the noise is relative to the image's range."""
    gradients = []
    keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(len(arrays["images"]))]
    for sample in range(SAMPLES):
        copies = [
            image + SCALE * np.ptp(image) * draw_noise(jax.random.fold_in(key, sample), image.shape)
            for key, image in zip(keys, arrays["images"], strict=True)
        ]
        gradients.append(nhwc(Saliency(network).attribute(nchw(np.stack(copies)), target=targets, abs=False)))
    gradients = np.stack(gradients).astype(np.float64)
    return {
        "smoothgrad": gradients.mean(0),
        "squaregrad": (gradients**2).mean(0),
        "vargrad": gradients.var(0),
    }


def draw_noise(key: jax.Array, shape: tuple[int, ...]) -> np.ndarray:
    """Return the noise of one copy, as `sdecor.attribution.smoothed` draws it."""
    return np.asarray(jax.random.normal(jax.random.split(key)[0], shape))


def expected(network, arrays, targets) -> np.ndarray:
    """Return GradientSHAP with all images as baselines: the mean of (copy − baseline) × gradient between the two."""
    images, total = arrays["images"], 0.0
    for sample in range(SAMPLES):
        starts, ends, points = [], [], []
        for i, image in enumerate(images):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), i), sample)
            of_start, of_place, of_noise = jax.random.split(key, 3)
            starts.append(images[int(jax.random.randint(of_start, (), 0, len(images)))])
            ends.append(image + np.float32(0.1) * np.asarray(jax.random.normal(of_noise, image.shape)))
            points.append(starts[-1] + float(jax.random.uniform(of_place)) * (ends[-1] - starts[-1]))
        gradients = Saliency(network).attribute(nchw(np.stack(points)), target=targets, abs=False)
        total = total + (np.stack(ends) - np.stack(starts)).astype(np.float64) * nhwc(gradients)
    return total / SAMPLES


def main() -> None:
    """Write the results."""
    network, images, arrays = torch_network(), torch_images()[:IMAGES].requires_grad_(), load()
    targets = torch.from_numpy(arrays["labels"][:IMAGES]).long()
    arrays["images"] = arrays["images"][:IMAGES]
    results = {
        "gradient": nhwc(Saliency(network).attribute(images, target=targets, abs=False)),
        "input_x_gradient": nhwc(InputXGradient(network).attribute(images, target=targets)),
        "expected_gradients": expected(network, arrays, targets),
        **noisy(network, arrays, targets),
        **paths(network, images, targets),
    }
    for name, (window, stride) in WINDOWS.items():
        maps = Occlusion(network).attribute(
            images, sliding_window_shapes=(3, *window), strides=(1, *stride), baselines=0.5, target=targets
        )
        results[f"occlusion/{name}"] = nhwc(maps)[..., :1]
    np.savez_compressed(
        FOLDER / "captum_gradients.npz", **{name: value.astype(np.float32) for name, value in results.items()}
    )


if __name__ == "__main__":
    main()
