"""Train an Equinox network by SaliencyDecor.

Run it for 800 steps: python examples/train_equinox.py 800
"""

import sys
from functools import partial

import equinox as eqx
import jax
import optax

from sdecor import data, saliency_decor

optimizer = optax.adam(2e-3)


class CNN(eqx.Module):
    body: eqx.nn.Sequential
    head: eqx.nn.Linear

    def __init__(self, keys):
        layers, widths = [], (3, 32, 64, 128)
        for i in range(3):
            layers.append(eqx.nn.Conv2d(widths[i], widths[i + 1], 3, stride=2, padding=1, key=keys[i]))
            layers.extend([eqx.nn.GroupNorm(8, widths[i + 1]), eqx.nn.Lambda(jax.nn.relu)])
        self.body, self.head = eqx.nn.Sequential(layers), eqx.nn.Linear(128, 10, key=keys[3])

    def __call__(self, images):  # [N, H, W, C]; Equinox's layers take one image, channels first
        features = jax.vmap(self.body)(images.transpose(0, 3, 1, 2)).max(axis=(2, 3))  # these are decorrelated
        return jax.vmap(self.head)(features), features


@eqx.filter_jit
def step(model, opt_state, images, labels, key):
    loss = partial(saliency_decor, CNN.__call__, images=images, labels=labels, key=key)
    (_, terms), gradients = eqx.filter_value_and_grad(loss, has_aux=True)(model)
    updates, opt_state = optimizer.update(gradients, opt_state)
    return eqx.apply_updates(model, updates), opt_state, terms


def main(steps=800):
    scenes = data.create_dataset("digit_scenes")
    normalise = partial(data.normalise, mean=scenes.mean, std=scenes.std)
    loader = data.create_loader(scenes.source("train"), batch_size=64, seed=0)
    val = data.load_in_memory(scenes.source("val"))
    model = CNN(jax.random.split(jax.random.key(0), 4))
    opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    for i in range(steps):
        batch, key = loader.batch(i), jax.random.key(i)
        model, opt_state, terms = step(model, opt_state, normalise(batch["image"]), batch["label"], key)
        if i % 100 == 0 or i == steps - 1:
            print(f"step {i}:", ", ".join(f"{name} {value:.4f}" for name, value in terms.items()))
    logits, _ = model(normalise(val.images))
    print(f"validation accuracy: {(logits.argmax(-1) == val.labels).mean():.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
