"""Train a Flax Linen network with BatchNorm by SaliencyDecor.

Run it for 800 steps: python examples/train_linen.py 800
"""

import sys
from functools import partial

import flax.linen as nn
import jax
import optax

from sdecor import data, saliency_decor


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        for width in (32, 64, 128):
            x = nn.Conv(width, (3, 3), strides=2, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        features = x.max(axis=(1, 2))  # these are decorrelated
        return nn.Dense(10)(features), features


network, optimizer = CNN(), optax.adam(2e-3)


@jax.jit
def step(variables, opt_state, images, labels, key):
    def apply(params, images):  # returns ((logits, features), updated statistics)
        return network.apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"])

    def loss(params):
        return saliency_decor(apply, params, images, labels, key=key, has_aux=True)

    (_, (terms, statistics)), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    updates, opt_state = optimizer.update(gradients, opt_state)
    return {"params": optax.apply_updates(variables["params"], updates), **statistics}, opt_state, terms


def main(steps=800):
    scenes = data.create_dataset("digit_scenes")
    normalise = partial(data.normalise, mean=scenes.mean, std=scenes.std)
    loader = data.create_loader(scenes.source("train"), batch_size=64, seed=0)
    val = data.load_in_memory(scenes.source("val"))
    variables = network.init(jax.random.key(0), normalise(val.images[:1]), train=False)
    opt_state = optimizer.init(variables["params"])
    for i in range(steps):
        batch, key = loader.batch(i), jax.random.key(i)
        variables, opt_state, terms = step(variables, opt_state, normalise(batch["image"]), batch["label"], key)
        if i % 100 == 0 or i == steps - 1:
            print(f"step {i}:", ", ".join(f"{name} {value:.4f}" for name, value in terms.items()))
    logits, _ = network.apply(variables, normalise(val.images), train=False)
    print(f"validation accuracy: {(logits.argmax(-1) == val.labels).mean():.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
