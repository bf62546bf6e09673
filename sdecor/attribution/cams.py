"""Class activation maps: a layer's activations weighted by the gradient of the target's score.

Each method costs one forward evaluation and the backward evaluation down to the layer, and returns `[H, W, 1]`.
`guided_grad_cam` differs in both.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sdecor.attribution.inputs import positions_of
from sdecor.attribution.layers import Layer, Split, as_map, layer_and_patches, split_at, squeezed
from sdecor.attribution.propagation import guided_backpropagation
from sdecor.attribution.targets import Contrast, Target, checked_logits, is_function
from sdecor.core.arrays import widened
from sdecor.core.checks import check_choice, check_count
from sdecor.core.classes import of_class

UPSAMPLING = {"bilinear": "linear", "nearest": "nearest"}  # names in `jax.image.resize`
Reshape = Callable[[jax.Array], jax.Array]


def of_several_layers(method: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Let a CAM method take a list of layers: the mean of their maps, each divided by its own largest magnitude."""

    @functools.wraps(method)
    def general(fn: Callable, image: jax.Array, target: Target, *, layer: Any = None, **options: Any) -> jax.Array:
        if not isinstance(layer, list):
            return method(fn, image, target, layer=layer, **options)
        if not layer or options.get("upsample", "bilinear") is None:
            raise ValueError(f"layer = {layer!r}: pass layers in the list, and a way to upsample their maps")
        total = 0
        for each in layer:
            cam = method(fn, image, target, layer=each, **options)
            peak = jnp.abs(cam).max()
            total += cam / jnp.where(peak == 0, 1, peak)
        return total / len(layer)

    return general


@of_several_layers
def grad_cam(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    layer: Layer = None,
    saliency_of: str = "logit",
    relu: bool = True,
    upsample: str | None = "bilinear",
    reshape: Reshape | None = None,
) -> jax.Array:
    """Return Grad-CAM: `Σ_d α_d A_d`, where `α_d` is the mean over positions of `∂score/∂A_d`.

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`.
      image: floating point, `[H, W, C]`.
      target: the class to explain, a `Contrast` of two classes, or a function of the logits.
      layer: a named scope such as "ResNet/stage4" or "conv2", a module, or `(features_fn, head_fn)`: see
        `activation_and_gradient`. Default: the last feature map, after its non-linearity: see `default_layer`. A list
        of layers gives the mean of their maps, each divided by its own largest magnitude.
      saliency_of: score of the target: "logit", "log_probability" or "probability".
      relu: whether to keep only the positive part, as the paper does.
      upsample: interpolation to the image's size, "bilinear" or "nearest"; None keeps the layer's `[H', W', 1]`.
      reshape: function from the layer's output to `[H', W', D]`, applied to the activation and to its gradient. It is
        needed for a layer that is neither a map nor square tokens.

    Returns:
      Map `[H, W, 1]` in score units, at least float32.

    Raises:
      ValueError: for an unknown layer, or one whose output is no map.

    References:
      Selvaraju et al., "Grad-CAM", https://arxiv.org/abs/1610.02391, 2017.
    """
    activation, gradient = _maps(fn, image, target, layer, saliency_of, reshape)
    return finished(weighted_sum(activation, gradient.mean(_places(image))), relu, upsample, image)


@of_several_layers
def grad_cam_plus_plus(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    layer: Layer = None,
    saliency_of: str = "logit",
    relu: bool = True,
    upsample: str | None = "bilinear",
    reshape: Reshape | None = None,
) -> jax.Array:
    """Return Grad-CAM++: `Σ_d w_d A_d` with `w_d = Σ_ij α_ijd relu(g_ijd)`, `α = g² / (2g² + g³ Σ_ab A_abd)`.

    The paper explains `Y = exp(S)` for a score S whose second derivatives by the activations are zero, as in a network
    of ReLUs. With `g = ∂S/∂A`, the derivatives of Y are then `Y g`, `Y g²` and `Y g³`. S is the score that
    `saliency_of` names; the paper uses the logit. The factor Y is left out: it is the same at all positions, and may
    overflow. Activations are assumed to be non-negative (after a ReLU). See `grad_cam` for the arguments.

    Returns:
      Map `[H, W, 1]`, at least float32.

    References:
      Chattopadhay et al., "Grad-CAM++", https://arxiv.org/abs/1710.11063, 2018.
    """
    activation, gradient = _maps(fn, image, target, layer, saliency_of, reshape)
    rising = jax.nn.relu(gradient)  # α counts only where g > 0, and there g² cancels in it
    alpha = 1 / (2 + rising * activation.sum(_places(image), keepdims=True))
    return finished(weighted_sum(activation, (alpha * rising).sum(_places(image))), relu, upsample, image)


