"""FullGrad: the gradient by the input and by every bias of the network, which together make up the score."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdecor.attribution.canonical import canonical
from sdecor.attribution.inputs import positions_of
from sdecor.attribution.layers import Patches, as_map, patches_in, squeezed
from sdecor.attribution.targets import Target, target_score
from sdecor.core.arrays import widened
from sdecor.rules.biases import ACTIVATION, BIAS, NORMALIZATION, evaluated, parts_of, zeros_of
from sdecor.rules.program import Program, flatten

_EPSILON = 1e-6  # of the published code; keeps a map of zeros from being divided by 0
_MAPPED = (BIAS, ACTIVATION, NORMALIZATION)  # the kinds of biases that have a map


class FullGradient(NamedTuple):
    """The shares of the input and of all biases in a score.

    Attributes:
      score: the target's score, a scalar; or `[N]` of a batch, as are all shares.
      of_input: gradient × input, in the shape of the input.
      of_biases: name of a bias → gradient × bias, in the shape of the value that it is part of. A name is a number in
        the order of evaluation, the kind of the bias and its named scope, such as "003 bias CNN/block1/conv2".
    """

    score: jax.Array
    of_input: Any
    of_biases: dict[str, jax.Array]


def full_gradient(
    fn: Callable[[Any], Any],
    image: Any,
    target: Target,
    *,
    saliency_of: str = "logit",
) -> FullGradient:
    """Return the full gradient: the shares of the input and of every bias, which sum to the score.

    An operation `y = f(u)` with the derivative J at u has the bias `f(u) − J u`. Biases are found in the function's
    equations:

    - "bias": the added constants of an affine layer. Those of a convolution and of the BatchNorm behind it are one
      bias; position embeddings, a class token and a normalization of the input are biases too;
    - "activation": the implicit bias `f(u) − f'(u) u` of an elementwise function such as GELU, sigmoid or softplus. It
      is 0 for a ReLU, a leaky ReLU, |u| and a clip at 0, and these are left out, as are maxima and max pooling;
    - "normalization": the implicit bias of a LayerNorm, RMSNorm, GroupNorm or another quotient by a value of the image;
    - "product": of a product or matrix product z of two values (attention, gates) it is −z;
    - "other": of the steps of a softmax, and of any further operation with a derivative.

    Cost: one gradient. `explain(fn, images, targets, method=full_gradient)` returns the shares of a batch.

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, any input that the network takes: an array, or a tree of arrays.
      target: the class to explain, a `Contrast` of two classes, or a function of the output.
      saliency_of: score of the target: "logit", "log_probability" or "probability".

    Returns:
      Signed shares in score units. Their sum is the score up to rounding, for any network.

    References:
      Srinivas, Fleuret, "Full-Gradient Representation for Neural Network Visualization",
      https://arxiv.org/abs/1905.00780, 2019.
    """
    return _full_gradient(_program(fn, image, target, saliency_of), image)[0]


def fullgrad(
    fn: Callable[[Any], Any],
    image: jax.Array,
    target: Target,
    *,
    saliency_of: str = "logit",
) -> jax.Array:
    """Return FullGrad: `Σ_c ψ(∂score/∂x ⊙ x) + Σ_l Σ_c ψ(∂score/∂b_l ⊙ b_l)` over biases b_l that have positions.

    ψ takes the magnitude, scales it to [0, 1] by the least and greatest value over all positions and channels of its
    map, and enlarges it to the image's size, bilinearly with the corners aligned. Sums are over channels. These are the
    choices of the published code.

    A bias has positions if it is a map `[H', W', D]` of a size that a convolution returns or the image has, or tokens
    `[T, D]` of the patches; class tokens and registers are removed. Biases of dense layers on vectors have none, and
    implicit biases of products and softmaxes have no map either: `full_gradient` has these too. Cost: one gradient.

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, `[H, W, C]`, or another input with positions `[*positions, C]`.
      target: the class to explain, a `Contrast` of two classes, or a function of the output.
      saliency_of: score of the target: "logit", "log_probability" or "probability".

    Returns:
      Map `[H, W, 1]`, at least 0, without a unit, at least float32.

    Raises:
      ValueError: for an input without positions.

    References:
      Srinivas, Fleuret, "Full-Gradient Representation for Neural Network Visualization",
      https://arxiv.org/abs/1905.00780, 2019.
    """
    sides = positions_of(image, "fullgrad")
    program = _program(fn, image, target, saliency_of)
    found, kinds = _full_gradient(program, image)
    patches, grids = patches_in(fn, image), _grids(program, len(sides))
    total = _scaled(found.of_input).sum(-1)
    by_grid: dict[tuple[int, ...], jax.Array] = {}
    for kind, share in zip(kinds, found.of_biases.values(), strict=True):
        values = _as_map(share, image, patches, grids) if kind in _MAPPED else None
        if values is not None:
            own = _scaled(values).sum(-1)
            by_grid[own.shape] = by_grid.get(own.shape, 0) + own
    return sum(map(lambda maps: _enlarged(maps, sides), by_grid.values()), total)[..., None]


def _program(fn: Callable[[Any], Any], image: Any, target: Target, saliency_of: str) -> Program:
    leaves, structure = jax.tree.flatten(image)

    def score(*leaves: jax.Array) -> jax.Array:
        return target_score(fn(structure.unflatten(leaves)), target, saliency_of=saliency_of)

    return flatten(score, *leaves, enter_custom=True)


def _full_gradient(program: Program, image: Any) -> tuple[FullGradient, list[str]]:
    """Return the full gradient, and the kinds of its biases."""
    leaves, structure = jax.tree.flatten(image)
    parts = parts_of(program)

    def score(leaves: list[jax.Array], changes: list[jax.Array]) -> tuple[jax.Array, tuple[jax.Array, list[jax.Array]]]:
        (value,), biases = evaluated(program, parts, leaves, changes)
        return value, (value, biases)

    gradient = jax.grad(canonical(score), argnums=(0, 1), has_aux=True)
    (of_leaves, of_changes), (value, biases) = gradient(leaves, zeros_of(parts))
    shares = [widened(slope) * widened(bias) for slope, bias in zip(of_changes, biases, strict=True)]
    named = [part for part in parts for _ in part.places]
    names = [f"{i:03d} {part.kind} {part.scope}".strip() for i, part in enumerate(named)]
    of_input = structure.unflatten(
        [widened(slope) * widened(leaf) for slope, leaf in zip(of_leaves, leaves, strict=True)]
    )
    return FullGradient(value, of_input, dict(zip(names, shares, strict=True))), [part.kind for part in named]


def _grids(program: Program, axes: int) -> frozenset[tuple[int, ...]]:
    """Return the positions of the outputs of all convolutions over `axes` axes."""
    found = set()
    for step in program.steps:
        if step.name == "conv_general_dilated":
            places = step.params["dimension_numbers"].out_spec[2:]
            found.add(tuple(step.outputs[0].shape[place] for place in places))
    return frozenset(grid for grid in found if len(grid) == axes)


def _as_map(
    share: jax.Array, image: jax.Array, patches: Patches | None, grids: frozenset[tuple[int, ...]]
) -> jax.Array | None:
    """Return a bias's share as `[H', W', D]`; None for one without positions."""
    axes = image.ndim - 1
    values = share.reshape(squeezed(share.shape, axes))
    if values.ndim == axes + 1:
        first = patches is not None and patches.channels_first
        if (values.shape[1:] if first else values.shape[:-1]) in grids:
            return jnp.moveaxis(values, 0, -1) if first else values
        if values.shape[:-1] == image.shape[:-1]:
            return values
    if values.ndim > 2 and patches is not None and len(values) in patches.first:
        values = values.reshape(len(values), -1)  # heads of tokens
    if values.ndim != 2 or (axes == 1 and (patches is None or len(values) not in patches.first)):
        return None
    try:
        return as_map(values, image.shape, patches)
    except ValueError:
        return None


def _scaled(share: jax.Array) -> jax.Array:
    magnitude = jnp.abs(share)
    above = magnitude - magnitude.min()
    return above / (above.max() + _EPSILON)


def _enlarged(values: jax.Array, sides: tuple[int, ...]) -> jax.Array:
    """Return values `[H', W']` at the size `sides`, interpolated linearly between aligned corners."""
    for axis, (before, after) in enumerate(zip(values.shape, sides, strict=True)):
        places = jnp.linspace(0, before - 1, after, dtype=values.dtype) if after > 1 else jnp.zeros(1, values.dtype)
        weights = jnp.maximum(1 - jnp.abs(places[:, None] - jnp.arange(before, dtype=values.dtype)[None]), 0)
        values = jnp.moveaxis(jnp.tensordot(weights, values, (1, axis), precision="highest"), 0, axis)
    return values
