"""Train a Flax NNX network with BatchNorm and Dropout by SaliencyDecor.

Run it for 800 steps: python examples/train_nnx.py 800
"""

import sys
from functools import partial

import jax
import optax
from flax import nnx

from sdecor import data, saliency_decor


class CNN(nnx.Module):
    def __init__(self, rngs):
        conv, norm = partial(nnx.Conv, kernel_size=(3, 3), strides=2, rngs=rngs), partial(nnx.BatchNorm, rngs=rngs)
        layers = [conv(3, 32), norm(32), nnx.relu, conv(32, 64), norm(64), nnx.relu, conv(64, 128), norm(128), nnx.relu]
        self.body, self.dropout, self.head = nnx.Sequential(*layers), nnx.Dropout(0.1), nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x, dropout_key=None):
        features = self.body(x).max(axis=(1, 2))  # these are decorrelated
        return self.head(self.dropout(features, rngs=dropout_key)), features


@nnx.jit
def step(model, optimizer, images, labels, key):
    def apply(dropout_key, model, images):  # returns ((logits, features), updated statistics)
        model = nnx.clone(model)  # BatchNorm changes its statistics in place: here, those of the copy
        return model(images, dropout_key), nnx.state(model, nnx.BatchStat)

    key, *dropout_keys = jax.random.split(key, 3)
    clean, masked = (partial(apply, each) for each in dropout_keys)
    loss = partial(saliency_decor, clean, images=images, labels=labels, key=key, masked_apply=masked, has_aux=True)
    (_, (terms, statistics)), gradients = nnx.value_and_grad(loss, has_aux=True)(model)
    optimizer.update(model, gradients)
    nnx.update(model, statistics)
    return terms


def main(steps=800):
    scenes = data.create_dataset("digit_scenes")
    normalise = partial(data.normalise, mean=scenes.mean, std=scenes.std)
    loader = data.create_loader(scenes.source("train"), batch_size=64, seed=0)
    val = data.load_in_memory(scenes.source("val"))
    model = CNN(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(4e-3), wrt=nnx.Param)
    for i in range(steps):
        batch, key = loader.batch(i), jax.random.key(i)
        terms = step(model, optimizer, normalise(batch["image"]), batch["label"], key)
        if i % 100 == 0 or i == steps - 1:
            print(f"step {i}:", ", ".join(f"{name} {value:.4f}" for name, value in terms.items()))
    model.eval()
    logits, _ = model(normalise(val.images))
    print(f"validation accuracy: {(logits.argmax(-1) == val.labels).mean():.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