@of_several_layers
def layer_cam(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    layer: Layer = None,
    saliency_of: str = "logit",
    relu: bool = True,
    upsample: str | None = "bilinear",
    reshape: Reshape | None = None,
) -> jax.Array:
    """Return LayerCAM: `Σ_d relu(∂score/∂A_d) A_d`; each position has its own weight.

    It stays sharp at early layers; Grad-CAM, with its mean weights, does not. See `grad_cam` for the arguments.

    Returns:
      Map `[H, W, 1]` in score units, at least float32.

    References:
      Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE TIP 30, 2021,
      https://doi.org/10.1109/TIP.2021.3089943.
    """
    activation, gradient = _maps(fn, image, target, layer, saliency_of, reshape)
    return finished(activation * jax.nn.relu(gradient), relu, upsample, image)


@of_several_layers
def hires_cam(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    layer: Layer = None,
    saliency_of: str = "logit",
    relu: bool = False,
    upsample: str | None = "bilinear",
    reshape: Reshape | None = None,
) -> jax.Array:
    """Return HiResCAM: `Σ_d ∂score/∂A_d ⊙ A_d`, the layer's activations times their gradient.

    If only linear layers (mean pooling included) follow the layer, the map before upsampling sums to the score minus
    the bias. See `grad_cam` for the arguments.

    Returns:
      Map `[H, W, 1]` in score units, signed unless `relu`, at least float32.

    References:
      Draelos, Carin, "Use HiResCAM instead of Grad-CAM", https://arxiv.org/abs/2011.08891, 2020.
    """
    activation, gradient = _maps(fn, image, target, layer, saliency_of, reshape)
    return finished(activation * gradient, relu, upsample, image)


@of_several_layers
def xgrad_cam(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    layer: Layer = None,
    saliency_of: str = "logit",
    relu: bool = True,
    upsample: str | None = "bilinear",
    reshape: Reshape | None = None,
) -> jax.Array:
    """Return XGrad-CAM: `Σ_d w_d A_d` with `w_d = Σ_p A_pd g_pd / Σ_p A_pd`, the gradient averaged where A is large.

    A feature whose activations sum to 0 has the weight 0. See `grad_cam` for the arguments.

    Returns:
      Map `[H, W, 1]` in score units, at least float32.

    References:
      Fu et al., "Axiom-based Grad-CAM", https://arxiv.org/abs/2008.02312, 2020.
    """
    activation, gradient = _maps(fn, image, target, layer, saliency_of, reshape)
    total = activation.sum(_places(image))
    weighted = (activation * gradient).sum(_places(image))
    weights = jnp.where(total == 0, 0, weighted / jnp.where(total == 0, 1, total))
    return finished(weighted_sum(activation, weights), relu, upsample, image)


@of_several_layers
def finer_cam(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    others: int = 3,
    weight: float = 1.0,
    layer: Layer = None,
    saliency_of: str = "logit",
    relu: bool = True,
    upsample: str | None = "bilinear",
    reshape: Reshape | None = None,
) -> jax.Array:
    """Return Finer-CAM: Grad-CAM of the target's score minus the mean score of the classes most like it.

    See `grad_cam` for the other arguments.

    Args:
      target: a class; or a `Contrast`, whose second class is then the only one to compare with.
      others: number of classes to compare with: those of highest score besides the target, at most all.
      weight: factor of their mean score.

    Returns:
      Map `[H, W, 1]` in score units, at least float32.

    Raises:
      ValueError: for a target that is a function.

    References:
      Zhang et al., "Finer-CAM: Spotting the Difference Reveals Finer Details for Visual Explanation",
      https://arxiv.org/abs/2501.11309, 2025.
    """
    check_count("others", others)
    if is_function(target):
        raise ValueError("finer_cam compares a class with similar ones: pass classes or a Contrast as targets")
    own, other = target if isinstance(target, Contrast) else (target, None)

    def contrast(scores: jax.Array) -> jax.Array:
        if other is not None:
            return of_class(scores, own) - weight * of_class(scores, other)
        rivals = jnp.where(jnp.arange(scores.shape[0]) == own, -jnp.inf, jax.lax.stop_gradient(scores))
        _, places = jax.lax.top_k(rivals, min(others, scores.shape[0] - 1))
        return of_class(scores, own) - weight * scores[places].mean()

    checked = fn if isinstance(layer, tuple) else lambda x: checked_logits(fn(x))
    options = {"layer": layer, "saliency_of": saliency_of, "relu": relu, "upsample": upsample, "reshape": reshape}
    return grad_cam(checked, image, contrast, **options)


@of_several_layers
def eigen_cam(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    layer: Layer = None,
    relu: bool = True,
    upsample: str | None = "bilinear",
    reshape: Reshape | None = None,
) -> jax.Array:
    """Return Eigen-CAM: the layer's activations along their first principal direction, which is not centred.

    The map shows what dominates the layer; it does not depend on the target. Its sign, which the direction leaves open,
    is that of a positive sum. See `grad_cam` for the arguments.

    Returns:
      Map `[H, W, 1]` in units of the activation, at least float32.

    References:
      Bany Muhammad, Yeasin, "Eigen-CAM", https://arxiv.org/abs/2008.00299, 2020.
    """
    split = split_at(fn, image, target, layer)
    positions_of(image, "a class activation map")
    activation = mapped(split, image.shape, layer, reshape)(widened(split.activation))
    rows = activation.reshape(-1, activation.shape[-1])
    small = rows if rows.shape[0] <= rows.shape[1] else rows.T
    _, vectors = jnp.linalg.eigh(jnp.matmul(small, small.T, precision="highest"))
    first = vectors[:, -1]  # of the largest eigenvalue
    if small is rows:
        projected = first * jnp.linalg.norm(jnp.matmul(first, rows, precision="highest"))
    else:
        projected = jnp.matmul(rows, first, precision="highest")
    projected = jnp.where(projected.sum() < 0, -projected, projected)
    return finished(projected.reshape(*activation.shape[:-1], 1), relu, upsample, image)


