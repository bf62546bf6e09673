"""Store the values of captum 0.9.0 for regions of the reference network.

    python benchmarks/references/captum_regions.py     # writes tests/references/captum_regions.npz

Captum draws the coalitions of KernelShap and Lime. Here KernelShap is given every coalition once, weighted by the
Shapley kernel, which is what its draws stand for; Lime is given the coalitions that the library draws. The evaluation
of coalitions and the regressions are captum's. The first images in one batch; a value for each region, `[3, 6]`. Needs
jax, torch, scikit-learn and captum==0.9.0.
"""

import math

import jax
import numpy as np
import torch
from captum._utils.models.linear_model import SkLearnRidge
from captum.attr import FeatureAblation, KernelShap, Lime, ShapleyValues
from captum.attr._core.lime import get_exp_kernel_similarity_function
from network import FOLDER, load, torch_images, torch_network

IMAGES, REGIONS, BASELINE = 3, 6, 0.3
SAMPLES, WIDTH, PENALTY = 40, 0.4, 0.7


def labels() -> np.ndarray:
    """Return the label map `[16, 16]`: six regions of different sizes."""
    rows, columns = np.mgrid[:16, :16]
    found = rows // 8 * 2 + (columns >= 5)
    found[4:11, 9:13], found[rows + columns < 5] = 4, 5
    return found


class Enumerated(KernelShap):
    """KernelShap over all coalitions, each once with its weight."""

    def kernel_shap_perturb_generator(self, original_inp, **kwargs):
        for number in range(2**REGIONS):
            yield torch.tensor([[number >> i & 1 for i in range(REGIONS)]])

    def kernel_shap_similarity_kernel(self, _, __, interpretable_sample, **kwargs):
        size = int(interpretable_sample.sum())
        if size in (0, REGIONS):
            return torch.tensor([self.inf_weight])
        return torch.tensor([(REGIONS - 1) / (math.comb(REGIONS, size) * size * (REGIONS - size))])


def drawn(example: int) -> torch.Tensor:
    """Return the coalitions of `sdecor.attribution.lime` for an example of a batch with the key 0."""
    key = jax.random.fold_in(jax.random.key(0), example)
    draws = [jax.random.bernoulli(jax.random.fold_in(key, i), 0.5, (REGIONS,)) for i in range(SAMPLES - 1)]
    return torch.from_numpy(np.stack([np.ones(REGIONS, bool), *draws]).astype(np.int64))


def lime(network, example: int) -> Lime:
    kernel = get_exp_kernel_similarity_function("cosine", WIDTH)

    def similarity(_, __, seen, **kwargs):
        return kernel(torch.ones(1, REGIONS), seen.float(), None)

    def coalitions(original_inp, **kwargs):
        yield from drawn(example)[:, None]

    return Lime(network, SkLearnRidge(alpha=PENALTY), similarity, coalitions)


def main() -> None:
    network, regions = torch_network(), labels()
    targets = torch.from_numpy(load()["labels"]).long()
    mask = torch.from_numpy(regions)[None, None].long()
    found = {"feature_ablation": [], "shapley": [], "kernel_shap": [], "lime": []}
    for i in range(IMAGES):
        given = {"target": targets[i : i + 1], "baselines": BASELINE, "feature_mask": mask}
        image = torch_images()[i : i + 1]
        values = {
            "feature_ablation": FeatureAblation(network).attribute(image, **given),
            "shapley": ShapleyValues(network).attribute(image, perturbations_per_eval=64, **given),
            "kernel_shap": Enumerated(network).attribute(image, n_samples=2**REGIONS, **given),
            "lime": lime(network, i).attribute(image, n_samples=SAMPLES, **given),
        }
        for name, value in values.items():
            one = value[0, 0].detach().numpy()
            assert (value[0].detach().numpy() == one).all()  # the same in all channels
            found[name].append([one[regions == region][0] for region in range(REGIONS)])
    arrays = {name: np.asarray(values, np.float32) for name, values in found.items()}
    np.savez_compressed(FOLDER / "captum_regions.npz", labels=regions, **arrays)


if __name__ == "__main__":
    main()
