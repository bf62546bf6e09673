"""Attention maps of transformers: rollout, gradient × attention relevance, and LeGrad.

Attention matrices are read from the function's equations: the softmaxes whose weights enter a matrix product with
values. The network needs no hooks and no change. Matrices are `[heads, queries, keys]`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdecor.attribution.cams import UPSAMPLING, Reshape
from sdecor.attribution.inputs import positions_of
from sdecor.attribution.layers import Patches, as_map, patches_in
from sdecor.attribution.targets import Target, target_score
from sdecor.core.arrays import at_least_float32
from sdecor.core.checks import check_choice
from sdecor.rules.attentions import Attention, attends_to_all, attentions, evaluated_units, residual_sums
from sdecor.rules.program import Program, Unit, Value, flatten


def attention_rollout(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    saliency_of: str = "logit",
    upsample: str | None = "bilinear",
    reshape: Reshape | None = None,
) -> jax.Array:
    """Return attention rollout: the product over blocks of `(mean_h A + I) / 2`, for the tokens that the score reads.

    These are the tokens to whose last attention the score has a gradient, such as the class token, or all tokens before
    a mean. Their rows are averaged. The map depends on the target in no other way: it is the same for all classes. An
    attention pooling at the end, of other queries, is a factor without I. Cost: one forward evaluation, and the
    backward evaluation down to the last attention.

    Args:
      fn: the network, `image [H, W, C] -> logits [K]`, a transformer whose blocks attend to all tokens. With a function
        as target it may return anything; only what the score needs of it is read.
      image: floating point, `[H, W, C]`, or another input with positions `[*positions, C]`.
      target: the class to explain, a `Contrast` of two classes, or a function of the output.
      saliency_of: score of the target: "logit", "log_probability" or "probability".
      upsample: interpolation to the image's size, "bilinear" or "nearest"; None keeps the grid of tokens.
      reshape: function from values `[T, 1]` of the last attention's tokens to a map `[H', W', 1]`. Default: the grid of
        the patch embedding, or of square patches, without class tokens and registers.

    Returns:
      Map `[H, W, 1]`, at least 0, without a unit, at least float32. The row sums to 1 before added tokens are removed.

    Raises:
      ValueError: for a function without attention, or with attention over parts of the tokens (windows, merged
        patches, channels) or a reduced number of keys.

    References:
      Abnar, Zuidema, "Quantifying Attention Flow in Transformers", https://arxiv.org/abs/2005.00928, 2020.
    """
    network = _network(fn, image, target, saliency_of)
    last = network.found[-1]
    (gradient,), matrices = _gradients_and_matrices(network, image, [last])
    dtype = at_least_float32(image.dtype)
    rollout = jnp.eye(network.tokens, dtype=dtype)
    for matrix in (matrix.astype(dtype).mean(0) for matrix in matrices):
        rollout = (matrix @ rollout + rollout) / 2 if len(matrix) == network.tokens else matrix @ rollout
    return _finished(network, _rows_read(last, gradient, dtype) @ rollout, image, upsample, reshape)


def attention_relevance(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    saliency_of: str = "logit",
    upsample: str | None = "bilinear",
    reshape: Reshape | None = None,
) -> jax.Array:
    """Return the attention relevance of Chefer et al.: `R ← R + mean_h (∂score/∂A ⊙ A)⁺ R` over blocks, from `R = I`.

    The map is the row of the tokens that the score reads, as in `attention_rollout`, which has the arguments and errors
    too; the identity is subtracted. An attention pooling at the end is a factor `mean_h (…)⁺`. Cost: one gradient.

    Returns:
      Map `[H, W, 1]`, at least 0, at least float32.

    References:
      Chefer, Gur, Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
      Transformers", https://arxiv.org/abs/2103.15679, 2021.
    """
    network = _network(fn, image, target, saliency_of)
    gradients, matrices = _gradients_and_matrices(network, image, network.found)
    dtype = at_least_float32(image.dtype)
    identity = relevance = jnp.eye(network.tokens, dtype=dtype)
    for attention, matrix, gradient in zip(network.found, matrices, gradients, strict=True):
        product = jax.nn.relu(matrix.astype(dtype) * attention.matrices(gradient).astype(dtype)).mean(0)
        relevance = product @ relevance + (relevance if len(product) == network.tokens else 0)
    relevance = relevance - identity if len(relevance) == network.tokens else relevance
    return _finished(network, _rows_read(network.found[-1], gradients[-1], dtype) @ relevance, image, upsample, reshape)


def legrad(
    fn: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    target: Target,
    *,
    saliency_of: str = "logit",
    upsample: str | None = "bilinear",
    reshape: Reshape | None = None,
) -> jax.Array:
    """Return LeGrad: the mean over blocks, heads and queries of `(∂s_l/∂A_l)⁺`, A_l the attention of block l.

    The score `s_l` is that of the network's own head on the tokens behind block l. Blocks are found by their residual
    sums: the head is what follows the last one. An attention pooling belongs to the head. See `attention_rollout` for
    the arguments and further errors. Cost: one gradient, and one evaluation of the head per block.

    Returns:
      Map `[H, W, 1]` in score units, at least 0, at least float32.

    Raises:
      ValueError: also for a transformer without residual sums behind each attention.

    References:
      Bousselham et al., "LeGrad: An Explainability Method for Vision Transformers via Feature Formation Sensitivity",
      https://arxiv.org/abs/2404.03214, 2024.
    """
    network = _network(fn, image, target, saliency_of)
    blocks = [attention for attention in network.found if attention.shape[0] == network.tokens]
    ends = _ends(network, blocks)
    last = 1 + next(i for i, unit in enumerate(network.units) if ends[-1] in unit.outputs)

    def head(tokens: jax.Array) -> jax.Array:
        return network.score(_run(network.units[last:], {ends[-1]: tokens}, {}))

    def score(changes: Sequence[jax.Array]) -> jax.Array:
        """Return the sum of the blocks' scores; a block's tokens are constants for the next block."""
        values = _run(network.units[:last], {network.input: image}, _by_weights(blocks, changes), ends)
        return jax.vmap(head)(jnp.stack([values[_Kept(end)] for end in ends])).sum()

    gradients = jax.grad(score)(_zeros(blocks))
    pairs = zip(blocks, gradients, strict=True)
    dtype = at_least_float32(image.dtype)
    of_keys = [jax.nn.relu(attention.matrices(gradient).astype(dtype)).mean((0, 1)) for attention, gradient in pairs]
    return _finished(network, sum(of_keys) / len(of_keys), image, upsample, reshape)


class _Network(NamedTuple):
    """A function as a program, with its attentions.

    Attributes:
      program: the function, `image -> score`.
      units: the steps that the score needs.
      found: the attentions in order; all of `tokens` queries and keys, except for a pooling at the end.
      tokens: the number of keys.
      patches: the grid of the patch embedding, if it is a convolution.
    """

    program: Program
    units: list[Unit]
    found: list[Attention]
    tokens: int
    patches: Patches | None

    @property
    def input(self) -> Value:
        return self.program.inputs[0]

    def score(self, values: Mapping[Any, Any]) -> jax.Array:
        return values[self.program.outputs[0]]


class _Kept(NamedTuple):
    """The key of a value through which gradients still pass, beside the constant that later steps use."""

    value: Value


def _network(fn: Callable[[jax.Array], Any], image: jax.Array, target: Target, saliency_of: str) -> _Network:
    """Return a score's program and attentions; raise ValueError unless they are over all tokens."""
    positions_of(image, "an attention map")
    program = flatten(lambda x: target_score(fn(x), target, saliency_of=saliency_of), image, enter_custom=True)
    units = evaluated_units(program)
    found = attentions(program, units)
    if not found:
        raise ValueError(
            "the function has no attention: no softmax whose weights enter a matrix product with values that depend on "
            "the image. Attention inside a fused kernel cannot be read (jax.nn.dot_product_attention with "
            "implementation='xla' can). For other networks, use a class activation map, such as 'grad_cam'"
        )
    tokens, sums = found[0].shape[1], residual_sums(program, units)
    for attention in found:
        queries, keys = attention.shape
        stream = next((value for value in sums if value.number > attention.mixed.number), None)
        is_pooling = attention is found[-1] and queries < keys == tokens
        if not (is_pooling or (queries == keys == tokens and attends_to_all(attention, stream))):
            place = f"in {attention.scope!r}" if attention.scope else "outside of any named scope"
            raise ValueError(
                f"the attention {place} has {queries} queries and {keys} keys, and the first one has {found[0].shape}: "
                "attention maps need attention over all tokens in each block, not over windows, merged patches, "
                "channels or a reduced number of keys. Use a class activation map, such as 'grad_cam', or 'lrp'"
            )
    return _Network(program, units, found, tokens, patches_in(fn, image))


