"""A layer's output for one image, and the gradient of the target's score with respect to it."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from sdecor.attribution.canonical import canonical
from sdecor.attribution.layers import Patches, default_layer, named_layer, patches_of, scoped, squeezed
from sdecor.attribution.targets import Target, checked_logits, score_of, target_score
from sdecor.core.jaxpr import called, evaluate, interpret, run

# A named scope, a module that `fn` calls (an `nnx.Module`, say), a pair of functions (image -> activation, activation
# -> logits [K]), or None: `default_layer`.
Layer = str | Callable[..., Any] | tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]] | None


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
        the output of a layer that is called several times is that of its last call. Or the module itself that `fn`
        calls, such as `model.conv2` of a Flax NNX `model`, which names no scopes: see `scoped`. Or a pair
        `(features_fn, head_fn)`, which then stands for `fn`. Default: see `default_layer`.
      saliency_of: "logit", "log_probability" or "probability".

    Returns:
      Activation and gradient, in the shape that the layer has inside `fn`.

    Raises:
      ValueError: for an unknown or ambiguous layer, listing those that there are.
    """
    activation, gradient, _ = layer_and_patches(fn, image, target, layer, saliency_of=saliency_of)
    return activation, gradient


def layer_and_patches(
    fn: Callable[[jax.Array], jax.Array], image: jax.Array, target: Target, layer: Layer, *, saliency_of: str
) -> tuple[jax.Array, jax.Array, Patches | None]:
    """Return activation and gradient, see `activation_and_gradient`, and what is known of the network's patches."""
    if isinstance(layer, tuple):
        features_fn, head_fn = layer
        activation = features_fn(image)
        return activation, jax.grad(score_of(head_fn, target, saliency_of=saliency_of))(activation), None
    flat, output = _flat_and_layer(lambda x: checked_logits(fn(x)), image, layer)

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
    return activation, gradient, patches_of(flat.jaxpr)


def as_map(activation: jax.Array, image_shape: tuple[int, ...], patches: Patches | None = None) -> jax.Array:
    """Return an activation as `[H', W', D]`, without leading axes of size 1.

    Tokens `[T, D]` are laid out as the positions of the last convolution, without the tokens added to those (a class
    token, registers), where `patches` knows them. Otherwise they are the square patches of the image, without the class
    token where there is one; those at the border may be padded or cut off where only one grid of so many patches is
    possible. `[1, T, D]` is taken for tokens.

    Raises:
      ValueError: for an activation that is neither a map nor tokens with one such grid.
    """
    values = activation.reshape(squeezed(activation.shape))
    if values.ndim == 3:
        return values
    if values.ndim == 2:
        tokens, known = len(values), patches is not None and len(values) in patches.first
        grid = patches.grid if known else _grid_of(tokens, *image_shape[:2])
        if grid is not None:
            first = patches.first[tokens] if known else tokens - math.prod(grid)
            if first is not None:
                return values[first : first + math.prod(grid)].reshape(*grid, values.shape[-1])
    height, width = image_shape[:2]
    raise ValueError(
        f"the layer's output has shape {activation.shape}, neither a map [H', W', D] nor tokens [T, D] that are the "
        f"patches of an image of {height}×{width} in one way: pass reshape, a function from it to [H', W', D]"
    )


def _flat_and_layer(fn: Callable, image: jax.Array, layer: Layer) -> tuple[core.ClosedJaxpr, core.Var]:
    """Return the equations of `fn`, calls entered, and the value that is the layer's output."""
    if layer is None or isinstance(layer, str):
        flat = jax.make_jaxpr(interpret(fn, _enter))(image)
        return flat, default_layer(flat.jaxpr) if layer is None else named_layer(flat.jaxpr, layer)
    with scoped(layer) as name:
        flat = jax.make_jaxpr(interpret(fn, _enter))(image)
    return flat, named_layer(flat.jaxpr, name)


def _grid_of(tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """Return rows and columns of the patches behind so many tokens; None where that is not clear."""
    for patches in (tokens, tokens - 1):  # without and with a class token
        rows = max(1, round(math.sqrt(patches * height / width)))
        if patches > 1 and patches % rows == 0 and rows * rows * width == patches * height:
            return rows, patches // rows
    cut_off, padded = (
        {(rounded(height / size), rounded(width / size)) for size in range(2, max(height, width))}
        for rounded in (math.floor, math.ceil)
    )
    fitting = [grid for grid in cut_off | padded if 1 < math.prod(grid) and math.prod(grid) in (tokens, tokens - 1)]
    return fitting[0] if len(fitting) == 1 else None


def _enter(equation: Any, inputs: list[jax.Array], scope: str) -> list[jax.Array] | None:
    """Enter called functions, `checkpoint` included: its values could not leave it otherwise."""
    inner = called(equation)
    return None if inner is None else run(inner, inputs, _enter, scope)
