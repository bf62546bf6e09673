"""Recognition of attention in a program: a softmax whose weights enter a matrix product with values."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sdecor.rules.program import Program, Unit, Value, plain, plan
from sdecor.rules.softmaxes import arranged, softmax_weights


class Attention(NamedTuple):
    """The weights of an attention, as they enter the product with the values.

    Attributes:
      weights: the factor of the product.
      heads, query, key: axes of `weights`; there may be any number of heads' axes, and no axis of a single query.
      mixed: the product.
      scope: the named scope of the product.
    """

    weights: Value
    heads: tuple[int, ...]
    query: int | None
    key: int
    mixed: Value
    scope: str

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of queries and keys."""
        return 1 if self.query is None else self.weights.shape[self.query], self.weights.shape[self.key]

    def matrices(self, weights: jax.Array) -> jax.Array:
        """Return the weights, or their gradient, as `[heads, queries, keys]`."""
        query = () if self.query is None else (self.query,)
        return jnp.transpose(weights, (*self.heads, *query, self.key)).reshape(-1, *self.shape)


def attentions(program: Program, units: list[Unit]) -> list[Attention]:
    """Return the attentions among the steps that `units` evaluate, in order.

    Raises:
      ValueError: for an attention with several axes that may be the queries'.
    """
    outputs = {softmax.output for softmax in softmax_weights(program)}
    found = []
    for unit in units:
        step = program.made_by[unit.outputs[0]]
        if step.name != "dot_general" or len(step.dependent) != 2:
            continue
        places = [i for i in (0, 1) if arranged(program, step.inputs[i]) in outputs]
        if len(places) != 1 or len(step.params["dimension_numbers"][0][places[0]]) != 1:
            continue
        weights = step.inputs[places[0]]
        (key,), batch = (axes[places[0]] for axes in step.params["dimension_numbers"])
        free = [i for i, n in enumerate(weights.shape) if n > 1 and i not in (key, *batch)]
        if len(free) > 1:  # heads that share their values are no axes of a batch
            free = [i for i in free if weights.shape[i] == weights.shape[key]] or free
        if len(free) > 1:
            place = f"in {step.scope!r}" if step.scope else "outside of any named scope"
            raise ValueError(
                f"an attention {place} has weights of shape {weights.shape}, and more than one of its axes may be the "
                "queries: write the attention over tokens in one axis"
            )
        query = free[0] if free else None
        heads = tuple(i for i in range(len(weights.shape)) if i not in (query, key))
        found.append(Attention(weights, heads, query, int(key), step.outputs[0], step.scope))
    return found


def attends_to_all(attention: Attention, stream: Value | None) -> bool:
    """Return whether the queries are all positions of `stream`, the sum that follows; True where it is unknown."""
    if stream is None:
        return True
    queries, sides = attention.shape[0], [n for n in stream.shape if n > 1]
    if len(sides) == 2:  # tokens and features; with more axes, features are any of them
        return queries == sides[0]
    size = math.prod(sides)
    return size % queries == 0 and size // queries in sides


def residual_sums(program: Program, units: list[Unit]) -> list[Value]:
    """Return the sums of two values through which every path from the input to the outputs passes, in order.

    In a transformer they are the tokens behind each attention and each perceptron.
    """
    least, found = math.inf, []
    for unit in reversed(units):
        step = program.made_by[unit.outputs[0]]
        (value, *others) = unit.outputs
        if not others and value.number <= least and step.name in ("add", "add_any") and len(step.dependent) == 2:
            found.append(value)
        least = min([least, *(operand.number for operand in unit.operands)])
    return found[::-1]


def evaluated_units(program: Program) -> list[Unit]:
    """Return the steps that the outputs need, as units."""
    return plan(program, plain)