def guided_grad_cam(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    layer: Layer = None,
    saliency_of: str = "logit",
    upsample: str = "bilinear",
    reshape: Reshape | None = None,
) -> jax.Array:
    """Return the product of guided backpropagation and the upsampled positive part of Grad-CAM.

    Cost: one gradient, and a backward evaluation down to the layer. See `grad_cam` for the arguments. Guided
    backpropagation uses `fn`, even if `layer` is a pair of functions.

    Returns:
      Signed attribution `[H, W, C]`, at least float32.

    References:
      Selvaraju et al., "Grad-CAM", https://arxiv.org/abs/1610.02391, 2017, section 3.2.
    """
    check_choice("upsample", upsample, UPSAMPLING)
    cam = grad_cam(fn, image, target, layer=layer, saliency_of=saliency_of, upsample=upsample, reshape=reshape)
    return cam * guided_backpropagation(fn, image, target, saliency_of=saliency_of).astype(cam.dtype)


def _places(image: jax.Array) -> tuple[int, ...]:
    """Return the axes of positions: two of an image, one of a series, three of a volume."""
    return tuple(range(image.ndim - 1))


def _maps(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    layer: Layer,
    saliency_of: str,
    reshape: Reshape | None,
) -> tuple[jax.Array, jax.Array]:
    """Return the layer's activation and its gradient as `[H', W', D]`, at least float32."""
    positions_of(image, "a class activation map")
    activation, gradient, split = layer_and_patches(fn, image, target, layer, saliency_of=saliency_of)
    as_maps = mapped(split, image.shape, layer, reshape)
    return as_maps(widened(activation)), as_maps(widened(gradient))


def weighted_sum(activation: jax.Array, weights: jax.Array) -> jax.Array:
    """Return the sum of the features `[H', W', D]`, weighted by `[D]`, as `[H', W', 1]`."""
    # A product with a vector: on a CPU it is faster than a sum of products, into which XLA fuses the weights.
    return jnp.einsum("...d,d->...", activation, weights, precision="highest")[..., None]


def mapped(split: Split, shape: tuple[int, ...], layer: Layer, reshape: Reshape | None) -> Reshape:
    """Return the function from values in the layer's shape to a map `[H', W', D]`.

    Raises:
      ValueError: when called, for a layer that is no map; at once for a layer of tokens whose patches are not read.
    """
    _check_that_patches_are_read(split, layer, reshape)
    if reshape is None:
        return lambda values: as_map(values, shape, split.patches)

    def reshaped(values: jax.Array) -> jax.Array:
        found = reshape(values)
        if found.ndim != len(shape):
            raise ValueError(f"reshape returned shape {found.shape}: it must return a map [H', W', D]")
        return found

    return reshaped


def _check_that_patches_are_read(split: Split, layer: Layer, reshape: Reshape | None) -> None:
    """Raise `ValueError` for a layer of tokens of which the class token alone matters, but no token of the map."""
    tokens = squeezed(split.activation.shape, 1)
    if layer is None or split.read is None or len(tokens) != 2:
        return
    read, patches = split.read(), split.patches
    if read is None:
        return
    if reshape is None:
        first = patches.first.get(tokens[0]) if patches is not None else None
        own = range(1, tokens[0]) if first is None else range(first, first + math.prod(patches.grid))
        known = not read.isdisjoint(own)
    else:
        with jax.ensure_compile_time_eval():
            known = bool(reshape(jnp.zeros(split.activation.shape).at[..., sorted(read), :].set(1)).any())
    if not known:
        raise ValueError(
            f"layer = {layer if isinstance(layer, str) else type(layer).__name__!r}: of the {tokens[0]} tokens of its "
            f"output, what follows reads {', '.join(map(str, sorted(read)))} alone (counted from 0), such as a class "
            "token, and no patch: the score does not depend on the map. Name a layer that the last attention reads, "
            "such as the block before or the normalization inside this one"
        )


def finished(contributions: jax.Array, relu: bool, upsample: str | None, image: jax.Array) -> jax.Array:
    """Sum contributions `[H', W', D]` over features and resize the map to the image's size."""
    check_choice("upsample", upsample, (*UPSAMPLING, None))
    cam = contributions.sum(-1, keepdims=True)
    cam = jax.nn.relu(cam) if relu else cam
    return cam if upsample is None else jax.image.resize(cam, (*image.shape[:-1], 1), UPSAMPLING[upsample])