def _run(
    units: Sequence[Unit], values: dict[Any, Any], added: Mapping[Value, jax.Array], ends: Sequence[Value] = ()
) -> dict[Any, Any]:
    """Return the values that `units` compute from `values`, with changes added to some.

    The values `ends` are kept under `_Kept`, and are constants in the units after them.
    """
    values = dict(values)
    for unit in units:
        made = unit.apply(*(values[operand] for operand in unit.operands))
        for output, value in zip(unit.outputs, made, strict=True):
            value = value + added[output] if output in added else value
            if output in ends:
                values[_Kept(output)], value = value, jax.lax.stop_gradient(value)
            values[output] = value
    return values


def _gradients_and_matrices(
    network: _Network, image: jax.Array, wanted: Sequence[Attention]
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Return the score's gradient by the weights of the wanted attentions, and the matrices of all attentions."""

    def score(changes: Sequence[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        values = _run(network.units, {network.input: image}, _by_weights(wanted, changes))
        matrices = [attention.matrices(values[attention.weights]) for attention in network.found]
        return network.score(values), matrices

    return jax.grad(score, has_aux=True)(_zeros(wanted))


def _zeros(found: Sequence[Attention]) -> list[jax.Array]:
    return [jnp.zeros(attention.weights.shape, attention.weights.dtype) for attention in found]


def _by_weights(found: Sequence[Attention], changes: Sequence[jax.Array]) -> dict[Value, jax.Array]:
    return {attention.weights: change for attention, change in zip(found, changes, strict=True)}


def _ends(network: _Network, blocks: Sequence[Attention]) -> list[Value]:
    """Return the tokens behind each block: the last residual sum before the next block, or before the head."""
    if not blocks:
        raise ValueError(
            "legrad explains blocks of self-attention, and there is only a pooling: use 'attention_relevance'"
        )
    sums = residual_sums(network.program, network.units)
    ends = []
    for i, attention in enumerate(blocks):
        next_block = blocks[i + 1].mixed.number if i + 1 < len(blocks) else float("inf")
        behind = [value for value in sums if attention.mixed.number < value.number < next_block]
        behind = [value for value in behind if value.shape == (ends[0] if ends else behind[0]).shape]
        if not behind:
            place = f"in {attention.scope!r}" if attention.scope else f"number {i + 1}"
            raise ValueError(
                f"legrad explains the tokens behind each block, and no residual sum follows the attention {place}: use "
                "'attention_relevance'"
            )
        ends.append(behind[-1])
    return ends


def _rows_read(last: Attention, gradient: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Return weights `[queries]` of the tokens that the score reads, which sum to 1; all tokens if there are none."""
    read = (last.matrices(gradient) != 0).any((0, 2))
    read = (read | ~read.any()).astype(dtype)
    return read / read.sum()


def _finished(
    network: _Network, of_keys: jax.Array, image: jax.Array, upsample: str | None, reshape: Reshape | None
) -> jax.Array:
    """Return values of the tokens as a map, resized to the image's size."""
    check_choice("upsample", upsample, (*UPSAMPLING, None))
    values = of_keys[:, None]
    if reshape is not None:
        found = reshape(values)
        if found.ndim != image.ndim:
            raise ValueError(f"reshape returned shape {found.shape}: it must return a map [H', W', 1]")
    elif network.patches is not None and network.tokens not in network.patches.first:
        grid = "×".join(map(str, network.patches.grid))
        raise ValueError(
            f"the attention is over {network.tokens} tokens, not over the {grid} positions of the last convolution and "
            "tokens added to them: patches may have been merged, or divided into windows. Pass reshape, a function "
            "from values [T, 1] to a map [H', W', 1]"
        )
    elif network.patches is None and image.ndim == 2 and network.tokens != len(image):
        raise ValueError(
            f"the attention is over {network.tokens} tokens, and the input has {len(image)} positions: pass reshape, a "
            "function from values [T, 1] to the positions [T', 1]"
        )
    else:
        found = as_map(values, image.shape, network.patches)
    return found if upsample is None else jax.image.resize(found, (*image.shape[:-1], 1), upsample)
