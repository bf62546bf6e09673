"""Finding affine layers: a linear map with constant weights and the constants added and multiplied behind it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdecor.attribution.equations import SUMS
from sdecor.attribution.patterns import is_linear
from sdecor.attribution.program import Program, Step, Value

_KERNEL_LAYERS = ("conv_general_dilated", "dot_general")
_CHAIN = ("add", "add_any", "convert_element_type", "copy", "div", "mul", "neg", "sub")


class Affine(NamedTuple):
    """The steps of a layer, in order.

    Attributes:
      base: the convolution, matrix product or sum; None for a chain alone.
      chain: elementwise affine steps with constants behind it: biases, and scale and shift of a BatchNorm.
      end: the last step.
    """

    base: Step | None
    chain: tuple[Step, ...]
    end: Step

    @property
    def root(self) -> Value:
        """What enters the layer."""
        return (self.base or self.chain[0]).dependent[0]

    @property
    def has_kernel(self) -> bool:
        return self.base is not None and self.base.name in _KERNEL_LAYERS

    @property
    def adds(self) -> bool:
        """Whether the layer adds anything up, a constant included: a scale alone does not."""
        return self.base is not None or any(step.name in ("add", "add_any", "sub") for step in self.chain)

    def __call__(self, x: jax.Array) -> jax.Array:
        for step in (*((self.base,) if self.base else ()), *self.chain):
            (x,) = step(x)
        return x

    def weights(self) -> tuple[jax.Array, jax.Array, Callable[[jax.Array, jax.Array], jax.Array]]:
        """Return kernel (with all scales merged), shift and `linear(x, kernel)`: the layer is `linear + shift`."""
        place, kernel_axes, output_axes = _features(self.base)
        kernel, output = self.base.inputs[place], self.base.outputs[0]
        scale = jnp.ones([n if i in output_axes else 1 for i, n in enumerate(output.shape)])
        shift = jnp.zeros(output.shape, output.dtype)
        for step in self.chain:
            (shift,) = step(shift)
            scale = scale * _factor(step)
        sizes = [n if i in kernel_axes else 1 for i, n in enumerate(kernel.shape)]

        def linear(x: jax.Array, kernel: jax.Array) -> jax.Array:
            inputs = [kernel if i == place else given for i, given in enumerate(self.base.inputs)]
            return self.base._replace(inputs=tuple(inputs))(x)[0].astype(shift.dtype)

        return (kernel * scale.reshape(sizes)).astype(kernel.dtype), shift, linear


def affine_layer(program: Program, step: Step) -> Affine | None:
    """Return the layer that a step ends; None if it ends none."""
    chain, maker = [], step
    while maker is not None and _extends(maker):
        chain.append(maker)
        maker = program.made_by.get(maker.dependent[0])
    chain = chain[::-1]
    base = maker if maker is not None and is_linear(maker) and maker.name in (*_KERNEL_LAYERS, *SUMS) else None
    if base is not None and base.name in _KERNEL_LAYERS:
        if base.name == "conv_general_dilated" and not isinstance(base.inputs[0], Value):
            base = None
        else:
            # A factor that differs from place to place is no part of the kernel: the layer ends before it.
            apart = [i for i, step in enumerate(chain) if not _is_of_features(step, base)]
            if apart:
                base, chain = None, chain[apart[-1] + 1 :] or chain[-1:]
    return Affine(base, tuple(chain), step) if base is not None or chain else None


def _extends(step: Step) -> bool:
    fitting = step.name in _CHAIN and len(step.dependent) == 1 and step.dependent[0].shape == step.outputs[0].shape
    return fitting and is_linear(step)


def _constant(step: Step) -> Any:
    return next(x for x in step.inputs if not isinstance(x, Value))


def _is_of_features(step: Step, base: Step) -> bool:
    """Return whether a step multiplies by one number for each of the features that the kernel makes."""
    if step.name not in ("mul", "div"):
        return True
    _, _, output_axes = _features(base)
    return all(n == 1 or i in output_axes for i, n in enumerate(np.shape(_constant(step))))


def _factor(step: Step) -> Any:
    if step.name == "mul":
        return _constant(step)
    if step.name == "div":
        return 1 / _constant(step)
    return -1 if step.name == "neg" or (step.name == "sub" and isinstance(step.inputs[1], Value)) else 1


def _features(base: Step) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Return the place of the kernel among the inputs, and the axes of its features in the kernel and the output."""
    numbers = base.params["dimension_numbers"]
    if base.name == "conv_general_dilated":
        return 1, (numbers.rhs_spec[0],), (numbers.out_spec[1],)
    place = 1 if isinstance(base.inputs[0], Value) else 0
    (contracted, batch), rank = (axes[place] for axes in numbers), np.ndim(base.inputs[place])
    free = tuple(i for i in range(rank) if i not in (*contracted, *batch))
    first = len(base.outputs[0].shape) - len(free) if place else len(batch)
    return place, free, tuple(range(first, first + len(free)))
