"""How DeepLIFT passes differences back through a softmax and its logarithm's normaliser, each as a whole."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sdecor.attribution.program import Program, Step, Unit, Value
from sdecor.attribution.surrogates import linearised

RESHAPING = ("broadcast_in_dim", "expand_dims", "reshape", "squeeze")


class Pair(NamedTuple):
    """A value of the network for the image and for the baseline."""

    image: jax.Array
    baseline: jax.Array


def softmax_in(program: Program, step: Step) -> Unit | None:
    """The rule of `exp(u) / Σ exp(u)`, which a step may complete.

    With `p = exp(u − L)` and `ℓ` the logarithmic mean of `p` at both ends, `Δp_i = ℓ_i (Δu_i − ΔL)`; since `Σ Δp = 0`,
    `ΔL = Σ ℓ_j Δu_j / Σ ℓ_j`. The multipliers are bounded by 1, and a shift of all `u` contributes nothing.
    """
    if step.name != "div" or len(step.dependent) != 2:
        return None
    u, total = _exponent(program, step.inputs[0]), _total(program, step.inputs[1], RESHAPING)
    if u is None or total is None or _exponent(program, total.inputs[0]) != u:
        return None
    axes = total.params["axes"]
    if step.inputs[1].shape != tuple(1 if i in axes else n for i, n in enumerate(u.shape)):
        return None

    def apply(x: Pair) -> list[Pair]:
        fixed = lax.stop_gradient(x.image)
        weights = _logarithmic_mean(fixed, x.baseline, axes)
        centred = x.image - (weights * x.image).sum(axes, keepdims=True) / weights.sum(axes, keepdims=True)
        return [Pair(linearised(jax.nn.softmax(fixed, axes), (weights,), (centred,)), jax.nn.softmax(x.baseline, axes))]

    return Unit((u,), step.outputs, apply)


def logsumexp_in(program: Program, step: Step) -> Unit | None:
    """The rule of `L = log Σ exp(u)`: `ΔL = Σ ℓ_j Δu_j / Σ ℓ_j`, as in the softmax."""
    total = _total(program, step.inputs[0], (*RESHAPING, "abs")) if step.name == "log" else None
    u = None if total is None else _exponent(program, total.inputs[0])
    if u is None or math.prod(total.outputs[0].shape) != math.prod(step.outputs[0].shape):
        return None
    axes, shape = total.params["axes"], step.outputs[0].shape

    def apply(x: Pair) -> list[Pair]:
        fixed = lax.stop_gradient(x.image)
        weights = _logarithmic_mean(fixed, x.baseline, axes)
        mean = (weights * x.image).sum(axes) / weights.sum(axes)
        value = linearised(jax.nn.logsumexp(fixed, axes), (jnp.ones_like(mean),), (mean,))
        return [Pair(value.reshape(shape), jax.nn.logsumexp(x.baseline, axes).reshape(shape))]

    return Unit((u,), step.outputs, apply)


def _exponent(program: Program, value: Value) -> Value | None:
    made = program.made_by.get(value)
    return made.dependent[0] if made is not None and made.name == "exp" else None


def _total(program: Program, value: Value, passing: tuple[str, ...]) -> Step | None:
    """Return the sum behind a value, however it has been reshaped."""
    made = program.made_by.get(value)
    while made is not None and made.name in passing:
        made = program.made_by.get(made.dependent[0])
    return made if made is not None and made.name == "reduce_sum" else None


def _logarithmic_mean(u: jax.Array, start: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Return `(p − p₀) / (log p − log p₀)` of the softmax at both ends."""
    high, low = (x - jax.nn.logsumexp(x, axes, keepdims=True) for x in (u, start))
    high, low = jnp.maximum(high, low), jnp.minimum(high, low)
    gap = jnp.where(jnp.isfinite(high), high - low, 0)
    return jnp.exp(high) * jnp.where(gap > 0, -jnp.expm1(-gap) / jnp.where(gap > 0, gap, 1), 1)
