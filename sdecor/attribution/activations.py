"""A layer's output for one image, and the gradient of the target's score with respect to it."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sdecor.attribution.canonical import canonical
from sdecor.attribution.layers import default_layer, named_layer, squeezed
from sdecor.attribution.targets import Target, score_of, target_score
from sdecor.jaxpr import called, evaluate, interpret, run

# A named scope, a pair of functions (image -> activation, activation -> logits [K]), or None: `default_layer`.
Layer = str | tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]] | None


def activation_and_gradient(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    layer: Layer = None,
    *,
    saliency_of: str = "logit",
) -> tuple[jax.Array, jax.Array]:
    """Return a layer's output for one image, and the gradient of the target's score with respect to it.

    One forward evaluation, and the part of a backward one that lies above the layer.

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, `[H, W, C]`.
      target: what is explained: a class, a `Contrast` of two, or a function of the logits.
      layer: a named scope such as "ResNet/stage3/block1", or the end of its path where that is unambiguous ("conv2");
        the output of a layer that is called several times is that of its last call. Or a pair
        `(features_fn, head_fn)`, which then stands for `fn`. Default: see `default_layer`.
      saliency_of: "logit", "log_probability" or "probability".

    Returns:
      Activation and gradient, in the shape that the layer has inside `fn`.

    Raises:
      ValueError: for an unknown or ambiguous layer, listing those that there are.
    """
    if isinstance(layer, tuple):
        features_fn, head_fn = layer
        activation = features_fn(image)
        return activation, jax.grad(score_of(head_fn, target, saliency_of=saliency_of))(activation)
    flat = jax.make_jaxpr(interpret(fn, _enter))(image)
    output = default_layer(flat.jaxpr) if layer is None else named_layer(flat.jaxpr, layer)

    def perturbed(perturbation: jax.Array) -> tuple[jax.Array, jax.Array]:
        seen = []

        def perturb(equation: Any, inputs: list[jax.Array], scope: str) -> list[jax.Array] | None:
            if output not in equation.outvars:
                return None
            values, place = evaluate(equation, inputs, None, scope), equation.outvars.index(output)
            seen.append(values[place])
            values[place] += perturbation
            return values

        (logits,) = run(flat, [image], perturb)
        return logits, seen[0]

    def score(perturbation: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, activation = canonical(perturbed)(perturbation)
        return target_score(logits, target, saliency_of=saliency_of), activation

    gradient, activation = jax.grad(score, has_aux=True)(jnp.zeros(output.aval.shape, output.aval.dtype))
    return activation, gradient


def as_map(activation: jax.Array, image_shape: tuple[int, ...]) -> jax.Array:
    """Return an activation as `[H', W', D]`, without leading axes of size 1.

    Tokens `[T, D]` are laid out as the patches of the image, without the class token where there is one; `[1, T, D]` is
    taken for tokens.

    Raises:
      ValueError: for an activation that is neither a map nor tokens that tile the image.
    """
    values = activation.reshape(squeezed(activation.shape))
    if values.ndim == 3:
        return values
    height, width = image_shape[:2]
    for first in (0, 1) if values.ndim == 2 else ():
        patches = values[first:]
        rows = max(1, round(math.sqrt(len(patches) * height / width)))
        if len(patches) > 1 and len(patches) % rows == 0 and rows * rows * width == len(patches) * height:
            return patches.reshape(rows, -1, patches.shape[-1])
    raise ValueError(
        f"the layer's output has shape {activation.shape}, neither a map [H', W', D] nor tokens [T, D] that tile an "
        f"image of {height}×{width} with or without a class token: pass reshape, a function from it to [H', W', D]"
    )


def _enter(equation: Any, inputs: list[jax.Array], scope: str) -> list[jax.Array] | None:
    """Enter called functions, `checkpoint` included: its values could not leave it otherwise."""
    inner = called(equation)
    return None if inner is None else run(inner, inputs, _enter, scope)
