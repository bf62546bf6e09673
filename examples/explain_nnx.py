"""Explain a Flax NNX network by several methods, score the maps against object masks, and draw the maps.

Run it: python examples/explain_nnx.py maps.png
"""

import sys
from functools import partial

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from sdecor import data, losses, metrics
from sdecor.attribution import explain, reduce


class CNN(nnx.Module):
    def __init__(self, rngs):
        self.block1 = nnx.Sequential(nnx.Conv(3, 32, (3, 3), strides=2, rngs=rngs), nnx.relu)
        self.block2 = nnx.Sequential(nnx.Conv(32, 64, (3, 3), strides=2, rngs=rngs), nnx.relu)
        self.head = nnx.Linear(8 * 8 * 64, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(self.block2(self.block1(x)).reshape(len(x), -1))


@nnx.jit
def step(model, optimizer, images, labels):
    optimizer.update(model, nnx.grad(lambda m: losses.classification(m(images), labels).mean())(model))


def main(path="maps.png", steps=500):
    scenes = data.create_dataset("digit_scenes")
    normalise = partial(data.normalise, mean=scenes.mean, std=scenes.std)
    loader = data.create_loader(scenes.source("train"), batch_size=64, seed=0)
    model = CNN(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    for batch in map(loader.batch, range(steps)):
        step(model, optimizer, normalise(batch["image"]), batch["label"])
    val = data.load_in_memory(scenes.source("val"))
    images, objects = normalise(val.images[:100]), val.objects[:100] == 1
    explain_all = partial(explain, lambda image: model(image[None])[0], images, "predicted", key=jax.random.key(0))
    layer = {"layer": model.block2}  # the module itself: NNX modules name no scopes
    options = {"gradient": {}, "smoothgrad": {}, "integrated_gradients": {}, "grad_cam": layer}
    maps = {method: reduce(explain_all(method=method, **options[method])) for method in options}
    for method in maps:
        inside, chance = metrics.energy_inside(maps[method], objects), metrics.area_share(objects)
        print(f"{method}: {np.nanmean(inside):.3f} of the saliency on the object, by chance {np.nanmean(chance):.3f}")
    _, axes = plt.subplots(1 + len(maps), 6, figsize=(9, 8), layout="constrained")
    for row, (title, pictures) in zip(axes, {"image": val.images, **maps}.items(), strict=True):
        for ax, picture in zip(row, pictures[:6], strict=True):
            ax.imshow(picture, cmap="magma")
            ax.set(title=title, xticks=[], yticks=[])
    plt.savefig(path)


if __name__ == "__main__":
    main(*sys.argv[1:2])
