"""A one-layer network on images `[T, M]`, the penalties on its features, and its training.

The same D filters see every position. Their features are averaged over positions and classified linearly:
`z = V mean_t φ(W x_t + b) + c`, with φ the ReLU or the identity.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import optax

from sdecor import losses, masking
from studies.patches import CLASSES

LAYERS = ("pooled", "before", "after")  # averaged over positions; by position, before or after the non-linearity

Params = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The static choices of a training; each recipe is compiled once for all weights.

    `penalty` is on the features of `layer`; `consistency` adds the consistency term of Saliency-Guided Training;
    `width` is the number D of filters.
    """

    relu: bool = True
    penalty: str | None = None
    layer: str = "pooled"
    consistency: bool = False
    width: int = 16
    steps: int = 400
    learning_rate: float = 0.01


def initial(key: jax.Array, pixels: int, width: int) -> Params:
    """Return the network's parameters before training."""
    first, second = jax.random.split(key)
    return {
        "filters": jax.random.normal(first, (pixels, width)) * (2 / pixels) ** 0.5,
        "bias": jnp.zeros(width),
        "classifier": jax.random.normal(second, (width, CLASSES)) / width**0.5,
        "offset": jnp.zeros(CLASSES),
    }


def forward(params: Params, images: jax.Array, *, relu: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return logits `[N, K]` and the features of each of `LAYERS`: `[N, D]` pooled, `[N, T, D]` by position."""
    before = images @ params["filters"] + params["bias"][None, None]
    after = jax.nn.relu(before) if relu else before
    pooled = after.mean(1)
    logits = pooled @ params["classifier"] + params["offset"][None]
    return logits, {"pooled": pooled, "before": before, "after": after}


def input_gradient(params: Params, images: jax.Array, labels: jax.Array, *, relu: bool) -> jax.Array:
    """Return the gradient `[N, T, M]` of each example's true logit."""

    def chosen(x: jax.Array) -> jax.Array:
        logits = forward(params, x, relu=relu)[0]
        return jnp.take_along_axis(logits, labels[:, None], 1).sum()

    return jax.grad(chosen)(images)


def cosines(samples: jax.Array) -> jax.Array:
    """Return the uncentred cosines `[D, D]` between the features of samples `[N, D]`; those of a zero feature are 0."""
    squares = (samples**2).sum(0)
    unit = samples * jnp.where(squares > 0, jax.lax.rsqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)[None]
    return unit.T @ unit


def densities(samples: jax.Array) -> jax.Array:
    """Return `(E a)² / E a²` in [0, 1] of each feature of samples `[N, D]`, its share of active samples.

    References:
      Treves and Rolls, "What determines the capacity of autoassociative memories in the brain?", Network 2, 1991.
    """
    squares = (samples**2).mean(0)
    return jnp.where(squares > 0, samples.mean(0) ** 2 / jnp.where(squares > 0, squares, 1.0), 0.0)


def penalise(penalty: str, features: jax.Array, labels: jax.Array) -> jax.Array:
    """Return a penalty on features `[N, D]` or `[N, T, D]`.

    "within" is the "correlation" about the means of the classes; the others are the forms of `sdecor.losses`.
    """
    samples = features.reshape(-1, features.shape[-1])
    if penalty == "within":
        members = jax.nn.one_hot(jnp.repeat(labels, len(samples) // len(labels)), CLASSES)
        means = members.T @ samples / members.sum(0)[:, None]
        return losses.decorrelation(samples - members @ means, form="correlation")
    return losses.decorrelation(samples, form=penalty)


@partial(jax.jit, static_argnames="recipe")
def train(
    recipe: Recipe, keys: jax.Array, images: jax.Array, labels: jax.Array, weight: jax.Array, decay: jax.Array
) -> Params:
    """Train a network for each key, on all examples at every step.

    Args:
        recipe: the static choices.
        keys: typed random keys, `[S]`.
        images: `[S, N, T, M]`.
        labels: `[S, N]`.
        weight: weight of the penalty.
        decay: weight of half the squared filters and classifier in the loss.

    Returns:
      Parameters with a leading axis `[S]`.
    """
    return jax.vmap(partial(_train_one, recipe), in_axes=(0, 0, 0, None, None))(keys, images, labels, weight, decay)


def _train_one(
    recipe: Recipe, key: jax.Array, images: jax.Array, labels: jax.Array, weight: jax.Array, decay: jax.Array
) -> Params:
    def objective(params: Params, step_key: jax.Array) -> jax.Array:
        logits, features = forward(params, images, relu=recipe.relu)
        loss = losses.classification(logits, labels).mean()
        loss += 0.5 * decay * sum((params[name] ** 2).sum() for name in ("filters", "classifier"))
        if recipe.penalty:
            loss += weight * penalise(recipe.penalty, features[recipe.layer], labels)
        if recipe.consistency:
            masked = _mask(step_key, jax.lax.stop_gradient(params), images, labels, relu=recipe.relu)
            loss += losses.consistency(logits, forward(params, masked, relu=recipe.relu)[0]).mean()
        return loss

    optimizer = optax.adam(optax.cosine_decay_schedule(recipe.learning_rate, recipe.steps))

    def step(carry: tuple[Params, optax.OptState], number: jax.Array) -> tuple[tuple[Params, optax.OptState], None]:
        params, moments = carry
        gradient = jax.grad(objective)(params, jax.random.fold_in(key, number))
        updates, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), None

    params = initial(key, images.shape[-1], recipe.width)
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(recipe.steps))
    return params


def _mask(key: jax.Array, params: Params, images: jax.Array, labels: jax.Array, *, relu: bool) -> jax.Array:
    """Return images with the half of each example's pixels filled whose gradient is least."""
    saliency = jnp.abs(input_gradient(params, images, labels, relu=relu))
    ties, fill = jax.random.split(key)
    mask = masking.least_salient(ties, saliency, fraction=0.5)
    return masking.fill(fill, images[..., None], mask, how="uniform")[..., 0]
